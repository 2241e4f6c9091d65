"""Triton kernels of embedding_bags and its plan: one launch for all features whose rows fill the same tile.

embedding_bags: a program takes BLOCK_B bags of one feature. Entries are read UNROLL at a time, so that as many gathers
are in flight, and added one after another: the sums are those of the reference, in its order.
Numbers that change from batch to batch are not specialised on: each variant would be a compilation in the first epoch.
The plan: triton_plan.py; gradients and updates: triton_grad.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch, refuse_capture
from deeprec.kernels.embedding_bag.checks import MAX, NONE, SUM, is_pooled, num_bags
from deeprec.kernels.embedding_bag.triton_backward import (
    embedding_bags_dense_grad,
    embedding_bags_grad,
    embedding_bags_update_,
)
from deeprec.kernels.embedding_bag.triton_plan import embedding_bags_plan
from deeprec.kernels.embedding_bag.triton_tables import (
    ADDRESS,
    BAD_INPUT,
    COLUMN,
    DIM,
    FIELDS,
    MODE,
    NUMBER,
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

__all__ = [
    "compile_cases",
    "embedding_bags",
    "embedding_bags_dense_grad",
    "embedding_bags_grad",
    "embedding_bags_plan",
    "embedding_bags_update_",
]

_MEAN = tl.constexpr(1)
_GATHER_WARPS, _POOL_WARPS, _MAX_REGISTERS = 4, 2, 128


@triton.jit(do_not_specialize=("batch",))
def _bags_gather_kernel(
    features,  # [n, FIELDS]
    ids,  # id of bag b of feature f at f * id_feature_stride + b * id_stride
    scale,  # likewise; anything where HAS_SCALE is off
    out,  # [batch, D of all features], rows out_stride elements apart
    ok,  # [1]
    batch,
    id_feature_stride,
    id_stride,
    scale_feature_stride,
    scale_stride,
    out_stride,
    HAS_SCALE: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,  # elements by which all rows of the tables are aligned
    OUT_VEC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Bags of one id: out[b, columns of f] = x weight[ids[f, b]]; zeros for padding."""
    feature = features + tl.program_id(1) * FIELDS
    number = tl.load(feature + NUMBER)
    table = pointer_at(tl.load(feature + ADDRESS), out, VEC > 1)
    num_rows = tl.load(feature + ROWS)
    padding = tl.load(feature + PADDING)
    row_stride = tl.multiple_of(tl.load(feature + STRIDE), VEC)
    dim = tl.multiple_of(tl.load(feature + DIM), VEC)
    first = tl.multiple_of(tl.load(feature + COLUMN), OUT_VEC)

    bag = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_bag = bag < batch
    id = tl.load(ids + number * id_feature_stride + bag * id_stride, mask=is_bag, other=0).to(tl.int64)
    if HAS_SCALE:
        x = tl.load(scale + number * scale_feature_stride + bag * scale_stride, mask=is_bag, other=0.0).to(ACC)
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        rows, keep, is_bad = load_rows(table, num_rows, row_stride, padding, id, is_bag, column, in_row)
        if HAS_SCALE:
            rows = (rows.to(ACC) * tl.where(keep, x, 0.0)[:, None]).to(out.dtype.element_ty)
        where = out + bag[:, None] * out_stride + first + column[None, :]
        tl.store(where, rows, mask=is_bag[:, None] & in_row[None, :])
        clear_if(ok, is_bad)


