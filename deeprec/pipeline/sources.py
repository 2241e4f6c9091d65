"""The sources at work: each proposes its best items to a block of people, and scores what others propose."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.contract import NEW_USERS, AnyModel, Queries
from deeprec.device import device_of, to_device
from deeprec.kernels.score_topk import CosineScorer, DotScorer
from deeprec.nn.scoring import AnyScorer, BlockScorer, best_of, score_rows, topk
from deeprec.pipeline.rows import Asked, Ints, Lists, Proposed
from deeprec.serve.index import ItemIndex
from deeprec.serve.recommend import by_index

_SCORES_A_BLOCK = 1 << 22
Floats = NDArray[np.float32]


class Source(Protocol):
    """What proposes candidates.

    Attributes:
        name: of the source.
        quota: items that it proposes.
    """

    name: str
    quota: int

    def propose(self, asked: Asked) -> tuple[Proposed, Any]:
        """The best items for each, and what `scores` needs of this call."""

    def scores(self, asked: Asked, lists: Lists, kept: Any) -> Floats:
        """Its scores [nnz] of given items; NaN where it has none."""


class OfModel:
    """The best items by a model.

    Args:
        name, quota: of the source.
        model: fitted, on the ids of the pipeline.
        index: what answers in its place; None: the model.
    """

    def __init__(self, name: str, quota: int, model: AnyModel, index: ItemIndex | None = None) -> None:
        self.name, self.quota, self.model, self.index = name, quota, model, index
        self._denied: tuple[Any, NDArray[np.int32]] | None = None  # the last items that nobody gets, by index

    def propose(self, asked: Asked) -> tuple[Proposed, Any]:
        kept: list[tuple[Ints, Any]] = []
        items = np.full((len(asked.users), self.quota), -1, np.int64)
        scores = np.full(items.shape, -np.inf, np.float32)
        for rows, queries in self._queries(asked):
            part = asked if len(rows) == len(asked.users) else asked.taken(rows)
            scorer = self.model.scorer(self.model.encode(queries))
            values, best, scorer = self._best(part, scorer)
            items[rows], scores[rows] = best, values
            kept.append((rows, scorer))
        return Proposed(items, scores), kept

    def _queries(self, asked: Asked) -> list[tuple[Ints, Queries]]:
        """Who is asked for as a user of the training, and who by a history; people of whom nothing is known are not."""
        lengths = np.diff(asked.history.offsets)
        if getattr(self.model, "reads_history", False):
            by_history, as_trained = np.flatnonzero(lengths > 0), np.flatnonzero((lengths == 0) & (asked.users >= 0))
        else:
            is_new = (asked.users < 0) | asked.is_changed
            is_new &= NEW_USERS in self.model.capabilities
            by_history = np.flatnonzero(is_new & (lengths > 0))
            as_trained = np.flatnonzero(~is_new & (asked.users >= 0))
        queries = []
        if len(as_trained):
            users = torch.from_numpy(asked.users[as_trained])
            queries.append((as_trained, Queries(to_device(users, device_of(self.model)))))
        if len(by_history) and NEW_USERS in self.model.capabilities:
            history = asked.history if len(by_history) == len(asked.users) else asked.history.taken(by_history)
            rows = torch.from_numpy(history.offsets), torch.from_numpy(history.items)
            queries.append((by_history, Queries(history=rows)))
        return queries

    def _best(self, asked: Asked, scorer: AnyScorer) -> tuple[Floats, Ints, AnyScorer]:
        device = device_of(self.model)
        if isinstance(scorer, BlockScorer) and scorer.num_users * scorer.num_items <= _SCORES_A_BLOCK:
            # Scores that no kernel knows are computed once, for the list and for the items of other sources.
            known = scorer.scores(0, scorer.num_users)
            masked = known.clone()
            owners, hidden = (torch.from_numpy(part).to(device) for part in (asked.hidden.owners(), asked.hidden.items))
            masked[owners, hidden] = -torch.inf
            if asked.is_out is not None:
                masked[:, torch.from_numpy(asked.is_out).to(device)] = -torch.inf
            best = best_of(masked, self.quota)
            scorer = scorer._replace(scores=lambda first, end: known[first:end])
            return best.values.cpu().numpy(), best.ids.cpu().numpy(), scorer
        seen = torch.from_numpy(asked.hidden.offsets), torch.from_numpy(asked.hidden.items.astype(np.int32))
        deny = self._deny(asked.is_out)
        if self.index is not None:
            best = by_index(self.model, self.index, scorer, self.quota, seen, deny=deny)
        else:
            best = topk(scorer, self.quota, seen=(seen[0].to(device), seen[1].to(device)), deny=deny)
        return best[0].cpu().numpy(), best[1].cpu().numpy(), scorer

    def _deny(self, is_out: NDArray[np.bool_] | None) -> NDArray[np.int32] | None:
        if is_out is None:
            return None
        kept = self._denied
        if kept is None or kept[0] is not is_out:
            kept = self._denied = is_out, np.flatnonzero(is_out).astype(np.int32)
        return kept[1]

    def scores(self, asked: Asked, lists: Lists, kept: Any) -> Floats:
        values = np.full(len(lists.items), np.nan, np.float32)
        for rows, scorer in kept:
            if len(rows) == len(asked.users):
                return scores_of(scorer, lists).cpu().numpy()
            own = lists.taken(rows)
            is_own = np.isin(lists.owners(), rows)
            values[is_own] = scores_of(scorer, own).cpu().numpy()
        return values


@torch.no_grad()
def scores_of(scorer: AnyScorer, lists: Lists) -> Tensor:
    """Scores [nnz] of the items of each of a scorer's users."""
    owners, items = torch.from_numpy(lists.owners()), torch.from_numpy(lists.items)
    if type(scorer) is DotScorer or type(scorer) is CosineScorer:
        owners, items = owners.to(scorer.users.device), items.to(scorer.users.device)
        left, right = scorer.users.float(), scorer.items[items].float()
        if isinstance(scorer, CosineScorer):
            left, right = (torch.nn.functional.normalize(side, dim=1) for side in (left, right))
        values = torch.bmm(left[owners].unsqueeze(1), right.unsqueeze(2)).flatten()
        return values if scorer.item_bias is None else values + scorer.item_bias[items].float()
    if isinstance(scorer, BlockScorer) and scorer.num_users * scorer.num_items <= _SCORES_A_BLOCK:
        of_all = scorer.scores(0, scorer.num_users)
        return of_all[owners.to(of_all.device), items.to(of_all.device)].float()
    pieces = []
    for row in range(len(lists.offsets) - 1):
        part = slice(int(lists.offsets[row]), int(lists.offsets[row + 1]))
        of_all = score_rows(scorer, row, row + 1)[0]
        pieces.append(of_all[items[part].to(of_all.device)].float())
    return torch.cat(pieces) if pieces else torch.empty(0)


