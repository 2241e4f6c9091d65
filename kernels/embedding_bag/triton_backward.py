"""Launchers of the gradients and updates of embedding_bags: lines of tables and features, the order of stages.

The kernels are in triton_grad.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels._door import refuse_capture
from deeprec.kernels.embedding_bag.backward import BagsBackward, Step
from deeprec.kernels.embedding_bag.checks import MAX, MEAN, is_pooled, num_bags
from deeprec.kernels.embedding_bag.triton_grad import (
    BAG_ROWS,
    BAGS,
    MAXIMUM,
    MEANS,
    ONE_FEATURE,
    SCALE,
    SCALE_GRAD,
    SEQUENCE,
    inverse_lengths,
)
from deeprec.kernels.embedding_bag.triton_rows import PIECES, find_pieces, groups_of
from deeprec.kernels.embedding_bag.triton_stages import (
    Entries,
    RowPass,
    empty_grads,
    refuse_capture_of_grads,
    store_grads,
    take_step,
)
from deeprec.kernels.embedding_bag.triton_tables import constant, flat_plan, is_aligned, rows_adjacent, sent


def _pass(
    weights: Sequence[Tensor],
    given: BagsBackward,
    first: Sequence[Tensor] = (),
    second: Sequence[Tensor] = (),
) -> RowPass:
    """Describe features and tables, sum the pieces of long rows."""
    grad, sequence_grads, argmax, ids, offsets, per_sample_weights, *_ = given
    tables, modes, padding, plan = given.tables, given.modes, given.padding, given.plan
    device, dtype = ids.device, weights[0].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch, elements = num_bags(ids, offsets, len(tables)), 16 // grad.element_size()
    columns, width = [], 0
    for table, mode in zip(tables, modes, strict=True):
        columns.append(width if is_pooled(mode, offsets) else -1)
        width += weights[table].shape[1] if columns[-1] >= 0 else 0
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
    is_single = all(len(features_of) <= 1 for features_of in of_table)
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
        inverse = inverse_lengths(features, ids.contiguous(), offsets.contiguous(), batch, has_padding, wide)
    scale, scale_grad = inverse, None
    if per_sample_weights is not None:
        entries |= SCALE.value
        scale = per_sample_weights.contiguous()
        if given.need_weights_grad:
            entries |= SCALE_GRAD.value
            scale_grad = torch.zeros(scale.shape, dtype=wide, device=device)

    vecs = []
    for weight, features_of in zip(weights, of_table, strict=True):
        is_all_even = is_even and is_aligned(weight) and all(max(columns[f], 0) % elements == 0 for f in features_of)
        is_all_even &= all(s.data_ptr() % 16 == 0 for s in [*first, *second, *own])
        vecs.append(elements if is_all_even else 1)
    place = [(max(columns[f[0]], 0), f[0]) if f else (0, 0) for f in of_table]
    groups = groups_of(weights, vecs, [c for c, _ in place], [f for _, f in place], first, second)
    pieces = find_pieces(groups[0].lines, plan[0], plan[1], plan[2], plan[4])
    scratch = grad.new_empty(pieces.most, max(w.shape[1] for w in weights), dtype=wide)
    arguments = {
        "features": features,
        "offsets": ids if offsets is None else offsets.contiguous(),
        "argmax": argmax,
        "argmax_stride": argmax.shape[-1],
        "scale": scale,
        "inverse": inverse,
        "scale_grad": inverse if scale_grad is None else scale_grad,
    }
    out = RowPass(BAG_ROWS, groups, entries, plan, pieces, batch, grad, scratch, arguments, scale_grad, own)
    out.run(PIECES.value)
    return out


def _entries(given: BagsBackward) -> Entries:
    return Entries(given.rows.shape[0], given.per_sample_weights, given.need_weights_grad)


def embedding_bags_grad(weights: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """Launch `_bags_rows_kernel`; waits for the GPU once, for the number of rows of each table.

    Args:
        args: the fields of `BagsBackward`.
    """
    op, given = "embedding_bags_grad", flat_plan(BagsBackward(*args))
    weights = [rows_adjacent(w) for w in weights]
    outs = empty_grads(op, weights, given.table_starts)
    return store_grads(op, _entries(given), functools.partial(_pass, weights, given), outs)


def embedding_bags_dense_grad(weights: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """As embedding_bags_grad, into tables of zeros.

    Args:
        args: the fields of `BagsBackward` but for the plan.
    """
    op, (ids, offsets), (tables, _, padding, _) = "embedding_bags_dense_grad", args[3:5], args[6:]
    refuse_capture_of_grads(op, weights[0].device)
    weights = [rows_adjacent(w) for w in weights]
    plan = torch.ops.deeprec.embedding_bags_plan(ids, offsets, [w.shape[0] for w in weights], tables, padding)
    given = BagsBackward(*args[:6], *plan, *args[6:])
    outs = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights]
    return store_grads(op, _entries(given), functools.partial(_pass, weights, given), outs, is_dense=True)


def embedding_bags_update_(
    weights: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], *args: Any
) -> Tensor:
    """Launch `_bags_rows_kernel` without waiting for the GPU; a plan of other tables changes nothing.

    Args:
        args: the fields of `BagsBackward`, then those of `Step`.
    """
    op, given, step = "embedding_bags_update_", flat_plan(BagsBackward(*args[:-6])), Step(*args[-6:])
    if given.sequence_grads:
        reason = "where the gradients of unpooled features lie changes with every call"
        refuse_capture(op, weights[0].device, reason, "pool them, or leave this layer out of the graph")
    start = functools.partial(_pass, weights, given, first, second)
    return take_step(op, _entries(given), start, weights[0], bool(first), step)
