"""Triton kernels of embedding_bags_plan: one stable torch.sort of (first key of the table + row) for all tables.

Before it the keys are written; after it runs of equal keys give the rows, where each begins, and its table.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._checks import check_offsets
from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch, refuse_capture
from deeprec.kernels.embedding_bag.checks import SUM, num_bags
from deeprec.kernels.embedding_bag.reference import check_ids, embedding_bags_plan_reference, features_of
from deeprec.kernels.embedding_bag.triton_tables import (
    clear_if,
    constant,
    new_flag,
)

_PLAN_BLOCK = 256


@triton.jit(do_not_specialize=("nnz", "batch", "num_keys"))
def _plan_keys_kernel(
    features,  # [F, 3]: first key of the table, its rows, padding
    ids,  # [nnz] where HAS_BAGS, else id of bag b of feature f at f * id_feature_stride + b * id_stride
    bags,  # [nnz], or anything where HAS_BAGS is off
    keys,  # [nnz]
    ok,  # [1]
    nnz,
    num_features,
    batch,
    id_feature_stride,
    id_stride,
    num_keys,
    HAS_BAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """keys[p] = first key of the table + id of entry p; num_keys for padding and bad ids."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_entry = p < nnz
    bag = p
    if HAS_BAGS:
        bag = tl.load(bags + p, mask=is_entry, other=0).to(tl.int64)
    number = bag // batch
    is_known = number < num_features  # not so where offsets end before the ids do
    where = p
    if not HAS_BAGS:
        where = number * id_feature_stride + (bag - number * batch) * id_stride
    id = tl.load(ids + where, mask=is_entry, other=-1).to(tl.int64)
    feature = features + number * 3
    start = tl.load(feature, mask=is_entry & is_known, other=0)
    is_known &= (id >= 0) & (id < tl.load(feature + 1, mask=is_entry & is_known, other=0))
    keep = is_known & (id != tl.load(feature + 2, mask=is_entry & is_known, other=-1))
    tl.store(keys + p, tl.where(keep, start + id, num_keys).to(keys.dtype.element_ty), mask=is_entry)
    clear_if(ok, is_entry & (is_known == 0))


