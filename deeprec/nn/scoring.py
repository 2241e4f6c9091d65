"""Scores of all items and the best of them: written once, for whatever scores.

A model makes a scorer of those who ask: their side of the score, and that of all items. Most are a dot product or the
network of NCF, whose kernels never hold users x items scores; what no kernel knows gives its scores a block of users at
a time. The dot product, the cosine and the distance are also what an index of nearest vectors takes.

Everywhere, among equal scores the lower item index comes first, and NaN and -inf are never returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deeprec.device import to_device
from deeprec.kernels import score_topk as kernel
from deeprec.kernels.score_topk import CosineScorer, DotScorer, L2Scorer, NCFScorer, TopK

__all__ = [
    "AnyScorer",
    "BlockScorer",
    "CosineScorer",
    "DotScorer",
    "ItemFilter",
    "KeptLists",
    "L2Scorer",
    "Lists",
    "MappedScorer",
    "NCFScorer",
    "TopK",
    "as_sets",
    "best_of",
    "entries_of",
    "owners_of",
    "rows_of",
    "score_items",
    "score_rows",
    "topk",
]

_SCORES_A_BLOCK = 1 << 22
_NO_ITEM = 2**31 - 1  # behind every catalogue

# Compressed rows: offsets [R + 1], int64, and items [nnz]; row r is items[offsets[r]:offsets[r + 1]].
Lists: TypeAlias = tuple[Tensor, Tensor]
# The only items to score, ascending: for all users (no offsets), or for each.
_Allowed: TypeAlias = tuple[Tensor | None, Tensor] | None
# Item indices [n] that hold for all users, or compressed rows (offsets, items) with one for each user.
ItemFilter: TypeAlias = NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]


class MappedScorer(NamedTuple):
    """The scores of another scorer through a function that ascends, so that the best items stay the best.

    Attributes:
        scorer: gives the scores.
        function: of scores [b, n] and `by_user`, to scores [b, n].
        by_user: [b, 1] what the function has to know of each user, or None.
    """

    scorer: DotScorer | NCFScorer
    function: Callable[[Tensor, Tensor | None], Tensor]
    by_user: Tensor | None = None


class BlockScorer(NamedTuple):
    """Scores that no kernel knows, such as sums of weights between items.

    Attributes:
        num_users, num_items: of the scores.
        device: where they are.
        scores: of a first user and the end, gives [end - first, num_items], float32, a tensor of its own.
    """

    num_users: int
    num_items: int
    device: torch.device
    scores: Callable[[int, int], Tensor]


AnyScorer: TypeAlias = DotScorer | NCFScorer | MappedScorer | BlockScorer


@torch.no_grad()
def score_items(scorer: AnyScorer) -> Tensor:
    """Scores [b, N], float32, of every item for every user; give few users at a time, or use `topk`."""
    return _block(scorer, 0, _shape(scorer)[0])


@torch.no_grad()
def score_rows(scorer: AnyScorer, start: int, end: int) -> Tensor:
    """The same [end - start, N] of the users from `start` to `end`."""
    return _block(scorer, start, end)


@torch.no_grad()
def topk(
    scorer: AnyScorer,
    k: int,
    *,
    seen: Lists | None = None,
    seen_rows: Tensor | None = None,
    allow: ItemFilter | None = None,
    deny: ItemFilter | None = None,
) -> TopK:
    """The k best items of each user that are not seen, not denied and, where `allow` is given, allowed.

    Without `allow` and `deny` a kernel is not waited for. With them a GPU is waited for once, where there is `seen`.

    Args:
        scorer: of b users and N items.
        k: how many, >= 0; may exceed N.
        seen: where the scorer is; items int32, ascending within a row.
        seen_rows: [b] row of each user in `seen`; None: row j for user j.
        allow: the only items that may be returned; on the CPU.
        deny: items that may not; on the CPU.
    Returns:
        values [b, k], float32, and ids [b, k], int64: (-inf, -1) after the last candidate.
    Raises:
        ValueError: item indices outside the catalogue, or rows that are not one for each user.
    """
    if allow is None and deny is None and not isinstance(scorer, BlockScorer):
        return _fused(scorer, k, seen, seen_rows)
    (num_users, num_items), device = _shape(scorer), _device(scorer)
    allow, deny = (_checked(name, given, num_users, num_items) for name, given in (("allow", allow), ("deny", deny)))
    hidden = [] if seen is None else [rows_of(seen, seen_rows)]
    if isinstance(deny, tuple):
        hidden.append(_there(deny, device))
    is_candidate = _candidates(allow, deny, num_items)
    if isinstance(scorer, BlockScorer):
        only = _there(allow, device) if isinstance(allow, tuple) else None
        return _by_block(scorer, k, is_candidate, hidden, only)
    if isinstance(deny, np.ndarray) and not isinstance(allow, np.ndarray) and len(deny) * num_users <= num_items:
        # A few items are hidden as seen ones are: less work than a list of all the others.
        repeated = np.arange(num_users + 1, dtype=np.int64) * len(deny), np.tile(deny, num_users)
        hidden.append(_there(repeated, device))
        is_candidate = None
    lists = _joined(hidden) if hidden else None
    return _fused(scorer, k, lists, None, _listed(allow, is_candidate, device))


def _listed(allow: ItemFilter | None, is_candidate: NDArray[np.bool_] | None, device: torch.device) -> _Allowed:
    """The only items to score: (offsets or None where they hold for all, items), ascending, or None."""
    if not isinstance(allow, tuple):
        return None if is_candidate is None else (None, _int32(np.flatnonzero(is_candidate), device))
    owners = np.repeat(np.arange(len(allow[0]) - 1), np.diff(allow[0]))
    keys = np.unique(owners << 31 | allow[1])
    if is_candidate is not None:
        keys = keys[is_candidate[keys & _NO_ITEM]]
    offsets = np.searchsorted(keys >> 31, np.arange(len(allow[0])))
    return to_device(torch.from_numpy(offsets), device), _int32(keys & _NO_ITEM, device)


def _int32(items: NDArray[Any], device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(items.astype(np.int32)), device)


def _fused(
    scorer: DotScorer | NCFScorer | MappedScorer,
    k: int,
    seen: Lists | None,
    seen_rows: Tensor | None,
    allowed: _Allowed = None,
) -> TopK:
    """By the kernels."""
    if isinstance(scorer, MappedScorer):
        values, ids = _fused(scorer.scorer, k, seen, seen_rows, allowed)
        return TopK(torch.where(ids < 0, -torch.inf, scorer.function(values, scorer.by_user)), ids)
    offsets, items = allowed or (None, None)
    indptr, indices = seen or (None, None)
    return kernel.score_topk(
        scorer,
        k,
        seen_indptr=indptr,
        seen_indices=indices,
        seen_rows=None if seen is None else seen_rows,
        allow_indices=items,
        allow_indptr=offsets,
    )


def _by_block(
    scorer: AnyScorer, k: int, is_candidate: NDArray[np.bool_] | None, hidden: list[Lists], only: Lists | None
) -> TopK:
    """From the scores of a block of users after the other."""
    (num_users, num_items), device = _shape(scorer), _device(scorer)
    is_out = None if is_candidate is None else to_device(torch.from_numpy(~is_candidate), device)
    values, ids = [torch.empty(0, k, device=device)], [torch.empty(0, k, dtype=torch.int64, device=device)]
    step = max(1, _SCORES_A_BLOCK // max(1, num_items))
    for start in range(0, num_users, step):
        end = min(start + step, num_users)
        scores = _block(scorer, start, end)
        if is_out is not None:
            scores.masked_fill_(is_out, -torch.inf)
        for lists in hidden:
            scores.index_put_(_entries(lists, start, end), scores.new_full((), -torch.inf))
        if only is not None:
            is_in = torch.zeros(scores.shape, dtype=torch.bool, device=device)
            is_in.index_put_(_entries(only, start, end), is_in.new_ones(()))
            scores.masked_fill_(~is_in, -torch.inf)
        best = best_of(scores, k)
        values.append(best.values)
        ids.append(best.ids)
    return TopK(torch.cat(values), torch.cat(ids))


def best_of(scores: Tensor, k: int) -> TopK:
    """The k best items by scores [b, N]; the lower index first among equals, (-inf, -1) after the last candidate."""
    width = min(k, scores.shape[1])
    if scores.is_cpu:
        values, ids = scores.topk(min(width + 1, scores.shape[1]), dim=1)
        if values.isnan().any():
            return best_of(torch.where(scores.isnan(), -torch.inf, scores), k)
        # topk leaves the order of equal scores open; only rows where that could show are sorted in full.
        is_unsure = (values[:, 1:] == values[:, :-1]).any(1)
        values, ids = values[:, :width], ids[:, :width].contiguous()
        if is_unsure.any():
            ids[is_unsure] = scores[is_unsure].argsort(dim=1, descending=True, stable=True)[:, :width]
    else:  # asking which rows these are would wait for the device
        scores = torch.where(scores.isnan(), -torch.inf, scores)
        values, ids = scores.sort(dim=1, descending=True, stable=True)
        values, ids = values[:, :width], ids[:, :width]
    ids = torch.where(values == -torch.inf, -1, ids)
    missing = (0, k - width)
    return TopK(F.pad(values, missing, value=-torch.inf), F.pad(ids, missing, value=-1))


# -- scorers ---------------------------------------------------------------------------------------------------------


def _shape(scorer: AnyScorer) -> tuple[int, int]:
    """Numbers of users and items."""
    if isinstance(scorer, BlockScorer):
        return scorer.num_users, scorer.num_items
    users, items = _sides(scorer)
    return len(users), len(items)


def _device(scorer: AnyScorer) -> torch.device:
    return scorer.device if isinstance(scorer, BlockScorer) else _sides(scorer)[0].device


def _sides(scorer: DotScorer | NCFScorer | MappedScorer) -> tuple[Tensor, Tensor]:
    """A tensor with a row for each user, and one with a row for each item."""
    if isinstance(scorer, MappedScorer):
        return _sides(scorer.scorer)
    if isinstance(scorer, DotScorer):
        return scorer.users, scorer.items
    users, items = scorer.user_hidden, scorer.item_hidden
    if users is None or items is None:
        users, items = scorer.user_factors, scorer.item_factors
    assert users is not None
    assert items is not None
    return users, items


def _block(scorer: AnyScorer, start: int, end: int) -> Tensor:
    """Scores of users start to end, a tensor of its own."""
    if isinstance(scorer, BlockScorer):
        return scorer.scores(start, end)
    if isinstance(scorer, MappedScorer):
        by_user = None if scorer.by_user is None else scorer.by_user[start:end]
        return scorer.function(_block(scorer.scorer, start, end), by_user)
    fields = ("users",) if isinstance(scorer, DotScorer) else ("user_hidden", "user_factors")
    return kernel.score_items(_replaced(scorer, fields, lambda rows: rows[start:end]))


def _replaced(scorer: Any, fields: tuple[str, ...], change: Callable[[Tensor], Tensor]) -> Any:
    there = {name: getattr(scorer, name) for name in fields}
    return scorer._replace(**{name: change(rows) for name, rows in there.items() if rows is not None})


# -- lists of items --------------------------------------------------------------------------------------------------


class KeptLists:
    """Brings compressed rows to where they are asked for; a device keeps those that it was given last."""

    def __init__(self) -> None:
        self._kept: tuple[Any, Lists] | None = None

    def on(self, lists: tuple[NDArray[np.int64], NDArray[np.int32]], device: torch.device) -> Lists:
        """Offsets and items there."""
        if device.type == "cpu":
            return torch.from_numpy(lists[0]), torch.from_numpy(lists[1])
        kept = self._kept
        if kept is None or kept[0] is not lists or kept[1][0].device != device:
            offsets, items = _there(lists, device)
            kept = self._kept = lists, (to_device(offsets, device), items)
        return kept[1]


def rows_of(lists: Lists, rows: Tensor | None) -> Lists:
    """The lists of `rows` [b], int32 or int64, one after the other; None: all as they are.

    Returns:
        offsets [b + 1] on the CPU, so that sizes are known, and items where they are; those of a device are waited for.
    """
    if rows is None:
        return lists[0].cpu(), lists[1]
    offsets, _, items = _taken(lists, rows)
    return offsets, items


def entries_of(lists: Lists, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(place in `rows`, item) of every entry of the lists of `rows` [b], both int64 [nnz]; waits as `rows_of` does."""
    _, owners, items = _taken(lists, rows)
    return owners, items.long()


