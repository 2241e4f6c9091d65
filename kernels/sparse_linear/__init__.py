"""A linear layer over the rows of a sparse matrix: the encoder of an autoencoder on observed entries.

The gradient of the weights is that of `embedding_bag` with the entries as per-sample weights, and comes from its
kernels: by column, deterministic, sparse, dense, or taken by the optimizer's step in the backward pass.
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
from deeprec.kernels._errors import translate
from deeprec.kernels.embedding import coalesced_grad
from deeprec.kernels.embedding_bag import BagPlan, GradStep, RowUpdate
from deeprec.kernels.embedding_bag.composite import bag_of_entries
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sampled_linear_loss import (
    ACTIVATIONS,
    column_grads,
    dense_column_grads,
    has_sparse_grad,
    plan_of,
    require_csr_plan,
    take_step,
)
from deeprec.kernels.sampled_linear_loss.reference import activate
from deeprec.kernels.sparse_linear.reference import sparse_linear_reference
from deeprec.kernels.sums import sum_rows

__all__ = ["sparse_linear"]

_ops = torch.ops.deeprec


def _fake(
    indptr: Tensor, indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None, activation: int
) -> Tensor:
    return weight.new_empty(indptr.shape[0] - 1, weight.shape[1])


_library.define(
    "sparse_linear(Tensor indptr, Tensor indices, Tensor values, Tensor weight, Tensor? bias, int activation) "
    "-> Tensor",
    sparse_linear_reference,
    _fake,
)
_library.implement_triton("sparse_linear", ("sparse_linear",))


class _Options(NamedTuple):
    """What a call knows beside its tensors."""

    activation: int
    sparse_grad: bool
    update: RowUpdate | GradStep | None
    plan: BagPlan | None


def sparse_linear_composite(
    indptr: Tensor, indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None, activation: int
) -> Tensor:
    """activation(X weight + bias) in PyTorch's own operators."""
    wide = wide_dtype(weight.dtype)
    rows = F.embedding(indices, weight).to(wide) * values.to(wide).unsqueeze(1)
    sums = sum_rows(rows, bag_of_entries(indptr, indices.shape[0]), indptr.shape[0] - 1)
    return activate(sums if bias is None else sums + bias.to(wide), activation)[0].to(weight.dtype)


def _again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...] | Refusal:
    options = ctx.options
    if options.update is not None:
        _, _, values, _, bias = ctx.remembered
        return step_refusal("sparse_linear", values, bias)
    inputs = recall(ctx, "sparse_linear")
    indptr, indices, _, weight, _ = inputs

    def composite(_: Any, *inputs: Any) -> list[Tensor]:
        given: tuple[Any, ...] = (*inputs[:5], options.activation)
        return [sparse_linear_composite(*given)]

    grads_again = gradient_of(ctx, (grad,), composite, (None, *inputs, None))
    if options.sparse_grad and grads_again[4] is not None:
        grads_again[4] = sparse_rows(grads_again[4], plan_of(indptr, indices, weight.shape[0], options.plan).rows)
    return tuple(grads_again)


