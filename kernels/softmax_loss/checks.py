"""What the operators of `softmax_loss` ask of their arguments; values are looked at on the CPU only."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels._checks import check_float, check_index, require
from deeprec.kernels.embedding_bag.reference import wide_dtype

_FUNCTION, _SAMPLED = "softmax_loss", "sampled_softmax_loss"


class SoftmaxArguments(NamedTuple):
    """What the operators take, in the order of their schemas; see `softmax_loss`.

    Attributes:
        targets: [B] places of the positives among the candidates.
        cosine: whether the similarity is the cosine, not the dot product.
        smoothing: `label_smoothing`.
    """

    queries: Tensor
    items: Tensor
    targets: Tensor
    bias: Tensor | None
    log_q: Tensor | None
    item_ids: Tensor | None
    seen_indptr: Tensor | None
    seen_indices: Tensor | None
    seen_rows: Tensor | None
    gamma: float
    cosine: bool
    smoothing: float
    include_positive: bool
    correct_positive: bool


def entries_of_lists(batch: int, indptr: Tensor, indices: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """The known positives of all rows: row of the batch and id of each."""
    device = indptr.device
    rows = torch.arange(batch, device=device) if rows is None else rows
    begin = indptr[rows]
    lengths = indptr[rows + 1] - begin
    row = torch.repeat_interleave(torch.arange(batch, device=device), lengths)
    shift = (begin - (lengths.cumsum(0) - lengths))[row]
    return row, indices[shift + torch.arange(row.numel(), device=device)].to(torch.int64)


def check_lists(function: str, batch: int, indptr: Tensor | None, indices: Tensor | None, rows: Tensor | None) -> None:
    """Raise unless the lists of known positives are whole and ascend, one for each row, or there are none."""
    is_whole = (indptr is None) == (indices is None) and (rows is None or indptr is not None)
    require(is_whole, function, "give seen_indptr and seen_indices together", (indptr, indices, rows))
    if indptr is None or indices is None:
        return
    if indptr.dtype != torch.int64 or indices.dtype != torch.int32:
        raise TypeError(
            f"{function}: seen_indptr must be int64 and seen_indices int32, got {indptr.dtype} and {indices.dtype}"
        )
    has_shape = indptr.dim() == 1 and indices.dim() == 1 and indptr.numel() > 0
    require(has_shape, function, "seen_indptr must be [rows + 1] and seen_indices [nnz]", indptr)
    lists, nnz = indptr.numel() - 1, indices.numel()
    if rows is None:
        require(lists == batch, function, f"seen_indptr must be [{batch + 1}]", indptr)
        rows = torch.arange(batch, device=indptr.device)
    elif rows.dtype != torch.int64:
        raise TypeError(f"{function}: seen_rows must be int64, got {rows.dtype}")
    require(rows.shape == (batch,), function, f"seen_rows must be [{batch}]", rows)
    if indptr.device.type != "cpu":
        return
    check_places(function, "seen_rows", rows, lists)
    begin, end = indptr[rows], indptr[rows + 1]
    is_whole = bool(((begin >= 0) & (begin <= end) & (end <= nnz)).all())
    require(is_whole, function, f"seen_indptr must ascend from 0 to the number of seen_indices, {nnz}", indptr)
    row, ids = entries_of_lists(batch, indptr, indices, rows)
    falls = (ids[1:] <= ids[:-1]) & (row[1:] == row[:-1])
    require(not bool(falls.any()), function, "seen_indices must ascend without repeats within a row", indices)


def check_places(function: str, name: str, places: Tensor, count: int) -> None:
    """Raise IndexError unless all of `places` are in [0, count)."""
    bad = (places < 0) | (places >= count)
    if bool(bad.any()):
        at = int(bad.to(torch.uint8).argmax())
        raise IndexError(f"{function}: {name} must be in [0, {count}), got {int(places[at])} at position {at}")


def check_arguments(given: SoftmaxArguments) -> None:
    """Raise as the C++ kernel does; values are looked at on the CPU only."""
    queries, items = given.queries, given.items
    check_float(_FUNCTION, "queries", queries)
    require(queries.dim() == 2, _FUNCTION, "queries must be [B, D]", queries)
    has_shape = items.dim() == 2 and items.shape[1] == queries.shape[1] and items.dtype == queries.dtype
    require(has_shape, _FUNCTION, f"items must be [N, {queries.shape[1]}] of {queries.dtype}", items)
    (batch, _), num_items = queries.shape, items.shape[0]
    require(0 < given.gamma < math.inf, _FUNCTION, "gamma must be a finite number > 0", given.gamma)
    require(0 <= given.smoothing < 1, _FUNCTION, "label_smoothing must be in [0, 1)", given.smoothing)
    check_index(_FUNCTION, "targets", given.targets)
    require(given.targets.shape == (batch,), _FUNCTION, f"targets must be [{batch}]", given.targets)
    if given.targets.device.type == "cpu":
        check_places(_FUNCTION, "targets", given.targets, num_items)
    check_lists(_FUNCTION, batch, given.seen_indptr, given.seen_indices, given.seen_rows)
    if given.item_ids is not None:
        check_index(_FUNCTION, "item_ids", given.item_ids)
        require(given.item_ids.shape == (num_items,), _FUNCTION, f"item_ids must be [{num_items}]", given.item_ids)
    for name, tensor, dtype in (("bias", given.bias, queries.dtype), ("log_q", given.log_q, wide_dtype(queries.dtype))):
        if tensor is not None:
            has_shape = tensor.shape == (num_items,) and tensor.dtype == dtype
            require(has_shape, _FUNCTION, f"{name} must be [{num_items}] of {dtype}", tensor)


def check_loss_arguments(*args: Any) -> None:
    """Check the arguments of `softmax_loss`."""
    check_arguments(SoftmaxArguments(*args[:-1]))


def check_grad_arguments(*args: Any) -> None:
    """Check the arguments of `softmax_loss_grad`."""
    given = SoftmaxArguments(*args[:-2])
    check_arguments(given)
    _check_backward(_FUNCTION, given.queries, 3, *args[-2:])


def _check_backward(function: str, queries: Tensor, num_stats: int, stats: Tensor, row_grads: Tensor) -> None:
    wide, batch = wide_dtype(queries.dtype), queries.shape[0]
    for name, tensor, shape in (("stats", stats, (num_stats, batch)), ("row_grads", row_grads, (batch,))):
        has_shape = tensor.shape == shape and tensor.dtype == wide
        require(has_shape, function, f"{name} must be {list(shape)} of {wide}", tensor)


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
        require(tensor is not None and tensor.shape == (size,), _SAMPLED, requirement, tensor)
    for tensor, dtype in zip(table, (torch.int64, torch.int32, torch.int64), strict=True):
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(f"{_SAMPLED}: the tensors of popularity must be int64, int32 and int64, got {tensor.dtype}")
    if given.alias is not None and given.alias.device.type == "cpu":
        check_places(_SAMPLED, "alias", given.alias, num_items)


def _check_sampled(given: SampledSoftmaxArguments) -> None:
    queries, items = given.queries, given.items
    check_float(_SAMPLED, "queries", queries)
    require(queries.dim() == 2, _SAMPLED, "queries must be [B, D]", queries)
    has_shape = items.dim() == 2 and items.shape[1] == queries.shape[1] and items.dtype == queries.dtype
    require(has_shape, _SAMPLED, f"items must be [N, {queries.shape[1]}] of {queries.dtype}", items)
    batch, num_items = queries.shape[0], items.shape[0]
    require(0 < given.gamma < math.inf, _SAMPLED, "gamma must be a finite number > 0", given.gamma)
    require(0 < num_items < 2**31, _SAMPLED, "N must be in [1, 2^31)", num_items)
    require(0 <= given.num_negatives < 2**31, _SAMPLED, "num_negatives must be in [0, 2^31)", given.num_negatives)
    require(given.offset >= 0, _SAMPLED, "offset must be >= 0", given.offset)
    check_index(_SAMPLED, "targets", given.targets)
    require(given.targets.shape == (batch,), _SAMPLED, f"targets must be [{batch}]", given.targets)
    if given.targets.device.type == "cpu":
        check_places(_SAMPLED, "targets", given.targets, num_items)
    if given.bias is not None:
        has_shape = given.bias.shape == (num_items,) and given.bias.dtype == queries.dtype
        require(has_shape, _SAMPLED, f"bias must be [{num_items}] of {queries.dtype}", given.bias)
    _check_table(given, num_items)
    check_lists(_SAMPLED, batch, given.seen_indptr, given.seen_indices, given.seen_rows)
    if given.seen_indptr is not None and given.seen_indices is not None and given.seen_indptr.device.type == "cpu":
        row, ids = entries_of_lists(batch, given.seen_indptr, given.seen_indices, given.seen_rows)
        check_places(_SAMPLED, "seen_indices", ids, num_items)
        full = torch.bincount(row, minlength=batch) >= num_items
        require(not bool(full.any()), _SAMPLED, f"a row that knows all {num_items} items has no negative", row)


def check_sampled_arguments(*args: Any) -> None:
    """Check the arguments of `sampled_softmax_loss`."""
    _check_sampled(SampledSoftmaxArguments(*args[:-1]))


def check_slopes_arguments(*args: Any) -> None:
    """Check the arguments of `sampled_softmax_slopes`."""
    given = SampledSoftmaxArguments(*args[:-2])
    _check_sampled(given)
    _check_backward(_SAMPLED, given.queries, 2, *args[-2:])


CHECKS = {
    "softmax_loss": check_loss_arguments,
    "softmax_loss_grad": check_grad_arguments,
    "sampled_softmax_loss": check_sampled_arguments,
    "sampled_softmax_slopes": check_slopes_arguments,
}
