"""Triton kernel of embedding_fm: a program walks over the entries of BLOCK_B samples, UNROLL gathers in flight.

p += s v; s += v, entry after entry: nothing cancels, and of the embeddings only what is asked for is stored.
Gradients and the update go by row: triton_grad.py. The plan is that of embedding_bags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.embedding_bag.checks import num_bags
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.embedding_bag.triton_tables import (
    ADDRESS,
    BAD_INPUT,
    COLUMN,
    DIM,
    FIELDS,
    MODE,
    PADDING,
    ROWS,
    STRIDE,
    acc_of,
    block_of,
    clear_if,
    constant,
    is_aligned,
    load_rows,
    new_flag,
    pointer_at,
    registers,
    rows_adjacent,
    rows_of_tile,
)
from deeprec.kernels.embedding_fm.triton_backward import (
    embedding_fm_dense_grad,
    embedding_fm_grad,
    embedding_fm_update_,
)

__all__ = [
    "compile_cases",
    "embedding_fm",
    "embedding_fm_dense_grad",
    "embedding_fm_grad",
    "embedding_fm_update_",
]

_LINEAR, _LINEAR_STRIDE = COLUMN, MODE  # of a feature's line: where its linear weights lie
_WARPS, _UNROLL, _MAX_REGISTERS = 2, 8, 168


@triton.jit(do_not_specialize=("batch", "nnz"))
def _embedding_fm_fwd_kernel(
    features,  # [F, FIELDS]
    ids,  # [nnz] with offsets, else id of sample b and feature f at f * id_feature_stride + b * id_stride
    offsets,  # [F * batch + 1], or anything where HAS_OFFSETS is off
    values,  # like ids; anything where HAS_VALUES is off
    out,  # [batch]
    sums,  # [batch, D] in ACC
    embeddings,  # [batch, F, D], or anything where NEED_EMBEDDINGS is off
    ok,  # [1]
    batch,
    num_features,
    nnz,
    id_feature_stride,
    id_stride,
    value_feature_stride,
    value_stride,
    HAS_OFFSETS: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    HAS_LINEAR: tl.constexpr,
    NEED_EMBEDDINGS: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[b] = sum_p x_p w_p + sum_{p<q} (x_p v_p) . (x_q v_q); sums[b] = sum_p x_p v_p."""
    dim = tl.multiple_of(tl.load(features + DIM), VEC)
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_sample = b < batch
    total = tl.zeros([BLOCK_B], ACC)
    is_bad = is_sample & (b < 0)
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        in_tile = is_sample[:, None] & in_row[None, :]
        s = tl.zeros([BLOCK_B, BLOCK_D], ACC)
        pairs = tl.zeros([BLOCK_B, BLOCK_D], ACC)
        straight = tl.zeros([BLOCK_B], ACC)
        step = 1 if HAS_OFFSETS else UNROLL
        for f in range(0, num_features, step):
            entry = b
            longest = 1
            if HAS_OFFSETS:
                bag = tl.cast(f, tl.int64) * batch + b
                entry = tl.load(offsets + bag, mask=is_sample, other=0).to(tl.int64)
                end = tl.load(offsets + bag + 1, mask=is_sample, other=0).to(tl.int64)
                is_ascending = (entry >= 0) & (entry <= end) & (end <= nnz)
                is_ascending &= (bag > 0) | (entry == 0)
                is_ascending &= (bag + 1 < tl.cast(num_features, tl.int64) * batch) | (end == nnz)
                is_bad |= is_sample & (is_ascending == 0)
                end = tl.where(is_ascending, end, entry)
                longest = tl.max(end - entry, 0).to(tl.int32)
            of_bag = tl.zeros([BLOCK_B, BLOCK_D], ACC)
            for chunk in range(0, longest, UNROLL):
                entries = ()
                for k in tl.static_range(UNROLL):
                    g = f if HAS_OFFSETS else f + k
                    place = entry + chunk + k
                    value_place = place
                    is_entry = is_sample
                    if HAS_OFFSETS:
                        is_entry = place < end
                    else:
                        is_entry = is_sample & (g < num_features)
                        g = tl.minimum(g, num_features - 1)
                        place = tl.cast(g, tl.int64) * id_feature_stride + b * id_stride
                        value_place = tl.cast(g, tl.int64) * value_feature_stride + b * value_stride
                    line = features + g * FIELDS
                    table = pointer_at(tl.load(line + ADDRESS), out, VEC > 1)
                    linear = pointer_at(tl.load(line + _LINEAR), out, False)
                    num_rows = tl.load(line + ROWS)
                    padding = tl.load(line + PADDING)
                    row_stride = tl.multiple_of(tl.load(line + STRIDE), VEC)
                    id = tl.load(ids + place, mask=is_entry, other=0).to(tl.int64)
                    rows, keep, is_lost = load_rows(table, num_rows, row_stride, padding, id, is_entry, column, in_row)
                    is_bad |= is_lost
                    x = keep
                    w = keep
                    if HAS_VALUES:
                        x = tl.load(values + value_place, mask=keep, other=0.0)
                    if HAS_LINEAR:
                        w = tl.load(linear + id * tl.load(line + _LINEAR_STRIDE), mask=keep, other=0.0)
                    entries += ((rows, x, w),)
                for k in tl.static_range(UNROLL):
                    rows, x, w = entries[k]
                    v = rows.to(ACC)
                    if HAS_VALUES:
                        v *= x.to(ACC)[:, None]
                    pairs += s * v
                    s += v
                    if HAS_LINEAR:
                        if HAS_VALUES:
                            straight += x.to(ACC) * w.to(ACC)
                        else:
                            straight += w.to(ACC)
                    if NEED_EMBEDDINGS:
                        if HAS_OFFSETS:
                            of_bag += v
                        else:
                            where = embeddings + (b[:, None] * num_features + f + k) * dim + column[None, :]
                            tl.store(where, v.to(out.dtype.element_ty), mask=in_tile & (f + k < num_features))
            if NEED_EMBEDDINGS and HAS_OFFSETS:
                where = embeddings + (b[:, None] * num_features + f) * dim + column[None, :]
                tl.store(where, of_bag.to(out.dtype.element_ty), mask=in_tile)
        tl.store(sums + b[:, None] * dim + column[None, :], s, mask=in_tile)
        total += tl.sum(pairs, 1)
        if begin == 0:
            total += straight
    tl.store(out + b, total.to(out.dtype.element_ty), mask=is_sample)
    clear_if(ok, is_bad)


