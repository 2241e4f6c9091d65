"""Ranks of the positives, counted from score comparisons in bounded blocks; no [users, items] matrix, no full sort.

All of it happens where the scores are; ranks come back once, when all are there.

Rule for equal scores: under "pessimistic" every negative that ties with a positive ranks before it, so a constant
scorer puts each positive last. Positives of one user that tie among themselves take consecutive ranks.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec._compiled import host_function
from deeprec.device import to_device
from deeprec.nn.scoring import Lists, best_of, entries_of

if TYPE_CHECKING:
    from deeprec.data import Interactions

IntArray = NDArray[np.int64]
Progress = Callable[[int, int], None]

_PAIRS_PER_BLOCK = 1 << 16  # a 256-wide hidden layer over them is 64 MiB
_SCORES_PER_BLOCK = 1 << 21  # 8 MiB of float32, which stays near the cache
_MOST_USERS_PER_BLOCK = 1024
_rank_rows = host_function("rank_rows")


class Scorer(typing.Protocol):
    """What a model must offer to be evaluated; internal ids, higher is better, any real numbers."""

    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [n] of the pairs (users[i], items[i]), both int64 [n]."""
        ...

    def score_items(self, users: Tensor) -> Tensor:
        """Scores [b, num_items] of every item for users int64 [b]; called with bounded b only."""
        ...


@dataclass(frozen=True)
class Ranking:
    """Where the positives of each evaluated user stand.

    Attributes:
        users: internal user ids, [U]; with sampled candidates one entry a test interaction.
        ranks: ranks from 1, flat, ascending within a user, [nnz].
        offsets: start of each user in `ranks`, [U+1].
        num_candidates: distinct items ranked for each user, positives included, [U].
        top_items: the first items of each user's list, [U, k], -1 where it is shorter; None if not asked for.
    """

    users: IntArray
    ranks: IntArray
    offsets: IntArray
    num_candidates: IntArray
    top_items: IntArray | None = None

    def taken(self, mask: NDArray[np.bool_]) -> Ranking:
        """Those of its users, by a mask [U]."""
        counts = np.diff(self.offsets)
        offsets = np.concatenate([[0], np.cumsum(counts[mask])])
        lists = None if self.top_items is None else self.top_items[mask]
        return Ranking(self.users[mask], self.ranks[np.repeat(mask, counts)], offsets, self.num_candidates[mask], lists)


