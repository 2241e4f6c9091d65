"""Launchers of the gradients and updates of embedding_bags: checks, lines of tables and features, the order of stages.

The kernels are in triton_grad.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag.checks import MAX, MEAN, is_pooled, num_bags
from deeprec.kernels.embedding_bag.triton_grad import (
    BAGS,
    MAXIMUM,
    MEANS,
    ONE_FEATURE,
    SCALE,
    SCALE_GRAD,
    SEQUENCE,
    RowPass,
    inverse_lengths,
)
from deeprec.kernels.embedding_bag.triton_rows import (
    NORM,
    PIECES,
    STORE,
    UPDATE,
    check_update,
    find_pieces,
    groups_of,
    rule_of,
    set_clip,
)
from deeprec.kernels.embedding_bag.triton_tables import (
    constant,
    is_aligned,
    rows_adjacent,
    sent,
)


def _pass(
    op: str,
    weights: Sequence[Tensor],
    grad: Tensor,
    sequence_grads: Sequence[Tensor],
    argmax: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    plan: tuple[Tensor, ...],
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
    need_weights_grad: bool,
    first: Sequence[Tensor] = (),
    second: Sequence[Tensor] = (),
) -> RowPass:
    """Check the shapes, describe features and tables, sum the pieces of long rows."""
    device, dtype = ids.device, weights[0].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch, elements = num_bags(ids, offsets, len(tables)), 16 // grad.element_size()
    columns, width = [], 0
    for table, mode in zip(tables, modes, strict=True):
        columns.append(width if is_pooled(mode, offsets) else -1)
        width += weights[table].shape[1] if columns[-1] >= 0 else 0
    if grad.shape != (batch, width) or grad.dtype != dtype:
        raise RuntimeError(
            f"{op}: grad must be [{batch}, {width}] in {dtype}, got {tuple(grad.shape)} in {grad.dtype}; it is that of "
            "the pooled rows"
        )
    grad, argmax = rows_adjacent(grad), argmax.contiguous()
    is_even = grad.data_ptr() % 16 == 0 and (batch <= 1 or grad.stride(0) % elements == 0)
    own = [g.contiguous() for g in sequence_grads]
    addresses = iter([g.data_ptr() for g in own])
    kinds = [mode if offsets is not None else -1 for mode in modes]
    lines = [
        (max(c, 0), k, p, 0 if c >= 0 else next(addresses)) for c, k, p in zip(columns, kinds, padding, strict=True)
    ]
    flat = [x for line in lines for x in line]
    features = sent(flat, torch.int64, device) if own else constant([flat], device)

    of_table = [[f for f, t in enumerate(tables) if t == table] for table in range(len(weights))]
    is_single = all(len(some) <= 1 for some in of_table)
    entries = 0
    if offsets is not None:
        entries |= BAGS.value
        entries |= MAXIMUM.value if MAX in modes else 0
        entries |= MEANS.value if MEAN in modes else 0
        entries |= SEQUENCE.value if own else 0
    if is_single and not entries & (MAXIMUM.value | SEQUENCE.value):
        entries |= ONE_FEATURE.value
    inverse = grad.new_empty(0, dtype=wide)
    if entries & MEANS.value:
        assert offsets is not None
        has_padding = any(pad >= 0 and mode == MEAN for pad, mode in zip(padding, modes, strict=True))
        inverse = inverse_lengths(features, ids, offsets.contiguous(), batch, has_padding, wide)
    scale, scale_grad = inverse, inverse
    if per_sample_weights is not None:
        entries |= SCALE.value
        scale = per_sample_weights.contiguous()
        if need_weights_grad:
            entries |= SCALE_GRAD.value
            scale_grad = torch.zeros(scale.shape, dtype=wide, device=device)

    vecs = []
    for weight, some in zip(weights, of_table, strict=True):
        is_all_even = is_even and is_aligned(weight) and all(max(columns[f], 0) % elements == 0 for f in some)
        is_all_even &= all(s.data_ptr() % 16 == 0 for s in [*first, *second, *own])
        vecs.append(elements if is_all_even else 1)
    place = [(max(columns[some[0]], 0), some[0]) if some else (0, 0) for some in of_table]
    groups = groups_of(weights, vecs, [c for c, _ in place], [f for _, f in place], first, second)
    pieces = find_pieces(groups[0].lines, plan[0], plan[1], plan[2], plan[4])
    scratch = grad.new_empty(pieces.most, max(w.shape[1] for w in weights), dtype=wide)
    given = (ids if offsets is None else offsets.contiguous(), grad, argmax, scale, inverse, scale_grad, scratch)
    out = RowPass(groups, entries, features, plan, pieces, *given, batch, own)
    out.run(PIECES.value)
    return out


def _store(op: str, weights: Sequence[Tensor], outs: Sequence[Tensor], is_dense: bool, *rest: Any) -> Tensor:
    """Fill outs with the gradients of the tables; returns that of the per-sample weights."""
    done = _pass(op, weights, *rest)
    addresses = sent([out.data_ptr() for out in outs], torch.int64, outs[0].device)
    done.run(STORE.value, outs=addresses, is_dense=is_dense)
    torch._assert_async(done.pieces.ok, f"{op}: the plan must come from embedding_bags_plan of these ids and offsets")
    return _scale_grad(done, weights[0].dtype)


def _scale_grad(done: RowPass, dtype: torch.dtype) -> Tensor:
    return done.scale_grad.to(dtype) if done.entries & SCALE_GRAD.value else done.grad.new_empty(0)


def _no_scale_grad(weights: Sequence[Tensor], scale: Tensor | None, is_needed: bool) -> Tensor:
    """Of a batch without entries."""
    if scale is None or not is_needed:
        return weights[0].new_empty(0)
    return torch.zeros_like(scale, memory_format=torch.contiguous_format)


def embedding_bags_grad(
    weights: Sequence[Tensor],
    grad: Tensor,
    sequence_grads: Sequence[Tensor],
    argmax: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    rows: Tensor,
    row_offsets: Tensor,
    order: Tensor,
    bags: Tensor,
    table_starts: Tensor,
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
    need_weights_grad: bool,
) -> list[Tensor]:
    """Launch `_bags_rows_kernel`; waits for the GPU once, for the number of rows of each table."""
    weights = [rows_adjacent(w) for w in weights]
    bounds = table_starts.tolist()
    counts = [end - begin for begin, end in itertools.pairwise(bounds)]
    outs = [w.new_empty(count, w.shape[1]) for w, count in zip(weights, counts, strict=True)]
    if rows.shape[0] == 0:
        return [*outs, _no_scale_grad(weights, per_sample_weights, need_weights_grad)]
    plan = (rows, row_offsets, order, bags, table_starts)
    given = (grad, sequence_grads, argmax, ids, offsets, per_sample_weights, plan, tables, modes, padding)
    return [*outs, _store("embedding_bags_grad", weights, outs, False, *given, need_weights_grad)]


def embedding_bags_dense_grad(
    weights: Sequence[Tensor],
    grad: Tensor,
    sequence_grads: Sequence[Tensor],
    argmax: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
    need_weights_grad: bool,
) -> list[Tensor]:
    """As embedding_bags_grad, into tables of zeros."""
    weights = [rows_adjacent(w) for w in weights]
    sizes = [w.shape[0] for w in weights]
    plan = torch.ops.deeprec.embedding_bags_plan(ids, offsets, sizes, tables, padding)
    outs = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights]
    if plan[0].shape[0] == 0:
        return [*outs, _no_scale_grad(weights, per_sample_weights, need_weights_grad)]
    given = (grad, sequence_grads, argmax, ids, offsets, per_sample_weights, plan, tables, modes, padding)
    return [*outs, _store("embedding_bags_dense_grad", weights, outs, True, *given, need_weights_grad)]


def embedding_bags_update_(
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    grad: Tensor,
    sequence_grads: Sequence[Tensor],
    argmax: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    rows: Tensor,
    row_offsets: Tensor,
    order: Tensor,
    bags: Tensor,
    table_starts: Tensor,
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
    need_weights_grad: bool,
    rule: int,
    lr: Tensor,
    step: Tensor,
    options: Sequence[float],
    max_norm: float,
    seed: int,
) -> Tensor:
    """Launch `_bags_rows_kernel` without waiting for the GPU; a plan of other tables changes nothing."""
    op = "embedding_bags_update_"
    check_update(op, weights, first, second, rule)
    plan = (rows, row_offsets, order, bags, table_starts)
    if rows.shape[0] == 0:
        step.add_(1)
        return _no_scale_grad(weights, per_sample_weights, need_weights_grad)
    given = (grad, sequence_grads, argmax, ids, offsets, per_sample_weights, plan, tables, modes, padding)
    done = _pass(op, weights, *given, need_weights_grad, first, second)
    taken = rule_of("embedding_bags_update_", weights[0], bool(first), rule, lr, step, options, seed)
    step.add_(1)
    if max_norm > 0:
        squares = torch.zeros(rows.shape[0], dtype=taken.scalars.dtype, device=rows.device)
        done.run(NORM.value, taken, squares=squares)
        set_clip(taken, squares, max_norm)
    done.run(UPDATE.value, taken)
    torch._assert_async(done.pieces.ok, f"{op}: the plan must come from embedding_bags_plan of these ids and offsets")
    return _scale_grad(done, weights[0].dtype)
