"""What the row-wise passes of embedding_bags and embedding_fm share: tiles of touched rows, long rows, update rules.

A program takes BLOCK_R rows of the plan, whatever their tables, and adds the entries of each one after another. A row
of more than SHORT entries is cut at multiples of 32 into pieces of about the square root of its length, which are
summed first, as rows of their own; then they are added in their order. So the result is the same bit for bit in every
run, and one popular row does not keep the GPU waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.embedding_bag.checks import ADAGRAD, ADAM, FTRL, ROWWISE_ADAGRAD, SGD
from deeprec.kernels.embedding_bag.triton_tables import (
    ADDRESS,
    COLUMN,
    DIM,
    FIELDS,
    NUMBER,
    ROWS,
    STRIDE,
    block_of,
    constant,
    new_flag,
)
from deeprec.kernels.sparse_update.triton_kernels import SEEDS, ftrl_step, store_weight

# Columns of a table's line; the others are those of a feature's.
FIRST, SECOND = tl.constexpr(5), tl.constexpr(6)  # addresses of the states
# What a pass over the rows ends in.
PIECES, STORE, NORM, UPDATE = (tl.constexpr(i) for i in range(4))
# The rules; momentum is SGD with a state.
_ADAGRAD, ROWWISE, _ADAM = tl.constexpr(ADAGRAD), tl.constexpr(ROWWISE_ADAGRAD), tl.constexpr(ADAM)
_FTRL, MOMENTUM = tl.constexpr(FTRL), tl.constexpr(5)

_SGD = tl.constexpr(SGD)
# Places of the hyperparameters.
LR, _EPS, _DECAY, _BETA1, _REST1, _BETA2, _REST2, STEP_SIZE, SCALE, FACTOR = (tl.constexpr(i) for i in range(10))
# How weights are rounded: to the nearest, at random by a seed, or by a seed and the count of steps on the device.
NEAREST, BY_SEED, BY_STEP = (tl.constexpr(i) for i in range(3))
SHORT = tl.constexpr(64)
# Arguments that change from batch to batch: each variant of them would be a compilation.
CHANGING = ("num_rows", "steps", "batch", *SEEDS)
MAX_REGISTERS = 128
_BLOCK = 256


@triton.jit
def _first_above(starts, value, count, steps, mask):
    """The first i in [0, count) with starts[i + 1] > value; starts [count + 1] ascend, steps >= log2(count) + 1."""
    low = tl.zeros_like(value)
    high = low + count
    for _ in range(steps):
        middle = (low + high) // 2
        is_open = mask & (low < high)
        is_below = tl.load(starts + middle + 1, mask=is_open, other=0) <= value
        low = tl.where(is_open & is_below, middle + 1, low)
        high = tl.where(is_open & (is_below == 0), middle, high)
    return low


@triton.jit
def _piece_length(count):
    return (tl.sqrt(count.to(tl.float32)).to(tl.int32) + 31) // 32 * 32


@triton.jit(do_not_specialize=("num_rows", "num_tables", "num_entries", "steps"))
def _rows_pieces_kernel(
    tables,  # [T, FIELDS]
    rows,  # [U]
    row_offsets,  # [U + 1]
    table_starts,  # [T + 1]
    row_tables,  # [U] out: the table of each row
    pieces,  # [U] out: pieces of each row, 0 for a short one
    ok,  # [1], set to 0 for a plan of other tables or entries
    num_rows,
    num_tables,
    num_entries,
    steps,
    BLOCK: tl.constexpr,
):
    """Table and number of pieces of each row."""
    u = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row = u < num_rows
    table = _first_above(table_starts, u, num_tables, steps, is_row)
    is_known = table < num_tables
    row = tl.load(rows + u, mask=is_row, other=0)
    begin = tl.load(row_offsets + u, mask=is_row, other=0)
    end = tl.load(row_offsets + u + 1, mask=is_row, other=0)
    size = tl.load(tables + table * FIELDS + ROWS, mask=is_row & is_known, other=0)
    is_known &= (row >= 0) & (row < size) & (begin >= 0) & (begin <= end) & (end <= num_entries)
    count = end - begin
    length = _piece_length(tl.maximum(count, 1))
    tl.store(row_tables + u, table.to(tl.int32), mask=is_row)
    tl.store(pieces + u, tl.where(count > SHORT, (count + length - 1) // length, 0), mask=is_row)
    tl.store(ok + tl.zeros_like(table), tl.zeros_like(table).to(tl.int32), mask=is_row & (is_known == 0))


@triton.jit
def tile_of_rows(row_offsets, piece_starts, num_rows, BLOCK_R: tl.constexpr):
    """Rows u of this program, entries [begin, end) of the short ones, pieces [piece, last) of the long ones."""
    u = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = u < num_rows
    begin = tl.load(row_offsets + u, mask=is_row, other=0)
    end = tl.load(row_offsets + u + 1, mask=is_row, other=0)
    is_long = end - begin > SHORT
    piece = tl.load(piece_starts + u, mask=is_long, other=0)
    last = tl.load(piece_starts + u + 1, mask=is_long, other=0)
    return u, is_row, begin, tl.where(is_long, begin, end), piece, last


@triton.jit
def tile_of_pieces(row_offsets, piece_starts, num_rows, steps, BLOCK_R: tl.constexpr):
    """Pieces of this program, their rows u and entries [begin, end); all false where is_piece is."""
    piece = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_piece = piece < tl.load(piece_starts + num_rows)
    u = _first_above(piece_starts, piece, num_rows, steps, is_piece)
    start = tl.load(row_offsets + u, mask=is_piece, other=0)
    stop = tl.load(row_offsets + u + 1, mask=is_piece, other=0)
    length = _piece_length(tl.maximum(stop - start, 1))
    begin = start + ((piece - tl.load(piece_starts + u, mask=is_piece, other=0)) * length).to(start.dtype)
    return piece, is_piece, u, begin, tl.minimum(begin + length, stop)


@triton.jit
def tile_of(row_offsets, piece_starts, num_rows, steps, STAGE: tl.constexpr, BLOCK_R: tl.constexpr):
    """Slots of this program, which of them there are, their rows u, entries [begin, end), pieces [piece, last).

    A slot is a piece of a long row in PIECES, otherwise a row.
    """
    if STAGE == PIECES:
        slot, is_slot, u, begin, end = tile_of_pieces(row_offsets, piece_starts, num_rows, steps, BLOCK_R)
        piece, last = slot, slot
    else:
        u, is_slot, begin, end, piece, last = tile_of_rows(row_offsets, piece_starts, num_rows, BLOCK_R)
        slot = u
    return slot, is_slot, u, begin, end, piece, last


@triton.jit
def rows_at(line, row, is_row, like, ALIGNED: tl.constexpr):
    """Pointers [R, 1] to rows of tables of like's type; line: of each row's table, pointers [R]."""
    address = tl.load(line + ADDRESS, mask=is_row, other=0)
    stride = tl.load(line + STRIDE, mask=is_row, other=0)
    pointers = (address.to(like.dtype) + row * stride)[:, None]
    if ALIGNED:  # said where the pointers are computed: of an argument it would be lost
        pointers = tl.multiple_of(pointers, (16, 16))
    return pointers


@triton.jit
def row_of_grad(u, row, table, table_starts, is_row, IS_DENSE: tl.constexpr):
    """The row [R] of a table's gradient that is this row's: of the whole table, or of the touched rows."""
    at = row
    if not IS_DENSE:
        at = u - tl.load(table_starts + table, mask=is_row, other=0)
    return at


@triton.jit
def store_grad(g, out, at, dim, is_row, column, in_row, like, ALIGNED: tl.constexpr):
    """Store g [R, C] in like's type in rows `at` of matrices of dim columns; out: where their addresses lie [R]."""
    rows = (tl.load(out, mask=is_row, other=0).to(like.dtype) + at * dim)[:, None]
    if ALIGNED:
        rows = tl.multiple_of(rows, (16, 16))
    tl.store(rows + column[None, :], g.to(like.dtype.element_ty), mask=in_row)


