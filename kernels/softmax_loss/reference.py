"""What `softmax_loss` means, in plain PyTorch: with all logits [B, N]."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.softmax_loss.checks import (
    SoftmaxArguments,
    check_grad_arguments,
    check_loss_arguments,
    entries_of_lists,
)


class Logits(NamedTuple):
    """What the loss is made of.

    Attributes:
        z: [B, N] logits, wide: gamma times the similarity, plus bias, minus log_q.
        is_hidden: [B, N], the candidates that are masked.
        is_positive: [B, N].
        counts: [B] int64, the candidates that are not masked.
        is_empty: [B], rows with nothing in their denominator.
    """

    z: Tensor
    is_hidden: Tensor
    is_positive: Tensor
    counts: Tensor
    is_empty: Tensor


def unit(x: Tensor) -> Tensor:
    """Rows [..., D] divided by their length; a row of zeros stays, and has no gradient."""
    square = x.square().sum(-1, keepdim=True)
    is_zero = square == 0
    return x * torch.where(is_zero, 0, torch.where(is_zero, 1, square).rsqrt())


def hidden_candidates(given: SoftmaxArguments) -> Tensor:
    """[B, N], true for a known positive and for another candidate of the positive's id."""
    num_items, batch = given.items.shape[0], given.queries.shape[0]
    targets = given.targets.to(torch.int64)
    hidden = torch.zeros(batch, num_items, dtype=torch.bool, device=given.targets.device)
    if given.item_ids is not None:
        hidden |= given.item_ids.unsqueeze(0) == given.item_ids[targets].unsqueeze(1)
    if given.seen_indptr is not None and given.seen_indices is not None:
        row, ids = entries_of_lists(batch, given.seen_indptr, given.seen_indices, given.seen_rows)
        if given.item_ids is None:
            place = ids
        else:
            ordered, order = given.item_ids.to(torch.int64).sort(stable=True)
            first, last = torch.searchsorted(ordered, ids), torch.searchsorted(ordered, ids, right=True)
            lengths = last - first
            row = torch.repeat_interleave(row, lengths)
            shift = torch.repeat_interleave(first - (lengths.cumsum(0) - lengths), lengths)
            place = order[shift + torch.arange(row.numel(), device=row.device)]
        is_candidate = (place >= 0) & (place < num_items)
        hidden[row[is_candidate], place[is_candidate]] = True
    return hidden.scatter(1, targets.unsqueeze(1), False)


def logits_of(given: SoftmaxArguments) -> Logits:
    """All logits and masks, differentiable by queries, items and bias."""
    wide = wide_dtype(given.queries.dtype)
    queries, items = given.queries.to(wide), given.items.to(wide)
    if given.cosine:
        queries, items = unit(queries), unit(items)
    targets = given.targets.to(torch.int64).unsqueeze(1)
    z = given.gamma * queries @ items.T
    if given.bias is not None:
        z = z + given.bias.to(wide)
    hidden = hidden_candidates(given)
    is_positive = torch.zeros_like(hidden).scatter(1, targets, True)
    if given.log_q is not None:
        log_q = given.log_q.expand(z.shape[-2:])
        z = z - (log_q if given.correct_positive else torch.where(is_positive, 0, log_q))
    counts = given.items.shape[0] - hidden.sum(1)
    return Logits(z, hidden, is_positive, counts, counts <= (0 if given.include_positive else 1))


def in_denominator(logits: Logits, include_positive: bool) -> Tensor:
    """[B, N], true for what the denominator adds up."""
    return ~logits.is_hidden if include_positive else ~(logits.is_hidden | logits.is_positive)


