"""The K best items of a dot product by a compressed copy of the items, bit for bit those of `score_topk`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deeprec.kernels._autograd import refuse_derivative
from deeprec.kernels._errors import translate
from deeprec.kernels._library import cpu_isa, define, implement, load_error
from deeprec.kernels.prefilter_topk.prepared import PreparedItems
from deeprec.kernels.prefilter_topk.reference import (
    prefilter_pack_reference,
    prefilter_scan_reference,
    prefilter_topk_reference,
    words_shape,
)
from deeprec.kernels.score_topk import TopK, checked_allow, checked_seen

__all__ = ["PreparedItems", "PreparedScorer", "prefilter_topk"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Where the scan pays, by measurement: items, also with more users than few, and as a multiple of k.
_MIN_ITEMS, _MIN_ITEMS_OF_MANY, _FEW = 4096, 16_384, 16
_ITEMS_PER_K = 64
_FEW_PORTABLE = 4  # users, without vectors of small integers or bfloat16
_ALLOWED_PART = 4  # an allow list of less than this part of the items is scored exactly


class PreparedScorer(NamedTuple):
    """score(u, i) = users[u] . items[i] + item_bias[i], as of a `DotScorer` with these items.

    Attributes:
        users: [B, D], float32, bfloat16 or float16.
        prepared: the whole catalogue.
        item_bias: [N] or None.
    """

    users: Tensor
    prepared: PreparedItems
    item_bias: Tensor | None = None


def prefilter_topk(
    scorer: PreparedScorer,
    k: int,
    *,
    seen_indptr: Tensor | None = None,
    seen_indices: Tensor | None = None,
    seen_rows: Tensor | None = None,
    allow_indices: Tensor | None = None,
    allow_indptr: Tensor | None = None,
) -> TopK:
    """The k best items of each user that are not seen and, where a list is given, allowed.

    They are what `score_topk` gives, bit for bit, in less time.

    A scan of the compressed copy gives an upper bound of each score, by a proof that csrc/cpu/prefilter_topk.h writes
    down; items whose bound is below the k-th best exact score so far are left out, the others are scored by the
    arithmetic of `score_topk`. A user for whom that leaves too many, and any call in which it cannot pay (few items, a
    k near their number, a device without the scan), is served by `score_topk` itself.

    Args:
        scorer: what computes a score.
        k, seen_indptr, seen_indices, seen_rows, allow_indices, allow_indptr: as in `score_topk`.
    Returns:
        values [B, k] float32 and ids [B, k] int64; (-inf, -1) after the last candidate.
    Raises:
        TypeError, ValueError, IndexError, MemoryError, RuntimeError: as `score_topk`.
    """
    refuse_derivative("prefilter_topk")
    if isinstance(k, bool) or not isinstance(k, (int, np.integer, torch.SymInt)):
        raise TypeError(f"prefilter_topk: k must be an integer, got {k!r}")
    if not 0 <= k < 2**31:
        raise ValueError(f"prefilter_topk: k must be in [0, 2^31), got {k}")
    users, prepared, item_bias = scorer
    for tensor in (users, item_bias):
        if tensor is not None and tensor.dtype not in _FLOATS:
            raise TypeError(f"prefilter_topk: scorer tensors must be float32, bfloat16 or float16, got {tensor.dtype}")
    items = prepared.items
    if users.dim() != 2 or users.shape[1] != items.shape[1]:
        raise ValueError(f"prefilter_topk: users must be [B, {items.shape[1]}], got {list(users.shape)}")
    if item_bias is not None and item_bias.shape != (len(items),):
        raise ValueError(f"prefilter_topk: item_bias must be [{len(items)}], got {list(item_bias.shape)}")
    seen = checked_seen("prefilter_topk", seen_indptr, seen_indices, seen_rows)
    lists = (*seen, *checked_allow("prefilter_topk", allow_indptr, allow_indices))
    bias = None if item_bias is None else item_bias.detach()
    op, arguments = torch.ops.deeprec.prefilter_topk, (users.detach(), items, bias, *prepared.copy, k, *lists)
    with torch.no_grad():
        if torch.compiler.is_compiling():
            return TopK(*op(*arguments))
        try:
            return TopK(*op(*arguments))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise _of_this_function(error) from None


def _of_this_function(error: Exception) -> Exception:
    """The error as one of prefilter_topk, whichever operator refused."""
    plain = translate(error) if isinstance(error, RuntimeError) else error
    rest = str(plain).removeprefix("score_topk: ")
    return plain if rest == str(plain) else type(plain)(f"prefilter_topk: {rest}")


class _Lists(NamedTuple):
    """What the operators take last."""

    seen_indptr: Tensor | None = None
    seen_indices: Tensor | None = None
    seen_rows: Tensor | None = None
    allow_indptr: Tensor | None = None
    allow_indices: Tensor | None = None

    def of(self, users: Tensor) -> _Lists:
        """For these users [n] only."""
        lists = self
        if self.seen_indptr is not None:
            lists = lists._replace(seen_rows=users if self.seen_rows is None else self.seen_rows[users])
        if self.allow_indptr is not None and self.allow_indices is not None:
            first, last = self.allow_indptr[users], self.allow_indptr[users + 1]
            ends = (last - first).cumsum(0)
            start = (first - ends + last - first).repeat_interleave(last - first)
            items = self.allow_indices[start + torch.arange(start.numel())]
            lists = lists._replace(allow_indptr=torch.cat([ends.new_zeros(1), ends]), allow_indices=items)
        return lists


def _pays(users: Tensor, words: Tensor, num_items: int, k: int, lists: _Lists) -> bool:
    """Whether there is a copy, and its scan can be faster than exact scores at once."""
    least = _MIN_ITEMS if len(users) <= _FEW else _MIN_ITEMS_OF_MANY
    if not words.numel() or not len(users) or not k or num_items < max(least, _ITEMS_PER_K * k):
        return False
    if len(users) > _FEW_PORTABLE and cpu_isa() == "portable":
        return False
    if lists.allow_indices is None:
        return True
    num_lists = 1 if lists.allow_indptr is None else len(users)
    return lists.allow_indices.numel() * _ALLOWED_PART >= num_items * num_lists


def _scan_and_score(
    users: Tensor,
    rows: Tensor,
    item_bias: Tensor | None,
    words: Tensor,
    scales: Tensor,
    bounds: Tensor,
    k: int,
    *options: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The operator on a CPU: the scan, and `score_topk` for the users that it does not serve."""
    lists = _Lists(*options)
    if not _pays(users, words, len(rows), k, lists):
        return prefilter_topk_reference(users, rows, item_bias, words, scales, bounds, k, *lists)
    values, ids, gave_up = torch.ops.deeprec.prefilter_scan(users, rows, item_bias, words, scales, bounds, k, *lists)
    rest = gave_up.nonzero()[:, 0]
    if len(rest):
        values[rest], ids[rest] = torch.ops.deeprec.score_topk(users[rest], rows, item_bias, k, *lists.of(rest))
    return values, ids


