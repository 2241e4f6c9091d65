"""What `sampled_softmax_loss` means, in plain PyTorch: every row's negatives side by side, [B, 1 + S, D]."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sample_negatives.reference import sample_negatives_reference
from deeprec.kernels.softmax_loss.checks import (
    SampledSoftmaxArguments,
    check_sampled_arguments,
    check_slopes_arguments,
    entries_of_lists,
)
from deeprec.kernels.softmax_loss.reference import through_length, unit
from deeprec.kernels.sums import add_rows

_FUNCTION = "sampled_softmax_loss"


def _lists(given: SampledSoftmaxArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each query among the lists, and the lists; empty ones where there are none."""
    batch, device = given.queries.shape[0], given.targets.device
    if given.seen_indptr is None or given.seen_indices is None:
        none = torch.zeros(2, dtype=torch.int64, device=device)
        return torch.zeros(batch, dtype=torch.int64, device=device), none, none[:0].to(torch.int32)
    rows = torch.arange(batch, device=device) if given.seen_rows is None else given.seen_rows
    return rows, given.seen_indptr, given.seen_indices


def negatives_of(given: SampledSoftmaxArguments, draw: Any = sample_negatives_reference) -> Tensor:
    """[B, S] int64.

    Args:
        draw: the reference of sample_negatives, or its operator.
    Raises:
        ValueError: a row knows every item of positive weight.
    """
    table = (given.threshold, given.alias, given.cumulative)
    drawn: tuple[Any, ...] = (given.items.shape[0], given.num_negatives, given.seed, given.offset, *table)
    try:
        negatives: Tensor = draw(*_lists(given), *drawn)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{_FUNCTION}: a row knows every item of positive weight, so there is no negative; leave the row out or "
            "give every item some weight"
        ) from error
    return negatives


def entries_of(given: SampledSoftmaxArguments, draw: Any = sample_negatives_reference) -> Tensor:
    """[B, 1 + S] int64: the positive, then the negatives; see `negatives_of`."""
    return torch.cat([given.targets.to(torch.int64).unsqueeze(1), negatives_of(given, draw)], 1)


def log_expected(given: SampledSoftmaxArguments, entries: Tensor) -> Tensor:
    """[B, S] float64: log of how often each negative is expected among those of its row."""
    num_items, (rows, indptr, indices) = given.items.shape[0], _lists(given)
    batch, lengths = entries.shape[0], (indptr[rows + 1] - indptr[rows]).double()
    if given.cumulative is None:
        return (given.num_negatives / (num_items - lengths)).log().unsqueeze(1).expand(-1, given.num_negatives)
    weights = given.cumulative.diff().double() / num_items
    left = weights.sum().expand(batch)
    if given.seen_indptr is not None:
        row, ids = entries_of_lists(batch, indptr, indices, given.seen_rows)
        left = left - add_rows(torch.zeros_like(weights[:1]).repeat(batch), row, weights[ids])
    return math.log(max(given.num_negatives, 1)) + weights[entries[:, 1:]].log() - left.log().unsqueeze(1)


class SampledLogits(NamedTuple):
    """[B, 1 + S] each: logits, and which are in the denominator."""

    z: Tensor
    is_counted: Tensor


def sampled_logits(given: SampledSoftmaxArguments, entries: Tensor) -> SampledLogits:
    """Differentiable by queries, items and bias."""
    wide = wide_dtype(given.queries.dtype)
    queries, rows = given.queries.to(wide), F.embedding(entries, given.items).to(wide)
    if given.cosine:
        queries, rows = unit(queries), unit(rows)
    z = given.gamma * (queries.unsqueeze(1) * rows).sum(2)
    if given.bias is not None:
        z = z + F.embedding(entries, given.bias.unsqueeze(1)).squeeze(2).to(wide)
    if given.use_log_q:
        z = z - F.pad(log_expected(given, entries).to(wide), (1, 0))
    is_counted = entries != entries[:, :1]
    is_first = torch.arange(entries.shape[1], device=entries.device) == 0
    return SampledLogits(z, is_counted | is_first if given.include_positive else is_counted)


def sampled_losses(given: SampledSoftmaxArguments, entries: Tensor) -> Tensor:
    """Loss of each row [B], by PyTorch's own differentiable operators."""
    z, is_counted = sampled_logits(given, entries)
    is_empty = ~is_counted.any(1)
    total = z.masked_fill(~(is_counted | is_empty.unsqueeze(1)), -math.inf).logsumexp(1)
    return (total - z[:, 0]).masked_fill(is_empty, 0)


def _slopes(logits: SampledLogits, stats: Tensor) -> Tensor:
    maximum, log_sum = (x.unsqueeze(1) for x in stats)
    slopes: Tensor = ((logits.z - maximum) - log_sum).masked_fill(~logits.is_counted, -math.inf).exp()
    is_first = torch.arange(slopes.shape[1], device=slopes.device) == 0
    return (slopes - is_first.to(slopes.dtype)).masked_fill(log_sum == -math.inf, 0)


def sampled_softmax_loss_reference(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [B]; stats [2, B]: maximum m, log sum exp(z - m); derivative by the queries [B, D] or [0].

    Args:
        args: the fields of `SampledSoftmaxArguments`, then need_grad.
    """
    given, need_grad = SampledSoftmaxArguments(*args[:-1]), args[-1]
    check_sampled_arguments(*args)
    entries = entries_of(given)
    logits = sampled_logits(given, entries)
    maximum = logits.z.masked_fill(~logits.is_counted, -math.inf).amax(1)
    maximum = torch.where(maximum == -math.inf, 0, maximum)
    inside = (logits.z - maximum.unsqueeze(1)).masked_fill(~logits.is_counted, -math.inf)
    stats = torch.stack([maximum, inside.exp().sum(1).log()])
    losses = sampled_losses(given, entries)
    if not need_grad:
        return losses, stats, losses.new_empty(0)
    rows = F.embedding(entries, given.items).to(losses.dtype)
    slopes = given.gamma * _slopes(logits, stats)
    grad = (slopes.unsqueeze(2) * (unit(rows) if given.cosine else rows)).sum(1)
    return losses, stats, through_length(given.queries.to(losses.dtype), grad) if given.cosine else grad


def sampled_softmax_slopes_reference(*args: Any) -> tuple[Tensor, Tensor]:
    """The entries [B * (1 + S)] int32, and the derivatives by their logits of the losses times row_grads.

    Args:
        args: the fields of `SampledSoftmaxArguments`, then stats [2, B] and row_grads [B].
    """
    given, stats, row_grads = SampledSoftmaxArguments(*args[:-2]), args[-2], args[-1]
    check_slopes_arguments(*args)
    entries = entries_of(given)
    slopes = _slopes(sampled_logits(given, entries), stats) * row_grads.unsqueeze(1)
    return entries.reshape(-1).to(torch.int32), slopes.reshape(-1)