class _SparseLinear(torch.autograd.Function):
    """`trigger` requires a gradient where the step is taken in the backward pass, so that it comes by."""

    @staticmethod
    def forward(
        ctx: Any,
        trigger: Tensor | None,
        indptr: Tensor,
        indices: Tensor,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        options: _Options,
    ) -> Tensor:
        out: Tensor = _ops.sparse_linear(indptr, indices, values, weight, bias, options.activation)
        ctx.options, ctx.weight = options, weight
        remember(ctx, indptr, indices, values, weight, bias)
        # The gradient of values reads the weight again: saved, so that a change is an error.
        reads_again = (weight,) if values.requires_grad else ()
        ctx.save_for_backward(indptr, indices, values, out, *reads_again)
        return out

    @staticmethod
    @differentiable(_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        indptr, indices, values, out, *_ = ctx.saved_tensors
        weight, options, needed = ctx.weight, ctx.options, ctx.needs_input_grad
        positions = (indptr, indices)
        if options.activation == 1:
            grad = torch.ops.aten.sigmoid_backward(grad, out)
        elif options.activation == 2:
            grad = torch.ops.aten.tanh_backward(grad, out)
        d_bias = grad.sum(0) if needed[5] else None
        d_weight = d_values = None
        if options.update is not None:
            plan = plan_of(indptr, indices, weight.shape[0], options.plan)
            d_values = take_step(weight, options.update, grad, values, positions, plan, needed[3])
        elif not options.sparse_grad:
            d_weight, d_values = dense_column_grads(weight, grad, values, positions, needed[3])
        elif needed[3] or needed[4]:
            plan = plan_of(indptr, indices, weight.shape[0], options.plan)
            of_columns, d_values = column_grads(weight, grad, values, positions, plan, needed[3])
            d_weight = coalesced_grad(plan.rows.long().unsqueeze(0), of_columns, weight.shape[0]) if needed[4] else None
        return None, None, None, d_values if needed[3] else None, d_weight, d_bias, None


# The name by which mypy, which knows no types of torch.autograd.Function, sees it.
_apply: Callable[..., Tensor] = _SparseLinear.apply
_outside_graph: Callable[..., Tensor] = torch.compiler.disable(
    lambda *args, **options: sparse_linear(*args, **options),
    reason="sparse_linear: sparse gradients and update do not pass torch.compile; use sparse_grad=False",
)


def sparse_linear(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "identity",
    sparse_grad: bool = True,
    plan: BagPlan | None = None,
    update: RowUpdate | GradStep | None = None,
) -> Tensor:
    """activation(X weight + bias) for X [B, N] in compressed rows: row b holds values[p] at column indices[p].

    Gradients go to values, weight and bias; that of weight is coalesced `torch.sparse_coo`, dense with
    sparse_grad=False, and with `update` the optimizer's step on weight is taken in the backward pass. Under
    `torch.compile` a training call with either of the sparse ones runs outside the graph (an error with
    fullgraph=True). Differentiable any number of times, forwards and through torch.func as `embedding` is, but for the
    step that `update` takes.

    Args:
        indptr: [B + 1], ascending from 0 to nnz; indices: [nnz] columns in [0, N); both int32 or both int64.
            A column listed twice in a row counts twice; a row may be empty. Columns that ascend within a row are
            fastest.
        values: [nnz], dtype of weight.
        weight: [N, H], float32, float64, bfloat16 or float16; H >= 1.
        bias: [H], dtype of weight, or None.
        activation: "identity", "sigmoid" or "tanh".
        sparse_grad: sparse gradient of weight; dense otherwise.
        plan: `csr_plan(indptr, indices, N)`, where several calls share it; made in the backward pass otherwise.
        update: as in `embedding_bags`.
    Returns:
        [B, H], dtype of weight; sums in float32 (float64 for float64).
    Raises:
        IndexError: a column is out of range.
        TypeError, ValueError: as the message says.
    Reference: Sedhain et al. 2015 (AutoRec), eq. 1: g(V r + mu).
    """
    _check(indptr, indices, values, weight, bias, activation)
    is_training = torch.is_grad_enabled()
    is_stepping = update is not None and is_training
    if is_transformed():
        if is_stepping:
            refuse_update("sparse_linear")
        return sparse_linear_composite(indptr, indices, values, weight, bias, ACTIVATIONS.index(activation))
    if torch.compiler.is_compiling() and has_sparse_grad(sparse_grad, update, weight):
        how = {"activation": activation, "sparse_grad": sparse_grad, "plan": plan, "update": update}
        return _outside_graph(indptr, indices, values, weight, bias, **how)
    options = _Options(ACTIVATIONS.index(activation), sparse_grad, update if is_stepping else None, plan)
    inputs = (indptr, indices, values, weight, bias)
    trigger = None
    if is_stepping:
        trigger = weight.new_zeros(()).requires_grad_()
        inputs = (indptr, indices, values, weight.detach(), bias)
    is_recorded = is_stepping or (is_training and any(t is not None and t.requires_grad for t in inputs[2:]))
    if torch.compiler.is_compiling():
        if is_recorded:
            return _apply(trigger, *inputs, options)
        compiled: Tensor = _ops.sparse_linear(*inputs, options.activation)
        return compiled
    try:
        if is_recorded:
            require_csr_plan("sparse_linear", plan, indptr, indices, weight.shape[0])
            return _apply(trigger, *inputs, options)
        out: Tensor = _ops.sparse_linear(*inputs, options.activation)
    except (RuntimeError, IndexError) as error:
        raise (translate(error) if isinstance(error, RuntimeError) else error) from None
    return out


def _check(
    indptr: Tensor, indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"sparse_linear: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if indices.dim() != 1 or indptr.dim() != 1 or indptr.shape[0] < 1 or values.shape != indices.shape:
        raise ValueError(
            f"sparse_linear: indptr must be [B + 1], indices and values [nnz], got {tuple(indptr.shape)}, "
            f"{tuple(indices.shape)} and {tuple(values.shape)}"
        )
    if indptr.dtype != indices.dtype or indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"sparse_linear: indptr and indices must both be int32 or both int64, got {indptr.dtype} and "
            f"{indices.dtype}"
        )
    if weight.dim() != 2 or values.dtype != weight.dtype:
        raise ValueError(
            f"sparse_linear: weight must be [N, H] and values in its dtype, got {tuple(weight.shape)} in "
            f"{weight.dtype} and values in {values.dtype}"
        )
    if bias is not None and (bias.shape != weight.shape[1:] or bias.dtype != weight.dtype):
        raise ValueError(
            f"sparse_linear: bias must be [{weight.shape[1]}] in {weight.dtype}, got {tuple(bias.shape)} in "
            f"{bias.dtype}"
        )
