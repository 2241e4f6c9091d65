"""Click logs of any form as a stream of chunks: hashes of categorical values, numbers, bags, by column.

    source = open_source("train.tsv.gz")
    for chunk in source.chunks(Wanted(categorical=("site",), numeric=("label", "price"))):
        chunk.hashes["site"], chunk.numbers["price"]

A value has one hash (`deeprec.data.hashing.hash_text`) whatever the source is, and nothing in Python happens once a
row. Text is read in blocks of `block_bytes`, cut at the ends of rows, and parsed by `threads` threads, results in the
order of the file. At most threads + 2 blocks and their chunks are held at once: beside the text itself a chunk takes 8
bytes a row for each wanted column (never more than 8 bytes for each byte of text) and 12 for each entry of a bag; with
16 MiB blocks, two threads and Criteo's 40 columns about 160 MiB altogether.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean
from deeprec.data import separated
from deeprec.data.hashing import Hashes, Vocabulary, as_series, hash_bytes, hash_series, hash_text
from deeprec.data.separated import BAG, HASH, NUMBER, BagChunk, Dialect, Parsed
from deeprec.data.text import OnBad, check_on_bad
from deeprec.data.text import did_you_mean as did_you_mean_file

__all__ = [
    "BadRow",
    "BadRows",
    "BagChunk",
    "BagColumn",
    "Chunk",
    "Source",
    "Vocabulary",
    "Wanted",
    "hash_text",
    "open_source",
]

Progress = Callable[[int, int], None]

BLOCK_BYTES = 16 << 20
FRAME_ROWS = 1 << 17
CRITEO_COLUMNS = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]

_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"


class BagColumn(NamedTuple):
    """A multi-valued column that is wanted.

    Attributes:
        name: of the column.
        separator: between the values in a column of text; a column of lists needs none.
        weight_separator: between a value and its weight ("action:0.5"), the last one of the value; None: no weights.
    """

    name: str
    separator: str = "|"
    weight_separator: str | None = None


class Wanted(NamedTuple):
    """Columns to read, and as what; a column may be wanted in several ways."""

    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    bags: tuple[BagColumn, ...] = ()


@dataclass
class Chunk:
    """Consecutive good rows of a source, columns by name.

    Attributes:
        rows: how many, >= 1.
        first_row: number of the first one among the good rows of the source, from 0.
        hashes: [rows], uint64, of each categorical column; 0 = missing (empty or null).
        numbers: [rows], float64, of each numeric column, finite; NaN = missing.
        bags: of each column of bags.
    """

    rows: int
    first_row: int
    hashes: dict[str, Hashes] = field(default_factory=dict)
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    bags: dict[str, BagChunk] = field(default_factory=dict)


class BadRow(NamedTuple):
    """A row that could not be read: line (or row of a frame, both from 1), column, what it holds, in which file."""

    line: int
    column: str
    text: str
    file: str


@dataclass
class BadRows:
    """The bad rows of the last pass: how many, and the first few."""

    count: int = 0
    first: list[BadRow] = field(default_factory=list)


class Source:
    """A log that can be read any number of times.

    Attributes:
        name: for messages and cards.
        columns: all columns, left to right.
        bad: what the last pass of `chunks` left out.
    """

    def __init__(self, name: str, columns: list[str], on_bad: OnBad) -> None:
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(f"open_source: columns of {name} must have names of their own, got {twice} twice")
        self.name, self.columns, self.on_bad = name, columns, on_bad
        self.bad = BadRows()
        self._sha256: str | None = None

    @property
    def sha256(self) -> str:
        """Checksum of the file as it lies on the disk (of a frame, of its columns' hashes); read when first asked."""
        if self._sha256 is None:
            self._sha256 = self._checksum()
        return self._sha256

    def chunks(self, wanted: Wanted, *, progress: Progress | None = None) -> Iterator[Chunk]:
        """All good rows, in the order of the source.

        Args:
            wanted: columns and what they are read as.
            progress: called with (done, total), bytes of a file as it lies on the disk, or rows of a frame.
        Raises:
            ValueError: a column that is not there; a bad row where `on_bad` is "raise", naming file, line, column and
                text; a damaged file. TypeError: a column of another type than is wanted.
        """
        self.check(wanted)
        self.bad = BadRows()
        return self._chunks(wanted, progress or (lambda done, total: None))

    def head(self, rows: int = 1000) -> pl.DataFrame:
        """The first good rows as a frame with inferred types."""
        raise NotImplementedError

    def check(self, wanted: Wanted) -> None:
        """Raises ValueError unless all `wanted` columns are there."""
        for column in (*wanted.categorical, *wanted.numeric, *(bag.name for bag in wanted.bags)):
            if column not in self.columns:
                raise ValueError(
                    f"chunks: {self.name} must have a column {column!r}; {did_you_mean(column, self.columns)}"
                )

    def _checksum(self) -> str:
        raise NotImplementedError

    def _chunks(self, wanted: Wanted, progress: Progress) -> Iterator[Chunk]:
        raise NotImplementedError

    def _note_bad(self, count: int, first: list[BadRow]) -> None:
        self.bad.count += count
        self.bad.first += first[: separated.KEPT_BAD - len(self.bad.first)]


def open_source(
    source: Any,
    *,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    separator: str | None = None,
    quote: str | None = '"',
    missing: Sequence[str] = (),
    on_bad: OnBad = "raise",
    threads: int = 2,
    block_bytes: int = BLOCK_BYTES,
) -> Source:
    """A click log of any form.

    Args:
        source: path of a file, or a polars or pandas frame.
        format: "csv", "tsv", "criteo"; None: by the name of the file.
        columns: names of the columns of a text without a header row. A first row that is the same names is passed
            over.
        separator: between fields of a csv, one or more characters (", " for a comma and a space); None: the one of
            `,`, tab, `;` and `|` that the first row has most of.
        quote: of a csv or tsv, None for none.
        missing: texts that mean a missing value, beside the empty one: ("?",) for Adult.
        on_bad: rows with another number of fields, or with text or infinity in a numeric column: "raise" names the
            first one, "skip" leaves them out and counts them in `Source.bad`.
        threads: that parse, >= 1.
        block_bytes: size of the blocks that text is read in, > 0.
    Raises:
        FileNotFoundError, ValueError: no such file, an empty or damaged one, an unknown format.
        TypeError: not a path or a frame.
    """
    check_on_bad(on_bad)
    if isinstance(source, Source):
        return source
    if isinstance(source, (pl.DataFrame, pl.LazyFrame)) or hasattr(source, "iloc"):
        return FrameSource(source, on_bad=on_bad, missing=missing)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"open_source: source must be a path or a frame, got {type(source).__name__}")
    path = Path(source)
    known = format or _format_of(path)
    if known == "criteo":
        separator, quote, columns = "\t", None, columns or CRITEO_COLUMNS
    elif known == "tsv":
        separator = separator or "\t"
    return TextSource(
        path,
        columns=columns,
        separator=separator,
        quote=quote,
        missing=missing,
        on_bad=on_bad,
        threads=threads,
        block_bytes=block_bytes,
    )


