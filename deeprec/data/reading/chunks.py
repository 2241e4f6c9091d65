"""Click logs of any form as a stream of chunks: hashes of categorical values, numbers and bags, by column.

    source = open_source("train.tsv.gz")
    for chunk in source.chunks(ColumnsToRead(categorical=("site",), numeric=("label", "price"))):
        chunk.hashes["site"], chunk.numbers["price"]

A value has one hash (`deeprec.data.reading.hashing`) whatever the source is, and nothing in Python happens once a row.

Memory: text is read in blocks of `block_bytes`, cut at the ends of rows, and parsed by `threads` threads, results in
the order of the file. At most threads + 3 blocks with their chunks are held at once. Beside its text a chunk takes 8
bytes a row for each wanted column, 12 for each entry of a bag and, whatever the text is, never more than 8 bytes of
these for each byte of text. With 16 MiB blocks, two threads and Criteo's 40 columns that is about 150 MiB. Of a Parquet
file columns of some 64 MiB are held besides; a frame is sliced where it lies.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean, listed
from deeprec.data.reading.errors import naming
from deeprec.data.reading.hashing import Hashes, Vocabulary, hash_text
from deeprec.data.reading.separated import KEPT_BAD, BagChunk
from deeprec.data.reading.text import OnBad

__all__ = [
    "BadRow",
    "BadRows",
    "BagChunk",
    "BagColumn",
    "Chunk",
    "ColumnsToRead",
    "Source",
    "VectorColumn",
    "Vocabulary",
    "hash_text",
]

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK_BYTES = 16 << 20
CRITEO_COLUMNS = ("label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))


class BagColumn(NamedTuple):
    """A multi-valued column to read.

    Attributes:
        name: of the column.
        separator: between the values in a column of text, one or more characters; a column of lists needs none. Empty
            values are passed over.
        weight_separator: between a value and its weight ("action:0.5"), the last one in the value; None: no weights.
    """

    name: str
    separator: str = "|"
    weight_separator: str | None = None


class VectorColumn(NamedTuple):
    """A column of lists of `width` numbers each, >= 1, to read."""

    name: str
    width: int


class ColumnsToRead(NamedTuple):
    """Columns to read, and as what; a column may be read in several ways."""

    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    bags: tuple[BagColumn, ...] = ()
    texts: tuple[str, ...] = ()
    vectors: tuple[VectorColumn, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, each once."""
        lists = [bag.name for bag in self.bags] + [vector.name for vector in self.vectors]
        return tuple(dict.fromkeys([*self.categorical, *self.numeric, *self.texts, *lists]))


@dataclass
class Chunk:
    """Consecutive valid rows of a source, columns by name.

    Attributes:
        rows: how many, >= 1.
        first_row: number of the first one among the valid rows of the source, from 0.
        hashes: [rows], uint64, of each categorical column; 0 = missing (empty or null).
        numbers: [rows], float64, of each numeric column, never infinite; NaN = missing.
        bags: of each column of bags.
        texts: [rows], of type String, of each column of texts; null = missing.
        vectors: [rows, width], float32, of each column of vectors; a missing one is NaN throughout.

    The arrays of a chunk may share one piece of memory, which lives as long as any of them: copy what is to be kept.
    """

    rows: int
    first_row: int
    hashes: dict[str, Hashes] = field(default_factory=dict)
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    bags: dict[str, BagChunk] = field(default_factory=dict)
    texts: dict[str, pl.Series] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class BadRow(NamedTuple):
    """A row that could not be read.

    Attributes:
        line: of the file, from 1; of a frame the row, from 0.
        column: name, or "" where the row has too many fields.
        text: what it holds, at most 60 bytes.
        file: or name of the frame.
    """

    line: int
    column: str
    text: str
    file: str


class RowError(ValueError):
    """A value in a valid row of a source that cannot be used.

    Attributes:
        function, column, problem: for the message.
        row: number among the valid rows of the source, from 0.
    """

    def __init__(self, function: str, column: str, row: int, problem: str) -> None:
        super().__init__(f"{function}: {column}, row {row} (from 0): {problem}")
        self.function, self.column, self.row, self.problem = function, column, row, problem


@dataclass
class BadRows:
    """The bad rows of the last pass: how many, and the first five."""

    count: int = 0
    first: list[BadRow] = field(default_factory=list)

    def add(self, count: int, rows: Iterable[BadRow]) -> None:
        """Note `count` more, of which `rows` are the first ones."""
        self.count += count
        self.first += list(rows)[: KEPT_BAD - len(self.first)]


