"""Triton kernels of softmax_loss: the pass over the candidates for each row, and that over the rows for each candidate.

The forward kernel takes a block of rows and a share of the candidates and keeps running maxima and sums, with the sum
of the candidates weighted by their exponentials; shares are put together in their order. The backward kernel owns a
block of candidates and scores it against its share of the rows again. Rows x candidates never exist, nothing is added
by atomics. A width above BLOCK_D is cut into blocks, each of which scores for itself.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.faults import claim_of, number_of
from deeprec.kernels.faults.triton_report import report
from deeprec.kernels.score_topk.triton_keys import dot, seen_lists
from deeprec.kernels.softmax_loss.checks import SoftmaxArguments
from deeprec.kernels.softmax_loss.reference import (
    softmax_loss_grad_reference,
    softmax_loss_reference,
    through_length,
)
from deeprec.kernels.softmax_loss.triton_arguments import inverse_lengths, prepare, shares_of, tile_of
from deeprec.kernels.softmax_loss.triton_sampled import sampled_softmax_loss, sampled_softmax_slopes
from deeprec.kernels.softmax_loss.triton_tiles import (
    first_from,
    hidden_in_tile,
    logits_of_tile,
    places_of_tile,
    targets_of,
)

__all__ = [
    "compile_cases",
    "sampled_softmax_loss",
    "sampled_softmax_slopes",
    "softmax_loss",
    "softmax_loss_grad",
]

_BAD_TARGETS, _BAD_ROWS, _BAD_INDPTR = (
    tl.constexpr(number_of("softmax_loss", name)) for name in ("targets", "seen_rows", "seen_indptr")
)


@triton.jit
def _softmax_part_kernel(
    queries,  # [batch, dim]
    items,  # [num_items, dim]
    targets,  # [batch]
    scale,  # [batch]
    inverse,  # [num_items]; anything without HAS_INVERSE
    shift,  # [num_items]; anything without HAS_SHIFT
    log_q,  # [num_items]; anything without HAS_LOG_Q
    item_ids,  # [num_items]; anything without HAS_IDS
    order,  # [num_items], places by id; anything without HAS_IDS and HAS_SEEN
    seen_indptr,  # anything without HAS_SEEN, like the next two
    seen_indices,
    seen_rows,
    maxima,  # [shares, batch]
    sums,  # [shares, batch]
    logits,  # [shares, batch]
    counts,  # [shares, batch] int32, masked candidates
    positives,  # [batch]
    weighted,  # [shares, batch, dim]
    plain,  # [shares, batch, dim]
    claim,  # [2]
    batch,
    num_items,
    dim,
    query_stride,
    item_stride,
    per_share,
    num_lists,
    nnz,
    HAS_INVERSE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_LOG_Q: tl.constexpr,  # log_q is added to the positive's logit again
    HAS_IDS: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    IS_SMOOTH: tl.constexpr,
    INCLUDE_POSITIVE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    GRAD_PRECISION: tl.constexpr,
):
    """Of each row and a share of the candidates: max z, sum exp(z - max), sum z, and sum exp(z - max) v."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    share = tl.program_id(1)
    is_row = rows < batch
    target, is_known = targets_of(targets, rows, is_row, num_items)
    is_lost = is_row & (is_known == 0)
    given = tl.load(targets + rows, mask=is_lost, other=0).to(tl.int64)
    report(claim, _BAD_TARGETS, is_lost, given, rows.to(tl.int64), num_items, 0)
    positive_shift = tl.zeros((BLOCK_B,), tl.float32)
    if HAS_LOG_Q:
        positive_shift = tl.load(log_q + target, mask=is_known, other=0.0)
    positive_id = target.to(tl.int64)
    if HAS_IDS:
        positive_id = tl.load(item_ids + target, mask=is_known, other=-1).to(tl.int64)
    begin = share * per_share
    stop = tl.minimum(begin + per_share, num_items)
    seen_at = tl.zeros((BLOCK_B,), tl.int64)
    seen_end = seen_at
    if HAS_SEEN:
        _, first_id = places_of_tile(item_ids, order, begin, begin < stop, HAS_IDS, HAS_SEEN)
        seen_at, length = seen_lists(
            claim, seen_indptr, seen_rows, rows.to(tl.int64), is_row, num_lists, nnz,
            HAS_ROWS, _BAD_ROWS, _BAD_INDPTR,
        )  # fmt: skip
        seen_end = seen_at + length
        seen_at = first_from(seen_indices, seen_at, seen_end, first_id)

    column = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_dim = column < dim
    top = tl.full((BLOCK_B,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_B,), tl.float32)
    z_total = tl.zeros((BLOCK_B,), tl.float32)
    num_hidden = tl.zeros((BLOCK_B,), tl.int32)
    z_positive = tl.zeros((BLOCK_B,), tl.float32)
    has_target = tl.zeros((BLOCK_B,), tl.int32)
    acc = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    even = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    for start in tl.range(begin, stop, BLOCK_N, num_stages=1):
        slots = start + tl.arange(0, BLOCK_N)
        is_item = slots < stop
        places, ids = places_of_tile(item_ids, order, slots, is_item, HAS_IDS, HAS_SEEN)
        z = logits_of_tile(
            queries, items, scale, inverse, shift, rows, is_row, places, is_item, dim, query_stride, item_stride,
            HAS_INVERSE, HAS_SHIFT, BLOCK_B, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        is_target = is_item[None, :] & (places[None, :] == target[:, None])
        hidden, seen_at = hidden_in_tile(
            ids, seen_indices, is_item, is_target, positive_id, seen_at, seen_end, HAS_IDS, HAS_SEEN, BLOCK_B, BLOCK_N
        )
        if HAS_LOG_Q:
            z += tl.where(is_target, positive_shift[:, None], 0.0)
        z_positive += tl.sum(tl.where(is_target, z, 0.0), 1)
        has_target |= tl.max(is_target.to(tl.int32), 1)
        num_hidden += tl.sum(hidden.to(tl.int32), 1)
        inside = is_item[None, :] & (hidden == 0)
        if IS_SMOOTH:
            z_total += tl.sum(tl.where(inside, z, 0.0), 1)
        is_counted = inside
        if not INCLUDE_POSITIVE:
            is_counted = inside & (is_target == 0)
        z = tl.where(is_counted, z, float("-inf"))
        before = top
        top = tl.maximum(top, tl.max(z, 1))
        base = tl.where(top == float("-inf"), 0.0, top)
        factor = tl.where(before == float("-inf"), 0.0, tl.exp(before - base))
        e = tl.exp(z - base[:, None])
        total = total * factor + tl.sum(e, 1)
        if NEED_GRAD:
            v = tl.load(
                items + places[:, None].to(tl.int64) * item_stride + column[None, :],
                mask=is_item[:, None] & in_dim[None, :],
                other=0.0,
            ).to(tl.float32)
            if HAS_INVERSE:
                v *= tl.load(inverse + places, mask=is_item, other=0.0)[:, None]
            acc = dot(e, v, acc * factor[:, None], GRAD_PRECISION)
            if IS_SMOOTH:
                even = dot(inside.to(tl.float32), v, even, GRAD_PRECISION)
    at = share.to(tl.int64) * batch + rows
    is_first = tl.program_id(2) == 0
    tl.store(maxima + at, top, mask=is_row & is_first)
    tl.store(sums + at, total, mask=is_row & is_first)
    tl.store(counts + at, num_hidden, mask=is_row & is_first)
    tl.store(positives + rows, z_positive, mask=is_known & is_first & (has_target > 0))
    if IS_SMOOTH:
        tl.store(logits + at, z_total, mask=is_row & is_first)
    if NEED_GRAD:
        to = at[:, None] * dim + column[None, :]
        tl.store(weighted + to, acc, mask=is_row[:, None] & in_dim[None, :])
        if IS_SMOOTH:
            tl.store(plain + to, even, mask=is_row[:, None] & in_dim[None, :])


@triton.jit
def _softmax_items_grad_kernel(
    queries,  # [batch, dim]
    items,  # [num_items, dim]
    targets,  # [batch]
    scale,  # [batch]
    inverse,  # [num_items]; anything without HAS_INVERSE
    shift,  # [num_items]; anything without HAS_SHIFT
    log_q,  # [num_items]; anything without HAS_LOG_Q
    item_ids,  # [num_items]; anything without HAS_IDS
    order,  # [num_items], places by id; anything without HAS_IDS and HAS_SEEN
    seen_indptr,  # anything without HAS_SEEN, like the next two
    seen_indices,
    seen_rows,
    stats,  # [3, batch]
    row_grads,  # [batch]
    items_grad,  # [shares, num_items, dim]
    bias_grad,  # [shares, num_items]; anything without HAS_BIAS
    claim,  # [2]
    batch,
    num_items,
    dim,
    query_stride,
    item_stride,
    per_share,
    num_lists,
    nnz,
    smoothing,
    HAS_INVERSE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_LOG_Q: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INCLUDE_POSITIVE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    GRAD_PRECISION: tl.constexpr,
):
    """Of each candidate and a share of the rows: the sum of the slopes times the query, and the sum of the slopes."""
    start = tl.program_id(0) * BLOCK_N
    slots = start + tl.arange(0, BLOCK_N)
    is_item = slots < num_items
    places, ids = places_of_tile(item_ids, order, slots, is_item, HAS_IDS, HAS_SEEN)
    share = tl.program_id(1)
    column = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_dim = column < dim
    acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    slope_total = tl.zeros((BLOCK_N,), tl.float32)
    stop = tl.minimum((share + 1) * per_share, batch)
    for row in tl.range(share * per_share, stop, BLOCK_B, num_stages=1):
        rows = row + tl.arange(0, BLOCK_B)
        is_row = rows < stop
        target, is_known = targets_of(targets, rows, is_row, num_items)
        z = logits_of_tile(
            queries, items, scale, inverse, shift, rows, is_row, places, is_item, dim, query_stride, item_stride,
            HAS_INVERSE, HAS_SHIFT, BLOCK_B, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        positive_id = target.to(tl.int64)
        if HAS_IDS:
            positive_id = tl.load(item_ids + target, mask=is_known, other=-1).to(tl.int64)
        seen_at = tl.zeros((BLOCK_B,), tl.int64)
        seen_end = seen_at
        if HAS_SEEN:
            _, first_id = places_of_tile(item_ids, order, start, start < num_items, HAS_IDS, HAS_SEEN)
            seen_at, length = seen_lists(
                claim, seen_indptr, seen_rows, rows.to(tl.int64), is_row, num_lists, nnz,
                HAS_ROWS, _BAD_ROWS, _BAD_INDPTR,
            )  # fmt: skip
            seen_end = seen_at + length
            seen_at = first_from(seen_indices, seen_at, seen_end, first_id)
        is_target = is_item[None, :] & (places[None, :] == target[:, None])
        hidden, seen_at = hidden_in_tile(
            ids, seen_indices, is_item, is_target, positive_id, seen_at, seen_end, HAS_IDS, HAS_SEEN, BLOCK_B, BLOCK_N
        )
        if HAS_LOG_Q:
            z += tl.where(is_target, tl.load(log_q + target, mask=is_known, other=0.0)[:, None], 0.0)
        top = tl.load(stats + rows, mask=is_row, other=0.0)
        log_sum = tl.load(stats + batch + rows, mask=is_row, other=float("-inf"))
        count = tl.load(stats + 2 * batch + rows, mask=is_row, other=1.0)
        grad = tl.load(row_grads + rows, mask=is_row, other=0.0)
        is_live = log_sum != float("-inf")  # something is in the denominator
        inside = is_item[None, :] & (hidden == 0)
        is_counted = inside
        if not INCLUDE_POSITIVE:
            is_counted = inside & (is_target == 0)
        z = tl.where(is_counted, z, float("-inf"))
        slope = tl.exp((z - top[:, None]) - tl.where(is_live, log_sum, 0.0)[:, None])
        slope -= tl.where(is_target, 1 - smoothing, 0.0)
        slope -= tl.where(inside, (smoothing / count)[:, None], 0.0)
        slope = tl.where(is_live[:, None], slope * grad[:, None], 0.0)
        if HAS_BIAS:
            slope_total += tl.sum(slope, 0)
        q = tl.load(
            queries + rows[:, None].to(tl.int64) * query_stride + column[None, :],
            mask=is_row[:, None] & in_dim[None, :],
            other=0.0,
        ).to(tl.float32)
        q *= tl.load(scale + rows, mask=is_row, other=0.0)[:, None]
        acc = dot(tl.trans(slope), q, acc, GRAD_PRECISION)
    at = share.to(tl.int64) * num_items + places
    to = items_grad + at[:, None] * dim + column[None, :]
    tl.store(to, acc.to(items_grad.dtype.element_ty), mask=is_item[:, None] & in_dim[None, :])
    if HAS_BIAS:
        tl.store(bias_grad + at, slope_total, mask=is_item & (tl.program_id(2) == 0))


def softmax_loss(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernel without waiting for the GPU; a bad target or list is a fault.

    Args:
        args: the fields of `SoftmaxArguments`, then need_grad. float64 is served by the reference.
    """
    given, need_grad = SoftmaxArguments(*args[:-1]), args[-1]
    queries = given.queries
    if queries.dtype == torch.float64 or 0 in (queries.shape[0], given.items.shape[0]):
        return softmax_loss_reference(*args)
    prepared = prepare(given)
    batch, num_items, dim = prepared.sizes[:3]
    is_smooth, blocks = given.smoothing > 0, triton.cdiv(batch, prepared.constants["BLOCK_B"])
    shares, per_share = shares_of(blocks, num_items, prepared.constants["BLOCK_N"])
    maxima, sums, logits = queries.new_zeros(3, shares, batch, dtype=torch.float32)
    counts = queries.new_zeros(shares, batch, dtype=torch.int32)
    positives = queries.new_zeros(batch, dtype=torch.float32)
    weighted = queries.new_empty((shares, batch, dim) if need_grad else (1,), dtype=torch.float32)
    plain = torch.empty_like(weighted) if is_smooth else weighted
    d_blocks = max(1, triton.cdiv(dim, prepared.constants["BLOCK_D"])) if need_grad else 1
    launch(
        _softmax_part_kernel,
        (blocks, shares, d_blocks),
        *prepared.tensors,
        *(maxima, sums, logits, counts, positives, weighted, plain, claim_of(queries.device)),
        *(*prepared.sizes, per_share, *prepared.lists),
        IS_SMOOTH=is_smooth,
        NEED_GRAD=need_grad,
        **prepared.constants,
        num_warps=prepared.num_warps,
    )

    top = maxima.amax(0)
    top = torch.where(top == -torch.inf, 0, top)
    factor = torch.where(maxima == -torch.inf, 1, (maxima - top).exp())
    count = (num_items - counts.sum(0)).float()
    is_empty = count <= (0 if given.include_positive else 1)
    total = (sums * factor).sum(0)
    log_sum = total.log().masked_fill(is_empty, -torch.inf)
    losses = log_sum - (1 - given.smoothing) * (positives - top)
    if is_smooth:
        losses -= given.smoothing * (logits.sum(0) / count - top)
    losses = losses.masked_fill(is_empty, 0)
    stats = torch.stack([top, log_sum, count])
    if not need_grad:
        return losses, stats, queries.new_empty(0, dtype=torch.float32)
    grad = (weighted * (factor / total).unsqueeze(2)).sum(0)
    positive = given.items.index_select(0, given.targets.clamp(0, num_items - 1)).float()
    if given.cosine:
        positive *= inverse_lengths(positive).unsqueeze(1)
    grad -= (1 - given.smoothing) * positive
    if is_smooth:
        grad -= (given.smoothing / count).unsqueeze(1) * plain.sum(0)
    grad = (given.gamma * grad).masked_fill(is_empty.unsqueeze(1), 0)
    return losses, stats, through_length(queries.float(), grad) if given.cosine else grad


def softmax_loss_grad(*args: Any) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel without waiting for the GPU; a bad target or list is a fault.

    Args:
        args: the fields of `SoftmaxArguments`, then stats and row_grads. float64 is served by the reference.
    """
    given, stats, row_grads = SoftmaxArguments(*args[:-2]), args[-2], args[-1]
    items = given.items
    if items.dtype == torch.float64 or 0 in (given.queries.shape[0], items.shape[0]):
        return softmax_loss_grad_reference(*args)
    prepared = prepare(given)
    batch, num_items, dim = prepared.sizes[:3]
    blocks = triton.cdiv(num_items, prepared.constants["BLOCK_N"])
    d_blocks = max(1, triton.cdiv(dim, prepared.constants["BLOCK_D"]))
    shares, per_share = shares_of(blocks * d_blocks, batch, prepared.constants["BLOCK_B"])
    is_direct = shares == 1 and not given.cosine
    grad = items.new_empty((shares, num_items, dim), dtype=items.dtype if is_direct else torch.float32)
    has_bias = given.bias is not None
    bias_grad = items.new_empty((shares, num_items) if has_bias else (1,), dtype=torch.float32)
    launch(
        _softmax_items_grad_kernel,
        (blocks, shares, d_blocks),
        *prepared.tensors,
        *(stats.contiguous(), row_grads.contiguous(), grad, bias_grad, claim_of(items.device)),
        *(*prepared.sizes, per_share, *prepared.lists, given.smoothing),
        HAS_BIAS=has_bias,
        **prepared.constants,
        num_warps=prepared.num_warps,
    )
    whole = grad[0] if shares == 1 else grad.sum(0)
    if given.cosine:
        whole = through_length(items.float(), whole)
    d_bias = bias_grad.sum(0).to(items.dtype) if has_bias else items.new_empty(0)
    return whole.to(items.dtype), d_bias


def compile_cases() -> list[CompileCase]:
    """Every element type at D = 64, wide and with every option in float32 and bfloat16, as launched."""
    cases = []
    for backend, exact in (("cuda", "tf32x3"), ("hip", "ieee")):
        for element in ("fp32", "bf16", "fp16"):
            cases += _cases(element, 64, backend, exact, False)
        for element in ("fp32", "bf16"):
            cases += _cases(element, 128, backend, exact, True)
    return cases


def _cases(element: str, dim: int, backend: str, exact: str, has_all: bool) -> list[CompileCase]:
    flags = ("HAS_INVERSE", "HAS_SHIFT", "HAS_LOG_Q", "HAS_IDS", "HAS_SEEN", "HAS_ROWS")
    tile = tile_of(dim, element == "fp32", exact)
    shared: dict[str, Any] = dict.fromkeys(flags, has_all) | tile.constants
    shared["INCLUDE_POSITIVE"] = not has_all
    name = f"{element}_d{dim}{'_all' if has_all else ''}"
    cases = []
    for kind, kernel, more in (
        ("loss", _softmax_part_kernel, {"IS_SMOOTH": has_all, "NEED_GRAD": True}),
        ("items_grad", _softmax_items_grad_kernel, {"HAS_BIAS": has_all}),
    ):
        constants = shared | more
        types = dict.fromkeys(kernel.arg_names, "*fp32")
        types |= {
            "queries": f"*{element}",
            "items": f"*{element}",
            "targets": "*i64",
            "item_ids": "*i64",
            "order": "*i64",
        }
        types |= {"seen_indptr": "*i64", "seen_indices": "*i32", "seen_rows": "*i64", "counts": "*i32", "claim": "*i64"}
        sizes = ("batch", "num_items", "dim", "query_stride", "item_stride", "per_share", "num_lists", "nnz")
        types |= dict.fromkeys(sizes, "i32") | {"smoothing": "fp32", "items_grad": f"*{element}"}
        types |= dict.fromkeys(constants, "constexpr")
        signature = {key: types[key] for key in kernel.arg_names}
        aligned = (*(key for key, type_ in signature.items() if type_.startswith("*")), "dim", "query_stride")
        more_options = {"backends": (backend,), "num_warps": tile.num_warps, "aligned": (*aligned, "item_stride")}
        cases.append(CompileCase(f"softmax_{kind}_{name}", kernel, signature, constants, **more_options))
    return cases
