"""A linear layer, its activation and a loss, computed at listed (row, column) positions only.

The decoder of an autoencoder has a value for every item, the loss looks at the observed or sampled ones. Prediction,
loss and the gradient of the hidden rows come out of one pass over the listed positions; the gradient of the weights is
that of `embedding_bag` over the same positions: by column, deterministic, sparse, dense, or taken by the optimizer's
step in the backward pass. Nothing has the size of [B, N].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels import _library
from deeprec.kernels._autograd import (
    Refusal,
    differentiable,
    gradient_of,
    is_transformed,
    recall,
    refuse_update,
    remember,
    sparse_rows,
    step_refusal,
)
from deeprec.kernels._checks import check_rows, require
from deeprec.kernels._errors import translate
from deeprec.kernels.embedding import coalesced_grad
from deeprec.kernels.embedding_bag import BagPlan, GradStep, RowUpdate, mark_changed
from deeprec.kernels.embedding_bag.composite import bag_of_entries
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.plan_check import PlanFacts, remember_source, require_plan
from deeprec.kernels.sampled_linear_loss.checks import SampledArguments
from deeprec.kernels.sampled_linear_loss.reference import entry_losses, sampled_linear_loss_reference

__all__ = ["ACTIVATIONS", "LOSSES", "csr_plan", "sampled_linear_loss"]

ACTIVATIONS = ("identity", "sigmoid", "tanh")
LOSSES = ("squared", "cross_entropy", "logistic", "hinge")
_ops = torch.ops.deeprec


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = SampledArguments(*args)
    hidden, nnz = given.hidden, given.indices.shape[0]
    wide = wide_dtype(hidden.dtype)
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty(nnz, dtype=wide),
        hidden.new_empty(nnz, dtype=wide),
        torch.empty_like(hidden, memory_format=torch.contiguous_format) if given.need_grad else hidden.new_empty(0),
    )


_library.define(
    "sampled_linear_loss(Tensor hidden, Tensor weight, Tensor? bias, Tensor indptr, Tensor indices, Tensor targets, "
    "Tensor? entry_weights, int activation, int loss, bool need_grad) -> (Tensor, Tensor, Tensor, Tensor)",
    sampled_linear_loss_reference,
    _fake,
)
_library.implement_triton("sampled_linear_loss", ("sampled_linear_loss",))


def csr_plan(indptr: Tensor, indices: Tensor, num_columns: int) -> BagPlan:
    """The positions of a CSR matrix grouped by column: what the gradient of a decoder or an encoder goes by.

    Args:
        indptr: [B + 1]; indices: [nnz] columns, both int32 or both int64.
        num_columns: N.
    Returns:
        The `BagPlan` that `sparse_linear` and `sampled_linear_loss` take, so that both layers of an autoencoder, and
        every epoch of full-batch training, share one.
    Raises:
        IndexError: a column is out of range.
        TypeError, ValueError: as the message says.
    """
    if torch.compiler.is_compiling():
        return plan_of(indptr, indices, num_columns, None)
    try:
        plan = plan_of(indptr, indices, num_columns, None)
    except (RuntimeError, IndexError, TypeError, ValueError):
        require(indptr.dim() == 1 and indptr.numel() > 0, "csr_plan", "indptr must be [B + 1]", indptr)
        require(num_columns >= 0, "csr_plan", "num_columns must be >= 0", num_columns)
        check_rows("csr_plan", indptr, indices, indptr.numel() - 1, num_columns)
        raise
    remember_source(plan, indices, indptr, _facts(num_columns))
    return plan


class _Options(NamedTuple):
    """What a call knows beside its tensors.

    Attributes:
        step: (update, update of the bias), each a RowUpdate or a GradStep; None: gradients instead.
    """

    activation: int
    loss: int
    sparse_grad: bool
    step: tuple[RowUpdate | GradStep, RowUpdate | GradStep | None] | None


# Arguments of the bag operators for one table, pooled by sum, without padding.
ONE_TABLE = ([0], [0], [-1])


def plan_of(indptr: Tensor, indices: Tensor, num_columns: int, plan: BagPlan | None) -> BagPlan:
    """The plan that was given, or a new one."""
    if plan is None:
        return BagPlan(*_ops.embedding_bags_plan(indices, indptr, [num_columns], [0], [-1]))
    return plan


def _facts(num_columns: int) -> PlanFacts:
    return PlanFacts((num_columns,), (0,), (-1,))


def require_csr_plan(
    function: str, plan: BagPlan | None, indptr: Tensor, indices: Tensor, num_columns: int, name: str = "plan"
) -> None:
    """`require_plan` for what `csr_plan` returns; None is fine.

    Raises:
        ValueError, TypeError: as `require_plan`.
    """
    if plan is not None:
        require_plan(function, "csr_plan", plan, indices, indptr, _facts(num_columns), name=name)


def has_sparse_grad(sparse_grad: bool, update: RowUpdate | GradStep | None, *weights: Tensor) -> bool:
    """Whether a call trains weights by their touched rows, which a graph of torch.compile does not take."""
    return torch.is_grad_enabled() and (update is not None or (sparse_grad and any(w.requires_grad for w in weights)))


def column_grads(
    weight: Tensor,
    grad: Tensor,
    values: Tensor,
    positions: tuple[Tensor, Tensor],
    plan: BagPlan,
    need_values_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """sum over the entries p of a column of values[p] grad[row of p], [U, H]; and weight[column] . grad[row], [nnz]."""
    indptr, indices = positions
    of_columns, values_grad = _ops.embedding_bags_grad(
        [weight], grad, [], indices[:0], indices, indptr, values, *plan, *ONE_TABLE, need_values_grad
    )
    return of_columns, values_grad


def dense_column_grads(
    weight: Tensor, grad: Tensor, values: Tensor, positions: tuple[Tensor, Tensor], need_values_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """As `column_grads`, of all columns: [N, H]."""
    indptr, indices = positions
    of_columns, values_grad = _ops.embedding_bags_dense_grad(
        [weight], grad, [], indices[:0], indices, indptr, values, *ONE_TABLE, need_values_grad
    )
    return of_columns, values_grad


def take_step(
    weight: Tensor,
    update: RowUpdate | GradStep,
    grad: Tensor,
    values: Tensor,
    positions: tuple[Tensor, Tensor],
    plan: BagPlan,
    need_values_grad: bool = False,
) -> Tensor:
    """The optimizer's step on `weight` with the gradient of `column_grads`; returns that of values."""
    indptr, indices = positions
    if not isinstance(update, RowUpdate):
        of_columns, of_values = column_grads(weight, grad, values, positions, plan, need_values_grad)
        update([plan.rows], [of_columns])
        return of_values
    values_grad: Tensor = _ops.embedding_bags_update_(
        [weight],
        update.first,
        update.second,
        grad,
        [],
        indices[:0],
        indices,
        indptr,
        values,
        *plan,
        *ONE_TABLE,
        need_values_grad,
        update.rule,
        update.lr,
        update.step,
        update.options,
        update.max_norm,
        update.seed,
    )
    mark_changed([weight])
    return values_grad