class Source:
    """A log that can be read any number of times.

    Attributes:
        name: for messages and cards.
        columns: all columns, left to right.
        size: bytes of the files as they lie on the disk; rows of a frame or a Parquet file.
        weighted: columns of bags whose entries have weights by themselves (libsvm, libffm).
        bad: the bad rows that the last pass of `chunks` met.
    """

    size: int = 0
    weighted: tuple[str, ...] = ()

    def __init__(self, name: str, columns: Sequence[str], on_bad: OnBad) -> None:
        self.name, self.columns, self.on_bad = name, list(columns), on_bad
        self._column_set = frozenset(self.columns)
        if len(self._column_set) < len(self.columns):
            twice = [column for column, count in Counter(self.columns).items() if count > 1]
            raise ValueError(
                f"open_source: each column of {name} must have a name of its own, got {sorted(twice)[:5]} more than "
                "once; rename them, or pass columns=[...] for a text without a header"
            )
        self.bad = BadRows()
        self._sha256: str | None = None

    @property
    def sha256(self) -> str:
        """Checksum of the file as it lies on the disk (of a frame: of its columns' hashes), read when first asked."""
        if self._sha256 is None:
            self._sha256 = self._checksum()
        return self._sha256

    def chunks(self, to_read: ColumnsToRead, *, progress: Progress | None = None) -> Iterator[Chunk]:
        """All valid rows, in the order of the source.

        Args:
            to_read: columns and what they are read as.
            progress: called with (done, `size`) after each chunk.
        Raises:
            ValueError: a column that is not there, at once; while iterating, a bad row where `on_bad` is "raise"
                (naming file, line, column and text), no valid row at all, a damaged file.
            TypeError: a column of another type than it is read as.
        """
        self.check(to_read)
        self.bad = BadRows()
        return self._counted(to_read, progress or (lambda done, total: None))

    def head(self, rows: int = 1000) -> pl.DataFrame:
        """The first valid rows as a frame with inferred types; a column of bags is a list of texts where the source
        says that it is one."""
        raise NotImplementedError

    def check(self, to_read: ColumnsToRead) -> None:
        """Raises ValueError or TypeError unless all columns of `to_read` are there and can be read as asked."""
        for column in to_read.names:
            if column not in self._column_set:
                raise ValueError(
                    f"chunks: {self.name} must have a column {column!r}; {did_you_mean(column, self.columns)}"
                )

    @contextmanager
    def naming_rows(self, to_read: ColumnsToRead) -> Iterator[None]:
        """Errors about the rows of chunks of `to_read` name the source, and the line where it is a text."""
        with naming(self.name):
            try:
                yield
            except RowError as error:
                name, place = self._place(error.row, to_read)
                raise ValueError(f"{error.function}: {name}: {error.column}, {place}: {error.problem}") from None

    def _place(self, row: int, to_read: ColumnsToRead) -> tuple[str, str]:
        """Name of the source, and line or row, of a valid row, counted from 0; may read the source again."""
        return self.name, f"{'valid ' if self.bad.count else ''}row {row} (from 0)"

    def _counted(self, to_read: ColumnsToRead, progress: Progress) -> Iterator[Chunk]:
        rows = 0
        for chunk in self._chunks(to_read, progress):
            chunk.first_row = rows
            rows += chunk.rows
            if chunk.rows:
                yield chunk
        if not rows and self.bad.count:
            first = self.bad.first[0]
            raise ValueError(
                f"read: {self.name} must have at least one valid row, got {self.bad.count:,} bad ones, the first at "
                f"line {first.line}: {first.column} {first.text!r}; check separator, columns and format"
            )

    def _chunks(self, to_read: ColumnsToRead, progress: Progress) -> Iterator[Chunk]:
        """Chunks in order, perhaps empty; `first_row` is filled in by the caller."""
        raise NotImplementedError

    def _checksum(self) -> str:
        raise NotImplementedError


class Files(Source):
    """Several sources with the same columns, one after the other."""

    def __init__(self, sources: Sequence[Source], on_bad: OnBad) -> None:
        first, self.sources = sources[0], list(sources)
        more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        super().__init__(first.name + more, first.columns, on_bad)
        self.size = sum(source.size for source in sources)
        self.weighted = first.weighted
        for source in sources[1:]:
            odd = sorted(set(source.columns) ^ set(first.columns))
            if odd:
                raise ValueError(
                    f"open_source: {source.name} must have the columns of {first.name}, got {listed(odd)} in one of "
                    "them only; read them apart"
                )

    def head(self, rows: int = 1000) -> pl.DataFrame:
        return self.sources[0].head(rows)

    def check(self, to_read: ColumnsToRead) -> None:
        for source in self.sources:
            source.check(to_read)

    def _chunks(self, to_read: ColumnsToRead, progress: Progress) -> Iterator[Chunk]:
        before = 0
        for source in self.sources:
            source.bad = BadRows()
            start = before  # bound now: a callback may be kept

            def shifted(done: int, _total: int, start: int = start) -> None:
                progress(start + done, self.size)

            try:
                yield from source._chunks(to_read, shifted)
            finally:
                self.bad.add(source.bad.count, source.bad.first)
            before += source.size

    def _place(self, row: int, to_read: ColumnsToRead) -> tuple[str, str]:
        for source in self.sources:
            rows = sum(chunk.rows for chunk in source.chunks(to_read))
            if row < rows:
                break
            row -= rows
        return source._place(row, to_read)

    def _checksum(self) -> str:
        return hashlib.sha256("".join(source.sha256 for source in self.sources).encode()).hexdigest()


def in_order(items: Iterator[Item], work: Callable[[Item], Result], threads: int) -> Iterator[Result]:
    """`map(work, items)` by threads: results in order, at most threads + 1 begun and not taken, one item read ahead."""
    reader = ThreadPoolExecutor(1, thread_name_prefix="deeprec-log-reader")
    pool = ThreadPoolExecutor(threads, thread_name_prefix="deeprec-log")
    nothing: Any = object()
    try:
        begun: deque[Future[Result]] = deque()
        reading = reader.submit(next, items, nothing)
        while (item := reading.result()) is not nothing:
            reading = reader.submit(next, items, nothing)
            begun.append(pool.submit(work, item))
            del item  # the text of a block that is done must not stay
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        reader.shutdown(cancel_futures=True)
        pool.shutdown(cancel_futures=True)
        if isinstance(items, Generator):
            items.close()  # its file with it
