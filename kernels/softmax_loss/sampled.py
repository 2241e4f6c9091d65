"""Softmax cross-entropy with negatives that are drawn for each row by counter, and kept nowhere.

The forward pass draws, scores and makes the gradient of the queries; the backward pass draws the same negatives again
and adds up the gradient of the table by row, as that of `embedding_bag`: coalesced, dense, or taken by the optimizer's
step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sample_negatives import AliasTable
from deeprec.kernels.sampled_linear_loss import column_grads, dense_column_grads, has_sparse_grad, plan_of, take_step
from deeprec.kernels.softmax_loss.checks import SampledSoftmaxArguments
from deeprec.kernels.softmax_loss.reference import through_length, unit
from deeprec.kernels.softmax_loss.sampled_reference import (
    entries_of,
    sampled_losses,
    sampled_softmax_loss_reference,
    sampled_softmax_slopes_reference,
)

_ops = torch.ops.deeprec
_NUM_TENSORS = 7  # the first fields of SampledSoftmaxArguments


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    queries, wide = args[0], wide_dtype(args[0].dtype)
    batch, dim = queries.shape
    return (
        queries.new_empty(batch, dtype=wide),
        queries.new_empty((2, batch), dtype=wide),
        queries.new_empty((batch, dim) if args[-1] else (0,), dtype=wide),
    )


def _slopes_fake(*args: Any) -> tuple[Tensor, Tensor]:
    given = SampledSoftmaxArguments(*args[:-2])
    nnz = given.queries.shape[0] * (1 + given.num_negatives)
    return given.queries.new_empty(nnz, dtype=torch.int32), args[-1].new_empty(nnz)


_SCHEMA = (
    "Tensor queries, Tensor items, Tensor targets, Tensor? bias, Tensor? seen_indptr, Tensor? seen_indices, "
    "Tensor? seen_rows, SymInt num_negatives, SymInt seed, SymInt offset, Tensor? threshold, Tensor? alias, "
    "Tensor? cumulative, float gamma, bool cosine, bool use_log_q, bool include_positive"
)
_library.define(
    f"sampled_softmax_loss({_SCHEMA}, bool need_grad) -> (Tensor, Tensor, Tensor)",
    sampled_softmax_loss_reference,
    _fake,
)
_library.define(
    f"sampled_softmax_slopes({_SCHEMA}, Tensor stats, Tensor row_grads) -> (Tensor, Tensor)",
    sampled_softmax_slopes_reference,
    _slopes_fake,
)
_library.implement_triton("softmax_loss", ("sampled_softmax_loss", "sampled_softmax_slopes"))


class Training(NamedTuple):
    """How the table is trained."""

    sparse_grad: bool
    update: RowUpdate | GradStep | None


def sampled_composite(given: SampledSoftmaxArguments) -> Tensor:
    """Losses [B] in PyTorch's own operators."""
    return sampled_losses(given, entries_of(given, _ops.sample_negatives))


def _positions(given: SampledSoftmaxArguments, entries: Tensor) -> tuple[Tensor, Tensor]:
    """The entries as rows of a sparse matrix [B, N]."""
    size = 1 + given.num_negatives
    nnz = given.queries.shape[0] * size
    dtype = torch.int32 if nnz < 2**31 else torch.int64
    return torch.arange(0, nnz + 1, size, dtype=dtype, device=entries.device), entries.to(dtype)


def _again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...] | Refusal:
    if ctx.training.update is not None:
        return step_refusal("sampled_softmax_loss", ctx.remembered[0], ctx.remembered[3])
    inputs = (*recall(ctx, "sampled_softmax_loss"), *ctx.options)

    def composite(*inputs: Any) -> tuple[Tensor]:
        return (sampled_composite(SampledSoftmaxArguments(*inputs)),)

    grads_again = gradient_of(ctx, (grad,), composite, inputs)
    if ctx.training.sparse_grad and grads_again[1] is not None:
        given = SampledSoftmaxArguments(*inputs)
        entries = entries_of(given, _ops.sample_negatives).reshape(-1)
        rows = plan_of(*_positions(given, entries), given.items.shape[0], None).rows
        grads_again[1] = sparse_rows(grads_again[1], rows)
    return (*grads_again, None, None)


