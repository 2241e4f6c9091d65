"""Compressed rows in NumPy: the lists of a block of users, who is asked for, and what may not come."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_NONE = np.empty(0, np.int64)


class Lists(NamedTuple):
    """Items of each of b rows: row j is items[offsets[j]:offsets[j + 1]].

    Attributes:
        offsets: [b + 1], int64.
        items: [nnz], int64.
    """

    offsets: Ints
    items: Ints

    @classmethod
    def of(cls, rows: list[Any]) -> Lists:
        """From a sequence of items for each row."""
        offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
        return cls(offsets, np.concatenate([np.empty(0, np.int64), *(np.asarray(row, np.int64) for row in rows)]))

    def owners(self) -> Ints:
        """The row of each item, [nnz]."""
        if len(self.offsets) == 2:  # one person, which is what a service is asked for most
            return np.zeros(len(self.items), np.int64)
        return np.repeat(np.arange(len(self.offsets) - 1), self.offsets[1:] - self.offsets[:-1])

    def taken(self, rows: Any) -> Lists:
        """The lists of the numbers `rows` [m]; -1 is an empty one."""
        rows = np.asarray(rows, np.int64)
        if len(rows) == 1:
            part = self.items[int(self.offsets[rows[0]]) : int(self.offsets[rows[0] + 1])] if rows[0] >= 0 else _NONE
            return Lists(np.array([0, len(part)]), part)
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        counts = np.where(rows < 0, 0, ends - starts)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        entries = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
        return Lists(offsets, self.items[entries])

    def tail(self, most: int) -> Lists:
        """The last items of each row."""
        places = self.offsets[1:].repeat(np.diff(self.offsets)) - np.arange(len(self.items))
        kept = places <= most
        return Lists(bounds(self.owners()[kept], len(self.offsets) - 1), self.items[kept])

    def joined(self, other: Lists) -> Lists:
        """The items of both, those of `other` behind."""
        if not len(other.items):
            return self
        owners = np.concatenate([self.owners(), other.owners()])
        order = np.argsort(owners, kind="stable")
        items = np.concatenate([self.items, other.items])[order]
        return Lists(self.offsets + other.offsets, items)

    def sets(self) -> Lists:
        """Each item of a row once, ascending."""
        if len(self.offsets) == 2:
            items = np.unique(self.items)
            return Lists(np.array([0, len(items)]), items)
        keys = np.unique(self.owners() << 32 | self.items)
        return Lists(bounds(keys >> 32, len(self.offsets) - 1), keys & 0xFFFFFFFF)


def bounds(owners: Ints, count: int) -> Ints:
    """Offsets [count + 1] of entries whose rows ascend."""
    return np.searchsorted(owners, np.arange(count + 1)).astype(np.int64)


class Asked(NamedTuple):
    """Those who are asked for.

    Attributes:
        users: [b], internal ids, -1 for people whom the data does not know.
        history: what each met, in order.
        is_changed: [b], whether the history is another than that with which the models were trained.
        hidden: what may not come to each, ascending and distinct.
        is_out: [N], what may not come to anybody; None: nothing.
    """

    users: Ints
    history: Lists
    is_changed: NDArray[np.bool_]
    hidden: Lists
    is_out: NDArray[np.bool_] | None

    def taken(self, rows: Ints) -> Asked:
        """Some of them."""
        lists = self.history.taken(rows), self.hidden.taken(rows)
        return Asked(self.users[rows], lists[0], self.is_changed[rows], lists[1], self.is_out)


class Proposed(NamedTuple):
    """What a source proposes to b people, best first.

    Attributes:
        items: [b, n], -1 after the last one.
        scores: [b, n], float32.
    """

    items: Ints
    scores: NDArray[np.float32]


class Candidates(NamedTuple):
    """What all sources propose, each item of a person once.

    Attributes:
        lists: the items, ascending within a row.
        ranks: [nnz, S], int32, from 1: the place where each source had the item; 0 where it had not.
        scores: [nnz, S], float32: the score by each source; NaN where it has none.
    """

    lists: Lists
    ranks: NDArray[np.int32]
    scores: NDArray[np.float32]


class Ranked(NamedTuple):
    """Lists [b, n], best first.

    Attributes:
        items: -1 after the last one.
        scores: float32, -inf there; descending.
        places: rows of the candidates that they came from, -1 there.
        is_explored: which of them came by exploration.
    """

    items: Ints
    scores: NDArray[np.float32]
    places: Ints
    is_explored: NDArray[np.bool_]

    def first(self, k: int) -> Ranked:
        """The first k."""
        return Ranked(self.items[:, :k], self.scores[:, :k], self.places[:, :k], self.is_explored[:, :k])

    def ordered(self, order: Ints) -> Ranked:
        """In another order [b, n]; the scores go by place, so that they descend still."""
        items, places = np.take_along_axis(self.items, order, 1), np.take_along_axis(self.places, order, 1)
        return Ranked(items, self.scores, places, np.take_along_axis(self.is_explored, order, 1))


def merged(proposed: list[Proposed], count: int) -> tuple[Lists, NDArray[np.int32]]:
    """The items of `count` people that any source proposes, ascending, and each source's rank [nnz, S] of them."""
    keys, ranks = [], []
    for one in proposed:
        row, column = np.nonzero(one.items >= 0)
        keys.append(row << 32 | one.items[row, column])
        ranks.append(column + 1)
    distinct, place = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_inverse=True)
    of_source = np.zeros((len(distinct), len(proposed)), np.int32)
    start = 0
    for number, (key, rank) in enumerate(zip(keys, ranks, strict=True)):
        of_source[place[start : start + len(key)], number] = rank
        start += len(key)
    return Lists(bounds(distinct >> 32, count), distinct & 0xFFFFFFFF), of_source


def ranked(lists: Lists, scores: NDArray[np.float32], most: int) -> Ranked:
    """The best `most` of each row by scores [nnz]; among equal ones the lower item comes first."""
    count = len(lists.offsets) - 1
    owners = lists.owners()
    order = np.lexsort((lists.items, -scores, owners)) if count > 1 else np.lexsort((lists.items, -scores))
    place = np.arange(len(order)) - lists.offsets[owners]
    width = min(most, int(np.diff(lists.offsets).max(initial=0)))
    kept = place < width
    row, column, source = owners[kept], place[kept], order[kept]
    items, places = (np.full((count, width), -1, np.int64) for _ in range(2))
    values = np.full((count, width), -np.inf, np.float32)
    items[row, column], places[row, column], values[row, column] = lists.items[source], source, scores[source]
    return Ranked(items, values, places, np.zeros((count, width), np.bool_))