class Fixed:
    """The same items for everybody: what is popular, or new.

    Args:
        name, quota: of the source.
        values: [N], float32, larger is better; NaN: never proposed.
    """

    def __init__(self, name: str, quota: int, values: Floats) -> None:
        self.name, self.quota, self.values = name, quota, values
        order = np.argsort(-values, kind="stable")
        self._order = order[: int((~np.isnan(values)).sum())]

    def propose(self, asked: Asked) -> tuple[Proposed, Any]:
        head = self._head(self.quota + int(np.diff(asked.hidden.offsets).max(initial=0)), asked.is_out)
        count = len(asked.users)
        keys = (np.arange(count)[:, None] << 32 | head).ravel()
        hidden = asked.hidden.owners() << 32 | asked.hidden.items
        if len(hidden):
            at = np.minimum(np.searchsorted(hidden, keys), len(hidden) - 1)
            is_free = (hidden[at] != keys).reshape(count, len(head))
        else:
            is_free = np.ones((count, len(head)), np.bool_)
        place = np.cumsum(is_free, axis=1) - 1
        row, column = np.nonzero(is_free & (place < self.quota))
        items = np.full((count, self.quota), -1, np.int64)
        scores = np.full(items.shape, -np.inf, np.float32)
        items[row, place[row, column]] = head[column]
        scores[row, place[row, column]] = self.values[head[column]]
        return Proposed(items, scores), None

    def _head(self, count: int, is_out: NDArray[np.bool_] | None) -> Ints:
        """The first items that may come, `count` of them where there are so many."""
        if is_out is None:
            return self._order[:count]
        width = 2 * count
        while True:  # of a large catalogue no more is read than it takes
            head = self._order[:width]
            head = head[~is_out[head]]
            if len(head) >= count or width >= len(self._order):
                return head[:count]
            width *= 4

    def scores(self, asked: Asked, lists: Lists, kept: Any) -> Floats:
        return self.values[lists.items]


