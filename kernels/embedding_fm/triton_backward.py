"""Launchers of the gradients and updates of embedding_fm: lines of the tables, the order of stages.

The kernel is in triton_grad.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag.backward import Step
from deeprec.kernels.embedding_bag.checks import num_bags
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.embedding_bag.triton_rows import PIECES, find_pieces, groups_of
from deeprec.kernels.embedding_bag.triton_stages import (
    Entries,
    RowPass,
    empty_grads,
    refuse_capture_of_grads,
    store_grads,
    take_step,
)
from deeprec.kernels.embedding_bag.triton_tables import flat_plan, is_aligned, rows_adjacent
from deeprec.kernels.embedding_fm.backward import FMBackward
from deeprec.kernels.embedding_fm.triton_grad import BAGS, EMBEDDINGS, FM_ROWS, LINEAR, VALUES, VALUES_GRAD


def _pass(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    given: FMBackward,
    first: Sequence[Tensor] = (),
    second: Sequence[Tensor] = (),
) -> RowPass:
    """Describe the tables, sum the pieces of long rows."""
    grad, sums, embeddings_grad, ids, offsets, values, *_ = given
    tables, plan = given.tables, given.plan
    dtype, dim, batch = weights[0].dtype, weights[0].shape[1], num_bags(ids, offsets, len(tables))
    wide, elements = wide_dtype(dtype), 16 // weights[0].element_size()
    sums = sums.contiguous()
    nothing = sums.new_empty(0)
    entries = (BAGS.value if offsets is not None else 0) | (LINEAR.value if linear else 0)
    e_strides = (0, 0)
    is_even = all(s.data_ptr() % 16 == 0 for s in (*first, *second, sums))
    is_even &= all(is_aligned(w) for w in weights)
    if embeddings_grad is not None:
        entries |= EMBEDDINGS.value
        e = embeddings_grad if dim == 1 or embeddings_grad.stride(2) == 1 else embeddings_grad.contiguous()
        e_strides = (e.stride(0), e.stride(1))
        is_even &= e.data_ptr() % 16 == 0 and all(s % elements == 0 for s in e_strides)
        embeddings_grad = e
    values_grad = None
    if values is not None:
        entries |= VALUES.value
        values = values.contiguous()
        if given.need_values_grad:
            entries |= VALUES_GRAD.value
            values_grad = torch.zeros(values.shape, dtype=wide, device=values.device)
    vecs, none, count = [elements if is_even else 1] * len(weights), [0] * len(weights), len(weights)
    (group,) = groups_of(weights, vecs, none, none, first[:count], second[:count])
    linear_lines = group.lines
    if linear:
        flat = [w.view(-1, 1) for w in linear]
        linear_lines = groups_of(flat, [1] * count, none, none, first[count:], second[count:])[0].lines
    pieces = find_pieces(group.lines, plan[0], plan[1], plan[2], plan[4])
    scratch, scratch2 = (sums.new_empty(pieces.most, size) for size in (dim, 2))
    arguments = {
        "linear_tables": linear_lines,
        "sums": sums,
        "embeddings_grad": nothing if embeddings_grad is None else embeddings_grad,
        "e_sample_stride": e_strides[0],
        "e_field_stride": e_strides[1],
        "values": nothing if values is None else values,
        "values_grad": nothing if values_grad is None else values_grad,
        "scratch2": scratch2,
        "num_tables": count,
    }
    out = RowPass(FM_ROWS, [group], entries, plan, pieces, batch, grad, scratch, arguments, values_grad)
    out.run(PIECES.value)
    return out


def _entries(given: FMBackward) -> Entries:
    return Entries(given.rows.shape[0], given.values, given.need_values_grad)


def embedding_fm_grad(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """Launch `_embedding_fm_rows_kernel`; waits for the GPU once, for the number of rows of each table.

    Args:
        args: the fields of `FMBackward`.
    """
    op, given = "embedding_fm_grad", flat_plan(FMBackward(*args))
    weights = [rows_adjacent(w) for w in weights]
    outs = empty_grads(op, [*weights, *linear], given.table_starts)
    return store_grads(op, _entries(given), functools.partial(_pass, weights, linear, given), outs)


def embedding_fm_dense_grad(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """As embedding_fm_grad, into tables of zeros.

    Args:
        args: the fields of `FMBackward` but for the plan.
    """
    op, (ids, offsets), (tables, padding, _) = "embedding_fm_dense_grad", args[3:5], args[6:]
    refuse_capture_of_grads(op, weights[0].device)
    weights = [rows_adjacent(w) for w in weights]
    plan = torch.ops.deeprec.embedding_bags_plan(ids, offsets, [w.shape[0] for w in weights], tables, padding)
    given = FMBackward(*args[:6], *plan, *args[6:])
    outs = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in [*weights, *linear]]
    return store_grads(op, _entries(given), functools.partial(_pass, weights, linear, given), outs, is_dense=True)


def embedding_fm_update_(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    *args: Any,
) -> Tensor:
    """Launch `_embedding_fm_rows_kernel` without waiting for the GPU; a plan of other tables changes nothing.

    Args:
        args: the fields of `FMBackward`, then those of `Step`.
    """
    op, given, step = "embedding_fm_update_", flat_plan(FMBackward(*args[:-6])), Step(*args[-6:])
    start = functools.partial(_pass, weights, linear, given, first, second)
    return take_step(op, _entries(given), start, weights[0], bool(first), step)