def candidate_ranks(
    scorer: Scorer,
    users: NDArray[Any],
    positives: NDArray[Any],
    negatives: NDArray[Any],
    *,
    ties: str = "pessimistic",
    top: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Ranking:
    """Rank of each positive among its own sampled negatives.

    A candidate list is a set: an item listed twice counts once, and the positive listed among its own negatives is no
    negative (156 of the NCF authors' ML-1M lists have one).

    Args:
        scorer: see `Scorer`; only `score_pairs` is called.
        users: internal user ids, [n].
        positives: internal item ids, [n].
        negatives: internal item ids, [n, num_negatives], num_negatives >= 1.
        ties: "pessimistic", or "authors": the NCF authors fill a dict with the negatives, then the positive, and take
            `heapq.nlargest`, which keeps the order of insertion among equal scores. So the positive ranks after the
            negatives it ties with, except those that stand behind it where it is itself listed among its negatives.
        top: also return the first `top` items of each list; equal scores in the order of the list, positive last.
        device: where the scorer wants its ids.
        progress: called with (rows done, rows).
    Raises:
        ValueError: a score is NaN, or shapes disagree.
    """
    users, positives, negatives = (np.asarray(x, dtype=np.int64) for x in (users, positives, negatives))
    rows = users.size
    if positives.shape != (rows,) or negatives.ndim != 2 or negatives.shape[0] != rows or negatives.shape[1] < 1:
        raise ValueError(
            f"candidate_ranks: users [n], positives [n] and negatives [n, >= 1] are needed, "
            f"got {users.shape}, {positives.shape} and {negatives.shape}"
        )
    candidates = np.concatenate([negatives, positives[:, None]], axis=1)
    is_negative = _distinct_negatives(candidates)
    device = torch.device(device)
    ranks: list[Tensor] = []
    is_nan: list[Tensor] = []
    top_items = np.full((rows, top), -1, dtype=np.int64) if top else None
    step = max(1, _PAIRS_PER_BLOCK // candidates.shape[1])
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        scores = _pair_scores(scorer, users[block], candidates[block], device)
        is_nan.append(torch.isnan(scores).any())
        ahead = scores[:, :-1] > scores[:, -1:]
        tied = scores[:, :-1] == scores[:, -1:]
        if ties == "authors":
            tied &= to_device(torch.from_numpy(_stands_before_positive(candidates[block])), device)
        counted = to_device(torch.from_numpy(is_negative[block]), device)
        ranks.append(1 + ((ahead | tied) & counted).sum(1))
        if top_items is not None:
            top_items[block] = _candidate_lists(scores.cpu().numpy(), candidates[block], is_negative[block], top)
        if progress is not None:
            progress(block.stop, rows)
    for start in _first_true(is_nan, step):
        block = slice(start, min(start + step, rows))
        scores = _pair_scores(scorer, users[block], candidates[block], device)
        row, column = torch.isnan(scores).nonzero()[0].tolist()
        raise ValueError(_nan_message(int(users[block][row]), int(candidates[block][row, column])))
    return Ranking(users, _together(ranks), np.arange(rows + 1), is_negative.sum(axis=1) + 1, top_items)


def _first_true(flags: list[Tensor], step: int) -> list[int]:
    """Where the first block with a flag starts, [] without one; one look at the device for all."""
    raised = torch.stack(flags).nonzero().flatten().tolist() if flags else []
    return [place * step for place in raised[:1]]


def _together(blocks: list[Tensor]) -> IntArray:
    """The blocks one after the other, on the CPU."""
    joined: IntArray = torch.cat(blocks).cpu().numpy() if blocks else np.zeros(0, dtype=np.int64)
    return joined


def _distinct_negatives(candidates: IntArray) -> NDArray[np.bool_]:
    """True at the first occurrence of each item that is not the positive (the last column), [n, num_negatives]."""
    negatives = candidates[:, :-1]
    order = np.argsort(negatives, axis=1, kind="stable")
    ordered = np.take_along_axis(negatives, order, axis=1)
    first = np.ones_like(ordered, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    distinct = np.empty_like(first)
    np.put_along_axis(distinct, order, first, axis=1)
    result: NDArray[np.bool_] = distinct & (negatives != candidates[:, -1:])
    return result


def _stands_before_positive(candidates: IntArray) -> NDArray[np.bool_]:
    """True where a candidate enters the authors' dict before the positive (the last column) does."""
    listed = candidates == candidates[:, -1:]
    result: NDArray[np.bool_] = np.arange(candidates.shape[1] - 1) < listed.argmax(axis=1)[:, None]
    return result


def _pair_scores(scorer: Scorer, users: IntArray, items: IntArray, device: torch.device) -> Tensor:
    """Scores [b, c], float32, of items [b, c] for users [b]; NaN is for the caller to find."""
    width = items.shape[1]
    flat_users = to_device(torch.from_numpy(np.repeat(users, width)), device)
    flat_items = to_device(torch.from_numpy(np.ascontiguousarray(items.reshape(-1))), device)
    scores = torch.as_tensor(scorer.score_pairs(flat_users, flat_items))
    if scores.shape != flat_users.shape:
        raise ValueError(f"evaluate: score_pairs must return [{flat_users.numel()}], got {tuple(scores.shape)}")
    return scores.detach().to(device, torch.float32).reshape(items.shape)


def _nan_message(user: int, item: int) -> str:
    return (
        f"evaluate: scores must be numbers, got NaN for internal user {user}, item {item}; "
        "the model has diverged: lower the learning rate or check its weights"
    )


def _candidate_lists(
    scores: NDArray[np.float32], candidates: IntArray, is_negative: NDArray[np.bool_], top: int
) -> IntArray:
    """First `top` distinct candidates by score, [b, top], -1 at the end of shorter lists."""
    listed = np.concatenate([is_negative, np.ones((len(scores), 1), dtype=bool)], axis=1)
    # Lists are short, so a stable sort by (not a candidate, -score) is cheap and settles ties by position.
    order = np.lexsort((-scores, ~listed), axis=1)[:, :top]
    lists = np.where(np.take_along_axis(listed, order, axis=1), np.take_along_axis(candidates, order, axis=1), -1)
    result = np.full((len(scores), top), -1, dtype=np.int64)
    result[:, : lists.shape[1]] = lists
    return result


def full_ranks(
    scorer: Scorer,
    part: Interactions,
    masked: typing.Sequence[Interactions] = (),
    *,
    only_its_items: bool = False,
    users: NDArray[Any] | None = None,
    top: int = 0,
    device: torch.device | str = "cpu",
    ids_on: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Rank of each item of `part` among all items but those its user has in `masked`.

    A positive is never masked. A user with several positives ranks them in one list.

    Args:
        scorer: see `Scorer`; only `score_items` is called.
        part: interactions to rank; users without any are left out.
        masked: parts whose items are no candidates (training, validation).
        only_its_items: whether the items of `part`, of all its users, are the only candidates.
        users: internal user ids to evaluate, or None for all.
        top: also return the first `top` items of each list; equal scores by item index.
        device: where the scores are.
        ids_on: where the scorer wants its ids; None: there too.
        progress: called with (users done, users).
    Raises:
        ValueError: a score is NaN, or `score_items` returns another shape than [b, num_items].
    """
    counts = np.diff(part.csr()[0])
    chosen = np.flatnonzero(counts) if users is None else np.unique(np.asarray(users, dtype=np.int64))
    chosen = chosen[counts[chosen] > 0].astype(np.int64)
    device = torch.device(device)
    ids_on = device if ids_on is None else torch.device(ids_on)
    others: Tensor | None = None
    if only_its_items:
        others = to_device(torch.from_numpy(np.flatnonzero(part.item_counts() == 0)), device)
    rank = _ranking_by(part, masked, top, device)
    step = int(np.clip(_SCORES_PER_BLOCK // max(part.num_items, 1), 1, _MOST_USERS_PER_BLOCK))
    blocks = []
    is_nan: list[Tensor] = []
    buffer: Tensor | None = None
    for start in range(0, chosen.size, step):
        block = chosen[start : start + step]
        scores, lowest = _item_scores(scorer, block, part.num_items, ids_on, buffer)
        buffer = scores if buffer is None else buffer
        is_nan.append(torch.isnan(lowest))
        if others is not None:
            scores.index_fill_(1, to_device(others, scores.device), -torch.inf)
        blocks.append(rank(scores, block))
        if progress is not None:
            progress(start + block.size, chosen.size)
    for start in _first_true(is_nan, step):
        block = chosen[start : start + step]
        row, item = torch.isnan(_item_scores(scorer, block, part.num_items, ids_on)[0]).nonzero()[0].tolist()
        raise ValueError(_nan_message(int(block[row]), item))
    ranks, candidates, lists = (_together([block[place] for block in blocks]) for place in range(3))
    offsets = np.concatenate([[0], np.cumsum(counts[chosen])]).astype(np.int64)
    return Ranking(chosen, ranks, offsets, candidates, lists.reshape(-1, top) if top else None)


def _ranking_by(
    part: Interactions, masked: typing.Sequence[Interactions], top: int, device: torch.device
) -> Callable[[Tensor, IntArray], tuple[Tensor, Tensor, Tensor]]:
    """What makes ranks, numbers of candidates and lists of the scores of a block of users, which it overwrites."""
    rows = [one.csr() for one in (part, *masked)]
    if _rank_rows is not None and device.type == "cpu":

        def by_row(scores: Tensor, users: IntArray) -> tuple[Tensor, Tensor, Tensor]:
            ranks, candidates, best = _rank_rows(scores.numpy(), users, rows[0], rows[1:], top)
            return torch.from_numpy(ranks), torch.from_numpy(candidates), torch.from_numpy(best)

        return by_row
    # Offsets stay on the CPU, so that sizes are known without waiting.
    lists = [(torch.from_numpy(offsets), to_device(torch.from_numpy(items), device)) for offsets, items in rows]
    counts = np.diff(rows[0][0])

    def by_torch(scores: Tensor, users: IntArray) -> tuple[Tensor, Tensor, Tensor]:
        (owners, items), *hidden = (_entries(one, users, scores.device) for one in lists)
        return _rank_block(scores, owners, items, hidden, top, most=int(counts[users].max()))

    return by_torch


def _entries(lists: Lists, users: IntArray, device: torch.device) -> tuple[Tensor, Tensor]:
    """(row within `users`, item) of every entry these users have in compressed rows, both int64 [nnz], on `device`."""
    return entries_of((lists[0], to_device(lists[1], device)), torch.from_numpy(users))


def _item_scores(
    scorer: Scorer, users: IntArray, num_items: int, device: torch.device, buffer: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A private float32 copy of the scores [b, num_items], -inf raised to the least finite number; and the lowest.

    The lowest is NaN where any score is: for the caller to look at. The copy goes into the first rows of `buffer`,
    where one is given: pages that are there already.
    """
    raw = torch.as_tensor(scorer.score_items(to_device(torch.from_numpy(users), device)))
    if raw.shape != (users.size, num_items):
        raise ValueError(f"evaluate: score_items must return [{users.size}, {num_items}], got {tuple(raw.shape)}")
    # The copy is masked in place below; the model may have handed out a view of its own memory.
    if buffer is None or len(buffer) < len(raw):
        buffer = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    scores = buffer[: len(raw)].copy_(raw.detach())
    lowest = scores.amin() if scores.numel() else scores.new_zeros(())  # amin hands a NaN on, in one pass
    # A look at the number saves a pass on the CPU, and would be a wait elsewhere.
    if not scores.is_cpu or torch.isneginf(lowest):
        scores.clamp_(min=torch.finfo(torch.float32).min)
    return scores, lowest


def _rank_block(
    scores: Tensor, rows: Tensor, items: Tensor, hidden: list[tuple[Tensor, Tensor]], top: int, *, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """ranks [nnz], num_candidates [b], lists [b, top] of one block of users; overwrites `scores` [b, N].

    `most` is the largest number of positives that a user of the block has.
    rank of the j-th best positive = j + number of unmasked negatives that score at least as much.
    """
    num_users, num_items = scores.shape
    nothing = scores.new_full((), -torch.inf)
    value = scores[rows, items]
    for hidden_rows, hidden_items in hidden:
        scores.index_put_((hidden_rows, hidden_items), nothing)
    scores[rows, items] = value
    lists = best_of(scores, top).ids if top else items.new_empty(num_users, 0)
    num_candidates = num_items - torch.count_nonzero(scores == -torch.inf, dim=1)
    # Positives leave the comparison; what remains above -inf are exactly the negatives.
    scores.index_put_((rows, items), nothing)
    if rows.numel() == num_users:  # one positive each
        return 1 + torch.count_nonzero(scores >= value[:, None], dim=1), num_candidates, lists
    order = torch.argsort(value, descending=True, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]  # by user, then from the best
    value = value[order]
    counts = torch.zeros(num_users, dtype=torch.int64, device=rows.device).index_add_(0, rows, torch.ones_like(rows))
    first = counts.cumsum(0) - counts
    position = torch.arange(rows.numel(), device=rows.device) - first[rows]
    padded = torch.full((num_users, most), torch.inf, device=scores.device)
    padded[rows, position] = value
    below = torch.searchsorted(_sorted_rows(scores), padded)  # entries < value; masked ones are among them
    ranks = 1 + position + num_items - below[rows, position]
    return ranks, num_candidates, lists


def _sorted_rows(scores: Tensor) -> Tensor:
    """Rows in ascending order; on the CPU by NumPy, whose vectorised sort is several times faster than torch's."""
    if scores.device.type == "cpu":
        return torch.from_numpy(np.sort(scores.numpy(), axis=1))
    return scores.sort(dim=1).values