def losses_of(given: SoftmaxArguments) -> Tensor:
    """Loss of each row [B], by PyTorch's own differentiable operators."""
    logits = logits_of(given)
    z, smoothing = logits.z, given.smoothing
    # All of an empty row, whose loss is then left out, so that its logarithm has a derivative.
    inside = in_denominator(logits, given.include_positive) | logits.is_empty.unsqueeze(1)
    total = z.masked_fill(~inside, -math.inf).logsumexp(1)
    positive = z.masked_fill(~logits.is_positive, 0).sum(1)
    losses = total - (1 - smoothing) * positive
    if smoothing > 0:
        losses = losses - smoothing * z.masked_fill(logits.is_hidden, 0).sum(1) / logits.counts
    return losses.masked_fill(logits.is_empty, 0)


def _slopes(given: SoftmaxArguments, logits: Logits, stats: Tensor) -> Tensor:
    """Derivative of each row's loss by its logits [B, N]; 0 for a row with nothing in its denominator."""
    maximum, log_sum, counts = (x.unsqueeze(1) for x in stats)
    shifted = (logits.z - maximum) - log_sum
    slopes: Tensor = shifted.masked_fill(~in_denominator(logits, given.include_positive), -math.inf).exp()
    slopes = slopes - (1 - given.smoothing) * logits.is_positive.to(slopes.dtype)
    if given.smoothing > 0:
        slopes = slopes - given.smoothing / counts * ~logits.is_hidden
    return slopes.masked_fill(log_sum == -math.inf, 0)


def through_length(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of rows from that of their unit vectors."""
    u, square = unit(x), x.square().sum(1, keepdim=True)
    inverse = torch.where(square == 0, 0, torch.where(square == 0, 1, square).rsqrt())
    return inverse * (grad - u * (u * grad).sum(1, keepdim=True))


def softmax_loss_reference(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [B]; stats [3, B]: maximum m, log sum exp(z - m), candidates; derivative by the queries [B, D] or [0].

    Args:
        args: the fields of `SoftmaxArguments`, then need_grad.
    """
    given, need_grad = SoftmaxArguments(*args[:-1]), args[-1]
    check_loss_arguments(*args)
    wide = wide_dtype(given.queries.dtype)
    if given.queries.shape[0] == 0:
        return (
            given.queries.new_empty(0, dtype=wide),
            given.queries.new_empty(3, 0, dtype=wide),
            given.queries.new_empty((0, given.queries.shape[1]) if need_grad else (0,), dtype=wide),
        )
    logits = logits_of(given)
    inside = in_denominator(logits, given.include_positive)
    maximum = logits.z.masked_fill(~inside, -math.inf).amax(1)
    maximum = torch.where(maximum == -math.inf, 0, maximum)
    log_sum = (logits.z - maximum.unsqueeze(1)).masked_fill(~inside, -math.inf).exp().sum(1).log()
    stats = torch.stack([maximum, log_sum, logits.counts.to(wide)])
    losses = losses_of(given)
    if not need_grad:
        return losses, stats, given.queries.new_empty(0, dtype=wide)
    slopes = _slopes(given, logits, stats)
    queries, items = given.queries.to(wide), given.items.to(wide)
    grad = given.gamma * slopes @ (unit(items) if given.cosine else items)
    return losses, stats, through_length(queries, grad) if given.cosine else grad


def softmax_loss_grad_reference(*args: Any) -> tuple[Tensor, Tensor]:
    """Gradients of the items [N, D] and of the bias [N] or [0].

    Args:
        args: the fields of `SoftmaxArguments`, then stats [3, B] and row_grads [B].
    """
    given, stats, row_grads = SoftmaxArguments(*args[:-2]), args[-2], args[-1]
    check_grad_arguments(*args)
    wide = wide_dtype(given.queries.dtype)
    logits = logits_of(given)
    slopes = _slopes(given, logits, stats) * row_grads.unsqueeze(1)
    queries, items = given.queries.to(wide), given.items.to(wide)
    grad = given.gamma * slopes.T @ (unit(queries) if given.cosine else queries)
    grad = through_length(items, grad) if given.cosine else grad
    dtype = given.items.dtype
    return grad.to(dtype), slopes.sum(0).to(dtype) if given.bias is not None else items.new_empty(0, dtype=dtype)
