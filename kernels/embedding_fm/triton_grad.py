"""Triton kernel of the gradients and updates of embedding_fm: row by row on the plan, see embedding_bag/triton_rows.py.

    grad_v[r] = sum_p (g_b x_p S_b + x_p e_p) - v_r sum_p g_b x_p^2,   grad_w[r] = sum_p g_b x_p
    grad_x[p] = v_p . (g_b S_b + e_p) - g_b x_p |v_p|^2 + g_b w_p,     e: the gradient of the embeddings, if any

A row is read once, whatever the number of its entries, and its linear weight is stepped beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels.embedding_bag.checks import ADAM, FTRL, ROWWISE_ADAGRAD, SGD
from deeprec.kernels.embedding_bag.triton_rows import (
    CHANGING,
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
from deeprec.kernels.embedding_bag.triton_tables import ADDRESS, DIM, FIELDS, STRIDE

# What the entries of a launch have, summed up in the constant ENTRIES.
BAGS, VALUES, LINEAR, EMBEDDINGS, VALUES_GRAD = (tl.constexpr(1 << i) for i in range(5))
_SUMS = tl.constexpr(15)  # all but VALUES_GRAD


@triton.jit
def _add_entries(
    total,  # [R, BLOCK_D] sum of g x S + x e
    curve,  # [R] sum of g x^2
    slope,  # [R] sum of g x
    v,  # [R, BLOCK_D] the rows themselves, where VALUES_GRAD
    w,  # [R] their linear weights, likewise
    rows,  # begin, end, dim, all [R]
    column,  # [BLOCK_D]
    in_row,  # [R, BLOCK_D]
    is_first,  # the first block of columns
    source,
    ENTRIES: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The sums after the entries [begin, end) of the plan, one after another."""
    begin, end, dim = rows
    order, bags, grad, sums, embeddings_grad, values, values_grad, batch, strides = source
    for chunk in range(0, tl.max(end - begin, 0), UNROLL):
        places = ()
        for k in tl.static_range(UNROLL):
            j = begin + chunk + k
            is_entry = j < end
            p = tl.load(order + j, mask=is_entry, other=0)
            places += ((p, is_entry),)
        gathered = ()
        for k in tl.static_range(UNROLL):
            p, is_entry = places[k]
            bag = p
            if BAGS & ENTRIES:
                bag = tl.load(bags + p, mask=is_entry, other=0)
            f = bag // batch
            b = (bag - f * batch).to(tl.int64)
            where = (sums + b * dim)[:, None]
            if VEC > 1:
                where = tl.multiple_of(where, (16, 16))
            mask = is_entry[:, None] & in_row
            s = tl.load(where + column[None, :], mask=mask, other=0.0)
            g = tl.load(grad + b * strides[0], mask=is_entry, other=0.0)
            x = g
            if VALUES & ENTRIES:
                x = tl.load(values + p, mask=is_entry, other=0.0)
            e = s
            if EMBEDDINGS & ENTRIES:
                where = (embeddings_grad + b * strides[1] + f.to(tl.int64) * strides[2])[:, None]
                if VEC > 1:
                    where = tl.multiple_of(where, (16, 16))
                e = tl.load(where + column[None, :], mask=mask, other=0.0)
            gathered += ((s, g, x, e),)
        for k in tl.static_range(UNROLL):
            p, is_entry = places[k]
            s, g, x, e = gathered[k]
            g = g.to(ACC)
            scaled = g
            if VALUES & ENTRIES:
                x = x.to(ACC)
                scaled = g * x
            if VALUES_GRAD & ENTRIES:
                parts = g[:, None] * s - scaled[:, None] * v
                if EMBEDDINGS & ENTRIES:
                    parts += e.to(ACC)
                dot = tl.sum(v * parts, 1)
                if LINEAR & ENTRIES:
                    dot += tl.where(is_first, g * w, 0.0)
                before = tl.load(values_grad + p, mask=is_entry & (is_first == 0), other=0.0)
                tl.store(values_grad + p, before + dot, mask=is_entry)
            total += scaled[:, None] * s
            if EMBEDDINGS & ENTRIES:
                if VALUES & ENTRIES:
                    total += x[:, None] * e.to(ACC)
                else:
                    total += e.to(ACC)
            if VALUES & ENTRIES:
                curve += scaled * x
            else:
                curve += scaled
            slope += scaled
    return total, curve, slope


@triton.jit
def _add_two(curve, slope, scratch, piece, last, mask):
    """curve and slope + those of each row's pieces in their order; scratch [pieces, 2]."""
    for k in range(0, tl.max(last - piece, 0)):
        is_piece = mask & (piece + k < last)
        at = scratch + 2 * (piece + k).to(tl.int64)
        curve += tl.load(at, mask=is_piece, other=0.0)
        slope += tl.load(at + 1, mask=is_piece, other=0.0)
    return curve, slope