def _items_grad(
    given: SampledSoftmaxArguments, training: Training, positions: tuple[Tensor, Tensor], slopes: Tensor
) -> Tensor | None:
    """The gradient of the table, sparse or dense; None where the step was taken instead."""
    items, wide = given.items, wide_dtype(given.items.dtype)
    queries = given.queries.to(wide)
    queries = (given.gamma * (unit(queries) if given.cosine else queries)).to(items.dtype)
    values = slopes.to(items.dtype)
    if training.update is None and not training.sparse_grad:
        dense, _ = dense_column_grads(items, queries, values, positions)
        return through_length(items.to(wide), dense.to(wide)).to(items.dtype) if given.cosine else dense
    plan: BagPlan = plan_of(*positions, items.shape[0], None)
    if training.update is not None and not given.cosine:
        take_step(items, training.update, queries, values, positions, plan)
        return None
    rows = plan.rows.long()
    of_rows, _ = column_grads(items, queries, values, positions, plan)
    if given.cosine:
        of_rows = through_length(items.index_select(0, rows).to(wide), of_rows.to(wide)).to(items.dtype)
    if training.update is not None:
        _step_of_rows(items, training.update, plan.rows, of_rows)
        return None
    return coalesced_grad(rows.unsqueeze(0), of_rows, items.shape[0])


def _step_of_rows(items: Tensor, update: RowUpdate | GradStep, rows: Tensor, of_rows: Tensor) -> None:
    """The optimizer's step with gradients that are already those of the rows, each the one entry of its own."""
    positions = torch.arange(rows.numel() + 1, dtype=rows.dtype, device=rows.device), rows
    ones = of_rows.new_ones(rows.numel())
    take_step(items, update, of_rows, ones, positions, plan_of(*positions, items.shape[0], None))


class _SampledSoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """The fields of `SampledSoftmaxArguments`, Training, and whether queries need a gradient."""
        *given, ctx.training, need_grad = arguments
        losses: Tensor
        losses, stats, queries_grad = _ops.sampled_softmax_loss(*given, need_grad)
        tensors, ctx.options = given[:_NUM_TENSORS], tuple(given[_NUM_TENSORS:])
        ctx.save_for_backward(tensors[0], *tensors[2:], stats, queries_grad)
        ctx.items = tensors[1]  # which the step in the backward pass changes
        remember(ctx, *tensors)
        return losses

    @staticmethod
    @differentiable(_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, *tensors, stats, queries_grad = ctx.saved_tensors
        given = SampledSoftmaxArguments(queries, ctx.items, *tensors, *ctx.options)
        d_queries = d_items = d_bias = None
        if ctx.needs_input_grad[0]:
            d_queries = (queries_grad * grad.unsqueeze(1)).to(queries.dtype)
        needs_items, needs_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[3]
        if needs_items or needs_bias or ctx.training.update is not None:
            entries, slopes = _ops.sampled_softmax_slopes(*given, stats, grad)
            positions = _positions(given, entries)
            if needs_items or ctx.training.update is not None:
                d_items = _items_grad(given, ctx.training, positions, slopes)
            if needs_bias and given.bias is not None:
                ones = queries.new_ones(()).expand(queries.shape[0], 1)
                values = slopes.to(queries.dtype)
                d_bias = dense_column_grads(given.bias.reshape(-1, 1), ones, values, positions)[0].reshape(-1)
        return (d_queries, d_items, None, d_bias, *([None] * 15))


# The name by which mypy, which knows no types of torch.autograd.Function, sees it.
_apply: Callable[..., Tensor] = _SampledSoftmaxLoss.apply
_outside_graph: Callable[..., Tensor] = torch.compiler.disable(
    lambda given, training: sampled_row_losses(given, training),
    reason="sampled_softmax_loss: sparse gradients and update do not pass torch.compile; use sparse_grad=False",
)


def sampled_row_losses(given: SampledSoftmaxArguments, training: Training) -> Tensor:
    """Losses [B]: from the operator, its Function, or the composite inside a transform."""
    if is_transformed():
        if training.update is not None and torch.is_grad_enabled():
            refuse_update("sampled_softmax_loss")
        return sampled_composite(given)
    if torch.compiler.is_compiling() and has_sparse_grad(training.sparse_grad, training.update, given.items):
        return _outside_graph(given, training)
    is_training = torch.is_grad_enabled()
    losses: Tensor
    try:
        if is_training and training.update is not None:
            queries = given.queries if given.queries.requires_grad else given.queries.detach().requires_grad_()
            given = given._replace(queries=queries, items=given.items.detach())
        if is_training and any(t is not None and t.requires_grad for t in (given.queries, given.items, given.bias)):
            losses = _apply(*given, training, given.queries.requires_grad)
        else:
            losses = _ops.sampled_softmax_loss(*given, False)[0]
    except RuntimeError as error:
        raise translate(error) from None
    return losses


def table_of(popularity: AliasTable | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The tensors of an alias table, or three times None."""
    return (None, None, None) if popularity is None else (popularity[0], popularity[1], popularity[2])
