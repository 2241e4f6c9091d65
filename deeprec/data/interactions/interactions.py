"""Interactions: who met what, when and how it was rated, with internal ids and a hash of the content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.interactions.ids import IdMap, Int32Array, UnknownIdError

__all__ = ["IdMap", "Int32Array", "Int64Array", "Interactions", "OfficialSplit", "Split", "UnknownIdError"]

Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OfficialSplit:
    """A published split: row numbers of the Interactions it belongs to.

    Args:
        train_index, test_index: int64, disjoint row numbers.
        test_negatives: int32 [num_test, n] internal item ids to rank against each test row, or None.
        source: where the split comes from, for cards and messages.
        validation_index: rows to choose the epoch by, disjoint from both, or None: the training rows give some.
    """

    train_index: Int64Array
    test_index: Int64Array
    test_negatives: Int32Array | None
    source: str = "official"
    validation_index: Int64Array | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of the row numbers and negatives."""
        own = () if self.validation_index is None else (self.validation_index,)
        return digest_of(self.train_index, self.test_index, self.test_negatives, *own)


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """One row per interaction; columns of equal length n.

    Args:
        users, items: int32 [n], internal ids, indices of `user_ids` and `item_ids`.
        user_ids, item_ids: the external ids.
        ratings: float32 [n], finite, or None.
        order: int64 [n], later is larger (timestamp or rank within the user), or None when unknown.
        order_kind: "time" (a timestamp), "rank" (a place in the user's own sequence, 0 = unknown, taken as earliest).
        name: for messages and cards.
        repairs: what was mended while reading, by kind: rows dropped or changed.
        official: the published split, where there is one.
        user_features, item_features: frames whose row i describes internal id i, for display and side information.
    Raises:
        ValueError: columns of unequal length, ids out of range, ratings not finite.
    """

    row_columns: ClassVar[tuple[str, ...]] = ("users", "items", "ratings", "order")  # what a row has, or None

    users: Int32Array
    items: Int32Array
    user_ids: IdMap
    item_ids: IdMap
    ratings: Float32Array | None = None
    order: Int64Array | None = None
    order_kind: Literal["time", "rank"] | None = None
    name: str = "interactions"
    repairs: dict[str, int] = field(default_factory=dict)
    official: OfficialSplit | None = None
    user_features: pl.DataFrame | None = None
    item_features: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        columns: dict[str, tuple[NDArray[Any] | None, type]] = {
            "users": (self.users, np.int32),
            "items": (self.items, np.int32),
            "ratings": (self.ratings, np.float32),
            "order": (self.order, np.int64),
        }
        for label, (column, dtype) in columns.items():
            if column is not None and (column.dtype != dtype or column.shape != (len(self.users),)):
                raise ValueError(
                    f"Interactions: {label} must be {np.dtype(dtype)} [{len(self.users)}], "
                    f"got {column.dtype} {list(column.shape)}"
                )
        for label, column, count in (("users", self.users, self.num_users), ("items", self.items, self.num_items)):
            if len(column) and (column.min() < 0 or column.max() >= count):
                raise ValueError(f"Interactions: {label} must be in [0, {count}), got {column.min()}..{column.max()}")
        if self.ratings is not None and not np.isfinite(self.ratings).all():
            at = int(np.flatnonzero(~np.isfinite(self.ratings))[0])
            raise ValueError(f"Interactions: ratings must be finite, got {self.ratings[at]} at row {at}; drop the row")

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        extras = [label for label in ("ratings", "order", "official") if getattr(self, label) is not None]
        return (
            f"Interactions({self.name}: {len(self):,} rows, {self.num_users:,} users, {self.num_items:,} items"
            f"{', ' + ', '.join(extras) if extras else ''})"
        )

    @property
    def num_users(self) -> int:
        """Users in the id map; a part of a split counts all of them."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Items in the id map (the catalogue); a part of a split counts all of them."""
        return len(self.item_ids)

    @cached_property
    def sha256(self) -> str:
        """Hash of ids, rows, ratings and order; the same whatever kind of file they came from."""
        maps = f"{self.user_ids.sha256()} {self.item_ids.sha256()} ".encode()
        return digest_of(np.frombuffer(maps, dtype=np.uint8), self.users, self.items, self.ratings, self.order)

    def take(self, index: Any) -> Interactions:
        """The chosen rows, in the order given, with the same id maps; the official split is left behind.

        Args:
            index: boolean mask [n] or integer row numbers [m].
        Raises:
            ValueError: a mask of another length. IndexError: a row number out of range.
        """
        rows = np.asarray(index)
        if rows.dtype == np.bool_:
            if rows.shape != (len(self),):
                raise ValueError(f"Interactions.take: a mask needs {len(self)} values, got {list(rows.shape)}")
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64) if rows.size == 0 else rows
        columns = {name: getattr(self, name) for name in self.row_columns}
        taken: dict[str, Any] = {name: None if column is None else column[rows] for name, column in columns.items()}
        return replace(self, **taken, official=None)

    def of_pairs(self, users: Int32Array, items: Int32Array) -> Interactions:
        """Rows [n] of which nothing else is known, with the same id maps."""
        unknown: dict[str, Any] = {"ratings": None, "order": None, "order_kind": None, "official": None}
        return replace(self, users=users, items=items, **unknown)

    def canonical(self) -> Interactions:
        """The same interactions, in an order that does not depend on that of the file.

        Ids ascend, rows go by user and time, or by user and item where no order is known; rows of a user with equal
        times, and equal rows, stay in the order they came in. Random draws go by the place of a row and ties by the
        number of an id, so that shuffled rows give the same figures. A published split and side information come along.
        """
        (user_ids, new_users), (item_ids, new_items) = self.user_ids.ascending(), self.item_ids.ascending()
        users, items = new_users[self.users], new_items[self.items]
        rows = np.lexsort((*self._last_keys(), items if self.order is None else self.order, users))
        official = self.official
        if official is not None:
            places = np.empty(len(rows), dtype=np.int64)
            places[rows] = np.arange(len(rows))
            negatives = official.test_negatives
            official = OfficialSplit(
                places[official.train_index],
                places[official.test_index],
                None if negatives is None else new_items[negatives],
                official.source,
                None if official.validation_index is None else places[official.validation_index],
            )
        features = ((self.user_features, new_users), (self.item_features, new_items))
        moved = [None if table is None else table[np.argsort(numbers)] for table, numbers in features]
        named = replace(self, users=users, items=items, user_ids=user_ids, item_ids=item_ids)
        return replace(named.take(rows), official=official, user_features=moved[0], item_features=moved[1])

    def _last_keys(self) -> tuple[NDArray[Any], ...]:
        """What `canonical` sorts rows by that are equal otherwise; without any they stay in the order they came in."""
        return ()

    def row_keys(self) -> Int64Array:
        """One int64 per row, equal where rows say the same: that of `pair_keys`."""
        return self.pair_keys()

    def csr(self) -> tuple[Int64Array, Int32Array]:
        """Each user's items: (indptr int64 [num_users + 1], indices int32), ascending and distinct per user."""
        return self._csr

    @cached_property
    def _csr(self) -> tuple[Int64Array, Int32Array]:
        keys = self.pair_keys()
        keys.sort()
        if len(keys) and not (keys[1:] > keys[:-1]).all():
            keys = np.unique(keys)
        width = max(self.num_items, 1)
        users, items = np.divmod(keys, width)
        indptr = np.zeros(self.num_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=self.num_users), out=indptr[1:])
        return indptr, items.astype(np.int32)

    def pair_keys(self) -> Int64Array:
        """user * num_items + item of each row: one int64 per (user, item) pair."""
        return self.users.astype(np.int64) * max(self.num_items, 1) + self.items

    def item_counts(self) -> Int64Array:
        """Rows of each item, int64 [num_items]."""
        return np.bincount(self.items, minlength=self.num_items).astype(np.int64)

    def user_counts(self) -> Int64Array:
        """Rows of each user, int64 [num_users]."""
        return np.bincount(self.users, minlength=self.num_users).astype(np.int64)

    def to_frame(self) -> pl.DataFrame:
        """The rows with external ids: user_id, item_id and, where known, rating and timestamp."""
        columns = {
            "user_id": self.user_ids.values.gather(self.users),
            "item_id": self.item_ids.values.gather(self.items),
            "rating": self.ratings,
            "timestamp": self.order,
        }
        return pl.DataFrame({label: column for label, column in columns.items() if column is not None})


@dataclass(frozen=True, eq=False)
class Split:
    """Train, validation and test rows over the same id maps.

    Args:
        validation: empty when none was asked for.
        test_negatives, validation_negatives: int32 [len(part), n] items to rank against each row, or None.
        notes: counts worth reporting, e.g. users too short to be tested.
    """

    train: Interactions
    validation: Interactions
    test: Interactions
    test_negatives: Int32Array | None = None
    validation_negatives: Int32Array | None = None
    notes: dict[str, int] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Hash of the three parts and the negatives."""
        parts = "".join(part.sha256 for part in (self.train, self.validation, self.test)).encode()
        return digest_of(np.frombuffer(parts, dtype=np.uint8), self.test_negatives, self.validation_negatives)


def digest_of(*columns: NDArray[Any] | None) -> str:
    """Hash of columns with their types and shapes; one that is not there counts too."""
    digest = hashlib.sha256()
    for column in columns:
        if column is None:
            digest.update(b"none;")
        else:
            little = column.astype(column.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{little.dtype.str}{list(little.shape)};".encode())
            digest.update(np.ascontiguousarray(little).data)
    return digest.hexdigest()