@triton.jit
def add_pieces(total, scratch, width, piece, last, column, in_row, UNROLL: tl.constexpr):
    """total [BLOCK_R, BLOCK_D] + the pieces of each row in their order; scratch [pieces, width]."""
    for chunk in range(0, tl.max(last - piece, 0), UNROLL):
        parts = ()
        for k in tl.static_range(UNROLL):
            at = (piece + chunk + k).to(tl.int64)
            mask = (at < last)[:, None] & in_row
            parts += (tl.load(scratch + at[:, None] * width + column[None, :], mask=mask, other=0.0),)
        for k in tl.static_range(UNROLL):
            total += parts[k]
    return total


@triton.jit
def clipped_with_decay(g, w, scalars):
    """g times what max_norm allows, + weight_decay w."""
    return g * tl.load(scalars + FACTOR) + tl.load(scalars + _DECAY) * w


@triton.jit
def mean_square(total, dim, ACC: tl.constexpr):
    """total [R] / dim, for rows of other launches too."""
    return total / tl.maximum(dim, 1).to(ACC)


@triton.jit
def _state_rows(field, row, dim, like, ALIGNED: tl.constexpr):
    """Pointers [R, 1] to the rows of a state [rows, dim] whose address is in a field of the tables' lines."""
    state = (tl.load(field, mask=dim > 0, other=0).to(like.dtype) + row * dim)[:, None]
    if ALIGNED:
        state = tl.multiple_of(state, (16, 16))
    return state


