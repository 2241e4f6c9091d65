"""What `sampled_softmax_loss` means, in plain PyTorch: every row's negatives side by side, [B, 1 + S, D]."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels._checks import check_float, check_index, require
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sample_negatives.reference import sample_negatives_reference
from deeprec.kernels.softmax_loss.checks import check_lists, check_places, entries_of_lists
from deeprec.kernels.softmax_loss.reference import through_length, unit
from deeprec.kernels.sums import add_rows

_FUNCTION = "sampled_softmax_loss"


class SampledSoftmaxArguments(NamedTuple):
    """What the operators take, in the order of their schemas; see `sampled_softmax_loss`.

    Attributes:
        threshold, alias, cumulative: of an `AliasTable`; None draws uniformly.
        cosine: whether the similarity is the cosine, not the dot product.
    """

    queries: Tensor
    items: Tensor
    targets: Tensor
    bias: Tensor | None
    seen_indptr: Tensor | None
    seen_indices: Tensor | None
    seen_rows: Tensor | None
    num_negatives: int
    seed: int
    offset: int
    threshold: Tensor | None
    alias: Tensor | None
    cumulative: Tensor | None
    gamma: float
    cosine: bool
    use_log_q: bool
    include_positive: bool


def _check_table(given: SampledSoftmaxArguments, num_items: int) -> None:
    table = (given.threshold, given.alias, given.cumulative)
    if table == (None, None, None):
        return
    requirement = f"popularity must describe {num_items} items; build it with alias_table(weights)"
    for tensor, size in zip(table, (num_items, num_items, num_items + 1), strict=True):
        require(tensor is not None and tensor.shape == (size,), _FUNCTION, requirement, tensor)
    for tensor, dtype in zip(table, (torch.int64, torch.int32, torch.int64), strict=True):
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(
                f"{_FUNCTION}: the tensors of popularity must be int64, int32 and int64, got {tensor.dtype}"
            )
    if given.alias is not None and given.alias.device.type == "cpu":
        check_places(_FUNCTION, "alias", given.alias, num_items)


def check_arguments(given: SampledSoftmaxArguments) -> None:
    """Raise as the C++ kernel does; values are looked at on the CPU only."""
    queries, items = given.queries, given.items
    check_float(_FUNCTION, "queries", queries)
    require(queries.dim() == 2, _FUNCTION, "queries must be [B, D]", queries)
    has_shape = items.dim() == 2 and items.shape[1] == queries.shape[1] and items.dtype == queries.dtype
    require(has_shape, _FUNCTION, f"items must be [N, {queries.shape[1]}] of {queries.dtype}", items)
    batch, num_items = queries.shape[0], items.shape[0]
    require(0 < given.gamma < math.inf, _FUNCTION, "gamma must be a finite number > 0", given.gamma)
    require(0 < num_items < 2**31, _FUNCTION, "N must be in [1, 2^31)", num_items)
    require(0 <= given.num_negatives < 2**31, _FUNCTION, "num_negatives must be in [0, 2^31)", given.num_negatives)
    require(given.offset >= 0, _FUNCTION, "offset must be >= 0", given.offset)
    check_index(_FUNCTION, "targets", given.targets)
    require(given.targets.shape == (batch,), _FUNCTION, f"targets must be [{batch}]", given.targets)
    if given.targets.device.type == "cpu":
        check_places(_FUNCTION, "targets", given.targets, num_items)
    if given.bias is not None:
        has_shape = given.bias.shape == (num_items,) and given.bias.dtype == queries.dtype
        require(has_shape, _FUNCTION, f"bias must be [{num_items}] of {queries.dtype}", given.bias)
    _check_table(given, num_items)
    check_lists(_FUNCTION, batch, given.seen_indptr, given.seen_indices, given.seen_rows)
    if given.seen_indptr is not None and given.seen_indices is not None and given.seen_indptr.device.type == "cpu":
        row, ids = entries_of_lists(batch, given.seen_indptr, given.seen_indices, given.seen_rows)
        check_places(_FUNCTION, "seen_indices", ids, num_items)
        full = torch.bincount(row, minlength=batch) >= num_items
        require(not bool(full.any()), _FUNCTION, f"a row that knows all {num_items} items has no negative", row)


def _lists(given: SampledSoftmaxArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each query among the lists, and the lists; empty ones where there are none."""
    batch, device = given.queries.shape[0], given.targets.device
    if given.seen_indptr is None or given.seen_indices is None:
        none = torch.zeros(2, dtype=torch.int64, device=device)
        return torch.zeros(batch, dtype=torch.int64, device=device), none, none[:0].to(torch.int32)
    rows = torch.arange(batch, device=device) if given.seen_rows is None else given.seen_rows
    return rows, given.seen_indptr, given.seen_indices


def entries_of(given: SampledSoftmaxArguments, draw: Any = sample_negatives_reference) -> Tensor:
    """[B, 1 + S] int64: the positive, then the negatives.

    Args:
        draw: the reference of sample_negatives, or its operator.
    Raises:
        ValueError: a row knows every item of positive weight.
    """
    table = (given.threshold, given.alias, given.cumulative)
    drawn: tuple[Any, ...] = (given.items.shape[0], given.num_negatives, given.seed, given.offset, *table)
    try:
        negatives = draw(*_lists(given), *drawn)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{_FUNCTION}: a row knows every item of positive weight, so there is no negative; leave the row out or "
            "give every item some weight"
        ) from error
    return torch.cat([given.targets.to(torch.int64).unsqueeze(1), negatives.to(torch.int64)], 1)


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
    check_arguments(given)
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
    check_arguments(given)
    wide, batch = wide_dtype(given.queries.dtype), given.queries.shape[0]
    for name, tensor, shape in (("stats", stats, (2, batch)), ("row_grads", row_grads, (batch,))):
        require(
            tensor.shape == shape and tensor.dtype == wide, _FUNCTION, f"{name} must be {list(shape)} of {wide}", tensor
        )
    entries = entries_of(given)
    slopes = _slopes(sampled_logits(given, entries), stats) * row_grads.unsqueeze(1)
    return entries.reshape(-1).to(torch.int32), slopes.reshape(-1)
