"""External ids (integers, strings, dates, ...) to internal indices 0..n-1 and back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._files import replacing
from deeprec.data.reading.arrays import require_pool, without_nulls
from deeprec.data.reading.frames import first_mixed, first_odd, series_of
from deeprec.data.reading.hashing import Vocabulary, hash_series

Int32Array = NDArray[np.int32]


class UnknownIdError(ValueError):
    """An external id that the map does not hold."""


def to_series(values: Any, name: str) -> pl.Series:
    """One-dimensional ids as a polars Series named `name`; a single id counts as a list of one.

    Raises TypeError for None, a frame, a mixture of types, or Python objects polars cannot compare.
    """
    if values is None or (hasattr(values, "columns") and hasattr(values, "shape")):
        got = "None" if values is None else f"a frame with columns {list(values.columns)}"
        raise TypeError(f"{name} ids: one id or a sequence of them is required, got {got}; pass a list or a column")
    if hasattr(values, "iloc") or type(values).__module__.partition(".")[0] == "pandas":  # a Series or an Index
        values = series_of(values, name)
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__") or getattr(values, "shape", None) == ():
        values = [values.item() if isinstance(values, np.ndarray) else values]
    if isinstance(values, pl.Series):
        if values.dtype == pl.Object:
            raise TypeError(
                f"{name} ids: one type for all ids is required, got {_mixture(values)}; convert them with str"
            )
        return values.alias(name)
    if not isinstance(values, np.ndarray):
        values = np.asarray(values) if hasattr(values, "__array__") else list(values)
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"{name} ids: one dimension is required, got shape {values.shape}; pass values.ravel()")
        values = values.tolist() if values.dtype == object else values
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        raise TypeError(f"{name} ids: one type for all ids is required, got {error}; convert them with str") from None


def normalise_ids(series: pl.Series) -> pl.Series:
    """The ids in a type that can be mapped: categories become strings, whole floats integers (pandas makes floats of
    integers when one is missing). Nulls are left alone. Raises TypeError for fractions, floats that have lost digits,
    lists and Python objects."""
    dtype = series.dtype
    if dtype in (pl.Categorical, pl.Enum):
        text: pl.Series = series.cast(pl.String)
        return text
    if dtype.is_float():
        numbers = series.to_numpy()  # a null is NaN
        whole = numbers[~np.isnan(numbers)]
        largest = 2.0**53 if dtype == pl.Float64 else 2.0**24
        is_odd = np.abs(numbers) >= largest
        if is_odd.any():
            row = int(is_odd.argmax())
            raise TypeError(
                f"{series.name} ids: whole numbers below 2^{int(np.log2(largest))} or strings are required of {dtype}, "
                f"got {numbers[row]:.17g} in row {row}, which has lost digits; read the column as text or as integers "
                "(Int64: pandas.read_csv(..., dtype={'COLUMN': 'Int64'}))"
            )
        is_odd = whole != np.floor(whole)
        if not is_odd.any():
            integers: pl.Series = pl.Series(series.name, numbers, nan_to_null=True).cast(pl.Int64)
            return integers
        row = int(np.flatnonzero(~np.isnan(numbers))[is_odd.argmax()])
        raise TypeError(
            f"{series.name} ids: whole numbers or strings are required, got {dtype} with fractions ({numbers[row]:g} "
            f"in row {row}); convert them with str or round them"
        )
    if dtype == pl.Object or dtype.is_nested() or dtype == pl.Int128:
        got = _mixture(series) if dtype == pl.Object else str(dtype)
        raise TypeError(
            f"{series.name} ids: integers within 64 bits, strings or dates are required, one type for all, got {got}; "
            "convert them with str"
        )
    return series


def _mixture(series: pl.Series) -> str:
    """What is wrong with a column of Python objects, and where."""
    odd = first_odd(series)
    if odd is not None:
        return f"{series[odd]!r:.60} in row {odd}"
    row = first_mixed(series)
    return f"values of several types, such as {series[0]!r:.40} in row 0 and {series[row]!r:.40} in row {row}"


def stripped_ids(series: pl.Series) -> tuple[pl.Series, int]:
    """Ids without the blanks around them, and how many had some; "" is missing. Other types than text as they are."""
    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        return series, 0
    texts = series.str.strip_chars()
    return texts.set(texts == "", None), int((texts != series).sum())


class IdMap:
    """External ids and their internal indices 0..n-1.

    Integers (also beyond 32 bits), strings, booleans, bytes, dates: whatever came in comes out, in its type.

    Args:
        values: the distinct external ids; index i of the map is values[i].
        name: "user" or "item", for error messages and the Parquet column.
    Raises:
        ValueError: a repeated or missing id. TypeError: ids that cannot be mapped (mixed types, fractions).
    """

    def __init__(self, values: Any, name: str) -> None:
        series = normalise_ids(to_series(values, name))
        if series.null_count():
            raise ValueError(f"IdMap: {name} ids must not be missing, got {series.null_count()} null; drop them first")
        if series.n_unique() != len(series):
            raise ValueError(
                f"IdMap: {name} ids must be distinct, got {series.n_unique()} distinct of {len(series)}; "
                "use IdMap.from_values"
            )
        self.name = name
        self._values = series
        self._index: _Index | None = None  # built by the first encode

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_values": self._values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _index=None)

    @classmethod
    def from_values(cls, values: Any, name: str, *, sort: bool = False) -> IdMap:
        """Map of the distinct ids of `values`, by first appearance, or ascending when `sort`."""
        series = normalise_ids(to_series(values, name))
        distinct = series.unique(maintain_order=not sort)
        return cls(distinct.sort() if sort else distinct, name)

    def grown(self, values: Any) -> IdMap:
        """This map with the ids of `values` that it lacks after its own, by first appearance; no index changes.

        Raises:
            ValueError: a missing id, or one beyond the whole numbers that the map can hold. TypeError: ids of another
                type than the map's.
        """
        given = to_series(values, self.name)
        if len(self) == 0:
            return IdMap.from_values(given, self.name)
        if given.null_count():
            raise ValueError(f"IdMap.grown: {self.name} ids must not be missing, got {given.null_count()} null")
        new = given.gather(np.flatnonzero(self.encode(given, unknown=-1) < 0)) if len(given) else given
        if not len(new):
            return self
        old, new = self._values, normalise_ids(new).unique(maintain_order=True)
        try:
            new = new.cast(old.dtype)
        except pl.exceptions.PolarsError:  # whole numbers beyond those of a narrow type
            kind = pl.UInt64 if new.dtype == pl.UInt64 else pl.Int64
            try:
                old, new = old.cast(kind), new.cast(kind)
            except pl.exceptions.PolarsError as error:
                raise ValueError(f"IdMap.grown: {self.name} ids must fit in {kind}, got {error}") from None
        return IdMap(pl.concat([old, new]), self.name)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"IdMap({self.name}: {len(self)} x {self._values.dtype})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and self.name == other.name and self.sha256() == other.sha256()

    __hash__ = None  # type: ignore[assignment]

    @property
    def values(self) -> pl.Series:
        """All external ids, in the order of their indices."""
        return self._values

    def encode(self, values: Any, unknown: int | None = None) -> Int32Array:
        """Internal indices of external ids.

        Args:
            values: ids (list, NumPy, polars, pandas, or a single id); blanks around a text that is not known are passed
                over.
            unknown: the index to give unknown ids; None raises instead.
        Returns:
            int32 [len(values)].
        Raises:
            UnknownIdError (a ValueError): ids the map does not hold, the first five named.
            TypeError: ids of another type than the map's.
        """
        given = to_series(values, self.name)
        query = self._as_query(given)
        codes = self._lookup(query)
        missing = codes < 0
        if missing.any() and query.dtype == pl.String:  # blanks around an id are no part of it
            rows = np.flatnonzero(missing)
            texts = query.gather(rows).to_list()
            stripped = [None if text is None else text.strip() for text in texts]
            if stripped != texts:
                codes[rows] = self._lookup(pl.Series(self.name, stripped, dtype=pl.String))
                missing = codes < 0
        if missing.any():
            if unknown is None:
                raise self._unknown(given, missing)
            codes[missing] = unknown
        return codes

    def typed(self, values: Any) -> pl.Series:
        """Ids, known or not, in the type of this map.

        Raises:
            ValueError: a missing id, or one beyond what the type holds. TypeError: ids of another type.
        """
        given = to_series(values, self.name)
        typed = self._as_query(given)
        if typed.null_count():
            wrong = given.gather(np.flatnonzero(typed.is_null().to_numpy())[:1]).to_list()[0]
            raise ValueError(
                f"IdMap.typed: {self.name} ids must be {self._values.dtype} and none be missing, got {wrong!r}; "
                "leave it out"
            )
        return typed

    def decode(self, indices: Any) -> NDArray[Any]:
        """External ids of internal indices ([n], any integer type), in their original type.

        Raises IndexError for an index outside 0..len-1, TypeError for indices that are not integers.
        """
        index = np.atleast_1d(np.asarray(indices))
        if index.size == 0:
            index = index.astype(np.int64)
        if index.dtype.kind not in "iu":
            raise TypeError(f"IdMap.decode: integer indices are required, got {index.dtype}")
        bad = (index < 0) | (index >= len(self))
        if bad.any():
            at = int(np.flatnonzero(bad.ravel())[0])
            raise IndexError(
                f"IdMap.decode: {self.name} indices must be in [0, {len(self)}), "
                f"got {index.ravel()[at]} at position {at}"
            )
        return self._values.gather(index.ravel().astype(np.int64)).to_numpy().reshape(index.shape)

    def parse(self, texts: Iterable[str]) -> pl.Series:
        """Ids written as text (a command line) in the type of this map; raises ValueError for text that is not one."""
        given = pl.Series(self.name, [text if text is None else text.strip() for text in texts], dtype=pl.String)
        if self._values.dtype == pl.String:
            return given
        parsed: pl.Series = given.cast(self._values.dtype, strict=False)
        if parsed.null_count():
            wrong = given.filter(parsed.is_null())[0]
            raise ValueError(
                f"{self.name} ids here are {_kind(self._values.dtype)}, got {wrong!r}; "
                f"an example of one is {self._values[0]!r}"
            )
        return parsed

    def write_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the ids to `path`, one column `<name>_id`, row i = index i; atomically."""
        with replacing(path) as file:
            self._values.alias(f"{self.name}_id").to_frame().write_parquet(file)

    @classmethod
    def read_parquet(cls, path: str | os.PathLike[str], name: str) -> IdMap:
        """The map written by `write_parquet`; ValueError when the file is not one."""
        require_pool(f"IdMap.read_parquet: reading {path}")
        try:
            frame = pl.read_parquet(Path(path), columns=[f"{name}_id"], glob=False)
        except FileNotFoundError:
            raise
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ValueError(
                f"IdMap.read_parquet: {path} must hold a column {name}_id, got {error}; "
                "the file is damaged or of another kind: save the model again"
            ) from None
        return cls(frame.to_series(), name)

    def keys(self) -> NDArray[np.uint64]:
        """A number [n] for each id that depends on nothing but the id: what random draws of ids go by."""
        return hash_series(self._values)

    def ascending(self) -> tuple[IdMap, Int32Array]:
        """The map of the same ids in ascending order, and the index there of each id here, int32 [n]."""
        order = self._values.arg_sort().to_numpy()
        places = np.empty(len(order), dtype=np.int32)
        places[order] = np.arange(len(order), dtype=np.int32)
        return IdMap(self._values.gather(order), self.name), places

    def sha256(self) -> str:
        """Hash of the ids and their order; the width of integers (32 or 64 bits) does not enter."""
        digest = hashlib.sha256()
        if self._values.dtype.is_integer() and self._values.dtype != pl.UInt64:
            digest.update(b"integer")
            digest.update(self._values.cast(pl.Int64).to_numpy().astype("<i8").tobytes())
        else:
            text = self._values if self._values.dtype == pl.Binary else self._values.cast(pl.String).cast(pl.Binary)
            digest.update(str(self._values.dtype).encode())
            digest.update(text.bin.size().cast(pl.Int64).to_numpy().astype("<i8").tobytes())
            digest.update(b"".join(text.to_list()))
        return digest.hexdigest()

    def _as_query(self, given: pl.Series) -> pl.Series:
        """`given` in the map's type, null where it has no equal there."""
        mine = self._values.dtype
        series = given if given.dtype == mine or len(given) == 0 else normalise_ids(given)
        if len(given) and series.dtype != pl.Null and _kind(series.dtype) != _kind(mine):
            raise TypeError(
                f"IdMap.encode: {self.name} ids here are {_kind(mine)}, got {_kind(series.dtype)} ({given[0]!r}); "
                "convert them, or parse text with .parse()"
            )
        query: pl.Series = series.cast(mine, strict=False)
        return query

    def _lookup(self, query: pl.Series) -> Int32Array:
        """Indices int32 [n], -1 for null or unknown."""
        if len(self) == 0 or len(query) == 0:
            return np.full(len(query), -1, dtype=np.int32)
        index = self._index
        if index is None:  # two threads may build it, each for itself
            kind = _NumberIndex if _is_number(self._values.dtype) else _TextIndex
            index = self._index = kind(self._values)
        return index.find(query)

    def _unknown(self, given: pl.Series, missing: NDArray[np.bool_]) -> UnknownIdError:
        values = list(dict.fromkeys(given.gather(np.flatnonzero(missing)).to_list()))
        shown = ", ".join(repr(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")
        example = f" (an example of a known one is {self._values[0]!r})" if len(self) else ""
        return UnknownIdError(
            f"IdMap.encode: every {self.name} id must be among the {len(self)} known ones, "
            f"got {len(values)} unknown: {shown}; drop them, or pass unknown=-1{example}"
        )


class _NumberIndex:
    """Where each of distinct integers, booleans or times is: by a table, or by bisection where that would be large."""

    def __init__(self, values: pl.Series) -> None:
        self._wide = np.uint64 if values.dtype == pl.UInt64 else np.int64  # narrow types would overflow below
        ids, _ = self._numbers(values)
        self._positions = np.argsort(ids, kind="stable").astype(np.int32)
        self._ordered = ids[self._positions]
        self._table: Int32Array | None = None
        low, high = int(self._ordered[0]), int(self._ordered[-1])
        if high - low < max(8 * len(ids), 1 << 20):
            self._table = np.full(high - low + 1, -1, dtype=np.int32)
            self._table[(ids - self._ordered[0]).astype(np.int64)] = np.arange(len(ids), dtype=np.int32)

    def find(self, query: pl.Series) -> Int32Array:
        """Indices int32 [n] of ids of the same type, -1 for null or unknown."""
        numbers, known = self._numbers(query)
        if self._table is not None:
            inside = (numbers >= self._ordered[0]) & (numbers <= self._ordered[-1]) & known
            offset = np.where(inside, numbers, self._ordered[0]) - self._ordered[0]
            from_table: Int32Array = np.where(inside, self._table[offset.astype(np.int64)], np.int32(-1))
            return from_table
        at = np.minimum(np.searchsorted(self._ordered, numbers), len(self._ordered) - 1)
        from_ids: Int32Array = np.where((self._ordered[at] == numbers) & known, self._positions[at], np.int32(-1))
        return from_ids

    def _numbers(self, series: pl.Series) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        physical = series.cast(pl.UInt8) if series.dtype == pl.Boolean else series.to_physical()
        numbers, known = without_nulls(physical, 0)
        return numbers.astype(self._wide, copy=False), known


class _TextIndex:
    """Where each of distinct texts is, by their 64-bit hashes; a few that share theirs are kept in a dict."""

    def __init__(self, values: pl.Series) -> None:
        self._values = values
        hashes = hash_series(values)
        self._positions: Int32Array | None = None  # of the hashes in the table; None: each is at its own place
        self._others: dict[Any, int] = {}
        try:
            self._table = Vocabulary(hashes)
        except ValueError:  # "12" and "12.0" have one hash
            first = np.unique(hashes, return_index=True)[1]
            self._table, self._positions = Vocabulary(hashes[first]), first.astype(np.int32)
            others = np.setdiff1d(np.arange(len(hashes)), first)
            self._others = dict(zip(values.gather(others).to_list(), others.tolist(), strict=True))

    def find(self, query: pl.Series) -> Int32Array:
        """Indices int32 [n] of ids of the same type, -1 for null or unknown."""
        indices = self._table.lookup(hash_series(query)) - np.int32(1)
        indices[query.is_null().to_numpy()] = -1
        rows = np.flatnonzero(indices >= 0)
        if self._positions is not None:
            indices[rows] = self._positions[indices[rows]]
        # A hash is no proof: the text itself is.
        is_other = (self._values.gather(indices[rows]) != query.gather(rows)).to_numpy()
        for row in rows[is_other].tolist():
            indices[row] = self._others.get(query[row], -1)
        return indices


_Index: TypeAlias = _NumberIndex | _TextIndex


def _is_number(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or dtype.is_temporal() or dtype == pl.Boolean


def _kind(dtype: pl.DataType) -> str:
    return "integers" if dtype.is_integer() else "strings" if dtype == pl.String else str(dtype)
