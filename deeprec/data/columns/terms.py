"""`Terms`: for each row one sparse vector over all its columns of ids side by side, and dense numbers, for towers.

The word hashing of DSSM (l_1 = W_1 x), the tag profiles of DSPR and the views of Multi-View DNN are such an x; what a
user met, as a multi-hot over items, is another, and the number of a user or an item as a one-hot too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import BagField, Bags, Encoded, SequenceField
from deeprec.data.columns.kinds import Cross, Numeric
from deeprec.data.columns.rows import take_bags
from deeprec.data.columns.table import EncodedTable

WEIGHTINGS = ("count", "binary", "log", "l2", "tf-idf")
SIDES = ("user", "item")

Floats = NDArray[np.float32]


class Pairs(Protocol):
    """Who met what, as `Interactions`."""

    @property
    def num_users(self) -> int:
        """Users, also those without a pair."""

    @property
    def num_items(self) -> int:
        """Items, also those without a pair."""

    def csr(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Each user's items, ascending and distinct."""


@dataclass(frozen=True, eq=False, repr=False)
class Terms:
    """Rows x of sparse terms and of dense numbers; row r has weights[p] at ids[p], p in offsets[r]:offsets[r + 1].

    Attributes:
        offsets: [n + 1], int64, ascending from 0 to nnz.
        ids: [nnz], int32, in [0, size), ascending and distinct within a row.
        weights: [nnz], float32, finite.
        values: [n, v], float32, finite; v may be 0.
        size: columns of x, >= 0.
    Raises:
        ValueError, TypeError: arrays of other shapes, dtypes or ranges.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]
    weights: Floats
    values: Floats
    size: int

    def __post_init__(self) -> None:
        n, nnz = len(self.values), len(self.ids)
        expected: dict[str, tuple[NDArray[Any], Any, tuple[int, ...]]] = {
            "offsets": (self.offsets, np.int64, (n + 1,)),
            "ids": (self.ids, np.int32, (nnz,)),
            "weights": (self.weights, np.float32, (nnz,)),
            "values": (self.values, np.float32, (n, *self.values.shape[1:2])),
        }
        for name, (array, dtype, shape) in expected.items():
            if array.dtype != dtype or array.shape != shape or (name == "values" and array.ndim != 2):
                raise ValueError(
                    f"Terms: {name} must be {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}"
                )
        lengths = np.diff(self.offsets)
        if self.offsets[0] != 0 or self.offsets[-1] != nnz or (lengths < 0).any():
            raise ValueError(f"Terms: offsets must ascend from 0 to {nnz}, the number of ids")
        if nnz and not 0 <= self.ids.min() <= self.ids.max() < self.size:
            raise ValueError(
                f"Terms: ids must lie in [0, {self.size}), the size, got {self.ids.min()} to {self.ids.max()}"
            )
        keys = self._owners() * max(self.size, 1) + self.ids
        if nnz and (np.diff(keys) <= 0).any():
            raise ValueError("Terms: ids must ascend and be distinct within a row; make them by Terms.of_entries")
        for name, array in (("weights", self.weights), ("values", self.values)):
            if not np.isfinite(array).all():
                bad = array[~np.isfinite(array)]
                raise ValueError(f"Terms: {name} must be finite, got {bad[0]} in {len(bad)} places; correct the rows")

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Terms({len(self):,} rows, {len(self.ids):,} entries of {self.size:,} terms, {self.num_values} numbers)"

    @property
    def num_values(self) -> int:
        """Dense numbers of a row."""
        width: int = self.values.shape[1]
        return width

    def _owners(self) -> NDArray[np.int64]:
        """The row of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    # -- made of ------------------------------------------------------------------------------------------------------

    @classmethod
    def of_entries(cls, rows: Any, ids: Any, weights: Any | None, num_rows: int, size: int) -> Terms:
        """Terms of entries in any order; those of one row and id are summed, in the order they come in.

        Args:
            rows: [nnz] integers in [0, num_rows); ids: [nnz] integers in [0, size).
            weights: [nnz] numbers; None: 1 each, so that repeats are counted.
        Raises:
            ValueError: lengths that differ, a row or an id out of range, a weight that is not finite.
        """
        rows, ids = np.asarray(rows, dtype=np.int64), np.asarray(ids, dtype=np.int64)
        given = np.ones(len(ids)) if weights is None else np.asarray(weights, dtype=np.float64)
        if not rows.shape == ids.shape == given.shape or rows.ndim != 1:
            raise ValueError(
                f"Terms.of_entries: rows, ids and weights must be [nnz], got {rows.shape}, {ids.shape}, {given.shape}"
            )
        for name, numbers, end in (("rows", rows, num_rows), ("ids", ids, size)):
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < end:
                raise ValueError(
                    f"Terms.of_entries: {name} must lie in [0, {end}), got {numbers.min()} to {numbers.max()}"
                )
        keys = rows * max(size, 1) + ids
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
        sums = np.add.reduceat(given[order], starts) if len(starts) else given
        owners, terms = np.divmod(keys[order][starts], max(size, 1))
        offsets = np.zeros(num_rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(owners, minlength=num_rows), out=offsets[1:])
        return cls(offsets, terms.astype(np.int32), sums.astype(np.float32), _no_values(num_rows), size)

    @classmethod
    def of_ids(cls, num_rows: int) -> Terms:
        """Row r has a 1 at id r: the one-hot of the number of a user or an item, [num_rows, num_rows]."""
        every = np.arange(num_rows + 1, dtype=np.int64)
        return cls(
            every, every[:-1].astype(np.int32), np.ones(num_rows, np.float32), _no_values(num_rows), max(num_rows, 0)
        )

    @classmethod
    def of_interactions(cls, train: Pairs, side: str = "user") -> Terms:
        """Multi-hot of what each met: "user" has a row a user over the items, "item" a row an item over the users."""
        if side not in SIDES:
            raise ValueError(f"Terms.of_interactions: side must be {' or '.join(SIDES)}, got {side!r}")
        offsets, items = train.csr()
        if side == "user":
            weights = np.ones(len(items), np.float32)
            return cls(offsets, items, weights, _no_values(train.num_users), train.num_items)
        users = np.repeat(np.arange(train.num_users), np.diff(offsets))
        return cls.of_entries(items, users, None, train.num_items, train.num_users)

    @classmethod
    def of_table(
        cls,
        table: EncodedTable,
        columns: Sequence[str] | None = None,
        weighting: str = "count",
        idf: Floats | None = None,
    ) -> Terms:
        """The rows of a table, `of_rows` with its encoder."""
        return cls.of_rows(table.encoder, table.rows, columns, weighting, idf)

    @classmethod
    def of_rows(
        cls,
        encoder: Encoder,
        rows: Encoded,
        columns: Sequence[str] | None = None,
        weighting: str = "count",
        idf: Floats | None = None,
    ) -> Terms:
        """Encoded rows, the columns in the order of the encoder's inputs, each with a range of terms of its own.

        A categorical, a bucketised number or a cross has one term a row; a bag, a sequence or the tokens of a text as
        many as it holds, repeats counted, weights summed. Numerics and vectors become `values`. What is unknown, or a
        bucketised number that is missing, has no term. Hash buckets have no unknown values.

        Args:
            columns: names of the inputs to take; None: all.
            weighting: of each column of bags, sequences or tokens alone, see `weighted`.
            idf: for "tf-idf", [size]: `idf` of the counts of train rows; None: of the rows that are given.
        Raises:
            ValueError: a name that is no input; text or media that is kept as it is; an idf of another size.
        """
        parts, start = [], 0
        for part, is_one in _columns(encoder, rows, columns):
            own = None if idf is None else idf[start : start + part.size]
            parts.append(part if is_one else part.weighted(weighting, own))
            start += part.size
        if idf is not None and len(idf) != start:
            raise ValueError(f"Terms.of_rows: idf must be [{start}], got {list(idf.shape)}; take that of train rows")
        return joined(*parts) if parts else cls.of_entries([], [], None, len(rows), 0)

    # -- changed ------------------------------------------------------------------------------------------------------

    def take(self, rows: NDArray[Any]) -> Terms:
        """The rows of these numbers, [m], integers in [0, n), any order."""
        rows = np.asarray(rows, dtype=np.int64)
        bags = take_bags(Bags(self.ids, self.offsets, self.weights), rows)
        assert bags.weights is not None
        return Terms(bags.offsets, bags.ids, bags.weights, self.values[rows], self.size)

    def appended(self, other: Terms) -> Terms:
        """The rows of `other`, of the same columns, after these.

        Raises:
            ValueError: other sizes.
        """
        if (self.size, self.num_values) != (other.size, other.num_values):
            raise ValueError(
                f"Terms.appended: both must have {self.size} terms and {self.num_values} numbers, got {other.size} and "
                f"{other.num_values}; encode the new rows by the encoder of the old ones"
            )
        return Terms(
            np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]]),
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.weights, other.weights]),
            np.concatenate([self.values, other.values]),
            self.size,
        )

    def idf(self, rows: NDArray[np.bool_] | None = None) -> Floats:
        """Inverse document frequency of each term, [size]: ln((1 + n) / (1 + df)) + 1; 0 for one that no row has.

        Args:
            rows: the train rows, [n] bool, which alone are counted; None: all.
        """
        is_counted = np.ones(len(self), np.bool_) if rows is None else np.asarray(rows, np.bool_)
        entries = self.ids[is_counted[self._owners()] & (self.weights != 0)]
        frequencies = np.bincount(entries, minlength=self.size)
        values = np.log((1 + is_counted.sum()) / (1 + frequencies)) + 1
        return np.where(frequencies > 0, values, 0).astype(np.float32)

    def weighted(self, kind: str, idf: Floats | None = None) -> Terms:
        """The same terms with weights made of the counts w that they have now; the numbers stay.

        "count": w; "binary": 1; "log": sign(w) ln(1 + |w|); "l2": w / |row|; "tf-idf": w idf / |row of these|.
        A row of length 0 stays 0.

        Args:
            idf: [size], that of `idf` of train rows, for "tf-idf"; None: of all these rows.
        Raises:
            ValueError: another kind, an idf of another size.
        """
        if kind not in WEIGHTINGS:
            raise ValueError(f"Terms.weighted: kind must be one of {', '.join(WEIGHTINGS)}, got {kind!r}")
        if idf is not None and idf.shape != (self.size,):
            raise ValueError(f"Terms.weighted: idf must be [{self.size}], got {list(idf.shape)}; take that of train")
        if kind == "tf-idf":
            factors = self.idf() if idf is None else idf
            return replace(self, weights=self._normalised(self.weights * factors[self.ids]))
        w = self.weights
        if kind == "binary":
            w = np.ones_like(w)
        elif kind == "log":
            w = np.sign(w) * np.log1p(np.abs(w))
        elif kind == "l2":
            w = self._normalised(w)
        return replace(self, weights=w)

    def _normalised(self, weights: Floats) -> Floats:
        owners = self._owners()
        squares = np.bincount(owners, np.square(weights, dtype=np.float64), minlength=len(self))
        lengths = np.sqrt(np.where(squares > 0, squares, 1))
        return (weights / lengths[owners]).astype(np.float32)