def sampled_linear_loss_composite(*args: Any) -> tuple[Tensor, Tensor]:
    """Loss and predictions in PyTorch's own operators.

    Args:
        args: the fields of `SampledArguments` without need_grad.
    """
    hidden, weight, bias, indptr, indices, targets, entry_weights, activation, loss, _ = SampledArguments(*args)
    wide = wide_dtype(hidden.dtype)
    rows = bag_of_entries(indptr, indices.shape[0])
    z = (F.embedding(rows, hidden).to(wide) * F.embedding(indices, weight).to(wide)).sum(1)
    if bias is not None:
        z = z + F.embedding(indices, bias.unsqueeze(1)).squeeze(1).to(wide)
    losses, predictions, _ = entry_losses(z, targets, activation, loss)
    if entry_weights is not None:
        losses = losses * entry_weights
    return losses.sum(dtype=torch.float64).to(wide), predictions.detach()


def _again(ctx: Any, grad: Tensor, of_predictions: Any) -> tuple[Tensor | None, ...] | Refusal:
    options = ctx.options
    if options.step is not None:
        return step_refusal("sampled_linear_loss", ctx.remembered[0])
    inputs = recall(ctx, "sampled_linear_loss")

    def composite(*inputs: Any) -> tuple[Tensor, ...]:
        return sampled_linear_loss_composite(*inputs[:7], options.activation, options.loss)[:1]

    grads_again = gradient_of(ctx, (grad,), composite, (*inputs, None, None))
    if options.sparse_grad and grads_again[1] is not None:
        _, weight, _, indptr, indices, *_ = inputs
        grads_again[1] = sparse_rows(grads_again[1], plan_of(indptr, indices, weight.shape[0], ctx.plan).rows)
    return tuple(grads_again)


