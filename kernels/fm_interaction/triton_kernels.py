"""Triton kernels of the FM interaction: a program takes BLOCK_B rows and BLOCK_D columns and walks over the fields.

forward: p += s x; s += x, field after field, unrolled so that several loads are in flight.
backward: the same walk for the sum, then once more to write g (s - x).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch


@triton.jit
def _fm_interaction_fwd_kernel(
    x,  # [B, F, D], columns adjacent
    out,  # [B, D] or [B]
    batch,
    num_fields,
    dim,
    batch_stride,
    field_stride,
    IS_VECTOR: tl.constexpr,  # [B, D], not summed over d
    ACC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = sum of x_f * x_g over the pairs f < g of fields."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_real = row < batch
    total = tl.zeros([BLOCK_B], ACC)
    for first in range(0, dim, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        mask = is_real[:, None] & (column < dim)[None, :]
        offset = row[:, None] * batch_stride + column[None, :]
        field = x
        sums = tl.zeros([BLOCK_B, BLOCK_D], ACC)
        pairs = tl.zeros([BLOCK_B, BLOCK_D], ACC)
        for _ in tl.range(0, num_fields, loop_unroll_factor=8):
            value = tl.load(field + offset, mask=mask, other=0.0).to(ACC)
            pairs += sums * value
            sums += value
            field += field_stride
        if IS_VECTOR:
            tl.store(out + row[:, None] * dim + column[None, :], pairs.to(out.dtype.element_ty), mask=mask)
        else:
            total += tl.sum(pairs, 1)
    if not IS_VECTOR:
        tl.store(out + row, total.to(out.dtype.element_ty), mask=is_real)


@triton.jit
def _fm_interaction_grad_kernel(
    grad,  # [B, D] of any strides
    x,  # [B, F, D], columns adjacent
    out,  # [B, F, D]
    batch,
    num_fields,
    dim,
    grad_stride,
    grad_column_stride,
    batch_stride,
    field_stride,
    ACC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[b, f, d] = grad[b, d] (sum over fields of x[b, :, d] - x[b, f, d])."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (row < batch)[:, None] & (column < dim)[None, :]
    offset = row[:, None] * batch_stride + column[None, :]
    sums = tl.zeros([BLOCK_B, BLOCK_D], ACC)
    field = x
    for _ in tl.range(0, num_fields, loop_unroll_factor=8):
        sums += tl.load(field + offset, mask=mask, other=0.0).to(ACC)
        field += field_stride
    where = grad + row[:, None] * grad_stride + column.to(tl.int64)[None, :] * grad_column_stride
    scale = tl.load(where, mask=mask, other=0.0).to(ACC)
    field = x
    to = out
    out_offset = row[:, None] * num_fields * dim + column[None, :]
    for _ in tl.range(0, num_fields, loop_unroll_factor=4):
        value = tl.load(field + offset, mask=mask, other=0.0).to(ACC)
        tl.store(to + out_offset, (scale * (sums - value)).to(out.dtype.element_ty), mask=mask)
        field += field_stride
        to += dim


def _columns_adjacent(x: Tensor) -> Tensor:
    return x if x.shape[2] <= 1 or x.stride(2) == 1 else x.contiguous()


def _acc(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _blocks(dim: int) -> tuple[int, int]:
    """Rows and columns of a tile: 16 bytes a thread in float32, four warps."""
    block_d = min(triton.next_power_of_2(max(dim, 1)), 256)
    return max(1, 512 // block_d), block_d


def _interaction(x: Tensor, is_vector: bool) -> Tensor:
    x = _columns_adjacent(x)
    batch, num_fields, dim = x.shape
    out = torch.empty((batch, dim) if is_vector else (batch,), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    block_b, block_d = _blocks(dim)
    launch(
        _fm_interaction_fwd_kernel,
        (triton.cdiv(batch, block_b),),
        x,
        out,
        batch,
        num_fields,
        dim,
        x.stride(0),
        x.stride(1),
        IS_VECTOR=is_vector,
        ACC=_acc(x),
        BLOCK_B=block_b,
        BLOCK_D=block_d,
    )
    return out


def fm_interaction(x: Tensor) -> Tensor:
    """Launch `_fm_interaction_fwd_kernel` for [B]."""
    return _interaction(x, False)


def bi_interaction(x: Tensor) -> Tensor:
    """Launch `_fm_interaction_fwd_kernel` for [B, D]."""
    return _interaction(x, True)


def fm_interaction_grad(grad: Tensor, x: Tensor) -> Tensor:
    """Launch `_fm_interaction_grad_kernel`."""
    x = _columns_adjacent(x)
    batch, num_fields, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    block_b, block_d = _blocks(dim)
    launch(
        _fm_interaction_grad_kernel,
        (triton.cdiv(batch, block_b), triton.cdiv(dim, block_d)),
        grad,
        x,
        out,
        batch,
        num_fields,
        dim,
        grad.stride(0),
        grad.stride(1) if grad.dim() == 2 else 0,
        x.stride(0),
        x.stride(1),
        ACC=_acc(x),
        BLOCK_B=block_b,
        BLOCK_D=block_d,
    )
    return out


def compile_cases() -> list[CompileCase]:
    """Each kernel for the element types it is launched with, at D = 16; the largest tile in float32."""
    cases = []
    sizes = {"batch": "i32", "num_fields": "i32", "dim": "i32"}
    strides = {"batch_stride": "i64", "field_stride": "i64"}
    for element in ("fp32", "bf16", "fp16", "fp64"):
        acc = tl.float64 if element == "fp64" else tl.float32
        for dim in (16, 256) if element == "fp32" else (16,):
            block_b, block_d = _blocks(dim)
            blocks = {"ACC": acc, "BLOCK_B": block_b, "BLOCK_D": block_d}
            for kind in ("fm", "bi"):
                signature = {"x": f"*{element}", "out": f"*{element}", **sizes, **strides}
                signature |= dict.fromkeys(("IS_VECTOR", *blocks), "constexpr")
                constants = {"IS_VECTOR": kind == "bi", **blocks}
                name = f"{kind}_interaction_fwd_{element}_d{dim}"
                aligned = ("x", "out", "dim", "batch_stride", "field_stride")
                cases.append(CompileCase(name, _fm_interaction_fwd_kernel, signature, constants, aligned=aligned))
            signature = {"grad": f"*{element}", "x": f"*{element}", "out": f"*{element}", **sizes}
            signature |= {"grad_stride": "i64", "grad_column_stride": "i64", **strides}
            signature |= dict.fromkeys(blocks, "constexpr")
            name = f"fm_interaction_grad_{element}_d{dim}"
            aligned = ("grad", "x", "out", "dim", "batch_stride", "field_stride")
            cases.append(CompileCase(name, _fm_interaction_grad_kernel, signature, blocks, aligned=aligned))
    return cases