@triton.jit(do_not_specialize=CHANGING)
def _embedding_fm_rows_kernel(
    tables,  # [T, FIELDS]
    linear_tables,  # [T, FIELDS], D = 1; anything without LINEAR
    rows,  # [U], row_offsets, order, bags, table_starts: the plan
    row_offsets,
    order,
    bags,
    table_starts,
    row_tables,  # [U]
    piece_starts,  # [U + 1]
    grad,  # [batch], elements grad_stride apart
    sums,  # [batch, D] in ACC
    embeddings_grad,  # [batch, F, D] of any strides but that of the columns
    values,  # [nnz]
    values_grad,  # [nnz] in ACC
    scratch,  # [pieces, width] in ACC
    scratch2,  # [pieces, 2] in ACC
    outs,  # [2 T] addresses of the gradients, tables first (STORE)
    scalars,  # hyperparameters (UPDATE, NORM)
    squares,  # [U] (NORM)
    ok,  # [1]; where it is 0 nothing is done
    num_rows,
    num_tables,
    steps,
    batch,
    width,
    grad_stride,
    e_sample_stride,
    e_field_stride,
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
    """Gradients of rows and linear weights: stored by piece, stored by row, squared, or handed to the optimizer."""
    if tl.load(ok) == 0:
        return
    if STAGE == PIECES and tl.program_id(0) * BLOCK_R >= tl.load(piece_starts + num_rows):
        return
    slot, is_row, u, begin, end, piece, last = tile_of(row_offsets, piece_starts, num_rows, steps, STAGE, BLOCK_R)
    table = tl.load(row_tables + u, mask=is_row, other=0)
    line = tables + table * FIELDS
    dim = tl.multiple_of(tl.load(line + DIM, mask=is_row, other=0), VEC)
    row = tl.load(rows + u, mask=is_row, other=0).to(tl.int64)
    weight = rows_at(line, row, is_row, grad, VEC > 1)
    place = (table, line, row, dim)
    step_of = (scalars, seed_low, seed_high, count)
    one = is_row.to(tl.int64)
    w = tl.zeros([BLOCK_R], ACC)
    if LINEAR & ENTRIES:
        linear_line = linear_tables + table * FIELDS
        address = tl.load(linear_line + ADDRESS, mask=is_row, other=0)
        linear = address.to(grad.dtype) + row * tl.load(linear_line + STRIDE, mask=is_row, other=0)
        w = tl.load(linear, mask=is_row, other=0.0).to(ACC)
    source = (order, bags, grad, sums, embeddings_grad, values, values_grad, batch)
    source += ((grad_stride, e_sample_stride, e_field_stride),)
    entry_rows = (begin, end, dim)
    blocks = 1
    if not IS_ONE_BLOCK:
        blocks = tl.cdiv(tl.max(dim, 0), BLOCK_D).to(tl.int32)
    zeros = tl.zeros([BLOCK_R], ACC)
    total_squares = zeros
    slope = zeros
    new_sums = zeros
    if STAGE == UPDATE and RULE == ROWWISE:
        state, new_sums = rowwise_state(line, row, dim, scalars)
    if STAGE == UPDATE and RULE == ROWWISE and not IS_ONE_BLOCK:
        # The step needs the squares of the whole row: a pass of their own, without gradients of the values.
        for block in range(0, blocks):
            column = block * BLOCK_D + tl.arange(0, BLOCK_D)
            in_row = column[None, :] < dim[:, None]
            g = tl.zeros([BLOCK_R, BLOCK_D], ACC)
            g, curve, slope = _add_entries(
                g, zeros, zeros, g, w, entry_rows, column, in_row, True, source, _SUMS & ENTRIES, ACC, VEC, UNROLL
            )
            g = add_pieces(g, scratch, width, piece, last, column, in_row, UNROLL)
            curve, slope = _add_two(curve, slope, scratch2, piece, last, is_row)
            v = tl.load(weight + column[None, :], mask=in_row, other=0.0).to(ACC)
            g = clipped_with_decay(g - curve[:, None] * v, v, scalars)
            total_squares += tl.sum(g * g, 1)
        new_sums += mean_square(total_squares, dim, ACC)
        tl.debug_barrier()  # all threads have read the rows, which are written from here on
    for block in range(0, blocks):
        column = block * BLOCK_D + tl.arange(0, BLOCK_D)
        in_row = column[None, :] < dim[:, None]
        g = tl.zeros([BLOCK_R, BLOCK_D], ACC)
        v = g
        if VALUES_GRAD & ENTRIES:
            v = tl.load(weight + column[None, :], mask=in_row, other=0.0).to(ACC)
            tl.debug_barrier()  # the next block of columns adds to what other threads stored
        g, curve, slope = _add_entries(
            g, zeros, zeros, v, w, entry_rows, column, in_row, block == 0, source, ENTRIES, ACC, VEC, UNROLL
        )
        if STAGE == PIECES:
            tl.store(scratch + slot[:, None] * width + column[None, :], g, mask=in_row)
            tl.store(scratch2 + 2 * slot, curve, mask=is_row)
            tl.store(scratch2 + 2 * slot + 1, slope, mask=is_row)
        else:
            g = add_pieces(g, scratch, width, piece, last, column, in_row, UNROLL)
            curve, slope = _add_two(curve, slope, scratch2, piece, last, is_row)
            if not VALUES_GRAD & ENTRIES:
                v = tl.load(weight + column[None, :], mask=in_row, other=0.0).to(ACC)
            g -= curve[:, None] * v
        if STAGE == NORM:
            total_squares += tl.sum(g * g, 1)
        if STAGE == STORE:
            at = row_of_grad(u, row, table, table_starts, is_row, IS_DENSE)
            store_grad(g, outs + table, at, dim, is_row, column, in_row, grad, VEC > 1)
            if LINEAR & ENTRIES:
                out1 = tl.load(outs + num_tables + table, mask=is_row, other=0).to(grad.dtype) + at
                tl.store(out1, slope.to(grad.dtype.element_ty), mask=is_row)
        if STAGE == UPDATE:
            g = clipped_with_decay(g, v, scalars)
            if RULE == ROWWISE and IS_ONE_BLOCK:
                new_sums += mean_square(tl.sum(g * g, 1), dim, ACC)
            at = weight + column[None, :]
            apply_rule(g, v, at, place, new_sums, column, in_row, step_of, RULE, ROUNDING, ACC, VEC > 1)
    if STAGE == NORM:
        if LINEAR & ENTRIES:
            total_squares += slope * slope
        tl.store(squares + u, total_squares, mask=is_row)
    if STAGE == UPDATE and (RULE == ROWWISE or LINEAR & ENTRIES):
        tl.debug_barrier()  # all threads of a row have read its old state and its linear weight
    if STAGE == UPDATE and RULE == ROWWISE:
        tl.store(state, new_sums, mask=is_row)
    if STAGE == UPDATE and LINEAR & ENTRIES:
        h = clipped_with_decay(slope, w, scalars)
        if RULE == ROWWISE:
            state, new_sums = rowwise_state(linear_line, row, one, scalars)
            new_sums += h * h
        place = (table + num_tables, linear_line, row, one)
        at, column, mask = linear[:, None], tl.arange(0, 1), is_row[:, None]
        h, w = h[:, None], w[:, None]
        apply_rule(h, w, at, place, new_sums, column, mask, step_of, RULE, ROUNDING, ACC, False)
        if RULE == ROWWISE:
            tl.debug_barrier()
            tl.store(state, new_sums, mask=is_row)


def _unroll_of(entries: int) -> int:
    """Entries in flight; fewer where each takes many registers."""
    heavy = [flag for flag in (EMBEDDINGS, VALUES_GRAD) if entries & flag.value]
    return (4, 2, 1)[len(heavy)]


FM_ROWS = RowKernel(_embedding_fm_rows_kernel, _SUMS.value, _unroll_of)


def compile_cases() -> list[CompileCase]:
    """Stages and rules at D = 16 with a linear term; other kinds of entries, wide and odd rows in float32."""
    plain, update = LINEAR.value, UPDATE.value
    everything = plain | BAGS.value | VALUES.value | EMBEDDINGS.value | VALUES_GRAD.value
    kinds: list[RowsCase] = []
    for element in ("fp32", "bf16", "fp16", "fp64"):
        kinds.append(RowsCase("embedding_fm_grad", element, 16, STORE.value, plain, -1))
        kinds.append(RowsCase("embedding_fm_update_adam", element, 16, update, plain, ADAM))
    kinds.append(RowsCase("embedding_fm_update_sgd", "fp32", 16, update, plain, SGD))
    kinds.append(RowsCase("embedding_fm_update_ftrl", "fp32", 16, update, plain, FTRL))
    for dim in (7, 16, 300):
        kinds.append(RowsCase("embedding_fm_pieces", "fp32", dim, PIECES.value, plain, -1))
        kinds.append(RowsCase("embedding_fm_norm", "fp32", dim, NORM.value, plain, -1))
        kinds.append(RowsCase("embedding_fm_update_rowwise_adagrad", "fp32", dim, update, plain, ROWWISE_ADAGRAD))
        kinds.append(RowsCase("embedding_fm_grad_all", "fp32", dim, STORE.value, everything, -1))
    return [_case(kind) for kind in kinds]


def _case(kind: RowsCase) -> CompileCase:
    types = {"linear_tables": "*i64"} | dict.fromkeys(("embeddings_grad", "values"), f"*{kind.element}")
    types |= dict.fromkeys(("sums", "values_grad", "scratch2"), f"*{kind.wide}")
    types |= dict.fromkeys(("num_tables", "e_sample_stride", "e_field_stride"), "i32")
    return kind.compile_case(_embedding_fm_rows_kernel, types, _unroll_of(kind.entries), ("width",))
