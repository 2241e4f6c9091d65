"""Triton kernel of sampled_softmax_loss: a program a row, which gathers, scores and adds up its own entries.

The negatives are those of `sample_negatives` on the device, drawn for each pass into a list [B, S] that lives no longer
than it. The forward pass keeps a running maximum and sum, and the sum of the items weighted by their exponentials; the
backward pass lists item and slope of each entry. A width above BLOCK_D is cut into blocks, each of which scores for
itself.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.embedding_bag.triton_tables import rows_adjacent
from deeprec.kernels.faults import claim_of, number_of
from deeprec.kernels.faults.triton_report import report
from deeprec.kernels.softmax_loss.checks import SampledSoftmaxArguments
from deeprec.kernels.softmax_loss.reference import through_length
from deeprec.kernels.softmax_loss.sampled_reference import (
    negatives_of,
    sampled_softmax_loss_reference,
    sampled_softmax_slopes_reference,
)

__all__ = ["compile_cases", "sampled_softmax_loss", "sampled_softmax_slopes"]

_BAD_TARGETS = tl.constexpr(number_of("sampled_softmax_loss", "targets"))
# One warp: its sums need no barrier. So many numbers of the items it holds at a time.
_WARPS, _HELD, _MAX_BLOCK = 1, 1024, 128


@triton.jit
def _weight_left(cumulative, seen_indices, begin, end, num_items, BLOCK: tl.constexpr):
    """The weight of all items but those of a list, whose ids outside the catalogue have none."""
    left = tl.load(cumulative + num_items)
    for start in tl.range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        id = tl.load(seen_indices + at, mask=at < end, other=-1).to(tl.int64)
        is_known = (id >= 0) & (id < num_items)
        weight = tl.load(cumulative + id + 1, mask=is_known, other=0) - tl.load(cumulative + id, mask=is_known, other=0)
        left -= tl.sum(weight)
    return left


@triton.jit
def _list_of(row, seen_indptr, seen_rows, num_lists, nnz, HAS_ROWS: tl.constexpr):
    """A row's list of known positives; an empty one where it lies elsewhere, which sample_negatives reports."""
    place = row
    if HAS_ROWS:
        place = tl.load(seen_rows + row)
    is_list = (place >= 0) & (place < num_lists)
    begin = tl.load(seen_indptr + place, mask=is_list, other=0)
    end = tl.load(seen_indptr + place + 1, mask=is_list, other=0)
    is_inside = (begin >= 0) & (begin <= end) & (end <= nnz)
    return tl.where(is_inside, begin, 0), tl.where(is_inside, end, 0)


@triton.jit
def _inverse(square):
    """One over a length, 0 for 0."""
    return tl.where(square == 0.0, 0.0, 1.0 / tl.sqrt(tl.where(square == 0.0, 1.0, square)))