def joined(*parts: Terms) -> Terms:
    """The columns of several Terms side by side, their ranges of ids one after the other; row r is row r of each.

    Raises:
        ValueError: none, or different numbers of rows.
    """
    counts = {len(part) for part in parts}
    if len(counts) != 1:
        raise ValueError(f"joined: Terms of as many rows each are needed, got {[len(part) for part in parts]}")
    lengths = [np.diff(part.offsets) for part in parts]
    offsets = np.zeros(len(parts[0]) + 1, dtype=np.int64)
    np.cumsum(np.sum(lengths, axis=0), out=offsets[1:])
    ids, weights = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
    place, size = offsets[:-1].copy(), 0  # where the next part of each row begins
    for part, length in zip(parts, lengths, strict=True):
        entries = np.repeat(place - part.offsets[:-1], length) + np.arange(len(part.ids))
        ids[entries] = part.ids + np.int32(size)
        weights[entries] = part.weights
        place += length
        size += part.size
        if size >= 2**31:
            raise ValueError(f"joined: terms must be fewer than 2^31, for their ids are int32, got {size}")
    return Terms(offsets, ids, weights, np.concatenate([part.values for part in parts], axis=1), size)


def _no_values(num_rows: int) -> Floats:
    return np.empty((num_rows, 0), dtype=np.float32)


