"""Triton kernels of the gradients and updates of embedding_bags: row by row on the plan, see triton_rows.py.

A row's entries are read UNROLL at a time: their numbers, their bags, then the gradients of the bags, all in flight
together. With update= the step is taken while the sum is in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.embedding_bag.checks import ADAGRAD, ADAM, FTRL, MAX, MEAN, ROWWISE_ADAGRAD, SGD
from deeprec.kernels.embedding_bag.triton_rows import (
    CHANGING,
    MOMENTUM,
    NORM,
    PIECES,
    ROWWISE,
    STORE,
    UPDATE,
    add_pieces,
    apply_rule,
    clipped_with_decay,
    mean_square,
    row_of_grad,
    rows_at,
    rowwise_state,
    store_grad,
    tile_of,
)
from deeprec.kernels.embedding_bag.triton_stages import RowKernel, RowsCase
from deeprec.kernels.embedding_bag.triton_tables import COLUMN, DIM, FIELDS, NUMBER

# What the entries of a launch have, summed up in the constant ENTRIES.
BAGS, ONE_FEATURE, SEQUENCE, MAXIMUM, MEANS, SCALE, SCALE_GRAD = (tl.constexpr(1 << i) for i in range(7))
_SUMS = tl.constexpr(63)  # all but SCALE_GRAD
# Columns of a feature's line here: its place in grad, its mode, its padding, the address of its own gradient or 0.
_F_COLUMN, _F_MODE, _F_PADDING, _F_SEQUENCE = (tl.constexpr(i) for i in range(4))
_F_FIELDS = tl.constexpr(4)
_IS_MEAN, _IS_MAX = tl.constexpr(MEAN), tl.constexpr(MAX)
_BLOCK = 128


@triton.jit(do_not_specialize=("num_bags", "batch"))
def _inverse_lengths_kernel(
    features,  # [F, _F_FIELDS]
    ids,  # [nnz]
    offsets,  # [num_bags + 1]
    out,  # [num_bags]
    num_bags,
    batch,
    HAS_PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """1 / entries that count of each bag of a mean, 1 for the others and the empty ones."""
    bag = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_bag = bag < num_bags
    line = features + bag // batch * _F_FIELDS
    is_mean = is_bag & (tl.load(line + _F_MODE, mask=is_bag, other=0) == _IS_MEAN)
    begin = tl.load(offsets + bag, mask=is_mean, other=0)
    end = tl.load(offsets + bag + 1, mask=is_mean, other=0)
    count = end - begin
    if HAS_PADDING:
        padding = tl.load(line + _F_PADDING, mask=is_mean, other=-1)
        for k in range(0, tl.max(end - begin, 0)):
            is_entry = begin + k < end
            count -= (is_entry & (tl.load(ids + begin + k, mask=is_entry, other=0) == padding)).to(count.dtype)
    tl.store(out + bag, 1.0 / tl.maximum(count, 1).to(out.dtype.element_ty), mask=is_bag)


@triton.jit
def _add_entries(
    total,  # [R, BLOCK_D]
    weight,  # [R, BLOCK_D] the rows themselves, where SCALE_GRAD
    rows,  # begin, end, dim, all [R]; where ONE_FEATURE also the feature and its column in grad
    column,  # [BLOCK_D]
    in_row,  # [R, BLOCK_D]
    is_first,  # the first block of columns
    source,
    ENTRIES: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """total + the gradients of entries [begin, end) of the plan, one after another."""
    begin, end, dim, number, start = rows
    features, order, bags, offsets, grad, argmax, scale, inverse, scale_grad, batch, grad_stride, argmax_stride = source
    for chunk in range(0, tl.max(end - begin, 0), UNROLL):
        entries = ()
        for k in tl.static_range(UNROLL):
            j = begin + chunk + k
            is_entry = j < end
            entries += ((tl.load(order + j, mask=is_entry, other=0), is_entry),)
        sources = ()
        for k in tl.static_range(UNROLL):
            p, is_entry = entries[k]
            bag = p
            if BAGS & ENTRIES:
                bag = tl.load(bags + p, mask=is_entry, other=0)
            if ONE_FEATURE & ENTRIES:
                first = start
                b = bag - number * batch
            else:
                f = bag // batch
                b = bag - f * batch
                line = features + f * _F_FIELDS
                first = tl.load(line + _F_COLUMN, mask=is_entry, other=0)
            where = grad + b.to(tl.int64) * grad_stride + first
            if SEQUENCE & ENTRIES:
                own = tl.load(line + _F_SEQUENCE, mask=is_entry, other=0)
                begins = tl.load(offsets + f.to(tl.int64) * batch, mask=is_entry, other=0)
                where = tl.where(own != 0, own.to(grad.dtype) + (p - begins).to(tl.int64) * dim, where)
            mask = is_entry[:, None] & in_row
            is_mine = mask
            if MAXIMUM & ENTRIES:
                is_max = tl.load(line + _F_MODE, mask=is_entry, other=0) == _IS_MAX
                best = argmax + b.to(tl.int64)[:, None] * argmax_stride + first[:, None] + column[None, :]
                is_mine = tl.load(best, mask=mask & is_max[:, None], other=-1) == tl.where(is_max, p, -1)[:, None]
            factor = 1.0
            if MEANS & ENTRIES:
                factor = tl.load(inverse + bag, mask=is_entry, other=0.0)
            if SCALE & ENTRIES:
                factor = tl.load(scale + p, mask=is_entry, other=0.0)
            sources += ((where, is_mine, factor, p, is_entry),)
        grads = ()
        for k in tl.static_range(UNROLL):
            where = sources[k][0][:, None]
            if VEC > 1:
                where = tl.multiple_of(where, (16, 16))
            grads += (tl.load(where + column[None, :], mask=entries[k][1][:, None] & in_row, other=0.0),)
        for k in tl.static_range(UNROLL):
            _, is_mine, factor, p, is_entry = sources[k]
            g = grads[k].to(ACC)
            if MAXIMUM & ENTRIES:
                g = tl.where(is_mine, g, 0.0)
            if SCALE_GRAD & ENTRIES:
                before = tl.load(scale_grad + p, mask=is_entry & (is_first == 0), other=0.0)
                tl.store(scale_grad + p, before + tl.sum(g * weight, 1), mask=is_entry)
            if MEANS & ENTRIES or SCALE & ENTRIES:
                g *= factor.to(ACC)[:, None]
            total += g
    return total


@triton.jit(do_not_specialize=CHANGING)
def _bags_rows_kernel(
    tables,  # [T, FIELDS]
    features,  # [F, _F_FIELDS]
    rows,  # [U], row_offsets, order, bags, table_starts: the plan
    row_offsets,
    order,
    bags,
    table_starts,
    row_tables,  # [U]
    piece_starts,  # [U + 1]
    offsets,  # [F * batch + 1]
    grad,  # [batch, D of all pooled features], rows grad_stride elements apart
    argmax,  # likewise
    scale,  # [nnz]
    inverse,  # [F * batch]
    scale_grad,  # [nnz] in ACC
    scratch,  # [pieces, width] in ACC
    outs,  # [T] addresses of the gradients (STORE)
    scalars,  # hyperparameters (UPDATE, NORM)
    squares,  # [U] (NORM)
    ok,  # [1]; where it is 0 nothing is done
    num_rows,
    steps,
    batch,
    width,
    grad_stride,
    argmax_stride,
    seed_low,
    seed_high,
    count,  # [] the number of the step, where it is counted on the device
    STAGE: tl.constexpr,
    ENTRIES: tl.constexpr,
    RULE: tl.constexpr,
    IS_DENSE: tl.constexpr,  # STORE: whole tables rather than the touched rows
    IS_ONE_BLOCK: tl.constexpr,  # D <= BLOCK_D
    ROUNDING: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum of each row's entries: stored by piece, stored by row, squared, or handed to the optimizer."""
    if tl.load(ok) == 0:
        return
    if STAGE == PIECES and tl.program_id(0) * BLOCK_R >= tl.load(piece_starts + num_rows):
        return
    slot, is_row, u, begin, end, piece, last = tile_of(row_offsets, piece_starts, num_rows, steps, STAGE, BLOCK_R)
    table = tl.load(row_tables + u, mask=is_row, other=0)
    line = tables + table * FIELDS
    dim = tl.multiple_of(tl.load(line + DIM, mask=is_row, other=0), VEC)  # 0: a table of another launch
    end = tl.where(dim > 0, end, begin)
    row = tl.load(rows + u, mask=is_row, other=0).to(tl.int64)
    number, start = dim, dim
    if ONE_FEATURE & ENTRIES:
        number = tl.load(line + NUMBER, mask=is_row, other=0)
        start = tl.load(line + COLUMN, mask=is_row, other=0)
    weight = rows_at(line, row, is_row, grad, VEC > 1)
    place = (table, line, row, dim)
    step_of = (scalars, seed_low, seed_high, count)
    source = (features, order, bags, offsets, grad, argmax, scale, inverse, scale_grad)
    source += (batch, grad_stride, argmax_stride)
    entry_rows = (begin, end, dim, number, start)
    blocks = 1
    if not IS_ONE_BLOCK:
        blocks = tl.cdiv(tl.max(dim, 0), BLOCK_D).to(tl.int32)
    total_squares = tl.zeros([BLOCK_R], ACC)
    sums = total_squares
    if STAGE == UPDATE and RULE == ROWWISE:
        state, sums = rowwise_state(line, row, dim, scalars)
    if STAGE == UPDATE and RULE == ROWWISE and not IS_ONE_BLOCK:
        # The step needs the squares of the whole row: a pass of their own, without gradients of the scale.
        for block in range(0, blocks):
            column = block * BLOCK_D + tl.arange(0, BLOCK_D)
            in_row = column[None, :] < dim[:, None]
            g = tl.zeros([BLOCK_R, BLOCK_D], ACC)
            g = _add_entries(g, g, entry_rows, column, in_row, True, source, _SUMS & ENTRIES, ACC, VEC, UNROLL)
            g = add_pieces(g, scratch, width, piece, last, column, in_row, UNROLL)
            w = tl.load(weight + column[None, :], mask=in_row, other=0.0).to(ACC)
            g = clipped_with_decay(g, w, scalars)
            total_squares += tl.sum(g * g, 1)
        sums += mean_square(total_squares, dim, ACC)
        tl.debug_barrier()  # all threads have read the rows, which are written from here on
    for block in range(0, blocks):
        column = block * BLOCK_D + tl.arange(0, BLOCK_D)
        in_row = column[None, :] < dim[:, None]
        w = tl.zeros([BLOCK_R, BLOCK_D], ACC)
        if SCALE_GRAD & ENTRIES:
            w = tl.load(weight + column[None, :], mask=in_row, other=0.0).to(ACC)
        g = tl.zeros([BLOCK_R, BLOCK_D], ACC)
        if SCALE_GRAD & ENTRIES:
            tl.debug_barrier()  # the next block of columns adds to what other threads stored
        g = _add_entries(g, w, entry_rows, column, in_row, block == 0, source, ENTRIES, ACC, VEC, UNROLL)
        if STAGE == PIECES:
            tl.store(scratch + slot[:, None] * width + column[None, :], g, mask=in_row)
        else:
            g = add_pieces(g, scratch, width, piece, last, column, in_row, UNROLL)
        if STAGE == NORM:
            total_squares += tl.sum(g * g, 1)
        if STAGE == STORE:
            at = row_of_grad(u, row, table, table_starts, is_row, IS_DENSE)
            store_grad(g, outs + table, at, dim, is_row, column, in_row, grad, VEC > 1)
        if STAGE == UPDATE:
            if not SCALE_GRAD & ENTRIES:  # so late, for before it would wait in registers
                w = tl.load(weight + column[None, :], mask=in_row, other=0.0).to(ACC)
            g = clipped_with_decay(g, w, scalars)
            if RULE == ROWWISE and IS_ONE_BLOCK:
                sums += mean_square(tl.sum(g * g, 1), dim, ACC)
            at = weight + column[None, :]
            apply_rule(g, w, at, place, sums, column, in_row, step_of, RULE, ROUNDING, ACC, VEC > 1)
    if STAGE == NORM:
        tl.store(squares + u, total_squares, mask=dim > 0)
    if STAGE == UPDATE and RULE == ROWWISE:
        tl.debug_barrier()  # all threads of a row have read its old state
        tl.store(state, sums, mask=dim > 0)