class Neighbors:
    """The items nearest to the last ones of the history.

    Args:
        name, quota, last, decay: as of `deeprec.pipeline.config.ItemToItem`.
        neighbors: [N, m], items; similarities: [N, m], float32, 0 where there are fewer.
    """

    def __init__(self, name: str, quota: int, last: int, decay: float, neighbors: Ints, similarities: Floats) -> None:
        self.name, self.quota, self.last, self.decay = name, quota, last, decay
        self.neighbors, self.similarities = neighbors, similarities

    def _sums(self, asked: Asked) -> tuple[Ints, Floats]:
        """Keys row << 32 | item, ascending, of all that is near to a history, and the sums."""
        recent = asked.history.tail(self.last)
        owners = recent.owners()
        place = recent.offsets[1:].repeat(np.diff(recent.offsets)) - np.arange(len(recent.items)) - 1
        weights = self.similarities[recent.items] * (self.decay**place).astype(np.float32)[:, None]
        keys = owners[:, None] << 32 | self.neighbors[recent.items].astype(np.int64)
        near = weights > 0
        distinct, at = np.unique(keys[near], return_inverse=True)
        return distinct, np.bincount(at, weights[near], minlength=len(distinct)).astype(np.float32)

    def propose(self, asked: Asked) -> tuple[Proposed, Any]:
        keys, sums = kept = self._sums(asked)
        hidden = asked.hidden.owners() << 32 | asked.hidden.items
        is_free = ~np.isin(keys, hidden)
        if asked.is_out is not None:
            is_free &= ~asked.is_out[keys & 0xFFFFFFFF]
        keys, sums = keys[is_free], sums[is_free]
        rows, near = keys >> 32, keys & 0xFFFFFFFF
        order = np.lexsort((near, -sums, rows))
        place = np.arange(len(order)) - np.searchsorted(rows, rows)
        best = place < self.quota
        items = np.full((len(asked.users), self.quota), -1, np.int64)
        scores = np.full(items.shape, -np.inf, np.float32)
        items[rows[best], place[best]] = near[order][best]
        scores[rows[best], place[best]] = sums[order][best]
        return Proposed(items, scores), kept

    def scores(self, asked: Asked, lists: Lists, kept: Any) -> Floats:
        keys, sums = kept
        if not len(keys):
            return np.zeros(len(lists.items), np.float32)
        sought = lists.owners() << 32 | lists.items
        at = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
        return np.where(keys[at] == sought, sums[at], 0).astype(np.float32)

    def because(self, history: Ints, item: int) -> list[int]:
        """The items of a history to which an item is near, nearest first."""
        recent = history[-self.last :]
        rows, columns = np.nonzero((self.neighbors[recent] == item) & (self.similarities[recent] > 0))
        order = np.argsort(-self.similarities[recent[rows], columns], kind="stable")
        return list(dict.fromkeys(recent[rows[order]].tolist()))


@torch.no_grad()
def nearest(vectors: Tensor, width: int) -> tuple[NDArray[np.int32], Floats]:
    """The `width` nearest items of each, [N, width], by the cosine of vectors [N, D], itself left out."""
    count = len(vectors)
    width = min(width, max(1, count - 1))
    neighbors, similarities = np.zeros((count, width), np.int32), np.zeros((count, width), np.float32)
    vectors = vectors.float()
    for start in range(0, count, 1024):
        end = min(start + 1024, count)
        own = torch.arange(end - start + 1, device=vectors.device), torch.arange(start, end, device=vectors.device)
        best = topk(CosineScorer(vectors[start:end], vectors), width, seen=(own[0], own[1].int()))
        values, items = best.values.cpu().numpy(), best.ids.cpu().numpy()
        is_near = (items >= 0) & (values > 0)
        neighbors[start:end] = np.where(is_near, items, 0)
        similarities[start:end] = np.where(is_near, values, 0)
    return neighbors, similarities
