"""`embedding_bags` in PyTorch's own operators: differentiable any number of times, forwards and batched.

Nothing here depends on the values of ids and offsets but through operators, so that vmap batches them and ONNX export
traces them. Letters: T tables, F features, B bags a feature, nnz entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.embedding_bag.checks import MAX, MEAN, NONE, is_pooled, num_bags
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sums import sum_rows, take_by_column


class Entries(NamedTuple):
    """The entries of one feature.

    Attributes:
        ids: [n].
        bags: bag of each in [0, B), int64.
        keep: those that count: neither padding nor, where the offsets cannot be read, those of other features, bool.
        values: the number that goes with each, or None.
        is_whole: whether these are the feature's entries and no others.
    """

    ids: Tensor
    bags: Tensor
    keep: Tensor
    values: Tensor | None
    is_whole: bool = True


def bag_of_entries(offsets: Tensor, nnz: int) -> Tensor:
    """The bag of each entry, [nnz], int64: the number of bags that have ended before it."""
    ends = offsets[1:-1].to(torch.int64)
    ended = torch.zeros(nnz + 1, dtype=torch.int64, device=offsets.device).scatter_add(0, ends, torch.ones_like(ends))
    return ended.cumsum(0)[:nnz]


def _bounds(offsets: Tensor, batch: int, num_features: int, nnz: int) -> list[int] | None:
    """Where each feature's entries begin and the last one's end; None where the offsets are traced or batched."""
    is_exporting = torch.onnx.is_in_onnx_export()
    if torch.compiler.is_compiling() and not is_exporting:
        return None
    try:
        bounds: list[int] = [offsets[f * batch].item() for f in range(num_features + 1)]  # type: ignore[misc]
        if is_exporting:
            for first, last in pairwise(bounds):
                torch._check(first >= 0)
                torch._check(last >= first)
                torch._check(last <= nnz)
        return bounds
    except RuntimeError:  # vmap: there is no one value
        return None


def entries_of(ids: Tensor, offsets: Tensor | None, values: Tensor | None, padding: Sequence[int]) -> list[Entries]:
    """The entries of each feature.

    Args:
        ids: [F, B], or [nnz] with offsets.
        offsets: [F * B + 1], or None.
        values: shape of ids, or None.
        padding: one a feature, -1 for none.
    """
    count = len(padding)
    batch = num_bags(ids, offsets, count)
    out = []
    if offsets is None:
        bags = torch.arange(batch, device=ids.device)
        for f, pad in enumerate(padding):
            out.append(Entries(ids[f], bags, ids[f] != pad, None if values is None else values[f]))
        return out
    every = bag_of_entries(offsets, ids.shape[0])
    bounds = [0, ids.shape[0]] if count == 1 else _bounds(offsets, batch, count, ids.shape[0])
    for f, pad in enumerate(padding):
        mine = slice(None) if bounds is None else slice(bounds[f], bounds[f + 1])
        own, bags = ids[mine], every[mine] - f * batch
        keep = own != pad
        if bounds is None:
            is_mine = (bags >= 0) & (bags < batch)
            # Ids of other features need not be rows of this one's table.
            own, bags, keep = torch.where(is_mine, own, 0), torch.where(is_mine, bags, 0), keep & is_mine
        out.append(Entries(own, bags, keep, None if values is None else values[mine], bounds is not None))
    return out


def _largest(rows: Tensor, bags: Tensor, keep: Tensor, batch: int) -> Tensor:
    """The largest of each column by bag, and its gradient to the first entry that has it; 0 in an empty bag."""
    count, dim = rows.shape
    at, plain = bags.unsqueeze(1).expand_as(rows), rows.detach().masked_fill(~keep.unsqueeze(1), -torch.inf)
    top = plain.new_full((batch, dim), -torch.inf).scatter_reduce(0, at, plain, "amax")
    is_top = (plain == top.gather(0, at)) & keep.unsqueeze(1)
    numbers = torch.where(is_top, torch.arange(count, device=rows.device).unsqueeze(1), count)
    first = torch.full((batch, dim), count, device=rows.device).scatter_reduce(0, at, numbers, "amin")
    return take_by_column(torch.cat([rows, rows.new_zeros(1, dim)]), first)


def _pooled(entries: Entries, weight: Tensor, mode: int, batch: int) -> Tensor:
    rows = F.embedding(entries.ids, weight).to(wide_dtype(weight.dtype))
    if mode == MAX:
        return _largest(rows, entries.bags, entries.keep, batch)
    rows = rows.masked_fill(~entries.keep.unsqueeze(1), 0)
    if entries.values is not None:
        rows = rows * entries.values.to(rows.dtype).unsqueeze(1)
    sums = sum_rows(rows, entries.bags, batch)
    if mode != MEAN:
        return sums
    return sums / sum_rows(entries.keep.to(rows.dtype).unsqueeze(1), entries.bags, batch).clamp(min=1)


def _single(entries: Entries, weight: Tensor, mode: int, pad: int) -> Tensor:
    """Bags of one id: the row itself, where it counts."""
    values = entries.values
    if mode == NONE:  # padding has its row, but no gradient
        rows = F.embedding(entries.ids, weight, pad if pad >= 0 else None)
        if values is not None:
            values = torch.where(entries.keep, values, values.detach())
    else:
        rows = F.embedding(entries.ids, weight).masked_fill(~entries.keep.unsqueeze(1), 0)
    return rows if values is None else rows * values.unsqueeze(1)


def embedding_bags_composite(
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
) -> list[Tensor]:
    """[pooled [B, sum D_f], one [nnz_f, D_f] for each unpooled feature], as `embedding_bags` returns them.

    Raises:
        RuntimeError: an unpooled feature is not the only one, and the offsets are batched or traced by torch.compile.
    """
    batch, dtype = num_bags(ids, offsets, len(tables)), weights[0].dtype
    pooled, sequences = [weights[0].new_zeros(batch, 0)], []
    features = zip(entries_of(ids, offsets, per_sample_weights, padding), tables, modes, padding, strict=True)
    for entries, table, mode, pad in features:
        if offsets is None:
            pooled.append(_single(entries, weights[table], mode, pad))
        elif is_pooled(mode, offsets):
            pooled.append(_pooled(entries, weights[table], mode, batch).to(dtype))
        else:
            if not entries.is_whole:
                raise RuntimeError(
                    "embedding_bags: rows of mode 'none' beside other features need offsets that can be read, got some "
                    "that vmap batches or torch.compile traces; give that feature a call of its own"
                )
            sequences.append(F.embedding(entries.ids, weights[table], pad if pad >= 0 else None))
    return [torch.cat(pooled, 1), *sequences]


def equal_bags_composite(
    weight: Tensor, ids: Tensor, per_sample_weights: Tensor | None, mode: int, padding_idx: int | None
) -> Tensor:
    """Bags of one length, ids [B, L]: [B, D]."""
    rows = F.embedding(ids, weight).to(wide_dtype(weight.dtype))  # [B, L, D]
    keep = torch.ones_like(ids, dtype=torch.bool) if padding_idx is None else ids != padding_idx
    left_out = ~keep.unsqueeze(2)
    if mode == MAX and ids.shape[1]:
        top = rows.masked_fill(left_out, -torch.inf).max(1).values
        return top.masked_fill(left_out.all(1), 0).to(weight.dtype)
    rows = rows.masked_fill(left_out, 0)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.to(rows.dtype).unsqueeze(2)
    sums = rows.sum(1)
    if mode == MEAN:
        sums = sums / keep.sum(1, keepdim=True).clamp(min=1)
    return sums.to(weight.dtype)
