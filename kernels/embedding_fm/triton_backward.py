"""Launchers of the gradients and updates of embedding_fm: checks, lines of the tables, the order of stages.

The kernel is in triton_grad.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag.backward import Step
from deeprec.kernels.embedding_bag.checks import num_bags
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.embedding_bag.triton_rows import (
    PIECES,
    check_update,
    find_pieces,
    groups_of,
)
from deeprec.kernels.embedding_bag.triton_stages import grad_without_entries, store_grads, take_step
from deeprec.kernels.embedding_bag.triton_tables import (
    is_aligned,
    rows_adjacent,
)
from deeprec.kernels.embedding_fm.backward import FMBackward
from deeprec.kernels.embedding_fm.triton_grad import BAGS, EMBEDDINGS, LINEAR, VALUES, VALUES_GRAD, RowPass


def _pass(
    op: str,
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    given: FMBackward,
    first: Sequence[Tensor] = (),
    second: Sequence[Tensor] = (),
) -> RowPass:
    """Check the shapes, describe the tables, sum the pieces of long rows."""
    grad, sums, embeddings_grad, ids, offsets, values, *_ = given
    tables, plan = given.tables, given.plan
    dtype, dim, batch = weights[0].dtype, weights[0].shape[1], num_bags(ids, offsets, len(tables))
    wide, elements = wide_dtype(dtype), 16 // weights[0].element_size()
    if grad.shape != (batch,) or grad.dtype != dtype:
        raise RuntimeError(f"{op}: grad must be [{batch}] in {dtype}, got {tuple(grad.shape)} in {grad.dtype}")
    if sums.shape != (batch, dim) or sums.dtype != wide:
        raise RuntimeError(f"{op}: sums must be the second result of embedding_fm, [{batch}, {dim}] in {wide}")
    sums = sums.contiguous()
    nothing = sums.new_empty(0)
    entries = (BAGS.value if offsets is not None else 0) | (LINEAR.value if linear else 0)
    strides = (grad.stride(0), 0, 0)
    is_even = all(s.data_ptr() % 16 == 0 for s in (*first, *second, sums))
    is_even &= all(is_aligned(w) for w in weights)
    if embeddings_grad is not None:
        entries |= EMBEDDINGS.value
        e = embeddings_grad if dim == 1 or embeddings_grad.stride(2) == 1 else embeddings_grad.contiguous()
        strides = (grad.stride(0), e.stride(0), e.stride(1))
        is_even &= e.data_ptr() % 16 == 0 and all(s % elements == 0 for s in strides[1:])
        embeddings_grad = e
    values_grad = nothing
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
    optional = (nothing if embeddings_grad is None else embeddings_grad, nothing if values is None else values)
    tensors = (grad, sums, *optional, values_grad, scratch, scratch2)
    out = RowPass(
        group.lines, linear_lines, group.block_d, group.vec, entries, plan, pieces, tensors, count, batch, strides
    )
    out.run(PIECES.value)
    return out


def _values_grad(rows_pass: RowPass, dtype: torch.dtype) -> Tensor:
    is_needed = rows_pass.entries & VALUES_GRAD.value
    return rows_pass.tensors[4].to(dtype) if is_needed else rows_pass.tensors[0].new_empty(0)


def embedding_fm_grad(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """Launch `_embedding_fm_rows_kernel`; waits for the GPU once, for the number of rows of each table.

    Args:
        args: the fields of `FMBackward`.
    """
    op, given = "embedding_fm_grad", FMBackward(*args)
    weights = [rows_adjacent(w) for w in weights]
    counts = [end - begin for begin, end in itertools.pairwise(given.table_starts.tolist())]
    outs = [w.new_empty(count, *w.shape[1:]) for w, count in zip(weights, counts, strict=True)]
    outs += [w.new_empty(count, *w.shape[1:]) for w, count in zip(linear, counts, strict=bool(linear))]
    if given.rows.shape[0] == 0:
        return [*outs, grad_without_entries(weights[0], given.values, given.need_values_grad)]
    rows_pass = _pass(op, weights, linear, given)
    store_grads(op, rows_pass, outs, is_dense=False)
    return [*outs, _values_grad(rows_pass, weights[0].dtype)]


def embedding_fm_dense_grad(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """As embedding_fm_grad, into tables of zeros.

    Args:
        args: the fields of `FMBackward` but for the plan.
    """
    op, (ids, offsets), (tables, padding, _) = "embedding_fm_dense_grad", args[3:5], args[6:]
    weights = [rows_adjacent(w) for w in weights]
    plan = torch.ops.deeprec.embedding_bags_plan(ids, offsets, [w.shape[0] for w in weights], tables, padding)
    given = FMBackward(*args[:6], *plan, *args[6:])
    outs = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in [*weights, *linear]]
    if given.rows.shape[0] == 0:
        return [*outs, grad_without_entries(weights[0], given.values, given.need_values_grad)]
    rows_pass = _pass(op, weights, linear, given)
    store_grads(op, rows_pass, outs, is_dense=True)
    return [*outs, _values_grad(rows_pass, weights[0].dtype)]


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
    op, given, step = "embedding_fm_update_", FMBackward(*args[:-6]), Step(*args[-6:])
    check_update(op, [*weights, *linear], first, second, step.rule)
    if given.rows.shape[0] == 0:
        step.step.add_(1)
        return grad_without_entries(weights[0], given.values, given.need_values_grad)
    rows_pass = _pass(op, weights, linear, given, first, second)
    take_step(op, rows_pass, given.rows.shape[0], weights[0], bool(first), step)
    return _values_grad(rows_pass, weights[0].dtype)
