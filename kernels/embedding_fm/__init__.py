"""Factorisation machine over embedding tables: lookup, linear term and pairwise interactions in one pass.

The embeddings of a batch are never stored unless they are asked for, nor is a gradient of their size: the backward pass
goes by row and needs the row and the sums of its samples only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels._autograd import (
    Refusal,
    differentiable,
    gradient_of,
    is_transformed,
    refuse_update,
    sparse_rows,
    step_refusal,
)
from deeprec.kernels.embedding_bag import (
    BagPlan,
    Call,
    GradStep,
    RowUpdate,
    mark_changed,
    raise_named,
    require_bag_plan,
)
from deeprec.kernels.embedding_bag.call import call_of, check_input
from deeprec.kernels.embedding_bag.checks import num_bags
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.embedding_fm.composite import embedding_fm_composite
from deeprec.kernels.embedding_fm.reference import (
    embedding_fm_dense_grad_reference,
    embedding_fm_grad_reference,
    embedding_fm_reference,
    embedding_fm_update_reference,
)

__all__ = ["embedding_fm"]


def _fm_fake(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    tables: Sequence[int],
    padding: Sequence[int],
    need_embeddings: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, dim = num_bags(ids, offsets, len(tables)), weights[0].shape[1]
    return (
        weights[0].new_empty(batch),
        weights[0].new_empty(batch, dim, dtype=wide_dtype(weights[0].dtype)),
        weights[0].new_empty((batch, len(tables), dim) if need_embeddings else (0,)),
    )


def _values_grad_fake(weights: Sequence[Tensor], values: Tensor | None, is_needed: bool) -> Tensor:
    if values is None or not is_needed:
        return weights[0].new_empty(0)
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _grad_fake(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    context = torch.library.get_ctx()
    counts = [context.new_dynamic_size() for _ in weights]
    some = [w.new_empty(count, *w.shape[1:]) for w, count in zip(weights, counts, strict=True)]
    some += [w.new_empty(count, *w.shape[1:]) for w, count in zip(linear, counts, strict=False)]
    return [*some, _values_grad_fake(weights, args[5], args[-1])]


def _dense_grad_fake(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    some = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in [*weights, *linear]]
    return [*some, _values_grad_fake(weights, args[5], args[-1])]


def _update_fake(weights: Sequence[Tensor], linear: Any, first: Any, second: Any, *args: Any) -> Tensor:
    return _values_grad_fake(weights, args[5], args[13])


_INPUT = "Tensor ids, Tensor? offsets, Tensor? values"
_GRADS = "Tensor grad, Tensor sums, Tensor? embeddings_grad"
_PLAN = "Tensor rows, Tensor row_offsets, Tensor order, Tensor bags, Tensor table_starts"
_FEATURES = "int[] tables, int[] padding"
_library.define(
    f"embedding_fm(Tensor[] weights, Tensor[] linear, {_INPUT}, {_FEATURES}, bool need_embeddings) "
    "-> (Tensor out, Tensor sums, Tensor embeddings)",
    embedding_fm_reference,
    _fm_fake,
)
_library.define(
    f"embedding_fm_grad(Tensor[] weights, Tensor[] linear, {_GRADS}, {_INPUT}, {_PLAN}, {_FEATURES}, "
    "bool need_values_grad) -> Tensor[]",
    embedding_fm_grad_reference,
    _grad_fake,
)
_library.define(
    f"embedding_fm_dense_grad(Tensor[] weights, Tensor[] linear, {_GRADS}, {_INPUT}, {_FEATURES}, "
    "bool need_values_grad) -> Tensor[]",
    embedding_fm_dense_grad_reference,
    _dense_grad_fake,
)
_library.define(
    "embedding_fm_update_(Tensor(a!)[] weights, Tensor(b!)[] linear, Tensor(c!)[] first, Tensor(d!)[] second, "
    f"{_GRADS}, {_INPUT}, {_PLAN}, {_FEATURES}, bool need_values_grad, int rule, Tensor lr, Tensor(e!) step, "
    "float[] options, float max_norm, int seed) -> Tensor",
    embedding_fm_update_reference,
    _update_fake,
)
_library.implement_triton(
    "embedding_fm", ("embedding_fm", "embedding_fm_grad", "embedding_fm_dense_grad", "embedding_fm_update_")
)


def _forward(
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
    if torch.compiler.is_compiling():
        return torch.ops.deeprec.embedding_fm(*arguments)
    try:
        return torch.ops.deeprec.embedding_fm(*arguments)
    except (RuntimeError, IndexError) as error:
        return raise_named(error, call.names)


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
        out, sums, embeddings = _forward(weights, linear, ids, offsets, values, call, need_embeddings)
        ctx.call, ctx.has_offsets, ctx.has_values = call, offsets is not None, values is not None
        saved = [ids, sums, *(t for t in (offsets, values) if t is not None)]
        return ((out, embeddings) if need_embeddings else out), saved

    @staticmethod
    def unpack(ctx: Any, grads: Sequence[Tensor]) -> tuple[tuple[Any, ...], Sequence[Tensor]]:
        """(grad, sums, embeddings_grad, ids, offsets, values), and what else was saved."""
        ids, sums, *rest = ctx.saved_tensors
        offsets = rest.pop(0) if ctx.has_offsets else None
        values = rest.pop(0) if ctx.has_values else None
        return (grads[0], sums, grads[1] if len(grads) > 1 else None, ids, offsets, values), rest

    @staticmethod
    def features(ctx: Any) -> tuple[list[int], list[int]]:
        """tables and padding as the operators take them."""
        return list(ctx.call.tables), list(ctx.call.padding)

    @staticmethod
    def plan(ctx: Any, weights: Sequence[Tensor], ids: Tensor, offsets: Tensor | None) -> tuple[Tensor, ...]:
        """The plan of the batch."""
        if ctx.given_plan is not None:
            given: tuple[Tensor, ...] = ctx.given_plan
            return given
        sizes = [w.shape[0] for w in weights]
        plan: tuple[Tensor, ...] = torch.ops.deeprec.embedding_bags_plan(ids, offsets, sizes, *_FM.features(ctx))
        return plan

    @staticmethod
    def row_grads(
        ctx: Any, arguments: tuple[Any, ...], tables: Sequence[Tensor], needed: bool
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Distinct rows and their gradients of each table, then of its linear weights, and the gradient of values."""
        weights, linear = list(tables[: ctx.num_tables]), list(tables[ctx.num_tables :])
        plan = _FM.plan(ctx, weights, arguments[3], arguments[4])
        *some, values_grad = torch.ops.deeprec.embedding_fm_grad(
            weights, linear, *arguments, *plan, *_FM.features(ctx), needed
        )
        rows = [plan[0][first:last] for first, last in pairwise(plan[-1].tolist())]
        return rows + rows[: len(linear)], some, values_grad if needed else None


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
    plan_rows, *_, starts = _FM.plan(ctx, tables[: ctx.num_tables], ids, offsets)
    rows = [plan_rows[first:last] for first, last in pairwise(starts.tolist())]
    found = _again(ctx, grads)
    return (*found[:7], *map(sparse_rows, found[7:], rows * 2))


