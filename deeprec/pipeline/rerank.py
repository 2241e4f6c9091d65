"""What changes the order of a ranked list: boosts, diversity, calibration, quotas, exploration."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deeprec.data.random_bits import random_bits
from deeprec.pipeline.config import MMR, Boost, Calibration, Exploration, ProviderQuota
from deeprec.pipeline.rows import Asked, Candidates, Lists, Ranked

Floats = NDArray[np.float32]
_EXPLORING = 41  # a stream of the stage's seed


class Values(NamedTuple):
    """A column of the items' table.

    Attributes:
        names: [V], its distinct values.
        lists: the values of each item, by place in `names`.
    """

    names: list[Any]
    lists: Lists

    def having(self, values: tuple[Any, ...]) -> NDArray[np.bool_]:
        """[N], whether an item has one of these, compared as texts."""
        sought = {str(value) for value in values}
        codes = np.flatnonzero([str(name) in sought for name in self.names])
        has = np.zeros(len(self.lists.offsets) - 1, np.bool_)
        has[self.lists.owners()[np.isin(self.lists.items, codes)]] = True
        return has

    def shares(self) -> Floats:
        """[N, V], each value of an item in equal parts, zeros where it has none."""
        counts = np.diff(self.lists.offsets)
        shares = np.zeros((len(counts), len(self.names)), np.float32)
        owners = self.lists.owners()
        shares[owners, self.lists.items] = 1 / counts[owners]
        return shares


class Reranker(Protocol):
    """A stage."""

    def __call__(self, asked: Asked, ranked: Ranked, candidates: Candidates, k: int) -> Ranked:
        """The list in a new order; at least its first k places are right."""


class Boosting:
    """See `Boost`."""

    def __init__(self, stage: Boost, values: Values) -> None:
        self.by, self.is_boosted = np.float32(stage.by), values.having(stage.values)

    def __call__(self, asked: Asked, ranked: Ranked, candidates: Candidates, k: int) -> Ranked:
        is_item = ranked.items >= 0
        with np.errstate(invalid="ignore"):
            spread = np.std(ranked.scores, axis=1, where=is_item, keepdims=True)
        added = self.by * np.nan_to_num(spread) * (self.is_boosted[ranked.items] & is_item)
        scores = ranked.scores + added.astype(np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")
        return ranked.ordered(order)._replace(scores=np.take_along_axis(scores, order, 1))


class Diversifying:
    """See `MMR`.

    Args:
        vectors: [N, D], float32, of unit length, or zeros.
    """

    def __init__(self, stage: MMR, vectors: Floats) -> None:
        self.diversity, self.pool, self.vectors = np.float32(stage.diversity), stage.pool, vectors

    def __call__(self, asked: Asked, ranked: Ranked, candidates: Candidates, k: int) -> Ranked:
        width = min(max(self.pool, k), ranked.items.shape[1])
        pool = ranked.first(width)
        relevance = (1 - self.diversity) * unit_scores(pool)
        relevance[pool.items < 0] = -np.inf
        order = np.full((len(relevance), min(k, width)), -1)
        for row, gain in enumerate(relevance):
            vectors = self.vectors[pool.items[row]]
            costs = self.diversity * (vectors @ vectors.T)
            highest = np.zeros_like(gain)
            for place in range(order.shape[1]):
                left = gain - highest
                best = int(left.argmax())
                if left[best] == -np.inf:
                    break
                order[row, place] = best
                highest = np.maximum(highest, costs[best]) if place else costs[best].copy()
                highest[order[row, : place + 1]] = np.inf
        return _first_then_rest(ranked, order)


class Calibrating:
    """See `Calibration`.

    Args:
        shares: [N, V], see `Values.shares`.
    """

    def __init__(self, stage: Calibration, shares: Floats) -> None:
        self.weight, self.alpha, self.pool, self.shares = stage.weight, stage.alpha, stage.pool, shares

    def __call__(self, asked: Asked, ranked: Ranked, candidates: Candidates, k: int) -> Ranked:
        width = min(max(self.pool, k), ranked.items.shape[1])
        pool = ranked.first(width)
        order = np.empty((len(pool.items), min(k, width)), np.int64)
        scores = unit_scores(pool)
        for row in range(len(order)):
            met = asked.history.items[asked.history.offsets[row] : asked.history.offsets[row + 1]]
            order[row] = self._order(pool.items[row], scores[row], self.target(met), order.shape[1])
        return _first_then_rest(ranked, order)

    def target(self, met: Any) -> NDArray[np.float64]:
        """p, [V]: the shares of a history; zeros where nothing is known."""
        total = self.shares[met].sum(0, dtype=np.float64)
        target: NDArray[np.float64] = total / total.sum() if total.sum() > 0 else total
        return target

    def _order(self, items: Any, scores: Floats, target: NDArray[np.float64], count: int) -> Any:
        is_free = items >= 0
        shares = self.shares[items].astype(np.float64)
        total, total_score = np.zeros(shares.shape[1]), 0.0
        order: list[int] = []
        while len(order) < count:
            left = np.flatnonzero(is_free)
            if not len(left):
                order += [place for place in range(len(items)) if place not in set(order)][: count - len(order)]
                break
            lists = (total + shares[left]) / (len(order) + 1)
            kl = divergence(target, lists, self.alpha)
            best = left[((1 - self.weight) * (total_score + scores[left]) - self.weight * kl).argmax()]
            order.append(int(best))
            is_free[best], total, total_score = False, total + shares[best], total_score + float(scores[best])
        return np.array(order, np.int64)


def divergence(target: NDArray[np.float64], lists: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """KL(p || (1 - alpha) q + alpha p) of lists q [..., V]; Steck 2018, eq. 4."""
    mixed = (1 - alpha) * lists + alpha * target
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(target > 0, target * np.log(target / mixed), 0.0)
    value: NDArray[np.float64] = terms.sum(-1)
    return value


class Limiting:
    """See `ProviderQuota`.

    Args:
        codes: [N], the value of each item; -1 for none.
    """

    def __init__(self, stage: ProviderQuota, codes: NDArray[np.int64]) -> None:
        self.most, self.codes = stage.most, codes

    def __call__(self, asked: Asked, ranked: Ranked, candidates: Candidates, k: int) -> Ranked:
        rows, width = ranked.items.shape
        codes = np.where(ranked.items >= 0, self.codes[ranked.items], -1)
        keys = (np.arange(rows)[:, None] << 32 | (codes + 1)).ravel()
        order = np.argsort(keys, kind="stable")
        place = np.arange(len(order)) - np.searchsorted(keys[order], keys[order])
        number = np.empty(len(order), np.int64)
        number[order] = place
        is_beyond = (number.reshape(rows, width) >= self.most) & (codes >= 0)
        is_beyond = np.where(ranked.items < 0, 2, is_beyond.astype(np.int64))
        return ranked.ordered(np.argsort(is_beyond, axis=1, kind="stable"))


class Exploring:
    """See `Exploration`."""

    def __init__(self, stage: Exploration) -> None:
        self.places, self.seed = stage.places, stage.seed

    def __call__(self, asked: Asked, ranked: Ranked, candidates: Candidates, k: int) -> Ranked:
        places = min(self.places, k - 1)
        width = ranked.items.shape[1]
        if places < 1 or width <= k - places:
            return ranked
        order = np.tile(np.arange(width), (len(ranked.items), 1))
        is_explored = ranked.is_explored.copy()
        for row, user in enumerate(asked.users.tolist()):
            left = np.flatnonzero(ranked.items[row, k - places :] >= 0) + k - places
            key = np.uint64(user + 1) * np.uint64(0x9E3779B1) + ranked.items[row, left].astype(np.uint64)
            drawn = left[np.argsort(random_bits(self.seed, _EXPLORING, key), kind="stable")][:places]
            rest = left[~np.isin(left, drawn)]
            end = np.flatnonzero(ranked.items[row, k - places :] < 0) + k - places
            order[row, k - places :] = np.concatenate([drawn, rest, end])
            is_explored[row, drawn] = True
        return ranked._replace(is_explored=is_explored).ordered(order)


def unit_scores(ranked: Ranked) -> Floats:
    """Scores [b, n] of each list brought to [0, 1]; 0 where there is no item."""
    is_item = ranked.items >= 0
    low = np.min(ranked.scores, axis=1, where=is_item, initial=np.inf, keepdims=True)
    high = np.max(ranked.scores, axis=1, where=is_item, initial=-np.inf, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(is_item & (high > low), (ranked.scores - low) / (high - low), 0)
    return scores.astype(np.float32)


def unit_rows(vectors: NDArray[Any]) -> Floats:
    """Rows [N, D] of unit length; those of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def _first_then_rest(ranked: Ranked, first: NDArray[np.int64]) -> Ranked:
    """The places `first` [b, k] of each list, -1 for none, then the others in their order."""
    width = ranked.items.shape[1]
    rank = np.tile(np.arange(width + 1) + first.shape[1], (len(first), 1))  # the last column takes what is none
    np.put_along_axis(rank, np.where(first < 0, width, first), np.arange(first.shape[1])[None].repeat(len(first), 0), 1)
    return ranked.ordered(np.argsort(rank[:, :width], axis=1, kind="stable"))
