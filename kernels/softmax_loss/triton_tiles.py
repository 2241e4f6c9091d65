"""What the Triton kernels of softmax_loss share: the logits of a tile of rows and candidates, and its masks."""

from __future__ import annotations

import triton
import triton.language as tl

from deeprec.kernels.score_topk.triton_keys import dot

MIN_ID = tl.constexpr(-(2**31))


@triton.jit
def targets_of(targets, rows, is_row, num_items):
    """Places of the positives as int32, -1 where they are none, and which rows have one."""
    target = tl.load(targets + rows, mask=is_row, other=-1).to(tl.int64)
    is_known = is_row & (target >= 0) & (target < num_items)
    return tl.where(is_known, target, -1).to(tl.int32), is_known


@triton.jit
def logits_of_tile(
    queries,
    items,
    scale,
    inverse,
    shift,
    rows,
    is_row,
    places,
    is_item,
    dim,
    query_stride,
    item_stride,
    HAS_INVERSE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """scale[b] inverse[j] queries[b] . items[j] + shift[j], [BLOCK_B, BLOCK_N]."""
    z = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    for d in tl.range(0, dim, BLOCK_K, num_stages=1):
        column = d + tl.arange(0, BLOCK_K)
        inside = column < dim
        q = tl.load(
            queries + rows[:, None].to(tl.int64) * query_stride + column[None, :],
            mask=is_row[:, None] & inside[None, :],
            other=0.0,
        )
        v = tl.load(
            items + places[None, :].to(tl.int64) * item_stride + column[:, None],
            mask=is_item[None, :] & inside[:, None],
            other=0.0,
        )
        z = dot(q, v, z, PRECISION)
    z *= tl.load(scale + rows, mask=is_row, other=0.0)[:, None]
    if HAS_INVERSE:
        z *= tl.load(inverse + places, mask=is_item, other=0.0)[None, :]
    if HAS_SHIFT:
        z += tl.load(shift + places, mask=is_item, other=0.0)[None, :]
    return z


@triton.jit
def first_from(seen_indices, begin, end, place):
    """Where in each row's ascending list [begin, end) the first id is `place` or more."""
    low, high = begin, end
    span = tl.max(high - low)
    while span > 0:
        is_open = low < high
        middle = (low + high) // 2
        is_below = is_open & (tl.load(seen_indices + middle, mask=is_open, other=0) < place)
        low = tl.where(is_below, middle + 1, low)
        high = tl.where(is_open & (is_below == 0), middle, high)
        span = span // 2
    return low


@triton.jit
def hidden_in_tile(
    ids,
    seen_indices,
    is_item,
    is_target,
    positive_id,
    seen_at,
    seen_end,
    HAS_IDS: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The masked candidates of a tile, and where each row's list goes on behind it; with lists, ids ascend."""
    hidden = tl.zeros((BLOCK_B, BLOCK_N), tl.int32) > 0
    if HAS_IDS:
        hidden = ids[None, :] == positive_id[:, None]
    if HAS_SEEN:
        high = tl.max(tl.where(is_item, ids, MIN_ID).to(tl.int64))
        at = seen_at
        is_more = 1
        while is_more > 0:
            id = tl.load(seen_indices + at, mask=at < seen_end, other=0)
            is_here = (at < seen_end) & (id <= high)
            hidden |= is_here[:, None] & (ids[None, :] == id[:, None])
            at += is_here.to(tl.int64)
            seen_at += (is_here & (id < high)).to(tl.int64)  # more of the highest id may follow in the next tile
            is_more = tl.max(is_here.to(tl.int32))
    return hidden & (is_target == 0) & is_item[None, :], seen_at


@triton.jit
def places_of_tile(item_ids, order, slots, is_item, HAS_IDS: tl.constexpr, HAS_SEEN: tl.constexpr):
    """Places and ids of the candidates in a tile of the working order: by id where lists are met, else as they lie."""
    places = slots
    if HAS_IDS and HAS_SEEN:
        places = tl.load(order + slots, mask=is_item, other=0).to(tl.int32)
    ids = places
    if HAS_IDS:
        ids = tl.load(item_ids + places, mask=is_item, other=0).to(tl.int64)
    return places, ids
