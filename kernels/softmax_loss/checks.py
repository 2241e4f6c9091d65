"""What the operators of `softmax_loss` ask of their arguments; values are looked at on the CPU only."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels._checks import check_float, check_index, require
from deeprec.kernels.embedding_bag.reference import wide_dtype

_FUNCTION = "softmax_loss"


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
    given, stats, row_grads = SoftmaxArguments(*args[:-2]), args[-2], args[-1]
    check_arguments(given)
    wide, batch = wide_dtype(given.queries.dtype), given.queries.shape[0]
    for name, tensor, shape in (("stats", stats, (3, batch)), ("row_grads", row_grads, (batch,))):
        require(
            tensor.shape == shape and tensor.dtype == wide, _FUNCTION, f"{name} must be {list(shape)} of {wide}", tensor
        )


CHECKS = {"softmax_loss": check_loss_arguments, "softmax_loss_grad": check_grad_arguments}