def embedding_fm(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    tables: Sequence[int],
    padding: Sequence[int],
    need_embeddings: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `_embedding_fm_fwd_kernel` without waiting for the GPU; bad input is a device-side assertion."""
    weights = [rows_adjacent(w) for w in weights]
    first, dim, num_features = weights[0], weights[0].shape[1], len(tables)
    batch = num_bags(ids, offsets, num_features)
    out, sums = first.new_empty(batch), first.new_empty(batch, dim, dtype=wide_dtype(first.dtype))
    embeddings = first.new_empty((batch, num_features, dim) if need_embeddings else (0,))
    if batch == 0 or num_features == 0:
        return out.zero_(), sums.zero_(), embeddings
    strides = (0, 0) if offsets is not None else ids.stride()
    value_strides = (0, 0) if offsets is not None or values is None else values.stride()
    if offsets is not None:
        ids, offsets = ids.contiguous(), offsets.contiguous()
        values = None if values is None else values.contiguous()
    lines = []
    for table, pad in zip(tables, padding, strict=True):
        w = weights[table]
        one = (linear[table].data_ptr(), linear[table].stride(0)) if linear else (0, 0)
        lines.append((w.data_ptr(), w.shape[0], w.stride(0), dim, one[0], pad, one[1], 0))
    vec = 16 // first.element_size() if all(is_aligned(w) for w in weights) else 1
    block_d = block_of(dim)
    block_b = rows_of_tile(block_d, vec, _WARPS, 1)
    ok = new_flag(ids.device)
    launch(
        _embedding_fm_fwd_kernel,
        (triton.cdiv(batch, block_b),),
        constant(lines, ids.device),
        ids,
        ids if offsets is None else offsets,
        out if values is None else values,
        out,
        sums,
        embeddings,
        ok,
        batch,
        num_features,
        ids.numel(),
        *strides,
        *value_strides,
        HAS_OFFSETS=offsets is not None,
        HAS_VALUES=values is not None,
        HAS_LINEAR=bool(linear),
        NEED_EMBEDDINGS=need_embeddings,
        ACC=acc_of(first),
        VEC=vec,
        UNROLL=_UNROLL if offsets is None else _UNROLL // 2,
        BLOCK_B=block_b,
        BLOCK_D=block_d,
        num_warps=_WARPS,
        **registers(_MAX_REGISTERS),
    )
    torch._assert_async(ok, f"embedding_fm: {BAD_INPUT}")
    return out, sums, embeddings


def compile_cases() -> list[CompileCase]:
    """Main shape D = 16 for each element type; bags, values and embeddings, wide and odd rows in float32."""
    cases = [_case(element, 16, False, False) for element in ("fp32", "bf16", "fp16", "fp64")]
    cases += [_case("fp32", dim, has_offsets, True) for dim in (7, 16, 300) for has_offsets in (False, True)]
    return cases


def _case(element: str, dim: int, has_offsets: bool, has_all: bool) -> CompileCase:
    vec = 1 if dim == 7 else 16 // {"fp32": 4, "fp64": 8}.get(element, 2)
    types = {"features": "*i64", "ids": "*i64", "offsets": "*i64", "ok": "*i32"}
    types |= dict.fromkeys(("values", "out", "embeddings"), f"*{element}")
    types["sums"] = "*fp64" if element == "fp64" else "*fp32"
    sizes = ("batch", "num_features", "nnz", "id_feature_stride", "id_stride", "value_feature_stride", "value_stride")
    types |= dict.fromkeys(sizes, "i32")
    constants: dict[str, Any] = {
        "HAS_OFFSETS": has_offsets,
        "HAS_VALUES": has_all,
        "HAS_LINEAR": True,
        "NEED_EMBEDDINGS": has_all,
        "ACC": tl.float64 if element == "fp64" else tl.float32,
        "VEC": vec,
        "UNROLL": _UNROLL // 2 if has_offsets else _UNROLL,
        "BLOCK_B": rows_of_tile(block_of(dim), vec, _WARPS, 1),
        "BLOCK_D": block_of(dim),
    }
    types |= dict.fromkeys(constants, "constexpr")
    signature = {key: types[key] for key in _embedding_fm_fwd_kernel.arg_names}
    pointers = tuple(key for key, kind in signature.items() if kind.startswith("*"))
    kind = ("bags" if has_offsets else "all") if has_all else "plain"
    name = f"embedding_fm_fwd_{kind}_{element}_d{dim}"
    more = {"num_warps": _WARPS, "aligned": pointers, "max_registers": _MAX_REGISTERS}
    return CompileCase(name, _embedding_fm_fwd_kernel, signature, constants, **more)