def _taken(lists: Lists, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets on the CPU, and the place in `rows` and the item of each entry where the items are."""
    (offsets, items), rows = lists, rows.long()
    starts = offsets[rows]
    counts = (offsets[rows + 1] - starts).cpu()
    ends = counts.cumsum(0)
    bounds = torch.cat([counts.new_zeros(1), ends])
    owners = owners_of(bounds, items.device)
    shift = to_device(starts, items.device) - to_device(ends - counts, items.device)
    return bounds, owners, items[torch.arange(len(owners), device=items.device) + shift[owners]]


def as_sets(offsets: Tensor, items: Tensor, ratings: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compressed rows on the CPU with each item of a row once, ascending; of its ratings the last counts."""
    owners = owners_of(offsets, offsets.device)
    order = torch.from_numpy(np.lexsort((items.numpy(), owners.numpy())))
    owners, items = owners[order], items[order]
    is_last = torch.ones(len(order), dtype=torch.bool)
    is_last[:-1] = (owners[1:] != owners[:-1]) | (items[1:] != items[:-1])
    ends = torch.cat([offsets.new_zeros(1), is_last.cumsum(0)])
    return ends[offsets], items[is_last], None if ratings is None else ratings[order][is_last]


def owners_of(offsets: Tensor, device: torch.device) -> Tensor:
    """The row [nnz] on a device of each entry of lists with `offsets` [b + 1], which are on the CPU."""
    every = torch.arange(len(offsets) - 1, device=device)
    total = int(offsets[-1] - offsets[0])
    return torch.repeat_interleave(every, to_device(offsets.diff(), device), output_size=total)


def _entries(lists: Lists, start: int, end: int) -> tuple[Tensor, Tensor]:
    """(row from `start`, item) of every entry of rows start to end."""
    offsets, items = lists
    part = items[int(offsets[start]) : int(offsets[end])]
    return owners_of(offsets[start : end + 1], part.device), part.long()


def _joined(lists: list[Lists]) -> Lists:
    """Several lists of the same users as one, ascending, where the items are."""
    offsets = torch.stack([offsets for offsets, _ in lists]).sum(0)
    device = lists[0][1].device
    owners = torch.cat([owners_of(offsets, device) for offsets, _ in lists])
    items = torch.cat([items.long() for _, items in lists])
    order = (owners << 31 | items).sort().values
    return to_device(offsets, device), (order & _NO_ITEM).int()


def _there(lists: tuple[NDArray[Any], NDArray[Any]], device: torch.device) -> Lists:
    """Offsets on the CPU, items on a device."""
    offsets, items = (torch.from_numpy(part) for part in lists)
    return offsets, to_device(items, device)


def _checked(name: str, given: ItemFilter | None, num_users: int, num_items: int) -> ItemFilter | None:
    """The filter in int64 with each item once where it holds for all users."""
    if given is None:
        return None
    items = np.asarray(given[1] if isinstance(given, tuple) else given)
    if items.ndim != 1 or (items.size and items.dtype.kind not in "iu"):
        raise ValueError(
            f"topk: {name} must be item indices [n], whole numbers, got {items.dtype} {list(items.shape)}; external "
            "ids go into recommend"
        )
    if items.size and not 0 <= items.min() <= items.max() < num_items:
        raise ValueError(
            f"topk: {name} must be item indices in [0, {num_items}), got {items.min()} to {items.max()}; external ids "
            "go into recommend"
        )
    items = items.astype(np.int64)
    if not isinstance(given, tuple):
        return np.unique(items)
    offsets = np.asarray(given[0], dtype=np.int64)
    if offsets.shape != (num_users + 1,) or offsets[0] or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"topk: the offsets of {name} must ascend from 0 to {len(items)}, one more than the {num_users} users, got "
            f"{list(offsets.shape)}; pass a row for each user, or item indices [n] for all"
        )
    return offsets, items


def _candidates(allow: ItemFilter | None, deny: ItemFilter | None, num_items: int) -> NDArray[np.bool_] | None:
    """[N] whether the filters for all users leave an item; None: they leave all."""
    if not isinstance(allow, np.ndarray) and not isinstance(deny, np.ndarray):
        return None
    is_candidate = np.full(num_items, not isinstance(allow, np.ndarray))
    if isinstance(allow, np.ndarray):
        is_candidate[allow] = True
    if isinstance(deny, np.ndarray):
        is_candidate[deny] = False
    return is_candidate