def inverse_lengths(
    features: Tensor, ids: Tensor, offsets: Tensor, batch: int, has_padding: bool, dtype: torch.dtype
) -> Tensor:
    """Launch `_inverse_lengths_kernel`; features: lines of F_FIELDS."""
    out = torch.empty(offsets.shape[0] - 1, dtype=dtype, device=ids.device)
    grid = (triton.cdiv(out.shape[0], _BLOCK),)
    launch(
        _inverse_lengths_kernel,
        grid,
        features,
        ids,
        offsets,
        out,
        out.shape[0],
        batch,
        HAS_PADDING=has_padding,
        BLOCK=_BLOCK,
    )
    return out


def _unroll_of(entries: int) -> int:
    """Entries in flight; fewer where each takes many registers."""
    return 2 if entries & (MAXIMUM.value | SEQUENCE.value | SCALE_GRAD.value) else 4


BAG_ROWS = RowKernel(_bags_rows_kernel, _SUMS.value, _unroll_of)


def compile_cases() -> list[CompileCase]:
    """Stages and rules at D = 16 for one feature a table; other kinds of entries, wide and odd rows in float32."""
    bags, plain = BAGS.value, ONE_FEATURE.value
    weighted = bags | SCALE.value | SCALE_GRAD.value
    everything = bags | MAXIMUM.value | MEANS.value | SEQUENCE.value
    store, update = STORE.value, UPDATE.value
    kinds: list[RowsCase] = []
    for element in ("fp32", "bf16", "fp16", "fp64"):
        kinds.append(RowsCase("bags_grad", element, 16, store, plain, -1))
        kinds.append(RowsCase("bags_update_adam", element, 16, update, plain, ADAM))
    kinds.append(RowsCase("bags_update_rowwise_adagrad", "bf16", 16, update, plain, ROWWISE_ADAGRAD))
    for name, rule in (("sgd", SGD), ("momentum", MOMENTUM.value), ("adagrad", ADAGRAD), ("ftrl", FTRL)):
        kinds.append(RowsCase(f"bags_update_{name}", "fp32", 16, update, plain | bags, rule))
    for dim in (16, 128, 300):
        kinds.append(RowsCase("bags_pieces", "fp32", dim, PIECES.value, plain, -1))
        kinds.append(RowsCase("bags_norm", "fp32", dim, NORM.value, plain, -1))
        kinds.append(RowsCase("bags_update_rowwise_adagrad", "fp32", dim, update, plain, ROWWISE_ADAGRAD))
    for dim in (7, 16, 300):
        means = bags | MEANS.value
        kinds.append(RowsCase("bags_update_rowwise_adagrad_bags", "fp32", dim, update, means, ROWWISE_ADAGRAD))
        kinds.append(RowsCase("bags_grad_weighted", "fp32", dim, store, weighted, -1))
        kinds.append(RowsCase("bags_grad_all", "fp32", dim, store, everything, -1))
    lengths = {"features": "*i64", "ids": "*i64", "offsets": "*i64", "out": "*fp32", "num_bags": "i32", "batch": "i32"}
    lengths |= {"HAS_PADDING": "constexpr", "BLOCK": "constexpr"}
    constants = {"HAS_PADDING": True, "BLOCK": _BLOCK}
    inverse = CompileCase("bags_inverse_lengths", _inverse_lengths_kernel, lengths, constants)
    return [*map(_case, kinds), inverse]


def _case(kind: RowsCase) -> CompileCase:
    types = dict.fromkeys(("features", "offsets", "argmax"), "*i64") | {"scale": f"*{kind.element}"}
    types |= dict.fromkeys(("inverse", "scale_grad"), f"*{kind.wide}") | {"argmax_stride": "i32"}
    return kind.compile_case(_bags_rows_kernel, types, _unroll_of(kind.entries), ("width", "grad_stride"))