def _pack_fake(items: Tensor, tiles: Tensor | None, is_int8: bool) -> tuple[Tensor, Tensor, Tensor]:
    num_tiles = -(-items.shape[0] // 64) if tiles is None else tiles.shape[0]
    words = items.new_empty(
        words_shape(num_tiles, items.shape[1], is_int8), dtype=torch.uint8 if is_int8 else torch.bfloat16
    )
    return words, items.new_empty(num_tiles, 64), items.new_empty(num_tiles, 2)


def _topk_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    users, k = arguments[0], arguments[6]
    shape = (users.shape[0], k)
    return users.new_empty(shape, dtype=torch.float32), users.new_empty(shape, dtype=torch.int64)


def _scan_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    users = arguments[0]
    return *_topk_fake(*arguments), users.new_empty(users.shape[0], dtype=torch.bool)


_ARGUMENTS = (
    "Tensor users, Tensor rows, Tensor? item_bias, Tensor words, Tensor scales, Tensor bounds, SymInt k, "
    "Tensor? seen_indptr=None, Tensor? seen_indices=None, Tensor? seen_rows=None, "
    "Tensor? allow_indptr=None, Tensor? allow_indices=None"
)
define(
    "prefilter_pack(Tensor items, Tensor? tiles, bool is_int8) -> (Tensor, Tensor, Tensor)",
    prefilter_pack_reference,
    _pack_fake,
)
define(f"prefilter_scan({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", prefilter_scan_reference, _scan_fake)
define(f"prefilter_topk({_ARGUMENTS}) -> (Tensor, Tensor)", prefilter_topk_reference, _topk_fake)
if not load_error():
    implement("prefilter_topk", "cpu", _scan_and_score, f"c++ ({cpu_isa()})")