def _columns(encoder: Encoder, rows: Encoded, columns: Sequence[str] | None) -> list[tuple[Terms, bool]]:
    """The Terms of each column, and whether it has one term or none a row, or numbers."""
    inputs, n = encoder.inputs, len(rows)
    names = [field.name for field in inputs.fields] + list(inputs.numerics)
    names += [vector.name for vector in inputs.vectors] + [bag.name for bag in inputs.compressed]
    unknown = sorted(set(columns or ()) - set(names))
    if unknown:
        raise ValueError(f"Terms: columns must be of {', '.join(names)}, got {', '.join(unknown)}")
    taken = set(names if columns is None else columns)
    kept = [text.name for text in inputs.texts if text.name in taken]
    if kept:
        raise ValueError(
            f"Terms: columns must have ids or numbers, got {', '.join(kept)} as text or media; set tokens: trigrams or "
            "words in the schema, name media in the option encoders, or name the columns to take"
        )
    parts: list[tuple[Terms, bool]] = []
    for at, field in enumerate(inputs.fields):
        if field.name in taken:
            entries = np.flatnonzero(rows.ids[:, at] >= _first_id(encoder, field.name))
            parts.append((Terms.of_entries(entries, rows.ids[entries, at], None, n, field.size), True))
    every: tuple[BagField | SequenceField, ...] = (*inputs.bags, *inputs.sequences)
    bags = [bag for bag in every if bag.name in taken]
    parts += [(_terms_of(rows.bags[bag.name], bag.size, _first_id(encoder, bag.name)), False) for bag in bags]
    numbers = [at for at, name in enumerate(inputs.numerics) if name in taken]
    for vector in inputs.vectors:
        if vector.name in taken:
            places = inputs.columns_of(vector.name)
            numbers += range(places.start, places.stop)
    if numbers:
        nothing = Terms.of_entries([], [], None, n, 0)
        parts.append((replace(nothing, values=np.ascontiguousarray(rows.values[:, numbers])), True))
    return parts


def _terms_of(bags: Bags, size: int, first_id: int) -> Terms:
    n = len(bags.offsets) - 1
    owners = np.repeat(np.arange(n), np.diff(bags.offsets))
    kept = bags.ids >= first_id
    weights = None if bags.weights is None else bags.weights[kept]
    return Terms.of_entries(owners[kept], bags.ids[kept], weights, n, size)


def _first_id(encoder: Encoder, name: str) -> int:
    """The first id that is a value: 0 in hash buckets and crosses; 1 where 0 is unknown or missing."""
    feature = next(feature for feature in encoder.schema.features if feature.name == name)
    if isinstance(feature, (Cross, Numeric)):
        return int(isinstance(feature, Numeric))
    return int(encoder.schema.ids_from(feature).num_buckets is None)  # type: ignore[arg-type]