@triton.jit(do_not_specialize=("nnz", "num_keys"))
def _plan_heads_kernel(keys, heads, nnz, num_keys, BLOCK: tl.constexpr):
    """heads[i] = whether the sorted keys [nnz] have a new one at i; no padding."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + i, mask=i < nnz, other=0)
    before = tl.load(keys + i - 1, mask=(i > 0) & (i < nnz), other=-1)
    tl.store(heads + i, ((key != before) & (key < num_keys)).to(heads.dtype.element_ty), mask=i < nnz)


@triton.jit(do_not_specialize=("num_entries", "batch"))
def _plan_rows_kernel(
    features,  # [F, 3]
    bags,  # [nnz], or anything where HAS_BAGS is off
    keys,  # [nnz] sorted
    entries,  # [nnz] the entry of each key
    counts,  # [nnz + 1] heads before i
    rows,  # [U]
    row_offsets,  # [U + 1]
    num_entries,
    batch,
    HAS_BAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The row and the first place of each run of equal keys; the last offset is num_entries."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_entry = i < num_entries
    u = tl.load(counts + i, mask=is_entry, other=0)
    is_head = is_entry & (tl.load(counts + i + 1, mask=is_entry, other=0) > u)
    bag = tl.load(entries + i, mask=is_head, other=0)
    if HAS_BAGS:
        bag = tl.load(bags + bag, mask=is_head, other=0).to(tl.int64)
    start = tl.load(features + bag // batch * 3, mask=is_head, other=0)
    row = tl.load(keys + i, mask=is_head, other=0) - start
    tl.store(rows + u, row.to(rows.dtype.element_ty), mask=is_head)
    tl.store(row_offsets + u, i.to(row_offsets.dtype.element_ty), mask=is_head)
    is_last = i == num_entries - 1
    u = tl.load(counts + i + 1, mask=is_last, other=0)
    tl.store(row_offsets + u, (i + 1).to(row_offsets.dtype.element_ty), mask=is_last)


def embedding_bags_plan(
    ids: Tensor,
    offsets: Tensor | None,
    num_embeddings: Sequence[int],
    tables: Sequence[int],
    padding: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sort (table, row) of all entries at once; waits for the GPU once, for the number of distinct rows.

    An id out of range is an IndexError that names it, and offsets that do not fit a ValueError, as on the CPU.
    """
    batch, nnz, device = num_bags(ids, offsets, len(tables)), ids.numel(), ids.device
    if nnz == 0 or batch == 0:
        return embedding_bags_plan_reference(ids, offsets, num_embeddings, tables, padding)
    reason, remedy = "it waits for the GPU to count the rows", "make the plan before the capture and give it as plan="
    refuse_capture("embedding_bags_plan", device, reason, remedy)
    starts = [0, *itertools.accumulate(num_embeddings)]
    position = torch.int32 if nnz < 2**31 else torch.int64
    key_type = torch.int32 if starts[-1] < 2**31 else torch.int64
    features = constant([(starts[t], num_embeddings[t], p) for t, p in zip(tables, padding, strict=True)], device)
    ok = new_flag(device)
    bags = torch.empty(0, dtype=position, device=device)
    strides = (0, 0)
    if offsets is None:
        strides = ids.stride()
    else:
        ids, offsets = ids.contiguous(), offsets.contiguous()
        entries = torch.arange(nnz, dtype=offsets.dtype, device=device)
        bags = torch.searchsorted(offsets[1:], entries, right=True, out_int32=position == torch.int32)
    grid = (triton.cdiv(nnz, _PLAN_BLOCK),)
    constants = {"HAS_BAGS": offsets is not None, "BLOCK": _PLAN_BLOCK}
    keys = torch.empty(nnz, dtype=key_type, device=device)
    sizes = (nnz, len(tables), batch)
    launch(_plan_keys_kernel, grid, features, ids, bags, keys, ok, *sizes, *strides, starts[-1], **constants)
    keys, entries = torch.sort(keys, stable=True)
    heads = torch.empty(nnz, dtype=position, device=device)
    launch(_plan_heads_kernel, grid, keys, heads, nnz, starts[-1], BLOCK=_PLAN_BLOCK)
    counts = torch.zeros(nnz + 1, dtype=position, device=device)
    torch.cumsum(heads, 0, dtype=position, out=counts[1:])
    is_fine = ok[0] > 0
    if offsets is not None:
        is_fine &= (offsets[0] == 0) & (offsets[-1] == nnz) & (offsets[1:] >= offsets[:-1]).all()
    numbers = [counts[-1], is_fine.to(position)]
    if max(padding) >= 0:
        numbers.append((keys < starts[-1]).sum(dtype=position))
    num_rows, is_fine, *num_kept = torch.stack(numbers).tolist()
    kept = num_kept[0] if num_kept else nnz
    if not is_fine:
        _raise_bad_id(ids, offsets, num_embeddings, tables, padding)
    rows = torch.empty(num_rows, dtype=ids.dtype, device=device)
    row_offsets = torch.zeros(num_rows + 1, dtype=position, device=device)
    launch(_plan_rows_kernel, grid, features, bags, keys, entries, counts, rows, row_offsets, kept, batch, **constants)
    bounds = torch.searchsorted(keys, constant([starts], device).to(key_type))
    return rows, row_offsets, entries[:kept].to(position), bags, counts[bounds].to(torch.int64)


def _raise_bad_id(
    ids: Tensor, offsets: Tensor | None, num_embeddings: Sequence[int], tables: Sequence[int], padding: Sequence[int]
) -> None:
    """As the reference does."""
    function, dims, modes = "embedding_bags_plan", [0] * len(num_embeddings), [SUM] * len(tables)
    check_offsets(function, ids, offsets)
    check_ids(function, features_of(ids, offsets, dims, tables, modes, padding), num_embeddings, tables)


def compile_cases() -> list[CompileCase]:
    """Each kernel for int32 keys with bags and int64 keys without."""
    cases = []
    for index, has_bags in (("i32", True), ("i64", False)):
        types = {"features": "*i64", "ids": f"*{index}", "bags": "*i32", "keys": f"*{index}", "ok": "*i32"}
        types |= {"heads": "*i32", "entries": "*i64", "counts": "*i32", "rows": f"*{index}", "row_offsets": "*i32"}
        sizes = ("nnz", "num_features", "batch", "id_feature_stride", "id_stride", "num_keys", "num_entries")
        types |= dict.fromkeys(sizes, "i32")
        constants = {"HAS_BAGS": has_bags, "BLOCK": _PLAN_BLOCK}
        cases.append(_case(f"bags_plan_keys_{index}", _plan_keys_kernel, types, constants))
        cases.append(_case(f"bags_plan_rows_{index}", _plan_rows_kernel, types, constants))
        heads = {"BLOCK": _PLAN_BLOCK}
        cases.append(_case(f"bags_plan_heads_{index}", _plan_heads_kernel, types, heads))
    return cases


def _case(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> CompileCase:
    types = types | dict.fromkeys(constants, "constexpr")
    signature = {key: types[key] for key in kernel.arg_names}  # in the order of the kernel's arguments
    pointers = tuple(key for key, kind in signature.items() if kind.startswith("*"))
    return CompileCase(name, kernel, signature, constants, aligned=pointers)