class _SampledLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        """The tensors of `SampledArguments`, then _Options and a BagPlan or None."""
        *tensors, options, plan = arguments
        hidden, weight, bias, indptr, indices, _, _ = tensors
        total, predictions, slopes, hidden_grad = _ops.sampled_linear_loss(
            *tensors, options.activation, options.loss, True
        )
        ctx.options, ctx.plan = options, plan
        ctx.save_for_backward(hidden, indptr, indices, slopes, hidden_grad)
        ctx.weight, ctx.bias = weight, bias
        remember(ctx, *tensors)
        ctx.mark_non_differentiable(predictions)
        return total, predictions

    @staticmethod
    @differentiable(_again)
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        hidden, indptr, indices, slopes, hidden_grad = ctx.saved_tensors
        weight, bias, options = ctx.weight, ctx.bias, ctx.options
        slopes = (slopes * grad).to(hidden.dtype)
        plan = plan_of(indptr, indices, weight.shape[0], ctx.plan)
        positions = (indptr, indices)
        d_hidden = hidden_grad * grad.to(hidden.dtype) if ctx.needs_input_grad[0] else None
        d_weight = d_bias = None
        column = None if bias is None else bias.reshape(-1, 1)
        ones = hidden.new_ones(()).expand(hidden.shape[0], 1)
        if options.step is not None:
            take_step(weight, options.step[0], hidden, slopes, positions, plan)
            if column is not None and options.step[1] is not None:
                take_step(column, options.step[1], ones, slopes, positions, plan)
            return (d_hidden, *([None] * 8))
        if ctx.needs_input_grad[1]:
            if options.sparse_grad:
                of_columns, _ = column_grads(weight, hidden, slopes, positions, plan)
                d_weight = coalesced_grad(plan.rows.long().unsqueeze(0), of_columns, weight.shape[0])
            else:
                d_weight, _ = dense_column_grads(weight, hidden, slopes, positions)
        if column is not None and ctx.needs_input_grad[2]:
            of_columns, _ = column_grads(column, ones, slopes, positions, plan)
            d_bias = bias.new_zeros(bias.numel()).index_copy_(0, plan.rows.long(), of_columns.squeeze(1)).view_as(bias)
        return (d_hidden, d_weight, d_bias, *([None] * 6))


# The name by which mypy, which knows no types of torch.autograd.Function, sees it.
_apply: Callable[..., tuple[Tensor, Tensor]] = _SampledLinearLoss.apply
_outside_graph: Callable[..., tuple[Tensor, Tensor]] = torch.compiler.disable(
    lambda *args, **options: sampled_linear_loss(*args, **options),
    reason="sampled_linear_loss: sparse gradients and update do not pass torch.compile; use sparse_grad=False",
)


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indptr: Tensor,
    indices: Tensor,
    values: dict[str, Tensor | None],
) -> None:
    function = "sampled_linear_loss"
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(
            f"{function}: hidden must be [B, H] and weight [N, H] of one dtype, got {tuple(hidden.shape)} in "
            f"{hidden.dtype} and {tuple(weight.shape)} in {weight.dtype}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(
            f"{function}: bias must be [{weight.shape[0]}] in {weight.dtype}, got {tuple(bias.shape)} in {bias.dtype}"
        )
    if indptr.dtype != indices.dtype or indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"{function}: indptr and indices must both be int32 or both int64, got {indptr.dtype} and {indices.dtype}"
        )
    if indices.dim() != 1 or indptr.shape != (hidden.shape[0] + 1,):
        raise ValueError(
            f"{function}: indptr must be [{hidden.shape[0] + 1}] and indices [nnz], got {tuple(indptr.shape)} and "
            f"{tuple(indices.shape)}"
        )
    wide = wide_dtype(hidden.dtype)
    for name, given in values.items():
        if given is not None and (given.shape != indices.shape or given.dtype != wide):
            raise ValueError(
                f"{function}: {name} must be {tuple(indices.shape)} in {wide}, got {tuple(given.shape)} in "
                f"{given.dtype}"
            )