def _dense_again(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(_again(ctx, grads))


def _step_again(ctx: Any, *grads: Tensor) -> Refusal:
    return step_refusal("embedding_fm", _FM.unpack(ctx, grads)[0][-1])


class _SparseGradFM(_FM):
    @staticmethod
    @differentiable(_sparse_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments, tables = _FM.unpack(ctx, grads)
        rows, some, values_grad = _FM.row_grads(ctx, arguments, tables, ctx.needs_input_grad[2])
        out = [_sparse(r, grad, table) for r, grad, table in zip(rows, some, tables, strict=True)]
        return (None, None, values_grad, None, None, None, None, *out)


class _DenseGradFM(_FM):
    @staticmethod
    @differentiable(_dense_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments, tables = _FM.unpack(ctx, grads)
        needed = ctx.needs_input_grad[2]
        *some, values_grad = torch.ops.deeprec.embedding_fm_dense_grad(
            list(tables[: ctx.num_tables]), list(tables[ctx.num_tables :]), *arguments, *_FM.features(ctx), needed
        )
        return (None, None, values_grad if needed else None, None, None, None, None, *some)


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
        rows, some, values_grad = _FM.row_grads(ctx, arguments, tables, ctx.needs_input_grad[4])
        ctx.step(rows, some)
        return (None, None, None, None, values_grad, *([None] * (4 + len(tables))))


# The names by which mypy, which knows no types of torch.autograd.Function, sees them.
_sparse_fm: Callable[..., Any] = _SparseGradFM.apply
_dense_fm: Callable[..., Any] = _DenseGradFM.apply
_updated_fm: Callable[..., Any] = _UpdatedFM.apply

_stepped_fm: Callable[..., Any] = torch.compiler.disable(
    lambda *args: _SteppedFM.apply(*args),  # type: ignore[no-untyped-call]
    reason="embedding_fm: this optimizer's step in the backward pass does not pass torch.compile; use another mode",
)
_sparse_fm_outside_graph: Callable[..., Any] = torch.compiler.disable(
    lambda *args: _sparse_fm(*args),
    reason="embedding_fm: sparse gradients do not pass torch.compile; use sparse_grad=False",
)


def _check(weights: Sequence[Tensor], linear: Sequence[Tensor], ids: Tensor, values: Tensor | None) -> None:
    function, first = "embedding_fm", weights[0]
    if any(w.shape[1] != first.shape[1] for w in weights):
        raise ValueError(f"{function}: all tables must have one D, got {[tuple(w.shape) for w in weights]}")
    if linear and len(linear) != len(weights):
        raise ValueError(f"{function}: linear must have one entry a table ({len(weights)}) or none, got {len(linear)}")
    for w, table in zip(linear, weights, strict=False):
        if w.shape not in ((table.shape[0],), (table.shape[0], 1)) or w.dtype != table.dtype:
            raise ValueError(
                f"{function}: linear must be [R] or [R, 1] beside each table, in its dtype; got {tuple(w.shape)} in "
                f"{w.dtype} beside {tuple(table.shape)} in {table.dtype}"
            )
    if values is not None and (values.shape != ids.shape or values.dtype != first.dtype):
        raise ValueError(
            f"{function}: values must be {tuple(ids.shape)} like ids, in {first.dtype}; got {tuple(values.shape)} in "
            f"{values.dtype}"
        )


def embedding_fm(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None = None,
    *,
    values: Tensor | None = None,
    tables: Sequence[int] | None = None,
    padding_idx: Sequence[int | None] | None = None,
    need_embeddings: bool = False,
    sparse_grad: bool = True,
    update: RowUpdate | GradStep | None = None,
    trigger: Tensor | None = None,
    plan: BagPlan | None = None,
    names: Sequence[str] = (),
) -> Any:
    """Factorisation machine of a sample's entries (id, x), each looked up in its feature's table.

        out[b] = sum_p x_p w_p + sum_{p<q} x_p x_q v_p . v_q
               = sum_p x_p w_p + 0.5 sum_d [(sum_p x_p v_pd)^2 - sum_p x_p^2 v_pd^2]

    Every entry is a feature of its own: entries of one bag interact too. The bias w_0 is the caller's.

    Gradients are coalesced `torch.sparse_coo` tensors, dense ones with sparse_grad=False; with `update` the step of
    rows and linear weights is taken in the backward pass, and the call compiles, as in `embedding_bags`. The backward
    pass reads the rows again: two calls on one table with `update` in one graph are an error. Differentiable any
    number of times, forwards and through torch.func as `embedding` is, but for the step that `update` takes.

    Args:
        weights: tables [R_t, D] of one D, dtype and device; float32, float64, bfloat16 or float16; D >= 1.
        linear: one [R_t] or [R_t, 1] a table, dtype of the tables; none: no linear term.
        ids: [F, B] of any strides (`ids.T` of [B, F] is read in place), or [nnz] feature after feature with offsets;
            int32 or int64.
        offsets: [F * B + 1], ascending from 0 to nnz; int32 or int64.
        values: x of each entry, shape of ids, dtype of the tables; default 1. Their gradient comes in the same pass.
        tables: the table of each feature; default: feature f has table f.
        padding_idx: one a feature, or None; such entries do not count and get no gradient.
        need_embeddings: also return the embeddings, [B, F, D]: sum of x v of each bag.
        sparse_grad: coalesced sparse gradients; dense ones otherwise.
        update: the optimizer's step to take in the backward pass, or what takes it, as in `embedding_bags`; tables
            and states are those of the vectors, then those of the linear weights.
        trigger: with update, any tensor that requires a gradient; it gets none. Made here where it is absent.
        plan: `embedding_bags_plan` of these ids and offsets, where calls share it; made in the backward pass otherwise.
        names: what to call the tables in errors.
    Returns:
        [B], dtype of the tables, accumulated in float32 (float64 for float64); with need_embeddings a pair of it and
        the embeddings.
    Raises:
        IndexError: an id is out of range; names the table, the value and the position (on a GPU: a device-side
            assertion). Nothing has been changed then.
        TypeError, ValueError: as the message says.
    Reference: Rendle 2010, Factorization Machines, eq. 1 and lemma 3.1; Guo et al. 2017 (arXiv 1703.04247), eq. 2.
    """
    call = call_of("embedding_fm", len(weights), tables, "sum", padding_idx, names, False, offsets is not None)
    check_input("embedding_fm", weights, ids, offsets, None, len(call.tables))
    _check(weights, linear, ids, values)
    if offsets is not None and offsets.dtype != ids.dtype:
        offsets = offsets.to(ids.dtype)
    is_training = torch.is_grad_enabled()
    both = [*weights, *linear]
    if is_transformed():
        if update is not None and is_training:
            refuse_update("embedding_fm")
        out, embeddings = embedding_fm_composite(weights, linear, ids, offsets, values, call.tables, call.padding)
        return (out, embeddings) if need_embeddings else out
    if plan is not None:
        require_bag_plan("embedding_fm", plan, ids, offsets, weights, call)
    if update is not None and is_training:
        if trigger is None:
            trigger = torch.zeros((), device=ids.device, requires_grad=True)
        detached = [w.detach() for w in both]
        if not isinstance(update, RowUpdate):
            given = (ids, offsets, values, call, need_embeddings, len(weights), plan)
            return _stepped_fm(trigger, update, *given, *detached)
        return _updated_fm(
            trigger,
            ids,
            offsets,
            values,
            call,
            need_embeddings,
            (update.rule, update.options, update.max_norm, update.seed),
            (len(weights), len(linear), len(update.first)),
            plan,
            update.lr,
            update.step,
            *detached,
            *update.first,
            *update.second,
        )
    if is_training and any(t.requires_grad for t in [*both, *(() if values is None else (values,))]):
        arguments = (ids, offsets, values, call, need_embeddings, len(weights), plan, *both)
        if not sparse_grad:
            return _dense_fm(*arguments)
        return (_sparse_fm_outside_graph if torch.compiler.is_compiling() else _sparse_fm)(*arguments)
    out, _, embeddings = _forward(weights, linear, ids, offsets, values, call, need_embeddings)
    return (out, embeddings) if need_embeddings else out
