"""What the Triton kernels of score_topk share: products, keys, seen items, and how a catalogue is split.

A key is one int64: the score's bits in an order-preserving form above, the complement of the item id below. So a
larger key is a better recommendation, equal scores prefer the lower id, and keys never tie: the result does not depend
on how the catalogue is split. Seen items are looked up (binary search in the user's list) only where a score would
enter the K best.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels.faults import number_of
from deeprec.kernels.faults.triton_report import report

MAX_K = 64  # above it the running list no longer fits registers, and the PyTorch reference serves
NO_ITEM = tl.constexpr(-(2**63))
# Triton's interpreter would multiply the bit patterns of bfloat16.
_WIDEN = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
# Products of float32. NVIDIA has them on CUDA cores only, where a tile wants 6 KB a thread (spilled); three TF32
# products of split operands are as exact to within a few units in the last place, and stay in registers.
PRECISION = "ieee" if torch.version.hip else "tf32x3"
BAD_ROWS, BAD_INDPTR = (tl.constexpr(number_of("score_topk", x)) for x in ("seen_rows", "seen_indptr"))
_MANY_PROGRAMS = 1024  # several for each multiprocessor of today's GPUs


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32 (no plain TF32)."""
    if _WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def keys_of(scores, items, valid):
    """int64 keys of scores; the smallest int64 where not valid, NaN or -inf."""
    scores = tl.where(scores == 0.0, 0.0, scores)  # -0.0 equals 0.0
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - items).to(tl.int64)
    return tl.where(valid & (scores > float("-inf")), keys, NO_ITEM)


@triton.jit
def is_seen(items, candidates, seen_indices, first, length, span):
    """Whether each item is in seen_indices[first : first + length] (sorted; length <= span); candidates only."""
    low = tl.zeros_like(items)
    high = low + length
    while span > 0:
        active = candidates & (low < high)
        middle = (low + high) // 2
        value = tl.load(seen_indices + first + middle, mask=active, other=0)
        low = tl.where(active & (value < items), middle + 1, low)
        high = tl.where(active & (value >= items), middle, high)
        span = span // 2
    return tl.load(seen_indices + first + low, mask=candidates & (low < length), other=-1) == items


@triton.jit
def merge(best, keys, KP: tl.constexpr):
    """The KP largest of best (descending) and keys, descending."""
    if KP == 1:  # nothing to sort
        largest = tl.maximum(best, tl.max(keys, axis=1, keep_dims=True))
    else:
        # The elementwise maximum of a falling and a rising list holds their KP largest, as a bitonic sequence.
        largest = tl.bitonic_merge(tl.maximum(best, tl.flip(tl.topk(keys, KP), 1)), descending=True)
    return largest


@triton.jit
def seen_lists(
    claim,
    seen_indptr,
    seen_rows,
    users,
    is_user,
    num_lists,
    num_seen,
    HAS_ROWS: tl.constexpr,
    BAD_ROWS: tl.constexpr,
    BAD_INDPTR: tl.constexpr,
):
    """Where the seen items of users [N] begin, and how many; none for a list that lies elsewhere, which is reported.

    BAD_ROWS, BAD_INDPTR: the numbers of the operator's checks.
    """
    lists = users
    if HAS_ROWS:
        lists = tl.load(seen_rows + users, mask=is_user, other=0)
    is_known = (lists >= 0) & (lists < num_lists)
    report(claim, BAD_ROWS, is_user & (is_known == 0), lists, users, num_lists, 0)
    first = tl.load(seen_indptr + lists, mask=is_user & is_known, other=0)
    last = tl.load(seen_indptr + lists + 1, mask=is_user & is_known, other=0)
    is_inside = (first >= 0) & (first <= last) & (last <= num_seen)
    report(claim, BAD_INDPTR, is_inside == 0, first, lists, num_seen, last)
    return tl.where(is_inside, first, 0), tl.where(is_inside, last - first, 0).to(tl.int32)


def seen_arguments(seen: Sequence[Tensor | None], like: Tensor) -> tuple[Any, ...]:
    """Of (seen_indptr, seen_indices, seen_rows): these as the kernels take them, then the number of lists and items."""
    parts = [like if part is None else part.reshape(-1).contiguous() for part in seen]
    return (*parts, *((0, 0) if seen[0] is None else (parts[0].numel() - 1, parts[1].numel())))


def by_place(seen: Sequence[Tensor | None], allowed: Tensor, num_items: int) -> tuple[Tensor | None, ...]:
    """(seen_indptr, seen_indices, seen_rows) in places of the list `allowed` [n], ascending; waits for nothing.

    An item that is not in the list, or not in the catalogue, gets a place behind it.
    """
    indptr, indices, rows = (None if part is None else part.reshape(-1) for part in seen)
    if indptr is None or indices is None:
        return None, None, None
    places = torch.full((num_items + 1,), 2**31 - 1, dtype=torch.int64, device=allowed.device)
    places[allowed] = torch.arange(len(allowed), device=allowed.device)
    places[num_items] = 2**31 - 1
    known = torch.where((indices >= 0) & (indices < num_items), indices, num_items)
    owners = torch.bucketize(torch.arange(len(indices), device=allowed.device), indptr[1:], right=True)
    order = (owners << 31 | places[known.long()]).sort().values
    return indptr, (order & (2**31 - 1)).int(), rows


def named(places: Tensor, allowed: Tensor) -> Tensor:
    """The items at places of a list that is not empty; -1 stays -1."""
    return torch.where(places < 0, -1, allowed[places.clamp(0, allowed.numel() - 1)])


def splits_of(num_programs: int, num_items: int, block_n: int) -> tuple[int, int]:
    """(splits, items a split): enough programs to fill a GPU, whole tiles a split."""
    tiles = triton.cdiv(num_items, block_n)
    splits = max(1, min(tiles, _MANY_PROGRAMS // max(1, num_programs)))
    per_split = triton.cdiv(tiles, splits) * block_n
    return triton.cdiv(num_items, per_split), per_split


def unpack(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of [B, anything] keys as (values, ids)."""
    kept = min(k, keys.shape[1])
    best = keys.topk(kept, dim=1).values
    ordered = (best >> 32).to(torch.int32)
    values = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    missing = best == NO_ITEM.value
    values = values.masked_fill(missing, float("-inf"))
    ids = (0x7FFFFFFF - (best & 0xFFFFFFFF)).masked_fill(missing, -1)
    if kept < k:
        values = torch.nn.functional.pad(values, (0, k - kept), value=float("-inf"))
        ids = torch.nn.functional.pad(ids, (0, k - kept), value=-1)
    return values, ids