def sampled_linear_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indptr: Tensor,
    indices: Tensor,
    targets: Tensor,
    *,
    entry_weights: Tensor | None = None,
    activation: str = "identity",
    loss: str = "squared",
    sparse_grad: bool = True,
    plan: BagPlan | None = None,
    update: RowUpdate | GradStep | None = None,
    update_bias: RowUpdate | GradStep | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of a linear layer at listed positions: row b, columns j = indices[p] for indptr[b] <= p < indptr[b + 1].

        z_p = hidden[b] . weight[j] + bias[j],  a_p = activation(z_p)
        loss = sum_p c_p l(a_p, y_p)                                                    c: entry_weights, or 1

        squared        (a - y)^2
        cross_entropy  -y log a - (1 - y) log(1 - a), from z; activation "sigmoid"
        logistic       log(1 + exp(-y a)), y is -1 or 1
        hinge          max(0, 1 - y a)

    The loss has a gradient for hidden, weight and bias; the predictions have none. The loss is
    differentiable any number of times, forwards and through torch.func as `embedding` is, but for the step. The
    gradient of weight is coalesced `torch.sparse_coo`, dense with sparse_grad=False; with `update` the optimizer's step
    on weight (and by update_bias on bias) is taken in the backward pass and they get no gradient. Under `torch.compile`
    a training call with either of the sparse ones runs outside the graph (an error with fullgraph=True).

    Args:
        hidden: [B, H]; weight: [N, H]; bias: [N] or None; one dtype: float32, float64, bfloat16 or float16.
        indptr: [B + 1], ascending from 0 to nnz; indices: [nnz] columns in [0, N); both int32 or both int64.
            A column may be listed more than once in a row, and rows may be empty.
        targets: [nnz], float32 (float64 beside float64).
        entry_weights: [nnz], dtype of targets: alpha and beta of CFN, confidences; default 1.
        activation: "identity", "sigmoid" or "tanh".
        loss: as above.
        sparse_grad: sparse gradient of weight; dense otherwise.
        plan: `csr_plan(indptr, indices, N)`, where several calls share it; made in the backward pass otherwise.
        update, update_bias: as `update` of `embedding_bags`; the states are those of weight [N, H] and of bias as a
            table [N, 1].
    Returns:
        loss [] and predictions a [nnz], float32 (float64 beside float64).
    Raises:
        IndexError: a column is out of range.
        TypeError, ValueError: as the message says.
    Reference: Sedhain et al. 2015 (AutoRec), eq. 1 and 2; Strub et al. 2016 (arXiv 1606.07659), eq. 6; Wu et al. 2016
        (CDAE), section 3.
    """
    if activation not in ACTIVATIONS or loss not in LOSSES:
        raise ValueError(
            f"sampled_linear_loss: activation must be one of {', '.join(ACTIVATIONS)} and loss one of "
            f"{', '.join(LOSSES)}, got {activation!r} and {loss!r}"
        )
    if loss == "cross_entropy" and activation != "sigmoid":
        raise ValueError(f"sampled_linear_loss: loss 'cross_entropy' needs activation 'sigmoid', got {activation!r}")
    _check(hidden, weight, bias, indptr, indices, {"targets": targets, "entry_weights": entry_weights})
    if is_transformed():
        if update is not None and torch.is_grad_enabled():
            refuse_update("sampled_linear_loss")
        kinds = (ACTIVATIONS.index(activation), LOSSES.index(loss))
        return sampled_linear_loss_composite(hidden, weight, bias, indptr, indices, targets, entry_weights, *kinds)
    if torch.compiler.is_compiling() and has_sparse_grad(sparse_grad, update, weight):
        how: dict[str, Any] = {"activation": activation, "loss": loss, "sparse_grad": sparse_grad, "plan": plan}
        how |= {"entry_weights": entry_weights, "update": update, "update_bias": update_bias}
        return _outside_graph(hidden, weight, bias, indptr, indices, targets, **how)
    step = None if update is None or not torch.is_grad_enabled() else (update, update_bias)
    options = _Options(ACTIVATIONS.index(activation), LOSSES.index(loss), sparse_grad, step)
    inputs = (hidden, weight, bias, indptr, indices, targets, entry_weights)
    try:
        if torch.is_grad_enabled() and (step or any(t is not None and t.requires_grad for t in inputs[:3])):
            require_csr_plan("sampled_linear_loss", plan, indptr, indices, weight.shape[0])
            if step is not None:
                if not hidden.requires_grad:
                    hidden = hidden.detach().requires_grad_()  # so that the backward pass comes by
                inputs = (hidden, weight.detach(), None if bias is None else bias.detach(), *inputs[3:])
            return _apply(*inputs, options, plan)
        total, predictions, _, _ = _ops.sampled_linear_loss(*inputs, options.activation, options.loss, False)
    except (RuntimeError, IndexError) as error:
        raise (translate(error) if isinstance(error, RuntimeError) else error) from None
    return total, predictions
