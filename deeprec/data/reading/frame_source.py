"""Logs that are frames or Parquet files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean
from deeprec.data.reading import separated
from deeprec.data.reading.arrays import columns_of, require_pool, rows_of, without_nulls
from deeprec.data.reading.chunks import BLOCK_BYTES, BadRow, BagColumn, Chunk, ColumnsToRead, Progress, Source, in_order
from deeprec.data.reading.errors import check_file, checksum, reading
from deeprec.data.reading.frames import first_odd, frame_of, plain_texts, table_of
from deeprec.data.reading.hashing import Hashes, buffers, hash_series, hash_values
from deeprec.data.reading.layout import hashes_of
from deeprec.data.reading.rows import Dialect
from deeprec.data.reading.separated import BagChunk
from deeprec.data.reading.text import OnBad

_log = logging.getLogger("deeprec")

_LISTS = (pl.List, pl.Array)
_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_READ_BYTES = 64 << 20


class TableSource(Source):
    """What frames and Parquet files share: slices of rows, converted by threads."""

    schema: pl.Schema

    def __init__(
        self,
        name: str,
        schema: pl.Schema,
        *,
        missing: Sequence[str] = (),
        codes: Mapping[str, Mapping[str, float]] | None = None,
        on_bad: OnBad = "raise",
        threads: int = 2,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        super().__init__(name, list(schema), on_bad)
        self.schema, self.threads, self.block_bytes = schema, threads, block_bytes
        self.dialect = Dialect(b"", b"", hashes_of(missing))
        self.codes = codes or {}
        self._warned: set[str] = set()
        for column in self.codes:
            if column not in schema:
                raise ValueError(
                    f"open_source: codes must be of columns of {name}, got {column!r}; {did_you_mean(column, schema)}"
                )

    def check(self, to_read: ColumnsToRead) -> None:
        super().check(to_read)
        for column in to_read.numeric:
            kind = self.schema[column]
            is_number = kind.is_numeric() or kind in (pl.Boolean, pl.Null) or isinstance(kind, _TEXTS)
            if column not in self.codes and not is_number:
                raise TypeError(
                    f"chunks: column {column!r} of {self.name} must hold numbers, got {self._got(column)}; declare it "
                    "categorical, pass codes= for texts that mean numbers, or cast it"
                )
        for column in to_read.categorical:
            kind = self.schema[column]
            if kind.is_nested() or kind == pl.Object:
                raise TypeError(
                    f"chunks: column {column!r} of {self.name} must hold one value a row, got {self._got(column)}; "
                    "declare it a bag"
                )
        for bag in to_read.bags:
            kind = self.schema[bag.name]
            inner = getattr(kind, "inner", kind)
            if inner.is_nested() or inner == pl.Object or (kind.is_nested() and not isinstance(kind, _LISTS)):
                raise TypeError(
                    f"chunks: column {bag.name!r} of {self.name} must hold lists of values or text, got "
                    f"{self._got(bag.name)}"
                )
        for column in to_read.texts:
            kind = self.schema[column]
            if kind.is_nested() or kind in (pl.Object, pl.Binary):
                raise TypeError(f"chunks: column {column!r} of {self.name} must hold one text a row, got "
                                f"{self._got(column)}")  # fmt: skip
        for vector in to_read.vectors:
            kind = self.schema[vector.name]
            if not isinstance(kind, _LISTS) or not kind.inner.is_numeric():
                raise TypeError(
                    f"chunks: column {vector.name!r} of {self.name} must hold lists of {vector.width} numbers, got "
                    f"{self._got(vector.name)}; declare what it is, or declare the vector by its columns of numbers"
                )

    def _got(self, column: str) -> str:
        """What a column holds, for messages."""
        return str(self.schema[column])

    def _rows(self, to_read: ColumnsToRead) -> int:
        """Rows in a slice whose columns take about `block_bytes`."""
        columns = len(to_read.categorical) + len(to_read.numeric) + 4 * len(to_read.bags) + 8 * len(to_read.texts)
        columns += sum(vector.width for vector in to_read.vectors)
        return max(1, self.block_bytes // (16 * max(1, columns)))

    def _parts(self, rows: int, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """(first row, slice of at most so many rows), in order."""
        raise NotImplementedError

    def _chunks(self, to_read: ColumnsToRead, progress: Progress) -> Iterator[Chunk]:
        columns = list(to_read.names)
        parts = self._parts(self._rows(to_read), columns)
        for start, height, chunk, bad in in_order(parts, lambda part: self._convert(*part, to_read), self.threads):
            if bad:
                self._report(bad, to_read)
            progress(start + height, self.size)
            yield chunk

    def _convert(
        self, start: int, part: pl.DataFrame, to_read: ColumnsToRead
    ) -> tuple[int, int, Chunk, dict[int, BadRow]]:
        """(start, rows in all, the valid ones, the bad ones by row) of a slice."""
        bad: dict[int, BadRow] = {}
        chunk = self._read(part, to_read, start, bad)
        if bad and self.on_bad == "skip":
            keep = np.ones(part.height, dtype=np.bool_)
            keep[[row - start for row in bad]] = False
            chunk = self._read(rows_of(part, keep), to_read, start, {})
        return start, part.height, chunk, bad

    def _read(self, part: pl.DataFrame, to_read: ColumnsToRead, start: int, bad: dict[int, BadRow]) -> Chunk:
        def note(rows: Any, column: str, texts: Any) -> None:
            for row, text in zip(rows, texts, strict=True):
                bad.setdefault(start + int(row), BadRow(start + int(row), column, str(text)[:60], self.name))

        chunk = Chunk(part.height, 0)
        for column in to_read.categorical:
            chunk.hashes[column] = self._hashes(part.get_column(column))
        for column in to_read.numeric:
            series = part.get_column(column)
            numbers, wrong = self._numbers(series)
            chunk.numbers[column] = numbers
            note(wrong, column, series.gather(wrong).to_list())
        for bag in to_read.bags:
            chunk.bags[bag.name], wrong, texts = _bags(part.get_column(bag.name), bag, self.dialect)
            note(wrong, bag.name, texts)
        for column in to_read.texts:
            chunk.texts[column] = part.get_column(column).cast(pl.String)
        for vector in to_read.vectors:
            series = part.get_column(vector.name)
            chunk.vectors[vector.name], wrong = _vectors(series, vector.width)
            note(wrong, vector.name, series.gather(wrong).to_list())
        return chunk

    def _hashes(self, series: pl.Series) -> Hashes:
        if series.name not in self._warned and series.dtype.is_float() and has_lost_digits(series):
            self._warned.add(series.name)
            _log.warning(
                "%s: column %r holds whole numbers of 2^53 and more as %s, which has lost digits: some values have "
                "become one; read it as text or as integers (Int64)", self.name, series.name, series.dtype,
            )  # fmt: skip
        return separated.blank_missing(hash_values(series), self.dialect)

    def _numbers(self, series: pl.Series) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """([n], rows that hold no number)."""
        known = self.codes.get(series.name)
        if known is not None and not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
            return _decode(series, known, self.dialect)
        if isinstance(series.dtype, _TEXTS):
            return _parse(series, self.dialect)
        values = series.cast(pl.Float64).to_numpy()  # a null is NaN
        return values, np.flatnonzero(np.isinf(values))

    def _report(self, bad: dict[int, BadRow], to_read: ColumnsToRead) -> None:
        rows, vectors = [bad[row] for row in sorted(bad)], dict(to_read.vectors)
        self.bad.add(len(rows), rows[: separated.KEPT_BAD])
        if self.on_bad == "raise":
            row = rows[0]
            needed = "finite"
            if row.column in self.codes:
                needed = f"one of the texts in codes ({did_you_mean(row.text, self.codes[row.column])})"
            elif row.column in vectors:
                needed = f"a list of {vectors[row.column]} finite numbers"
            elif row.column in to_read.numeric and isinstance(self.schema[row.column], _TEXTS):
                needed = "a number, or the column declared categorical"
            elif self.schema[row.column] == pl.String or self.schema[row.column].is_nested():
                needed = "values with a finite weight each"
            raise ValueError(
                f"read: {self.name}, row {row.line}: {row.column} must be {needed}, got {row.text!r}; "
                "correct it or pass on_bad='skip'"
            )


class FrameSource(TableSource):
    """A frame as `frame_of` takes it: of polars or pandas, lazy, of a subclass."""

    def __init__(self, frame: Any, **options: Any) -> None:
        table = frame_of(frame, "open_source")
        self.frame = table_of([plain_texts(column) for column in table]) if pl.Object in table.dtypes else table
        super().__init__("frame", self.frame.schema, **options)
        self.size = self.frame.height

    def head(self, rows: int = 1000) -> pl.DataFrame:
        return self.frame.head(rows)

    def _got(self, column: str) -> str:
        series = self.frame.get_column(column)
        if series.dtype != pl.Object:
            return super()._got(column)
        row = first_odd(series) or 0
        return f"{series[row]!r:.60} in row {row}, of type {type(series[row]).__name__}"

    def _parts(self, rows: int, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        for start in range(0, self.size, rows):
            yield start, columns_of(self.frame.slice(start, rows), columns)

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for column in self.frame.get_columns():
            digest.update(column.name.encode() + b"\0")
            _digest(digest, column)
        return digest.hexdigest()


def _digest(digest: Any, series: pl.Series) -> None:
    """The values of a column into a checksum; of objects that are no values only that they are there."""
    if isinstance(series.dtype, pl.Struct):
        digest.update(np.packbits(series.is_null().to_numpy()).tobytes())
        for name in series.struct.fields:
            digest.update(name.encode() + b"\0")
            _digest(digest, series.struct.field(name))
    elif isinstance(series.dtype, _LISTS):
        lists = series.cast(pl.List(series.dtype.inner))
        digest.update(without_nulls(lists.list.len(), 0)[0].astype("<i8").tobytes())
        _digest(digest, lists.explode())
    elif series.dtype == pl.Object:
        digest.update(b"objects")
    else:
        wide = series.dtype in (pl.Int128, pl.UInt128)
        digest.update(hash_series(series.cast(pl.String) if wide else series).astype("<u8").tobytes())


class ParquetSource(TableSource):
    """A Parquet file. Rows whose columns take some 64 MiB are read at once, whatever `block_bytes` is: each reading
    decodes the row groups that it touches from their beginning."""

    def __init__(self, path: Path, **options: Any) -> None:
        check_file(path, "open_source")
        require_pool(f"open_source: reading {path}")
        self.path = path
        with self._reading():
            self._scan = pl.scan_parquet(path, glob=False)
            schema = self._scan.collect_schema()
            rows = int(self._scan.select(pl.len()).collect().item())
        super().__init__(str(path), schema, **options)
        self.size = rows

    def head(self, rows: int = 1000) -> pl.DataFrame:
        with self._reading():
            return self._scan.head(rows).collect()

    def _reading(self) -> AbstractContextManager[None]:
        return reading(self.path, "a whole Parquet file")

    def _parts(self, rows: int, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        read = rows * -(-_READ_BYTES // self.block_bytes)
        for start in range(0, self.size, read):
            with self._reading():
                table = self._scan.select(columns).slice(start, read).collect()
            for part in range(0, table.height, rows):
                yield start + part, table.slice(part, rows)

    def _checksum(self) -> str:
        return checksum(self.path)


def _parse(series: pl.Series, dialect: Dialect) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Numbers of texts, as those of a file are read, and the rows whose text is none."""
    texts = [(text or "").strip(" \t") for text in series.cast(pl.String).to_list()]
    missing = separated.blank_missing(hash_series(pl.Series(texts, dtype=pl.String)), dialect) == 0
    parsed = {text: separated.number_of(text.encode()) for text in set(texts)}
    values = np.array([parsed[text] for text in texts], dtype=np.float64)
    values[missing] = np.nan
    return values, np.flatnonzero(np.isinf(values))