@triton.jit
def _entry_products(
    queries, items, row, ids, is_entry, dim, query_stride, item_stride,
    COSINE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Similarity of a row's query to each entry, and one over the entries' lengths (1 for dot products)."""
    z = tl.zeros((BLOCK_S,), tl.float32)
    square = tl.zeros((BLOCK_S,), tl.float32)
    of_query = tl.zeros((1,), tl.float32)
    for start in tl.range(0, dim, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = column < dim
        q = tl.load(queries + row * query_stride + column, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(
            items + ids[:, None] * item_stride + column[None, :], mask=is_entry[:, None] & inside[None, :], other=0.0
        ).to(tl.float32)
        z += tl.sum(v * q[None, :], 1)
        if COSINE:
            square += tl.sum(v * v, 1)
            of_query += tl.sum(q * q)
    inverse = tl.full((BLOCK_S,), 1.0, tl.float32)
    if COSINE:
        inverse = _inverse(square)
        z *= inverse * _inverse(of_query)
    return z, inverse


@triton.jit
def _sampled_softmax_kernel(
    queries,  # [batch, dim]
    items,  # [num_items, dim]
    targets,  # [batch]
    negatives,  # [batch, size]
    bias,  # [num_items]; anything without HAS_BIAS
    cumulative,  # [num_items + 1]; anything without HAS_TABLE
    seen_indptr,  # anything without HAS_SEEN, like the next two
    seen_indices,
    seen_rows,
    losses,  # [batch] out; of the backward pass row_grads
    stats,  # [2, batch] out; given to the backward pass
    queries_grad,  # [batch, dim] out with NEED_GRAD
    entries,  # [batch, 1 + size] int32, out of the backward pass, like the next one
    slopes,
    claim,  # [2]
    batch,
    num_items,
    dim,
    size,
    query_stride,
    item_stride,
    num_lists,
    nnz,
    gamma,
    HAS_BIAS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    USE_LOG_Q: tl.constexpr,
    COSINE: tl.constexpr,
    INCLUDE_POSITIVE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    IS_BACKWARD: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Loss, stats and derivative by the query of a row; or the items and slopes of its entries."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row).to(tl.int64)
    is_known = (target >= 0) & (target < num_items)
    place = row + tl.arange(0, 1)
    report(claim, _BAD_TARGETS, (place >= 0) & (is_known == 0), target, place, num_items, 0)
    begin, end = tl.cast(0, tl.int64), tl.cast(0, tl.int64)
    if HAS_SEEN and USE_LOG_Q:
        begin, end = _list_of(row, seen_indptr, seen_rows, num_lists, nnz, HAS_ROWS)
    left = (num_items - (end - begin)).to(tl.float32)
    if HAS_TABLE and USE_LOG_Q:
        left = _weight_left(cumulative, seen_indices, begin, end, num_items, 128).to(tl.float32)

    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_dim = column < dim
    acc = tl.zeros((BLOCK_D,), tl.float32)
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    z_positive = tl.zeros((1,), tl.float32)
    inverse_positive = tl.zeros((1,), tl.float32)
    num_counted = tl.zeros((1,), tl.int32)
    count = size + 1
    for start in tl.range(0, count, BLOCK_S):
        e = start + tl.arange(0, BLOCK_S)
        is_entry = (e < count) & is_known
        is_first = is_entry & (e == 0)
        ids = tl.load(negatives + row * size + e - 1, mask=is_entry & (e > 0), other=0).to(tl.int64)
        ids = tl.where(is_first, target, ids)
        z, inverse = _entry_products(
            queries, items, row, ids, is_entry, dim, query_stride, item_stride, COSINE, BLOCK_S, BLOCK_D
        )
        z *= gamma
        if HAS_BIAS:
            z += tl.load(bias + ids, mask=is_entry, other=0.0).to(tl.float32)
        if USE_LOG_Q:
            weight = tl.full((BLOCK_S,), 1.0, tl.float32)
            if HAS_TABLE:
                above = tl.load(cumulative + ids + 1, mask=is_entry, other=1)
                weight = (above - tl.load(cumulative + ids, mask=is_entry, other=0)).to(tl.float32)
            expected = tl.where(weight < 0.0, float("nan"), size * (weight / left))  # a damaged table is not hidden
            z -= tl.where(is_entry & (e > 0), tl.log(expected), 0.0)
        is_counted = is_entry & (e > 0) & (ids != target)
        if INCLUDE_POSITIVE:
            is_counted = is_counted | is_first
        if IS_BACKWARD:
            log_sum = tl.load(stats + batch + place)
            share = tl.exp((z - tl.load(stats + place)) - log_sum)
            slope = tl.where(is_counted, share, 0.0) - tl.where(is_first, 1.0, 0.0)
            is_live = is_entry & (log_sum != float("-inf"))
            at = row * count + e
            tl.store(entries + at, ids.to(tl.int32), mask=e < count)
            tl.store(slopes + at, tl.where(is_live, tl.load(losses + place) * slope, 0.0), mask=e < count)
        else:
            num_counted += tl.sum(is_counted.to(tl.int32))
            z_positive += tl.sum(tl.where(is_first, z, 0.0))
            inverse_positive += tl.sum(tl.where(is_first, inverse, 0.0))
            z = tl.where(is_counted, z, float("-inf"))
            before = top
            top = tl.maximum(top, tl.max(z))
            base = tl.where(top == float("-inf"), 0.0, top)
            factor = tl.where(before == float("-inf"), 0.0, tl.exp(before - base))
            share = tl.exp(z - base)
            total = total * factor + tl.sum(share)
            if NEED_GRAD:
                is_inside = is_entry[:, None] & in_dim[None, :]
                v = tl.load(items + ids[:, None] * item_stride + column[None, :], mask=is_inside, other=0.0)
                acc = acc * factor + tl.sum((share * inverse)[:, None] * v.to(tl.float32), 0)
    if IS_BACKWARD == 0:
        is_live = is_known & (num_counted > 0)
        base = tl.where(total == total, tl.where(is_live, top, 0.0), total)  # NaN stays, which maxima leave out
        log_sum = tl.where(is_live, tl.log(total), float("-inf"))
        is_writer = (tl.program_id(1) == 0) & (place >= 0)
        tl.store(losses + place, tl.where(is_live, log_sum - (z_positive - base), 0.0), mask=is_writer)
        tl.store(stats + place, base, mask=is_writer)
        tl.store(stats + batch + place, log_sum, mask=is_writer)
        if NEED_GRAD:
            v = tl.load(items + target * item_stride + column, mask=in_dim & is_known, other=0.0).to(tl.float32)
            grad = tl.where(is_live, gamma * (acc / total - inverse_positive * v), 0.0)
            tl.store(queries_grad + row * dim + column, grad, mask=in_dim)


def _launch(given: SampledSoftmaxArguments, outs: tuple[Tensor, ...], need_grad: bool, is_backward: bool) -> None:
    queries, items = rows_adjacent(given.queries), rows_adjacent(given.items)
    negatives = negatives_of(given, torch.ops.deeprec.sample_negatives).contiguous()
    optional = (given.bias, given.cumulative, given.seen_indptr, given.seen_indices, given.seen_rows)
    names = ("HAS_BIAS", "HAS_TABLE", "HAS_SEEN", "", "HAS_ROWS")
    (batch, dim), block_d = queries.shape, _block_of(queries.shape[1])
    launch(
        _sampled_softmax_kernel,
        (batch, triton.cdiv(dim, block_d) if need_grad and dim > 0 else 1),
        *(queries, items, given.targets.contiguous(), negatives),
        *(negatives if x is None else x.contiguous() for x in optional),
        *(*outs, claim_of(items.device)),
        *(batch, items.shape[0], dim, given.num_negatives, queries.stride(0), items.stride(0)),
        *(0 if x is None else x.numel() - less for x, less in ((given.seen_indptr, 1), (given.seen_indices, 0))),
        given.gamma,
        **{name: x is not None for name, x in zip(names, optional, strict=True) if name},
        USE_LOG_Q=given.use_log_q,
        COSINE=given.cosine,
        INCLUDE_POSITIVE=given.include_positive,
        NEED_GRAD=need_grad,
        IS_BACKWARD=is_backward,
        BLOCK_S=_HELD // block_d,
        BLOCK_D=block_d,
        num_warps=_WARPS,
    )


def _block_of(dim: int) -> int:
    return max(16, min(int(triton.next_power_of_2(max(dim, 1))), _MAX_BLOCK))


def sampled_softmax_loss(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Draw, then launch the kernel, without waiting for the GPU; a bad target or list, or nothing to draw, is a fault.

    Args:
        args: the fields of `SampledSoftmaxArguments`, then need_grad. float64 is served by the reference.
    """
    given, need_grad = SampledSoftmaxArguments(*args[:-1]), args[-1]
    queries = given.queries
    if queries.dtype == torch.float64 or queries.shape[0] == 0:
        return sampled_softmax_loss_reference(*args)
    losses = queries.new_empty(queries.shape[0], dtype=torch.float32)
    stats = queries.new_empty(2, queries.shape[0], dtype=torch.float32)
    grad = queries.new_empty(queries.shape if need_grad else (0,), dtype=torch.float32)
    _launch(given, (losses, stats, grad, losses, losses), need_grad, False)
    if need_grad and given.cosine:
        grad = through_length(queries.float(), grad)
    return losses, stats, grad


def sampled_softmax_slopes(*args: Any) -> tuple[Tensor, Tensor]:
    """Draw again, then launch the kernel for the entries and slopes, without waiting for the GPU.

    Args:
        args: the fields of `SampledSoftmaxArguments`, then stats and row_grads. float64 is served by the reference.
    """
    given, stats, row_grads = SampledSoftmaxArguments(*args[:-2]), args[-2], args[-1]
    batch = given.queries.shape[0]
    if given.queries.dtype == torch.float64 or batch == 0:
        return sampled_softmax_slopes_reference(*args)
    nnz = batch * (1 + given.num_negatives)
    entries = row_grads.new_empty(nnz, dtype=torch.int32)
    slopes = row_grads.new_empty(nnz, dtype=torch.float32)
    stats, row_grads = stats.contiguous(), row_grads.contiguous()
    _launch(given, (row_grads, stats, slopes, entries, slopes), False, True)
    return entries, slopes


def compile_cases() -> list[CompileCase]:
    """Every element type at D = 64, wide and with every option in float32 and bfloat16, both passes."""
    cases = []
    for element, dim, has_all in (
        *((x, 64, False) for x in ("fp32", "bf16", "fp16")),
        *((x, 300, True) for x in ("fp32", "bf16")),
    ):
        for is_backward in (False, True):
            flags = ("HAS_BIAS", "HAS_TABLE", "HAS_SEEN", "HAS_ROWS", "USE_LOG_Q", "COSINE", "INCLUDE_POSITIVE")
            constants: dict[str, Any] = dict.fromkeys(flags, has_all)
            constants |= {"NEED_GRAD": not is_backward, "IS_BACKWARD": is_backward}
            constants |= {"BLOCK_S": _HELD // _block_of(dim), "BLOCK_D": _block_of(dim)}
            types = dict.fromkeys(_sampled_softmax_kernel.arg_names, "*fp32")
            types |= dict.fromkeys(("queries", "items", "bias"), f"*{element}")
            wide = ("targets", "negatives", "cumulative", "seen_indptr", "seen_rows", "claim")
            types |= dict.fromkeys(wide, "*i64") | dict.fromkeys(("seen_indices", "entries"), "*i32")
            sizes = ("batch", "num_items", "dim", "size", "query_stride", "item_stride", "num_lists", "nnz")
            types |= dict.fromkeys(sizes, "i32") | {"gamma": "fp32"} | dict.fromkeys(constants, "constexpr")
            name = f"sampled_softmax_{'slopes' if is_backward else 'loss'}_{element}_d{dim}"
            aligned = (*(key for key, type_ in types.items() if type_.startswith("*")), "query_stride", "item_stride")
            cases.append(
                CompileCase(name, _sampled_softmax_kernel, types, constants, num_warps=_WARPS, aligned=aligned)
            )
    return cases