@triton.jit
def apply_rule(
    g,  # [R, C] clipped, weight decay added
    w,  # [R, C]
    weight,  # pointers [R, C]
    rows,  # each row's table, pointers to the table's line, the row, its dim, all [R]
    sums,  # [R] the new state of row-wise Adagrad
    column,  # [C]
    mask,  # [R, C]
    step_of,  # hyperparameters, halves of the rounding seed, the count of steps
    RULE: tl.constexpr,
    ROUNDING: tl.constexpr,
    ACC: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One step of RULE; states are [rows, dim] in ACC, but for row-wise Adagrad's, which the caller stores."""
    table, line, row, dim = rows
    scalars, seed_low, seed_high, count = step_of
    place = row[:, None] * dim[:, None] + column[None, :]
    lr = tl.load(scalars + LR)
    if RULE != _SGD and RULE != ROWWISE:
        first = _state_rows(line + FIRST, row, dim, scalars, ALIGNED) + column[None, :]
    if RULE == MOMENTUM:
        g += tl.load(scalars + _BETA1) * tl.load(first, mask=mask, other=0.0)
        tl.store(first, g, mask=mask)
    if RULE == _ADAGRAD:
        total = tl.load(first, mask=mask, other=1.0) + g * g
        tl.store(first, total, mask=mask)
        step = lr * g / (tl.sqrt(total) + tl.load(scalars + _EPS))
    elif RULE == ROWWISE:
        step = lr / (tl.sqrt(sums) + tl.load(scalars + _EPS))[:, None] * g
    elif RULE == _ADAM:
        second = _state_rows(line + SECOND, row, dim, scalars, ALIGNED) + column[None, :]
        m = tl.load(first, mask=mask, other=0.0)
        v = tl.load(second, mask=mask, other=1.0)
        m = tl.load(scalars + _BETA1) * m + tl.load(scalars + _REST1) * g
        v = tl.load(scalars + _BETA2) * v + tl.load(scalars + _REST2) * g * g
        tl.store(first, m, mask=mask)
        tl.store(second, v, mask=mask)
        scale = tl.load(scalars + SCALE)
        step = tl.load(scalars + STEP_SIZE) * m / (tl.sqrt(v) * scale + tl.load(scalars + _EPS))
    elif RULE == _FTRL:
        second = _state_rows(line + SECOND, row, dim, scalars, ALIGNED) + column[None, :]
        l1, l2, beta = tl.load(scalars + _BETA1), tl.load(scalars + _BETA2), tl.load(scalars + _EPS)
        new = ftrl_step(g, w, first, second, mask, lr, l1, l2, beta)
    else:
        step = lr * g
    low, high = seed_low, seed_high
    if ROUNDING != NEAREST:
        base = (seed_high.to(tl.int64) << 32) | (seed_low.to(tl.int64) & 0xFFFFFFFF)
        # `rounding_seed` of the reference: the products wrap around 64 bits
        if ROUNDING == BY_STEP:
            base += tl.load(count) * -7046029254386353131
        salt = (base + table.to(tl.int64) * -4658895280553007687) & 0x7FFFFFFFFFFFFFFF
        low = (salt & 0xFFFFFFFF).to(tl.int32)[:, None]
        high = (salt >> 32).to(tl.int32)[:, None]
    if RULE != _FTRL:
        new = w - step
    store_weight(weight, new.to(ACC), place, mask, low, high, ROUNDING != NEAREST)


@triton.jit
def rowwise_state(line, row, dim, scalars):
    """Where the sums of row-wise Adagrad lie [R], and what they are."""
    state = tl.load(line + FIRST, mask=dim > 0, other=0).to(scalars.dtype) + row
    return state, tl.load(state, mask=dim > 0, other=1.0)


class Pieces(NamedTuple):
    """What a launch over rows needs beside the plan.

    Attributes:
        row_tables: table of each row, [U] int32.
        starts: pieces of the rows before it, [U + 1], dtype of row_offsets.
        ok: [1], 0 where the plan does not fit the tables.
        most: an upper bound of the number of pieces, known without asking the GPU.
        steps: of a binary search among the rows.
    """

    row_tables: Tensor
    starts: Tensor
    ok: Tensor
    most: int
    steps: int


def find_pieces(lines: Tensor, rows: Tensor, row_offsets: Tensor, order: Tensor, table_starts: Tensor) -> Pieces:
    """Launch `_rows_pieces_kernel`."""
    num_rows, num_tables = rows.shape[0], table_starts.shape[0] - 1
    row_tables = torch.empty(num_rows, dtype=torch.int32, device=rows.device)
    starts = torch.zeros(num_rows + 1, dtype=row_offsets.dtype, device=rows.device)
    counts = torch.empty_like(row_offsets[1:])
    ok = new_flag(rows.device)
    launch(
        _rows_pieces_kernel,
        (triton.cdiv(num_rows, _BLOCK),),
        lines,
        rows,
        row_offsets,
        table_starts,
        row_tables,
        counts,
        ok,
        num_rows,
        num_tables,
        order.shape[0],
        num_tables.bit_length(),
        BLOCK=_BLOCK,
    )
    torch.cumsum(counts, 0, dtype=starts.dtype, out=starts[1:])
    # A row of n > SHORT entries has at most n / 32 + 1 pieces.
    return Pieces(row_tables, starts, ok, 3 * order.shape[0] // SHORT.value + 1, num_rows.bit_length())


def warps_of(stage: int) -> int:
    """Of a program. One for pieces: what its search for the row finds then passes between threads without a barrier."""
    return 1 if stage == PIECES.value else 2


class Group(NamedTuple):
    """Tables whose rows fill the same tile, and their lines; those of the other tables say D = 0."""

    block_d: int
    vec: int
    is_one_block: bool
    lines: Tensor


def groups_of(
    weights: Sequence[Tensor],
    vecs: Sequence[int],
    columns: Sequence[int],
    numbers: Sequence[int],
    first: Sequence[Tensor] = (),
    second: Sequence[Tensor] = (),
) -> list[Group]:
    """The launches for these tables; vecs: elements by which everything of a table is aligned."""
    keys = [(block_of(w.shape[1]), v, w.shape[1] <= block_of(w.shape[1])) for w, v in zip(weights, vecs, strict=True)]
    groups = []
    for key in dict.fromkeys(keys):
        lines = []
        for t, weight in enumerate(weights):
            line = [0] * FIELDS.value
            line[0], line[ROWS.value], line[2] = weight.data_ptr(), weight.shape[0], weight.stride(0)
            line[DIM.value] = weight.shape[1] if keys[t] == key else 0
            line[COLUMN.value], line[NUMBER.value] = columns[t], numbers[t]
            line[FIRST.value] = first[t].data_ptr() if first else 0
            line[SECOND.value] = second[t].data_ptr() if second else 0
            lines.append(line)
        groups.append(Group(*key, constant(lines, weights[0].device)))
    return groups


def compile_cases() -> list[CompileCase]:
    """The plan of pieces; the rest of this file are parts of other kernels."""
    types = {"tables": "*i64", "rows": "*i64", "row_offsets": "*i32", "table_starts": "*i64", "row_tables": "*i32"}
    types |= {"pieces": "*i32", "ok": "*i32", "num_rows": "i32", "num_tables": "i32", "num_entries": "i32"}
    types |= {"steps": "i32", "BLOCK": "constexpr"}
    return [CompileCase("rows_pieces", _rows_pieces_kernel, types, {"BLOCK": _BLOCK})]