def _decode(
    series: pl.Series, known: Mapping[str, float], dialect: Dialect
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Numbers of texts, and the rows whose text is not known."""
    texts = series.cast(pl.String)
    _, first, place = np.unique(hash_series(texts), return_index=True, return_inverse=True)
    distinct = [None if text is None else text.strip(" \t") for text in texts.gather(first).to_list()]
    hashes = separated.blank_missing(hash_series(pl.Series(distinct, dtype=pl.String)), dialect)[place]
    values = np.full(len(series), np.nan)
    wrong = hashes != 0
    for code, number in zip(hashes_of(list(known)), known.values(), strict=True):
        values[hashes == code] = number
        wrong &= hashes != code
    return values, np.flatnonzero(wrong)


def _bags(series: pl.Series, bag: BagColumn, dialect: Dialect) -> tuple[BagChunk, NDArray[np.int64], list[str]]:
    """Bags of a column of texts or lists; the rows whose weights are bad, and their texts."""
    weight = (bag.weight_separator or "").encode()
    if not isinstance(series.dtype, _LISTS):
        offsets, data = buffers(series if series.dtype == pl.String else series.cast(pl.String))
        made, rows, _ = separated.parse_bags(offsets, data, (bag.separator.encode(), weight), dialect)
        return made, rows, series.gather(rows).to_list()
    lists = series.cast(pl.List(series.dtype.inner)) if isinstance(series.dtype, pl.Array) else series
    lengths = without_nulls(lists.list.len(), 0)[0].astype(np.int64)
    flat = lists.filter(pl.Series(lengths > 0)).explode()
    ends = np.zeros(len(series) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ends[1:])
    if not weight:
        hashes = hash_values(flat)
        kept = np.zeros(len(flat) + 1, dtype=np.int64)
        np.cumsum(hashes != 0, out=kept[1:])  # empty and null values are passed over
        return BagChunk(kept[ends], hashes[hashes != 0]), np.empty(0, dtype=np.int64), []
    offsets, data = buffers(flat.cast(pl.String))
    made, wrong, _ = separated.parse_bags(offsets, data, (b"", weight), dialect._replace(missing=()))
    rows = np.unique(np.searchsorted(ends, wrong, side="right") - 1)
    return made._replace(offsets=made.offsets[ends]), rows, [str(text) for text in series.gather(rows).to_list()]


def has_lost_digits(series: pl.Series) -> bool:
    """Whether a column of floats holds whole numbers too large for it to tell apart."""
    values = series.to_numpy()
    with np.errstate(invalid="ignore"):
        return bool((np.abs(values) >= (2.0**53 if series.dtype == pl.Float64 else 2.0**24)).any())


def _vectors(series: pl.Series, width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """([n, width], NaN throughout where the list is missing; the rows of another length or with no finite number)."""
    lists = series.cast(pl.List(pl.Float64))
    lengths, is_known = without_nulls(lists.list.len(), 0)
    is_wrong = is_known & (lengths != width)
    fits = is_known & ~is_wrong
    numbers = np.full((len(series), width), np.nan, dtype=np.float32)
    if fits.any():
        with np.errstate(over="ignore"):
            numbers[fits] = lists.filter(pl.Series(fits)).explode().to_numpy().reshape(-1, width)
        is_wrong |= fits & ~np.isfinite(numbers).all(axis=1)
    return numbers, np.flatnonzero(is_wrong)
