"""Triton kernels of the embedding family: tiles of rows are gathered, gradients are summed row by row in order.

embedding: one program copies BLOCK_N rows x BLOCK_D columns; consecutive threads read consecutive columns.
embedding_grad: one program sums the gradients of one row and BLOCK_D columns sequentially, so it is deterministic.
`embedding_plan` on a GPU is torch.sort (its reference).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch


@triton.jit
def _embedding_fwd_kernel(
    weight,  # [R, D], rows row_stride elements apart
    ids,  # [nnz]
    out,  # [nnz, D]
    bad,  # [1] int32, set to 1 when an id is out of range
    nnz,
    num_rows,
    row_stride,
    dim,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[i, :] = weight[ids[i], :]; an id out of range gives zeros and sets the flag."""
    position = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_real = position < nnz
    row = tl.load(ids + position, mask=is_real, other=0).to(tl.int64)
    is_known = (row >= 0) & (row < num_rows)
    in_row = column < dim
    values = tl.load(
        weight + row[:, None] * row_stride + column[None, :],
        mask=(is_real & is_known)[:, None] & in_row[None, :],
        other=0.0,
    )
    tl.store(out + position[:, None] * dim + column[None, :], values, mask=is_real[:, None] & in_row[None, :])
    tl.store(bad + tl.zeros([BLOCK_N], tl.int32), tl.full([BLOCK_N], 1, tl.int32), mask=is_real & (is_known == 0))


@triton.jit
def _embedding_grad_kernel(
    grad,  # [nnz, D], rows row_stride elements apart
    offsets,  # [U + 1]
    order,  # [nnz]
    out,  # [U, D]
    row_stride,
    dim,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[u, :] = sum of grad[order[j], :] over the segment of u, one after another."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = column < dim
    begin = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    total = tl.zeros([BLOCK_D], ACC)
    for j in range(begin, end):
        position = tl.load(order + j).to(tl.int64)
        total += tl.load(grad + position * row_stride + column, mask=in_row, other=0.0).to(ACC)
    tl.store(out + row * dim + column, total.to(out.dtype.element_ty), mask=in_row)


def _row_major(x: Tensor) -> Tensor:
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def _block(dim: int) -> int:
    return min(triton.next_power_of_2(max(dim, 16)), 256)


def embedding(weight: Tensor, ids: Tensor) -> Tensor:
    """Launch `_embedding_fwd_kernel`; an id out of range is a device-side assertion, as in torch."""
    weight, flat = _row_major(weight), ids.contiguous().view(-1)
    nnz, dim = flat.numel(), weight.shape[1]
    out = torch.empty(*ids.shape, dim, dtype=weight.dtype, device=weight.device)
    if out.numel() == 0:
        return out
    bad = torch.zeros(1, dtype=torch.int32, device=weight.device)
    block_d = _block(dim)
    block_n = max(1, 2048 // block_d)
    grid = (triton.cdiv(nnz, block_n), triton.cdiv(dim, block_d))
    launch(
        _embedding_fwd_kernel,
        grid,
        weight,
        flat,
        out,
        bad,
        nnz,
        weight.shape[0],
        weight.stride(0),
        dim,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
    )
    torch._assert_async(bad == 0, "embedding: ids must be in [0, num_embeddings)")
    return out


def embedding_grad(grad: Tensor, rows: Tensor, offsets: Tensor, order: Tensor) -> Tensor:
    """Launch `_embedding_grad_kernel`."""
    grad = _row_major(grad)
    dim = grad.shape[1]
    out = torch.empty(rows.numel(), dim, dtype=grad.dtype, device=grad.device)
    if out.numel() == 0:
        return out
    block_d = _block(dim)
    launch(
        _embedding_grad_kernel,
        (rows.numel(), triton.cdiv(dim, block_d)),
        grad,
        offsets,
        order,
        out,
        grad.stride(0),
        dim,
        ACC=tl.float64 if grad.dtype == torch.float64 else tl.float32,
        BLOCK_D=block_d,
    )
    return out


def compile_cases() -> list[CompileCase]:
    """Each kernel for the element and index types it is launched with, at D = 64."""
    cases = []
    for element in ("fp32", "bf16", "fp16", "fp64"):
        for index in ("i32", "i64"):
            forward = {"weight": f"*{element}", "ids": f"*{index}", "out": f"*{element}", "bad": "*i32", "nnz": "i64"}
            forward |= {"num_rows": "i64", "row_stride": "i64", "dim": "i32"}
            forward |= {"BLOCK_N": "constexpr", "BLOCK_D": "constexpr"}
            aligned = ("weight", "ids", "out", "bad", "row_stride", "dim")
            name, blocks = f"embedding_fwd_{element}_{index}", {"BLOCK_N": 32, "BLOCK_D": 64}
            cases.append(CompileCase(name, _embedding_fwd_kernel, forward, blocks, aligned=aligned))
        backward = {"grad": f"*{element}", "offsets": "*i32", "order": "*i32", "out": f"*{element}"}
        backward |= {"row_stride": "i64", "dim": "i32", "ACC": "constexpr", "BLOCK_D": "constexpr"}
        acc = tl.float64 if element == "fp64" else tl.float32
        aligned = ("grad", "offsets", "order", "out", "row_stride", "dim")
        name, blocks = f"embedding_grad_{element}", {"ACC": acc, "BLOCK_D": 64}
        cases.append(CompileCase(name, _embedding_grad_kernel, backward, blocks, aligned=aligned))
    return cases
