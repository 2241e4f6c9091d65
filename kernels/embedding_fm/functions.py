"""The autograd functions of embedding_fm: sparse and dense gradients, and the step in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels._autograd import Refusal, differentiable, gradient_of, sparse_rows, step_refusal
from deeprec.kernels.embedding_bag import BagPlan, Call, GradStep, mark_changed
from deeprec.kernels.embedding_bag.call import run_named
from deeprec.kernels.embedding_bag.plan import plan_of_batch, rows_by_table
from deeprec.kernels.embedding_fm import operators  # noqa: F401  (declares what is called by name)
from deeprec.kernels.embedding_fm.composite import embedding_fm_composite


def forward(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    call: Call,
    need_embeddings: bool,
) -> Any:
    features = (list(call.tables), list(call.padding))
    arguments = (list(weights), list(linear), ids, offsets, values, *features, need_embeddings)
    return run_named(torch.ops.deeprec.embedding_fm, call.names, *arguments)


class _FM(torch.autograd.Function):
    """What the three ways of training share: forward, and what the backward operators take."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        offsets: Tensor | None,
        values: Tensor | None,
        call: Call,
        need_embeddings: bool,
        num_tables: int,
        given_plan: BagPlan | None,
        *tables: Tensor,
    ) -> Any:
        ctx.given_plan = given_plan
        weights, linear = tables[:num_tables], tables[num_tables:]
        out, saved = _FM.run(ctx, ids, offsets, values, call, need_embeddings, weights, linear)
        ctx.num_tables = num_tables
        ctx.save_for_backward(*saved, *tables)
        return out

    @staticmethod
    def run(
        ctx: Any,
        ids: Tensor,
        offsets: Tensor | None,
        values: Tensor | None,
        call: Call,
        need_embeddings: bool,
        weights: Sequence[Tensor],
        linear: Sequence[Tensor],
    ) -> tuple[Any, list[Tensor]]:
        """The result, and what the backward pass needs beside the tables."""
        out, sums, embeddings = forward(weights, linear, ids, offsets, values, call, need_embeddings)
        ctx.call, ctx.has_offsets, ctx.has_values = call, offsets is not None, values is not None
        saved = [ids, sums, *(t for t in (offsets, values) if t is not None)]
        return ((out, embeddings) if need_embeddings else out), saved

    @staticmethod
    def unpack(ctx: Any, grads: Sequence[Tensor]) -> tuple[tuple[Any, ...], Sequence[Tensor]]:
        """(grad, sums, embeddings_grad, ids, offsets, values), and what else was saved."""
        ids, sums, *rest = ctx.saved_tensors
        # Slices, not pop: torch.compile of torch 2.11 takes rest for a tuple.
        offsets, rest = (rest[0], rest[1:]) if ctx.has_offsets else (None, rest)
        values, rest = (rest[0], rest[1:]) if ctx.has_values else (None, rest)
        return (grads[0], sums, grads[1] if len(grads) > 1 else None, ids, offsets, values), rest

    @staticmethod
    def features(ctx: Any) -> tuple[list[int], list[int]]:
        """tables and padding as the operators take them."""
        return list(ctx.call.tables), list(ctx.call.padding)

    @staticmethod
    def plan(ctx: Any, weights: Sequence[Tensor], ids: Tensor, offsets: Tensor | None) -> tuple[Tensor, ...]:
        """The plan of the batch."""
        return plan_of_batch(ctx.given_plan, weights, ids, offsets, ctx.call)

    @staticmethod
    def row_grads(
        ctx: Any, arguments: tuple[Any, ...], tables: Sequence[Tensor], needed: bool
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Distinct rows and their gradients of each table, then of its linear weights, and the gradient of values."""
        weights, linear = list(tables[: ctx.num_tables]), list(tables[ctx.num_tables :])
        plan = _FM.plan(ctx, weights, arguments[3], arguments[4])
        *row_grads, values_grad = torch.ops.deeprec.embedding_fm_grad(
            weights, linear, *arguments, *plan, *_FM.features(ctx), needed
        )
        rows = rows_by_table(plan)
        return rows + rows[: len(linear)], row_grads, values_grad if needed else None


def _sparse(rows: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """A coalesced sparse gradient of a table [R, D] or [R]; nothing is copied."""
    return torch.sparse_coo_tensor(
        rows.to(torch.int64).unsqueeze(0), values, like.shape, is_coalesced=True, check_invariants=False
    )


def _again(ctx: Any, grads: Sequence[Tensor]) -> list[Any]:
    """The gradients by the composite, those of the tables dense."""
    (_, _, _, ids, offsets, values), tables = _FM.unpack(ctx, grads)
    count = ctx.num_tables

    def composite(ids: Tensor, offsets: Any, values: Any, *others: Any) -> Sequence[Tensor]:
        tables = others[4:]
        return embedding_fm_composite(tables[:count], tables[count:], ids, offsets, values, *_FM.features(ctx))

    return gradient_of(ctx, grads, composite, (ids, offsets, values, *[None] * 4, *tables))


def _sparse_again(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    (_, _, _, ids, offsets, _), tables = _FM.unpack(ctx, grads)
    rows = rows_by_table(_FM.plan(ctx, tables[: ctx.num_tables], ids, offsets))
    grads_again = _again(ctx, grads)
    return (*grads_again[:7], *map(sparse_rows, grads_again[7:], rows * 2))


def _dense_again(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(_again(ctx, grads))


def _step_again(ctx: Any, *grads: Tensor) -> Refusal:
    return step_refusal("embedding_fm", _FM.unpack(ctx, grads)[0][-1])


class _SparseGradFM(_FM):
    @staticmethod
    @differentiable(_sparse_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments, tables = _FM.unpack(ctx, grads)
        rows, row_grads, values_grad = _FM.row_grads(ctx, arguments, tables, ctx.needs_input_grad[2])
        out = [_sparse(r, grad, table) for r, grad, table in zip(rows, row_grads, tables, strict=True)]
        return (None, None, values_grad, None, None, None, None, *out)


class _DenseGradFM(_FM):
    @staticmethod
    @differentiable(_dense_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments, tables = _FM.unpack(ctx, grads)
        needed = ctx.needs_input_grad[2]
        *table_grads, values_grad = torch.ops.deeprec.embedding_fm_dense_grad(
            list(tables[: ctx.num_tables]), list(tables[ctx.num_tables :]), *arguments, *_FM.features(ctx), needed
        )
        return (None, None, values_grad if needed else None, None, None, None, None, *table_grads)


class _UpdatedFM(torch.autograd.Function):
    """`trigger` requires a gradient so that the backward pass comes by; the tables are changed there."""

    @staticmethod
    def forward(
        ctx: Any,
        trigger: Tensor,
        ids: Tensor,
        offsets: Tensor | None,
        values: Tensor | None,
        call: Call,
        need_embeddings: bool,
        constants: tuple[int, list[float], float, int],
        counts: tuple[int, int, int],
        given_plan: BagPlan | None,
        lr: Tensor,
        step: Tensor,
        *tensors: Tensor,
    ) -> Any:
        starts = (0, counts[0], counts[0] + counts[1], sum(counts))
        ctx.weights, ctx.linear, ctx.first = (tensors[starts[i] : starts[i + 1]] for i in range(3))
        ctx.second = tensors[starts[3] :]
        ctx.constants, ctx.lr, ctx.step, ctx.given_plan = constants, lr, step, given_plan
        out, saved = _FM.run(ctx, ids, offsets, values, call, need_embeddings, ctx.weights, ctx.linear)
        ctx.save_for_backward(*saved, *ctx.weights, *ctx.linear)  # read again: a change before that is an error
        return out

    @staticmethod
    @differentiable(_step_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments, _ = _FM.unpack(ctx, grads)
        plan = _FM.plan(ctx, ctx.weights, arguments[3], arguments[4])
        rule, options, max_norm, seed = ctx.constants
        needed = ctx.needs_input_grad[3]
        groups = (ctx.weights, ctx.linear, ctx.first, ctx.second)
        values_grad = torch.ops.deeprec.embedding_fm_update_(
            *map(list, groups),
            *arguments,
            *plan,
            *_FM.features(ctx),
            needed,
            rule,
            ctx.lr,
            ctx.step,
            options,
            max_norm,
            seed,
        )
        mark_changed([*ctx.weights, *ctx.linear])
        rest = sum(map(len, groups))
        return (None, None, None, values_grad if needed else None, *([None] * (7 + rest)))


class _SteppedFM(torch.autograd.Function):
    """As `_UpdatedFM`, with a step that is taken on the gradients by row."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, step: GradStep, *arguments: Any) -> Any:
        ctx.step = step
        return _FM.forward(ctx, *arguments)

    @staticmethod
    @differentiable(_step_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments, tables = _FM.unpack(ctx, grads)
        rows, row_grads, values_grad = _FM.row_grads(ctx, arguments, tables, ctx.needs_input_grad[4])
        ctx.step(rows, row_grads)
        return (None, None, None, None, values_grad, *([None] * (4 + len(tables))))


# The names by which mypy, which knows no types of torch.autograd.Function, sees them.
sparse_fm: Callable[..., Any] = _SparseGradFM.apply
dense_fm: Callable[..., Any] = _DenseGradFM.apply
updated_fm: Callable[..., Any] = _UpdatedFM.apply

stepped_fm: Callable[..., Any] = torch.compiler.disable(
    lambda *args: _SteppedFM.apply(*args),  # type: ignore[no-untyped-call]
    reason="embedding_fm: this optimizer's step in the backward pass does not pass torch.compile; use another mode",
)
sparse_fm_outside_graph: Callable[..., Any] = torch.compiler.disable(
    lambda *args: sparse_fm(*args),
    reason="embedding_fm: sparse gradients do not pass torch.compile; use sparse_grad=False",
)
