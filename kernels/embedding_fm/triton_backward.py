"""Launchers of the gradients and updates of embedding_fm: checks, lines of the tables, the order of stages.

The kernel is in triton_grad.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag.checks import num_bags
from deeprec.kernels.embedding_bag.reference import wide_dtype
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
    is_aligned,
    rows_adjacent,
    sent,
)
from deeprec.kernels.embedding_fm.triton_grad import BAGS, EMBEDDINGS, LINEAR, VALUES, VALUES_GRAD, RowPass

_PLAN = "the plan must come from embedding_bags_plan of these ids and offsets"


def _pass(
    op: str,
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    grad: Tensor,
    sums: Tensor,
    embeddings_grad: Tensor | None,
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    plan: tuple[Tensor, ...],
    tables: Sequence[int],
    need_values_grad: bool,
    first: Sequence[Tensor] = (),
    second: Sequence[Tensor] = (),
) -> RowPass:
    """Check the shapes, describe the tables, sum the pieces of long rows."""
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
        if need_values_grad:
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
    given = (nothing if embeddings_grad is None else embeddings_grad, nothing if values is None else values)
    tensors = (grad, sums, *given, values_grad, scratch, scratch2)
    out = RowPass(
        group.lines, linear_lines, group.block_d, group.vec, entries, plan, pieces, tensors, count, batch, strides
    )
    out.run(PIECES.value)
    return out


def _values_grad(done: RowPass, dtype: torch.dtype) -> Tensor:
    return done.tensors[4].to(dtype) if done.entries & VALUES_GRAD.value else done.tensors[0].new_empty(0)


def _no_values_grad(weights: Sequence[Tensor], values: Tensor | None, is_needed: bool) -> Tensor:
    """Of a batch without entries."""
    if values is None or not is_needed:
        return weights[0].new_empty(0)
    return torch.zeros_like(values, memory_format=torch.contiguous_format)


def _store(op: str, weights: Sequence[Tensor], outs: Sequence[Tensor], is_dense: bool, *rest: Any) -> Tensor:
    """Fill outs with the gradients of tables and linear weights; returns that of the values."""
    done = _pass(op, weights, *rest)
    done.run(STORE.value, outs=sent([out.data_ptr() for out in outs], torch.int64, outs[0].device), is_dense=is_dense)
    torch._assert_async(done.pieces.ok, f"{op}: {_PLAN}")
    return _values_grad(done, weights[0].dtype)


def embedding_fm_grad(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    grad: Tensor,
    sums: Tensor,
    embeddings_grad: Tensor | None,
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    rows: Tensor,
    row_offsets: Tensor,
    order: Tensor,
    bags: Tensor,
    table_starts: Tensor,
    tables: Sequence[int],
    padding: Sequence[int],
    need_values_grad: bool,
) -> list[Tensor]:
    """Launch `_embedding_fm_rows_kernel`; waits for the GPU once, for the number of rows of each table."""
    weights = [rows_adjacent(w) for w in weights]
    counts = [end - begin for begin, end in itertools.pairwise(table_starts.tolist())]
    outs = [w.new_empty(count, *w.shape[1:]) for w, count in zip(weights, counts, strict=True)]
    outs += [w.new_empty(count, *w.shape[1:]) for w, count in zip(linear, counts, strict=bool(linear))]
    if rows.shape[0] == 0:
        return [*outs, _no_values_grad(weights, values, need_values_grad)]
    plan = (rows, row_offsets, order, bags, table_starts)
    given = (linear, grad, sums, embeddings_grad, ids, offsets, values, plan, tables, need_values_grad)
    return [*outs, _store("embedding_fm_grad", weights, outs, False, *given)]


def embedding_fm_dense_grad(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    grad: Tensor,
    sums: Tensor,
    embeddings_grad: Tensor | None,
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    tables: Sequence[int],
    padding: Sequence[int],
    need_values_grad: bool,
) -> list[Tensor]:
    """As embedding_fm_grad, into tables of zeros."""
    weights = [rows_adjacent(w) for w in weights]
    sizes = [w.shape[0] for w in weights]
    plan = torch.ops.deeprec.embedding_bags_plan(ids, offsets, sizes, tables, padding)
    outs = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in [*weights, *linear]]
    if plan[0].shape[0] == 0:
        return [*outs, _no_values_grad(weights, values, need_values_grad)]
    given = (linear, grad, sums, embeddings_grad, ids, offsets, values, plan, tables, need_values_grad)
    return [*outs, _store("embedding_fm_dense_grad", weights, outs, True, *given)]


def embedding_fm_update_(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    grad: Tensor,
    sums: Tensor,
    embeddings_grad: Tensor | None,
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    rows: Tensor,
    row_offsets: Tensor,
    order: Tensor,
    bags: Tensor,
    table_starts: Tensor,
    tables: Sequence[int],
    padding: Sequence[int],
    need_values_grad: bool,
    rule: int,
    lr: Tensor,
    step: Tensor,
    options: Sequence[float],
    max_norm: float,
    seed: int,
) -> Tensor:
    """Launch `_embedding_fm_rows_kernel` without waiting for the GPU; a plan of other tables changes nothing."""
    op = "embedding_fm_update_"
    check_update(op, [*weights, *linear], first, second, rule)
    plan = (rows, row_offsets, order, bags, table_starts)
    if rows.shape[0] == 0:
        step.add_(1)
        return _no_values_grad(weights, values, need_values_grad)
    given = (linear, grad, sums, embeddings_grad, ids, offsets, values, plan, tables, need_values_grad)
    done = _pass(op, weights, *given, first, second)
    taken = rule_of("embedding_fm_update_", weights[0], bool(first), rule, lr, step, options, seed)
    step.add_(1)
    if max_norm > 0:
        squares = torch.zeros(rows.shape[0], dtype=taken.scalars.dtype, device=rows.device)
        done.run(NORM.value, taken, squares=squares)
        set_clip(taken, squares, max_norm)
    done.run(UPDATE.value, taken)
    torch._assert_async(done.pieces.ok, f"{op}: {_PLAN}")
    return _values_grad(done, weights[0].dtype)