@triton.jit(do_not_specialize=("batch", "num_bags", "nnz"))
def _bags_pool_kernel(
    features,  # [n, FIELDS]
    ids,  # [nnz]
    offsets,  # [F * batch + 1]
    scale,  # [nnz], or anything where HAS_SCALE is off
    out,  # [batch, D of all features], rows out_stride elements apart
    argmax,  # like out; anything where IS_MAX is off
    ok,  # [1]
    batch,
    num_bags,
    nnz,
    out_stride,
    IS_MAX: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,
    OUT_VEC: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum, mean or maximum of each bag's rows; of equal maxima the first entry wins."""
    feature = features + tl.program_id(1) * FIELDS
    number = tl.load(feature + NUMBER)
    table = pointer_at(tl.load(feature + ADDRESS), out, VEC > 1)
    num_rows = tl.load(feature + ROWS)
    padding = tl.load(feature + PADDING)
    is_mean = tl.load(feature + MODE) == _MEAN
    row_stride = tl.multiple_of(tl.load(feature + STRIDE), VEC)
    dim = tl.multiple_of(tl.load(feature + DIM), VEC)
    first = tl.multiple_of(tl.load(feature + COLUMN), OUT_VEC)

    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_bag = b < batch
    bag = number * batch + b
    entry = tl.load(offsets + bag, mask=is_bag, other=0).to(tl.int64)
    end = tl.load(offsets + bag + 1, mask=is_bag, other=0).to(tl.int64)
    is_ascending = (entry >= 0) & (entry <= end) & (end <= nnz)
    is_ascending &= ((bag > 0) | (entry == 0)) & ((bag + 1 < num_bags) | (end == nnz))
    is_bad = is_bag & (is_ascending == 0)
    end = tl.where(is_ascending, end, entry)
    longest = tl.max(end - entry, 0).to(tl.int32)
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        total = tl.zeros([BLOCK_B, BLOCK_D], ACC)
        count = tl.zeros([BLOCK_B], tl.int32)
        best = tl.full([BLOCK_B, BLOCK_D], -1, tl.int32)  # counted from the bag's first entry
        for chunk in range(0, longest, UNROLL):
            entries = ()
            for k in tl.static_range(UNROLL):
                p = entry + chunk + k
                is_entry = p < end
                id = tl.load(ids + p, mask=is_entry, other=0).to(tl.int64)
                x = id
                if HAS_SCALE:
                    x = tl.load(scale + p, mask=is_entry, other=0.0)
                entries += ((id, is_entry, x),)
            loaded = ()
            for k in tl.static_range(UNROLL):
                id, is_entry, x = entries[k]
                rows, keep, is_lost = load_rows(table, num_rows, row_stride, padding, id, is_entry, column, in_row)
                is_bad |= is_lost
                loaded += ((rows, keep),)
            for k in tl.static_range(UNROLL):
                rows, keep = loaded[k]
                x = entries[k][2]
                values = rows.to(ACC)
                if IS_MAX:
                    is_better = keep[:, None] & ((best < 0) | (values > total))
                    total = tl.where(is_better, values, total)
                    best = tl.where(is_better, chunk + k, best)
                else:
                    if HAS_SCALE:
                        values *= tl.where(keep, x.to(ACC), 0.0)[:, None]
                    total += values
                    count += keep.to(tl.int32)
        in_tile = is_bag[:, None] & in_row[None, :]
        where = b[:, None] * out_stride + first + column[None, :]
        if IS_MAX:
            best = tl.where(best < 0, -1, entry[:, None] + best)
            tl.store(argmax + where, best.to(argmax.dtype.element_ty), mask=in_tile)
        else:
            divisor = tl.where(is_mean & (count > 1), count, 1).to(ACC)
            total = total / divisor[:, None]
        tl.store(out + where, total.to(out.dtype.element_ty), mask=in_tile)
    clear_if(ok, is_bad)


class _Feature(NamedTuple):
    """One feature of a launch, and its line in the matrix of features."""

    number: int
    weight: Tensor
    column: int
    padding: int
    mode: int

    def line(self) -> tuple[int, ...]:
        w = self.weight
        return w.data_ptr(), w.shape[0], w.stride(0), w.shape[1], self.column, self.padding, self.mode, self.number


def _groups(features: Sequence[_Feature], out: Tensor) -> list[tuple[bool, int, int, int, Tensor]]:
    """(maximum or not, block of columns, alignment of tables and of out, lines) of each launch."""
    elements = 16 // out.element_size()
    groups: dict[tuple[bool, int, int, int], list[tuple[int, ...]]] = {}
    is_even = out.data_ptr() % 16 == 0 and (out.shape[0] <= 1 or out.stride(0) % elements == 0)
    for feature in features:
        vec = elements if is_aligned(feature.weight) else 1
        out_vec = elements if is_even and feature.column % elements == 0 else 1
        key = (feature.mode == MAX, block_of(feature.weight.shape[1]), vec, out_vec)
        groups.setdefault(key, []).append(feature.line())
    return [(*key, constant(lines, out.device)) for key, lines in groups.items()]


def _gather(
    features: Sequence[_Feature], ids: Tensor, strides: tuple[int, int], scale: Tensor | None, out: Tensor, ok: Tensor
) -> None:
    """Launch `_bags_gather_kernel`: ids of bag b of feature f at f * strides[0] + b * strides[1]."""
    if out.shape[0] == 0:
        return
    for _, block_d, vec, out_vec, lines in _groups(features, out):
        block_b = rows_of_tile(block_d, vec, _GATHER_WARPS, 4)
        launch(
            _bags_gather_kernel,
            (triton.cdiv(out.shape[0], block_b), lines.numel() // FIELDS.value),
            lines,
            ids,
            out if scale is None else scale,
            out,
            ok,
            out.shape[0],
            *strides,
            *((0, 0) if scale is None else scale.stride()),
            out.stride(0),
            HAS_SCALE=scale is not None,
            ACC=acc_of(out),
            VEC=vec,
            OUT_VEC=out_vec,
            BLOCK_B=block_b,
            BLOCK_D=block_d,
            num_warps=_GATHER_WARPS,
            **registers(_MAX_REGISTERS),
        )


def _pool(
    features: Sequence[_Feature],
    num_features: int,
    ids: Tensor,
    offsets: Tensor,
    scale: Tensor | None,
    out: Tensor,
    argmax: Tensor,
    ok: Tensor,
) -> None:
    """Launch `_bags_pool_kernel`."""
    batch = out.shape[0]
    if batch == 0:
        return
    for is_max, block_d, vec, out_vec, lines in _groups(features, out):
        block_b = rows_of_tile(block_d, vec, _POOL_WARPS, 1)
        launch(
            _bags_pool_kernel,
            (triton.cdiv(batch, block_b), lines.numel() // FIELDS.value),
            lines,
            ids,
            offsets,
            out if scale is None else scale,
            out,
            argmax,
            ok,
            batch,
            num_features * batch,
            ids.shape[0],
            out.stride(0),
            IS_MAX=is_max,
            HAS_SCALE=scale is not None,
            ACC=acc_of(out),
            VEC=vec,
            OUT_VEC=out_vec,
            UNROLL=4,
            BLOCK_B=block_b,
            BLOCK_D=block_d,
            num_warps=_POOL_WARPS,
            **registers(_MAX_REGISTERS),
        )


def embedding_bags(
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
) -> list[Tensor]:
    """Launch `_bags_gather_kernel` and `_bags_pool_kernel`; bad input is a device-side assertion.

    Waits for the GPU only where there are several features of which one is not pooled: its length is in the offsets.
    """
    weights = [rows_adjacent(w) for w in weights]
    batch = num_bags(ids, offsets, len(tables))
    ok = new_flag(ids.device)
    features, sequences, width = [], [], 0
    for number, (table, mode, pad) in enumerate(zip(tables, modes, padding, strict=True)):
        if is_pooled(mode, offsets):
            pad = -1 if mode == NONE else pad  # the row itself, padding or not
            kind = SUM if offsets is None else mode  # a bag of one id is its own sum
            features.append(_Feature(number, weights[table], width, pad, kind))
            width += weights[table].shape[1]
        else:
            sequences.append(_Feature(number, weights[table], 0, -1, NONE))
    pooled = weights[0].new_empty(batch, width)
    has_max = MAX in modes and offsets is not None
    argmax = ids.new_full((batch, width) if has_max else (0,), -1)
    if offsets is None:
        _gather(features, ids, ids.stride(), per_sample_weights, pooled, ok)
        torch._assert_async(ok, f"embedding_bags: {BAD_INPUT}")
        return [pooled, argmax]
    ids, offsets = ids.contiguous(), offsets.contiguous()
    scale = None if per_sample_weights is None else per_sample_weights.contiguous()
    _pool(features, len(tables), ids, offsets, scale, pooled, argmax, ok)
    out = [pooled, argmax]
    bounds = [0, ids.shape[0]]
    if sequences and len(tables) > 1:
        reason = "the lengths of unpooled features are in the offsets, for which it waits"
        refuse_capture("embedding_bags", ids.device, reason, "pool them, or look each up in a call of its own")
        bounds = offsets[::batch].tolist() if batch else [0] * (len(tables) + 1)
    for feature in sequences:
        own = ids[bounds[feature.number] : bounds[feature.number + 1]]
        rows = feature.weight.new_empty(own.shape[0], feature.weight.shape[1])
        _gather([feature._replace(number=0)], own, (0, 1), None, rows, ok)
        out.append(rows)
    torch._assert_async(ok, f"embedding_bags: {BAD_INPUT}")
    return out


def compile_cases() -> list[CompileCase]:
    """Each kernel for the element types it is launched with, at D = 16 and 128; one table of odd rows."""
    cases = []
    for element, size in (("fp32", 4), ("bf16", 2), ("fp16", 2), ("fp64", 8)):
        acc = tl.float64 if element == "fp64" else tl.float32
        for dim, is_even in ((16, True), (128, True), (7, False)) if element == "fp32" else ((16, True),):
            vec = 16 // size if is_even else 1
            block_d = block_of(dim)
            common: dict[str, Any] = {"ACC": acc, "VEC": vec, "OUT_VEC": vec, "BLOCK_D": block_d}
            pointers = {"features": "*i64", "ids": "*i64", "scale": f"*{element}", "out": f"*{element}", "ok": "*i32"}
            gather = pointers | {"batch": "i32", "id_feature_stride": "i32", "id_stride": "i32"}
            gather |= {"scale_feature_stride": "i32", "scale_stride": "i32", "out_stride": "i32"}
            block_b = rows_of_tile(block_d, vec, _GATHER_WARPS, 4)
            constants = common | {"HAS_SCALE": dim == 7, "BLOCK_B": block_b}
            name = f"bags_gather_{element}_d{dim}"
            cases.append(_case(name, _bags_gather_kernel, gather, constants, _GATHER_WARPS, is_even))
            pool = pointers | {"offsets": "*i64", "argmax": "*i64"}
            pool |= dict.fromkeys(("batch", "num_bags", "nnz", "out_stride"), "i32")
            block_b = rows_of_tile(block_d, vec, _POOL_WARPS, 1)
            for kind in ("sum", "weighted", "max"):
                constants = common | {"IS_MAX": kind == "max", "HAS_SCALE": kind == "weighted"}
                constants |= {"UNROLL": 4, "BLOCK_B": block_b}
                name = f"bags_{kind}_{element}_d{dim}"
                cases.append(_case(name, _bags_pool_kernel, pool, constants, _POOL_WARPS, is_even))
    return cases


def _case(
    name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], num_warps: int, is_even: bool
) -> CompileCase:
    types = types | dict.fromkeys(constants, "constexpr")
    signature = {key: types[key] for key in kernel.arg_names}  # in the order of the kernel's arguments
    pointers = tuple(key for key, kind in signature.items() if kind.startswith("*"))
    aligned = pointers + (("out_stride",) if is_even else ())
    more = {"num_warps": num_warps, "aligned": aligned, "max_registers": _MAX_REGISTERS}
    return CompileCase(name, kernel, signature, constants, **more)
