"""Triton kernel of the gradients and updates of embedding_fm: row by row on the plan, see embedding_bag/triton_rows.py.

    grad_v[r] = sum_p (g_b x_p S_b + x_p e_p) - v_r sum_p g_b x_p^2,   grad_w[r] = sum_p g_b x_p
    grad_x[p] = v_p . (g_b S_b + e_p) - g_b x_p |v_p|^2 + g_b w_p,     e: the gradient of the embeddings, if any

A row is read once, whatever the number of its entries, and its linear weight is stepped beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels.embedding_bag.checks import ADAM, FTRL, ROWWISE_ADAGRAD, SGD
from deeprec.kernels.embedding_bag.triton_rows import (
    CHANGING,
    MAX_REGISTERS,
    NORM,
    PIECES,
    ROWWISE,
    STORE,
    UPDATE,
    Pieces,
    Rule,
    add_pieces,
    apply_rule,
    clip,
    rowwise_state,
    tile_of_pieces,
    tile_of_rows,
    warps_of,
    with_decay,
)
from deeprec.kernels.embedding_bag.triton_stages import RowsCase
from deeprec.kernels.embedding_bag.triton_tables import (
    ADDRESS,
    DIM,
    FIELDS,
    STRIDE,
    acc_of,
    registers,
    rows_of_tile,
)

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
    begin,  # [R]
    end,  # [R]
    dim,  # [R]
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
    order, bags, grad, sums, embeddings_grad, values, values_grad, batch, strides = source
    for chunk in range(0, tl.max(end - begin, 0), UNROLL):
        some = ()
        for k in tl.static_range(UNROLL):
            j = begin + chunk + k
            is_entry = j < end
            p = tl.load(order + j, mask=is_entry, other=0)
            some += ((p, is_entry),)
        gathered = ()
        for k in tl.static_range(UNROLL):
            p, is_entry = some[k]
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
            p, is_entry = some[k]
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
    STAGE: tl.constexpr,
    ENTRIES: tl.constexpr,
    RULE: tl.constexpr,
    IS_DENSE: tl.constexpr,  # STORE: whole tables rather than the touched rows
    IS_ONE_BLOCK: tl.constexpr,  # D <= BLOCK_D
    IS_STOCHASTIC: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of rows and linear weights: stored by piece, stored by row, squared, or handed to the optimizer."""
    if tl.load(ok) == 0:
        return
    if STAGE == PIECES:
        if tl.program_id(0) * BLOCK_R >= tl.load(piece_starts + num_rows):
            return
        slot, is_row, u, begin, end = tile_of_pieces(row_offsets, piece_starts, num_rows, steps, BLOCK_R)
    else:
        u, is_row, begin, end, piece, last = tile_of_rows(row_offsets, piece_starts, num_rows, BLOCK_R)
    table = tl.load(row_tables + u, mask=is_row, other=0)
    line = tables + table * FIELDS
    dim = tl.multiple_of(tl.load(line + DIM, mask=is_row, other=0), VEC)
    row = tl.load(rows + u, mask=is_row, other=0).to(tl.int64)
    address = tl.load(line + ADDRESS, mask=is_row, other=0)
    weight = (address.to(grad.dtype) + row * tl.load(line + STRIDE, mask=is_row, other=0))[:, None]
    if VEC > 1:
        weight = tl.multiple_of(weight, (16, 16))
    one = is_row.to(tl.int64)
    w = tl.zeros([BLOCK_R], ACC)
    if LINEAR & ENTRIES:
        linear_line = linear_tables + table * FIELDS
        address = tl.load(linear_line + ADDRESS, mask=is_row, other=0)
        linear = address.to(grad.dtype) + row * tl.load(linear_line + STRIDE, mask=is_row, other=0)
        w = tl.load(linear, mask=is_row, other=0.0).to(ACC)
    source = (order, bags, grad, sums, embeddings_grad, values, values_grad, batch)
    source += ((grad_stride, e_sample_stride, e_field_stride),)
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
                g, zeros, zeros, g, w, begin, end, dim, column, in_row, True, source, _SUMS & ENTRIES, ACC, VEC, UNROLL
            )
            g = add_pieces(g, scratch, width, piece, last, column, in_row, UNROLL)
            curve, slope = _add_two(curve, slope, scratch2, piece, last, is_row)
            v = tl.load(weight + column[None, :], mask=in_row, other=0.0).to(ACC)
            g = with_decay(clip(g - curve[:, None] * v, scalars), v, scalars)
            total_squares += tl.sum(g * g, 1)
        new_sums += total_squares / tl.maximum(dim, 1).to(ACC)
    for block in range(0, blocks):
        column = block * BLOCK_D + tl.arange(0, BLOCK_D)
        in_row = column[None, :] < dim[:, None]
        g = tl.zeros([BLOCK_R, BLOCK_D], ACC)
        v = g
        if VALUES_GRAD & ENTRIES:
            v = tl.load(weight + column[None, :], mask=in_row, other=0.0).to(ACC)
            tl.debug_barrier()  # the next block of columns adds to what other threads stored
        g, curve, slope = _add_entries(
            g, zeros, zeros, v, w, begin, end, dim, column, in_row, block == 0, source, ENTRIES, ACC, VEC, UNROLL
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
            at = row
            if not IS_DENSE:
                at = u - tl.load(table_starts + table, mask=is_row, other=0)
            out = (tl.load(outs + table, mask=is_row, other=0).to(grad.dtype) + at * dim)[:, None]
            if VEC > 1:
                out = tl.multiple_of(out, (16, 16))
            tl.store(out + column[None, :], g.to(grad.dtype.element_ty), mask=in_row)
            if LINEAR & ENTRIES:
                out1 = tl.load(outs + num_tables + table, mask=is_row, other=0).to(grad.dtype) + at
                tl.store(out1, slope.to(grad.dtype.element_ty), mask=is_row)
        if STAGE == UPDATE:
            g = with_decay(clip(g, scalars), v, scalars)
            if RULE == ROWWISE and IS_ONE_BLOCK:
                new_sums += tl.sum(g * g, 1) / tl.maximum(dim, 1).to(ACC)
            apply_rule(
                g,
                v,
                weight + column[None, :],
                line,
                row,
                dim,
                new_sums,
                column,
                in_row,
                table,
                scalars,
                seed_low,
                seed_high,
                RULE,
                IS_STOCHASTIC,
                ACC,
                VEC > 1,
            )
    if STAGE == NORM:
        if LINEAR & ENTRIES:
            total_squares += slope * slope
        tl.store(squares + u, total_squares, mask=is_row)
    if STAGE == UPDATE and RULE == ROWWISE:
        tl.debug_barrier()  # all threads of a row have read its old state
        tl.store(state, new_sums, mask=is_row)
    if STAGE == UPDATE and LINEAR & ENTRIES:
        h = with_decay(clip(slope, scalars), w, scalars)
        if RULE == ROWWISE:
            state, new_sums = rowwise_state(linear_line, row, one, scalars)
            new_sums += h * h
        apply_rule(
            h[:, None],
            w[:, None],
            linear[:, None],
            linear_line,
            row,
            one,
            new_sums,
            tl.arange(0, 1),
            is_row[:, None],
            table + num_tables,
            scalars,
            seed_low,
            seed_high,
            RULE,
            IS_STOCHASTIC,
            ACC,
            False,
        )
        if RULE == ROWWISE:
            tl.debug_barrier()
            tl.store(state, new_sums, mask=is_row)


class RowPass(NamedTuple):
    """A launch of `_embedding_fm_rows_kernel` but for its stage."""

    lines: Tensor
    linear_lines: Tensor
    block_d: int
    vec: int
    entries: int
    plan: tuple[Tensor, ...]
    pieces: Pieces
    tensors: tuple[Tensor, ...]  # grad, sums, embeddings_grad, values, values_grad, scratch, scratch2
    num_tables: int
    batch: int
    strides: tuple[int, int, int]

    def run(
        self,
        stage: int,
        rule: Rule | None = None,
        *,
        outs: Tensor | None = None,
        is_dense: bool = False,
        squares: Tensor | None = None,
    ) -> None:
        """Launch one stage; values get their gradient from PIECES and from the last stage, not from NORM."""
        rows, row_offsets, order, bags, table_starts = self.plan
        num_rows = self.pieces.most if stage == PIECES.value else rows.shape[0]
        entries = self.entries & (_SUMS.value if stage == NORM.value else ~0)
        warps = warps_of(stage)
        block_r = rows_of_tile(self.block_d, self.vec, warps, 1)
        scratch = self.tensors[5]
        _embedding_fm_rows_kernel[(triton.cdiv(num_rows, block_r),)](
            self.lines,
            self.linear_lines,
            rows,
            row_offsets,
            order,
            bags,
            table_starts,
            self.pieces.row_tables,
            self.pieces.starts,
            *self.tensors,
            scratch if outs is None else outs,
            scratch if rule is None else rule.scalars,
            scratch if squares is None else squares,
            self.pieces.ok,
            rows.shape[0],
            self.num_tables,
            self.pieces.steps,
            self.batch,
            scratch.shape[1],
            *self.strides,
            *((0, 0) if rule is None else rule.seeds),
            STAGE=stage,
            ENTRIES=entries,
            RULE=-1 if rule is None else rule.number,
            IS_DENSE=is_dense,
            IS_ONE_BLOCK=scratch.shape[1] <= self.block_d,
            IS_STOCHASTIC=rule is not None and rule.is_stochastic,
            ACC=acc_of(self.tensors[0]),
            VEC=self.vec,
            UNROLL=_unroll_of(entries),
            BLOCK_R=block_r,
            BLOCK_D=self.block_d,
            num_warps=warps,
            **registers(MAX_REGISTERS),
        )


def _unroll_of(entries: int) -> int:
    """Entries in flight; fewer where each takes many registers."""
    heavy = [flag for flag in (EMBEDDINGS, VALUES_GRAD) if entries & flag.value]
    return (4, 2, 1)[len(heavy)]


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