FORMATS = {"csv": ".csv", "tsv": ".tsv"}


def _format_of(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    for known, suffix in FORMATS.items():
        if name.endswith(suffix):
            return known
    raise ValueError(
        f"open_source: the name of {path} must end in a known format, or pass format='csv', 'tsv' or 'criteo'"
    )


class TextSource(Source):
    """Separated text, plain or gzip."""

    def __init__(
        self,
        path: Path,
        *,
        columns: Sequence[str] | None = None,
        separator: str | None = None,
        quote: str | None = '"',
        missing: Sequence[str] = (),
        on_bad: OnBad = "raise",
        threads: int = 2,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.path, self.threads, self.block_bytes = path, threads, block_bytes
        _check_file(path)
        start = self._start()
        if not start:
            raise ValueError(f"open_source: {path} is empty (0 bytes); copy or download it again")
        separator = separator or _guess_separator(start)
        self.dialect = Dialect(
            separator.encode(), (quote or "").encode(), tuple(hash_bytes(text.encode()) for text in missing)
        )
        self._header = _first_row(start, self.dialect)
        first = [text.decode("utf-8", "replace") for text in self._header.fields]
        self._has_header = columns is None or first == list(columns)
        super().__init__(str(path), first if columns is None else list(columns), on_bad)

    def _start(self) -> bytes:
        with _open_text(self.path) as file:
            return file.read(1 << 20).removeprefix(_BOM)

    def _checksum(self) -> str:
        with self.path.open("rb") as file:
            digest = hashlib.sha256()
            while part := file.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()

    def head(self, rows: int = 1000) -> pl.DataFrame:
        with _open_text(self.path) as file:
            text = file.read(max(1 << 20, 2000 * rows)).removeprefix(_BOM)
        if len(text) >= max(1 << 20, 2000 * rows):
            text = text[: separated.cut_log(text, self.dialect)]
        found: list[list[bytes]] = []
        for row in separated.split_rows(text, self.dialect):
            if row.is_closed and len(row.fields) == len(self.columns):
                found.append(row.fields)
            if len(found) > rows:
                break
        found = found[1:] if self._has_header else found
        missing = set(self.dialect.missing)
        columns = {
            name: _infer([_text_or_none(row[at], missing) for row in found[:rows]])
            for at, name in enumerate(self.columns)
        }
        return pl.DataFrame(columns)

    def _chunks(self, wanted: Wanted, progress: Progress) -> Iterator[Chunk]:
        kinds, bag_separators = _kinds(self.columns, wanted)
        line, row = 1, 0
        for parsed in self._parsed(kinds, bag_separators, progress):
            if parsed.num_bad:
                self._report(parsed, line)
            line += parsed.lines
            if parsed.rows:
                yield _named(parsed, row, self.columns, wanted)
            row += parsed.rows

    def _parsed(self, kinds: bytes, bag_separators: list[tuple[bytes, bytes]], progress: Progress) -> Iterator[Parsed]:
        """Blocks parsed by threads, in order; one more thread reads ahead."""
        pool = ThreadPoolExecutor(self.threads + 1, thread_name_prefix="deeprec-log")
        blocks = self._blocks()
        try:
            reading: Future[tuple[bytes, int, int] | None] = pool.submit(next, blocks, None)
            waiting: deque[tuple[Future[Parsed], int, int]] = deque()
            while True:
                block = reading.result()
                if block is not None:
                    reading = pool.submit(next, blocks, None)
                    text, done, total = block
                    parsing = pool.submit(separated.parse_log, text, self.dialect, kinds, bag_separators)
                    waiting.append((parsing, done, total))
                while waiting and (block is None or len(waiting) > self.threads):
                    parsed, done, total = waiting.popleft()
                    result = parsed.result()
                    progress(done, total)
                    yield result
                if block is None:
                    return
        finally:
            pool.shutdown(cancel_futures=True)

    def _blocks(self) -> Iterator[tuple[bytes, int, int]]:
        """(whole rows, bytes of the file read so far, bytes in all); the header stays, as a blank line."""
        total = self.path.stat().st_size
        with self.path.open("rb") as raw, _unpacked(raw, self.path) as file:
            rest = file.read(len(_BOM)).removeprefix(_BOM)
            if self._has_header:
                header = rest + file.read(self._header.end - len(rest))
                rest = b"\n" * header.count(b"\n")
            while True:
                read = _read(file, self.block_bytes, self.path)
                text = rest + read
                end = separated.cut_log(text, self.dialect) if read else len(text)
                if end:
                    yield text[:end], raw.tell(), total
                rest = text[end:]
                if not read:
                    return

    def _report(self, parsed: Parsed, line: int) -> None:
        first = [
            BadRow(line + bad.line, self._column(bad.column), bad.text.decode("utf-8", "replace"), str(self.path))
            for bad in parsed.bad
        ]
        self._note_bad(parsed.num_bad, first)
        if self.on_bad == "skip":
            return
        bad, row = parsed.bad[0], first[0]
        raise ValueError(
            f"read: {self.path}, line {row.line}: {_complaint(bad, row, len(self.columns))}; "
            "correct it or pass on_bad='skip'"
        )

    def _column(self, at: int) -> str:
        return self.columns[at] if at < len(self.columns) else ""


def _complaint(bad: separated.Bad, row: BadRow, num_columns: int) -> str:
    if bad.reason == separated.TOO_FEW:
        return f"a row must have {num_columns} fields, got {row.text} ({row.column} is missing)"
    if bad.reason == separated.TOO_MANY:
        return f"a row must have {num_columns} fields, got more, from {row.text!r} on"
    if bad.reason == separated.UNCLOSED:
        return f"the quote before {row.text[:40]!r} is never closed (pass quote=None for a text without quoting)"
    if bad.reason == separated.BAD_WEIGHT:
        return f"{row.column} must hold values with a finite weight each, got {row.text!r}"
    if bad.reason == separated.INFINITE:
        return f"{row.column} must be finite, got {row.text!r}"
    return f"{row.column} must be a number, got {row.text!r}"


def _kinds(columns: list[str], wanted: Wanted) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    bags = {bag.name: bag for bag in wanted.bags}
    kinds = bytes(
        HASH * (name in wanted.categorical) | NUMBER * (name in wanted.numeric) | BAG * (name in bags)
        for name in columns
    )
    separators = [
        (bags[name].separator.encode(), (bags[name].weight_separator or "").encode())
        for name in columns
        if name in bags
    ]
    return kinds, separators


def _named(parsed: Parsed, first_row: int, columns: list[str], wanted: Wanted) -> Chunk:
    return Chunk(
        parsed.rows,
        first_row,
        {columns[at]: values for at, values in parsed.hashes.items()},
        {columns[at]: values for at, values in parsed.numbers.items()},
        {columns[at]: values for at, values in parsed.bags.items()},
    )


def _check_file(path: Path) -> None:
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"open_source: no file {path}{did_you_mean_file(path.name, siblings)}")


def _unpacked(raw: BinaryIO, path: Path) -> Any:
    magic = raw.read(2)
    raw.seek(0)
    if magic == _GZIP_MAGIC:
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".gz" and magic:
        raise ValueError(
            f"open_source: {path} must be a gzip file, got bytes {magic!r}; "
            "drop the .gz from its name if it is plain text, or download it again"
        )
    return raw


def _read(file: Any, size: int, path: Path) -> bytes:
    try:
        data: bytes = file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"read: {path} must be a whole gzip file, got one that ends early or is damaged ({error}); "
            "copy or download it again"
        ) from None
    return data


