"""Triton kernels of als_solve: conjugate gradient with a program a row, and the normal equations that Cholesky takes.

Conjugate gradient keeps the row's vectors in registers and reads its factors and G once a step, BLOCK_E at a time; G
stays in the second-level cache. The normal equations come in tiles, entry after entry in registers, for as many rows as
fit _MATRIX_BYTES; torch.linalg factorises these.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.als_solve.reference import solved

_MATRIX_BYTES = 1 << 28  # of normal equations at a time
_TILE_VALUES = 4096  # 32 a thread


@triton.jit
def _als_product(x, columns, is_real, indices, weights, factors, gram, ridge, first, stop, dim, BLOCK_E: tl.constexpr):
    """(G + ridge I + sum w y y') x."""
    total = ridge * x
    for start in range(0, dim, BLOCK_E):
        row = start + tl.arange(0, BLOCK_E)
        share = tl.sum(tl.where(row[:, None] == columns[None, :], x[None, :], 0.0), 1)
        mask = (row < dim)[:, None] & is_real[None, :]
        tile = tl.load(gram + row[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        total += tl.sum(share[:, None] * tile, 0)
    for start in range(first, stop, BLOCK_E):
        entry = start + tl.arange(0, BLOCK_E)
        item = tl.load(indices + entry, mask=entry < stop, other=0).to(tl.int64)
        weight = tl.load(weights + entry, mask=entry < stop, other=0.0)
        mask = (entry < stop)[:, None] & is_real[None, :]
        y = tl.load(factors + item[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        total += tl.sum((weight * tl.sum(y * x[None, :], 1))[:, None] * y, 0)
    return total


@triton.jit
def _als_cg_kernel(
    indptr,  # [B + 1]
    indices,  # [nnz]
    weights,  # [nnz]
    factors,  # [N, D]
    gram,  # [D, D]
    ridge,  # [B]
    start_rows,  # [B, D] or none
    out,  # [B, D]
    loss,  # [B]
    dim,
    steps,
    HAS_START: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """out = x after some steps of conjugate gradient on (G + ridge I + sum w y y') x = sum (1 + w) y."""
    b = tl.program_id(0).to(tl.int64)
    first, stop = tl.load(indptr + b).to(tl.int64), tl.load(indptr + b + 1).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    is_real = columns < dim
    own = tl.load(ridge + b)
    x = tl.zeros([BLOCK_D], out.dtype.element_ty)
    if HAS_START:
        x = tl.load(start_rows + b * dim + columns, mask=is_real & (first < stop), other=0.0)
    rest = tl.zeros([BLOCK_D], out.dtype.element_ty)
    errors = tl.zeros([BLOCK_E], out.dtype.element_ty)
    for start in range(first, stop, BLOCK_E):
        entry = start + tl.arange(0, BLOCK_E)
        item = tl.load(indices + entry, mask=entry < stop, other=0).to(tl.int64)
        weight = tl.load(weights + entry, mask=entry < stop, other=0.0)
        mask = (entry < stop)[:, None] & is_real[None, :]
        y = tl.load(factors + item[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        score = tl.sum(y * x[None, :], 1)
        rest += tl.sum((1.0 + weight)[:, None] * y, 0)
        error = (1.0 + weight) * (1.0 - score) * (1.0 - score) - score * score
        errors += tl.where(entry < stop, error, 0.0)
    of_x = _als_product(x, columns, is_real, indices, weights, factors, gram, own, first, first, dim, BLOCK_E)
    value = tl.sum(errors, 0) + tl.sum(x * of_x, 0)
    rest -= _als_product(x, columns, is_real, indices, weights, factors, gram, own, first, stop, dim, BLOCK_E)
    direction = rest
    squares = tl.sum(rest * rest, 0)
    for _ in range(steps):
        of_direction = _als_product(
            direction, columns, is_real, indices, weights, factors, gram, own, first, stop, dim, BLOCK_E
        )
        curvature = tl.sum(direction * of_direction, 0)
        is_going = (squares > 0.0) & (curvature > 0.0)
        length = tl.where(is_going, squares / tl.where(is_going, curvature, 1.0), 0.0)
        x += length * direction
        rest -= length * of_direction
        value -= length * squares
        left = tl.where(is_going, tl.sum(rest * rest, 0), 0.0)
        direction = rest + tl.where(is_going, left / tl.where(is_going, squares, 1.0), 0.0) * direction
        squares = left
    tl.store(out + b * dim + columns, x, mask=is_real)
    tl.store(loss + b, value)


@triton.jit
def _als_normal_kernel(
    indptr,  # [B + 1]
    indices,  # [nnz]
    weights,  # [nnz]
    factors,  # [N, D]
    gram,  # [D, D]
    ridge,  # [B]
    matrices,  # [rows, D, D]
    rhs,  # [rows, D]
    totals,  # [rows]
    dim,
    begin,
    BLOCK: tl.constexpr,
):
    """A tile of G + ridge I + sum w y y' and, in the first column of tiles, of sum (1 + w) y; totals = sum (1 + w)."""
    place = tl.program_id(0).to(tl.int64)
    b = place + begin
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    j = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (i < dim) & (j < dim)
    tile = tl.load(gram + i * dim + j, mask=mask, other=0.0)
    tile += tl.where(i == j, tl.load(ridge + b), 0.0)
    side = tl.zeros([BLOCK, 1], tile.dtype)
    total = tl.zeros([1], tile.dtype)
    for p in range(tl.load(indptr + b).to(tl.int64), tl.load(indptr + b + 1).to(tl.int64)):
        y = factors + tl.load(indices + p).to(tl.int64) * dim
        weight = tl.load(weights + p)
        down = tl.load(y + i, mask=i < dim, other=0.0)
        tile += weight * down * tl.load(y + j, mask=j < dim, other=0.0)
        side += (1.0 + weight) * down
        total += 1.0 + weight
    tl.store(matrices + place * dim * dim + i * dim + j, tile, mask=mask)
    if tl.program_id(2) == 0:
        tl.store(rhs + place * dim + i, side, mask=i < dim)
        if tl.program_id(1) == 0:
            tl.store(totals + place + tl.arange(0, 1), total)


def _blocks(dim: int) -> tuple[int, int]:
    """Columns, and entries of a tile."""
    block_d = max(16, triton.next_power_of_2(dim))
    return block_d, max(1, min(64, _TILE_VALUES // block_d))


def als_solve(
    indptr: Tensor,
    indices: Tensor,
    weights: Tensor,
    factors: Tensor,
    gram: Tensor,
    ridge: Tensor,
    start: Tensor | None,
    cg_steps: int,
) -> tuple[Tensor, Tensor]:
    """Launch `_als_cg_kernel`, or `_als_normal_kernel` and torch.linalg for cg_steps = 0."""
    given = [each.contiguous() for each in (indptr, indices, weights, factors, gram, ridge)]
    batch, dim = indptr.shape[0] - 1, factors.shape[1]
    out, loss = factors.new_empty(batch, dim), factors.new_empty(batch)
    if batch == 0:
        return out, loss
    if cg_steps == 0:
        return _by_cholesky(given, out, loss)
    block_d, block_e = _blocks(dim)
    rows = given[0] if start is None else start.contiguous()
    launch(
        _als_cg_kernel,
        (batch,),
        *given,
        rows,
        out,
        loss,
        dim,
        cg_steps,
        HAS_START=start is not None,
        BLOCK_D=block_d,
        BLOCK_E=block_e,
    )
    return out, loss


def _by_cholesky(given: list[Tensor], out: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    batch, dim = out.shape
    most = max(1, _MATRIX_BYTES // max(1, dim * dim * out.element_size()))
    is_empty = given[0].diff() == 0
    identity = torch.eye(dim, dtype=out.dtype, device=out.device)
    block = min(64, max(16, triton.next_power_of_2(dim)))
    tiles = triton.cdiv(dim, block)
    for begin in range(0, batch, most):
        count = min(most, batch - begin)
        matrices, rhs, totals = out.new_empty(count, dim, dim), out.new_empty(count, dim), out.new_empty(count)
        launch(_als_normal_kernel, (count, tiles, tiles), *given, matrices, rhs, totals, dim, begin, BLOCK=block)
        without = is_empty[begin : begin + count]
        matrices = torch.where(without.reshape(-1, 1, 1), identity, matrices)  # it need not have a solution
        x = solved(matrices, rhs).masked_fill(without.unsqueeze(1), 0.0)
        out[begin : begin + count] = x
        loss[begin : begin + count] = totals - (rhs * x).sum(1)
    return out, loss


def compile_cases() -> list[CompileCase]:
    """Both kernels for float32 and float64 and either index type, at D = 64; the widest tile in float32."""
    cases = []
    for element, index, dim in (("fp32", "i32", 64), ("fp32", "i64", 64), ("fp64", "i32", 64), ("fp32", "i32", 512)):
        block_d, block_e = _blocks(dim)
        values = ("weights", "factors", "gram", "ridge")
        signature = {"indptr": f"*{index}", "indices": f"*{index}", **dict.fromkeys(values, f"*{element}")}
        aligned = (*signature, "dim")
        ends = dict.fromkeys(("start_rows", "out", "loss"), f"*{element}")
        blocks = {"HAS_START": True, "BLOCK_D": block_d, "BLOCK_E": block_e}
        cases.append(
            CompileCase(
                f"als_cg_{element}_{index}_d{dim}",
                _als_cg_kernel,
                {**signature, **ends, "dim": "i32", "steps": "i32", **dict.fromkeys(blocks, "constexpr")},
                blocks,
                aligned=(*aligned, *ends),
            )
        )
        if dim == 64:
            ends = dict.fromkeys(("matrices", "rhs", "totals"), f"*{element}")
            cases.append(
                CompileCase(
                    f"als_normal_{element}_{index}",
                    _als_normal_kernel,
                    {**signature, **ends, "dim": "i32", "begin": "i32", "BLOCK": "constexpr"},
                    {"BLOCK": 64},
                    aligned=(*aligned, *ends),
                )
            )
    return cases