class _open_text:
    """A file opened for reading bytes, unpacked where it is gzip."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _open_text:
        self.raw = self.path.open("rb")
        self.file = _unpacked(self.raw, self.path)
        return self

    def __exit__(self, *error: object) -> None:
        self.raw.close()

    def read(self, size: int) -> bytes:
        return _read(self.file, size, self.path)


def _first_row(start: bytes, dialect: Dialect) -> separated.Row:
    row = next(separated.split_rows(start, dialect), None)
    if row is None:
        raise ValueError("open_source: a text must have at least one row that is not blank")
    return row


def _guess_separator(start: bytes) -> str:
    line = start.split(b"\n", 1)[0]
    found = max(b",\t;|", key=lambda byte: line.count(bytes([byte])))
    return chr(found)


def _text_or_none(text: bytes, missing: set[int]) -> str | None:
    return None if not text or (missing and hash_bytes(text) in missing) else text.decode("utf-8", "replace")


def _infer(texts: list[str | None]) -> pl.Series:
    series = pl.Series(texts, dtype=pl.String)
    for kind in (pl.Int64, pl.Float64):
        cast = series.str.strip_chars(" \t").cast(kind, strict=False)
        if cast.null_count() == series.null_count() and cast.null_count() < len(cast):
            return cast
    return series


class FrameSource(Source):
    """A polars or pandas frame."""

    def __init__(
        self, frame: Any, *, on_bad: OnBad = "raise", missing: Sequence[str] = (), name: str = "frame"
    ) -> None:
        if isinstance(frame, pl.LazyFrame):
            frame = frame.collect()
        if not isinstance(frame, pl.DataFrame):
            frame = pl.DataFrame([as_series(frame[column], str(column)) for column in frame.columns])
        self.frame = frame
        self.dialect = Dialect(b"", b"", tuple(hash_bytes(text.encode()) for text in missing))
        super().__init__(name, list(frame.columns), on_bad)

    def head(self, rows: int = 1000) -> pl.DataFrame:
        first: pl.DataFrame = self.frame.head(rows)
        return first

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for column in self.columns:
            digest.update(column.encode() + b"\0")
            series = self.frame.get_column(column)
            flat = series.explode() if isinstance(series.dtype, (pl.List, pl.Array)) else series
            digest.update(hash_series(flat).tobytes())
        return digest.hexdigest()

    def check(self, wanted: Wanted) -> None:
        super().check(wanted)
        for column in wanted.numeric:
            kind = self.frame.schema[column]
            if not (kind.is_numeric() or kind in (pl.Boolean, pl.Null)):
                raise TypeError(
                    f"chunks: column {column!r} of {self.name} must hold numbers, got {kind}; "
                    "declare it categorical, or cast it"
                )
        for column in wanted.categorical:
            if isinstance(self.frame.schema[column], (pl.List, pl.Array, pl.Struct, pl.Object)):
                raise TypeError(
                    f"chunks: column {column!r} of {self.name} must hold one value a row, got "
                    f"{self.frame.schema[column]}; declare it a bag"
                )

    def _chunks(self, wanted: Wanted, progress: Progress) -> Iterator[Chunk]:
        done = 0
        for start in range(0, self.frame.height, FRAME_ROWS):
            part = self.frame.slice(start, FRAME_ROWS)
            part = self._good(part, wanted, start)
            progress(min(start + FRAME_ROWS, self.frame.height), self.frame.height)
            if not part.height:
                continue
            hashes = {
                column: separated.blank_missing(hash_series(part.get_column(column)), self.dialect)
                for column in wanted.categorical
            }
            numbers = {column: _numbers(part.get_column(column)) for column in wanted.numeric}
            bags = {bag.name: _bags(part.get_column(bag.name), bag) for bag in wanted.bags}
            yield Chunk(part.height, done, hashes, numbers, bags)
            done += part.height

    def _good(self, part: pl.DataFrame, wanted: Wanted, start: int) -> pl.DataFrame:
        """Rows without infinite numbers."""
        bad = np.zeros(part.height, dtype=np.bool_)
        first: list[tuple[int, str]] = []
        for column in wanted.numeric:
            if part.schema[column].is_float():
                wrong = part.get_column(column).is_infinite().fill_null(False).to_numpy()
                first += [(int(row), column) for row in np.flatnonzero(wrong & ~bad)[: separated.KEPT_BAD]]
                bad |= wrong
        if not bad.any():
            return part
        rows = [
            BadRow(start + row + 1, column, str(part.get_column(column)[row]), self.name)
            for row, column in sorted(first)
        ]
        self._note_bad(int(bad.sum()), rows)
        if self.on_bad == "raise":
            row = rows[0]
            raise ValueError(
                f"read: {self.name}, row {row.line}: {row.column} must be finite, got {row.text}; "
                "correct it or pass on_bad='skip'"
            )
        return part.filter(pl.Series(~bad))


def _numbers(series: pl.Series) -> NDArray[np.float64]:
    values: NDArray[np.float64] = series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return values


def _bags(series: pl.Series, bag: BagColumn) -> BagChunk:
    if isinstance(series.dtype, (pl.List, pl.Array)):
        lists = series.cast(pl.List(series.dtype.inner)) if isinstance(series.dtype, pl.Array) else series
        lengths = lists.list.len().fill_null(0).to_numpy()
        flat = lists.filter(lists.list.len() > 0).explode()
    else:
        lists = series.cast(pl.String).fill_null("").str.split(bag.separator)
        lengths = lists.list.len().to_numpy()
        flat = lists.explode()
    keep = flat.is_not_null() & (flat != "") if flat.dtype == pl.String else flat.is_not_null()
    offsets = np.zeros(len(series) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    kept = np.zeros(len(flat) + 1, dtype=np.int64)
    np.cumsum(keep.to_numpy(), out=kept[1:])
    flat = flat.filter(keep)
    weights = None
    if bag.weight_separator:
        parts = flat.str.extract_groups(f"^(.*){bag.weight_separator}(.*)$").struct.unnest()
        flat, weights = parts.to_series(0), parts.to_series(1).cast(pl.Float64).to_numpy().astype(np.float32)
    return BagChunk(kept[offsets], hash_series(flat), weights)
