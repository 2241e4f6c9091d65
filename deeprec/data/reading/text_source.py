"""Logs that are text files, plain or gzip, and those of separated fields (pairs: pair_source.py)."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import polars as pl

from deeprec._suggest import did_you_mean
from deeprec.data.reading import separated
from deeprec.data.reading.chunks import (
    BLOCK_BYTES,
    CRITEO_COLUMNS,
    BadRow,
    Chunk,
    ColumnsToRead,
    Progress,
    Source,
    in_order,
)
from deeprec.data.reading.errors import START_BYTES, check_file, checksum, reading, text_start
from deeprec.data.reading.hashing import hash_bytes
from deeprec.data.reading.layout import TextOptions, layout_of
from deeprec.data.reading.rows import Data, Dialect, plain, split_rows
from deeprec.data.reading.separated import BAG, HASH, NUMBER, Pairs, Parsed
from deeprec.data.reading.tables import typed
from deeprec.data.reading.text import OnBad

_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_ROW = 64 << 20

ParsedBlock = TypeVar("ParsedBlock", Parsed, Pairs)


class Block(NamedTuple):
    """Whole rows of a file, and how many of its bytes have been read up to them."""

    text: memoryview
    done: int


class TextSource(Source):
    """What all text files share: blocks of whole rows, read ahead and parsed by threads, and messages by line."""

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        *,
        header_bytes: int = 0,
        on_bad: OnBad = "raise",
        threads: int = 2,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        super().__init__(str(path), columns, on_bad)
        self.path, self.threads, self.block_bytes = path, threads, block_bytes
        self.size = path.stat().st_size
        self._header_bytes = header_bytes

    def check(self, to_read: ColumnsToRead) -> None:
        super().check(to_read)
        for column in (*to_read.texts, *(vector.name for vector in to_read.vectors)):
            raise TypeError(
                f"chunks: {self.name} is separated text, whose columns are read as categories, numbers, bags and "
                f"sequences; {column!r} is declared a text, a file or a vector: write the table as Parquet or pass a "
                "frame, or declare a vector by its columns of numbers"
            )

    def _cut(self, text: Data) -> int:
        return separated.cut_log(text, Dialect(b" "))

    def _checksum(self) -> str:
        return checksum(self.path)

    def _blocks(self) -> Iterator[Block]:
        """The file in blocks of whole rows; a header stays as blank lines, so that lines can be counted."""
        with open_text(self.path) as (file, raw):
            rest = file.read(len(_BOM)).removeprefix(_BOM)
            if self._header_bytes:
                header = rest + file.read(self._header_bytes - len(rest))
                rest = b"\n" * header.count(b"\n") + header[self._header_bytes :]
            while True:
                text = memoryview(np.empty(len(rest) + self.block_bytes, dtype=np.uint8))
                text[: len(rest)] = rest
                read = file.readinto(text[len(rest) :])
                text = text[: len(rest) + read]
                end = self._cut(text) if read else len(text)
                if end == 0 and len(text) > max(_LONGEST_ROW, 4 * self.block_bytes):
                    raise ValueError(
                        f"read: {self.path}: a row must be shorter than {_LONGEST_ROW >> 20} MiB, got one that begins "
                        f"with {bytes(text[:40])!r} and does not end; is a quote not closed? (pass quote=None)"
                    )
                if end:
                    yield Block(text[:end], raw.tell())
                rest = bytes(text[end:])
                if not read:
                    return

    def _parsed(self, parse: Callable[[memoryview], ParsedBlock], progress: Progress) -> Iterator[ParsedBlock]:
        """All blocks parsed, in order; bad rows noted, or raised."""
        line = 1
        for done, parsed in in_order(self._blocks(), lambda block: (block.done, parse(block.text)), self.threads):
            if parsed.num_bad:
                self._report(parsed.num_bad, parsed.bad, line)
            line += parsed.lines
            progress(done, self.size)
            yield parsed

    def _parser(self, to_read: ColumnsToRead) -> Callable[[memoryview], Any]:
        """What parses a block."""
        raise NotImplementedError

    def _place(self, row: int, to_read: ColumnsToRead) -> tuple[str, str]:
        parse, line = self._parser(to_read), 1
        for block in self._blocks():
            parsed = parse(block.text)
            if row < parsed.rows:
                # The shortest beginning of the block that holds the row; what ends before it is not the row's.
                low, high = 0, len(block.text)
                while high - low > 1:
                    middle = (low + high) // 2
                    cut = self._cut(block.text[:middle])
                    low, high = (low, middle) if cut and parse(block.text[:cut]).rows > row else (middle, high)
                before = self._cut(block.text[:low])
                return self.name, f"line {line + (parse(block.text[:before]).lines if before else 0)}"
            row -= parsed.rows
            line += parsed.lines
        return super()._place(row, to_read)

    def _report(self, count: int, bad: list[separated.Bad], line: int) -> None:
        rows = [
            BadRow(line + one.line, self._column(one.column), one.text.decode("utf-8", "replace"), str(self.path))
            for one in bad
        ]
        self.bad.add(count, rows)
        if self.on_bad == "raise":
            raise ValueError(
                f"read: {self.path}, line {rows[0].line}: {self._complaint(bad[0].reason, rows[0])}; "
                "correct it or pass on_bad='skip'"
            )

    def _column(self, at: int) -> str:
        return self.columns[at] if at < len(self.columns) else ""

    def _complaint(self, reason: int, row: BadRow) -> str:
        if reason == separated.BAD_WEIGHT:
            return f"{row.column} must hold values with a finite weight each, got {row.text!r}"
        if reason == separated.INFINITE:
            return f"{row.column} must be finite, got {row.text!r}"
        return f"{row.column} must be a number, got {row.text!r}"


class SeparatedSource(TextSource):
    """Separated text, with a header row or names of columns."""

    def __init__(
        self,
        path: Path,
        *,
        text: TextOptions | None = None,
        codes: Mapping[str, Mapping[str, float]] | None = None,
        default: str | None = None,
        **options: Any,
    ) -> None:
        start = read_start(path)
        text = text or TextOptions()
        layout = layout_of(path, start, text, default=default)
        if text.columns is CRITEO_COLUMNS and len(layout.first) == len(CRITEO_COLUMNS) - 1:
            layout = layout._replace(names=list(CRITEO_COLUMNS[1:]))
        self.dialect = layout.dialect
        super().__init__(path, layout.names, header_bytes=layout.start, **options)
        self._has_own_names = text.columns is None and layout.has_names
        self._code_texts = codes or {}
        self._codes = _coded(self._code_texts, self.columns, str(path))

    def head(self, rows: int = 1000) -> pl.DataFrame:
        rows_of_fields: list[list[bytes]] = []
        size = max(START_BYTES, 2000 * rows)
        text = read_start(self.path, size)
        end = self._cut(text) if len(text) >= size - len(_BOM) else len(text)  # a row may be cut short
        for row in split_rows(plain(text[self._header_bytes : end or None], self.dialect), self.dialect):
            if row.is_closed and len(row.fields) == len(self.columns):
                rows_of_fields.append(row.fields)
            if len(rows_of_fields) == rows:
                break
        missing = set(self.dialect.missing)
        return typed(
            pl.DataFrame(
                [
                    pl.Series(name, [_text_or_none(row[at], missing) for row in rows_of_fields], dtype=pl.String)
                    for at, name in enumerate(self.columns)
                ]
            )
        )

    def _cut(self, text: Data) -> int:
        return separated.cut_log(text, self.dialect)

    def _chunks(self, to_read: ColumnsToRead, progress: Progress) -> Iterator[Chunk]:
        for parsed in self._parsed(self._parser(to_read), progress):
            yield Chunk(
                parsed.rows,
                0,
                {self.columns[at]: values for at, values in parsed.hashes.items()},
                {self.columns[at]: values for at, values in parsed.numbers.items()},
                {self.columns[at]: values for at, values in parsed.bags.items()},
            )

    def _parser(self, to_read: ColumnsToRead) -> Callable[[memoryview], Parsed]:
        categorical, numeric = frozenset(to_read.categorical), frozenset(to_read.numeric)
        bags = {bag.name: bag for bag in to_read.bags}
        kinds = bytes(
            HASH * (name in categorical) | NUMBER * (name in numeric) | BAG * (name in bags) for name in self.columns
        )
        separators = [
            (bags[name].separator.encode(), (bags[name].weight_separator or "").encode())
            for name in self.columns
            if name in bags
        ]

        def parse(text: memoryview) -> Parsed:
            return separated.parse_log(plain(text, self.dialect), self.dialect, kinds, separators, self._codes)

        return parse

    def _complaint(self, reason: int, row: BadRow) -> str:
        count = len(self.columns)
        if reason == separated.TOO_FEW:
            text = f"a row must have {count} fields, got {row.text} ({row.column} is missing)"
        elif reason == separated.TOO_MANY:
            text = f"a row must have {count} fields, got more, the first of them {row.text!r}"
        elif reason == separated.UNCLOSED:
            text = f"a quoted field must end in a quote, got {row.text[:40]!r} and no more quote (pass quote=None?)"
        elif reason == separated.NOT_A_CODE:
            known = self._code_texts[row.column]
            text = f"{row.column} must be one of the texts in codes, got {row.text!r}; {did_you_mean(row.text, known)}"
        else:
            text = super()._complaint(reason, row)
        if row.line == 1 and not self._has_own_names:
            text += " (if it is a header, leave columns out, or pass header=True)"
        return text


class TextFile:
    """A file that unpacks itself where it is gzip; `raw` is the file as it lies on the disk."""

    def __init__(self, path: Path, raw: BinaryIO) -> None:
        self._path = path
        magic = raw.read(2)
        raw.seek(0)
        if magic != _GZIP_MAGIC and path.suffix == ".gz" and magic:
            raise ValueError(
                f"open_source: {path} must be a gzip file, got bytes {magic!r}; "
                "drop the .gz from its name if it is plain text, or download it again"
            )
        self._file: Any = gzip.GzipFile(fileobj=raw) if magic == _GZIP_MAGIC else raw

    def read(self, size: int) -> bytes:
        """At most so many bytes."""
        with reading(self._path):
            data: bytes = self._file.read(max(size, 0))
        return data

    def readinto(self, buffer: memoryview) -> int:
        """Fills `buffer` or as much of it as there is; returns how much."""
        done = 0
        with reading(self._path):
            while done < len(buffer) and (read := self._file.readinto(buffer[done:])):
                done += read
        return done


@contextmanager
def open_text(path: Path) -> Iterator[tuple[TextFile, BinaryIO]]:
    """(the text, the file as it lies on the disk)."""
    with reading(path):
        raw = path.open("rb")
    with raw:
        yield TextFile(path, raw), raw


def line_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """A text in blocks of whole lines, without a byte order mark."""
    with open_text(path) as (file, _):
        rest = file.read(len(_BOM)).removeprefix(_BOM)
        while read := file.read(block_bytes):
            text = rest + read
            end = text.rfind(b"\n") + 1
            rest = text[end:]
            if end:
                yield text[:end]
        if rest:
            yield rest


def read_start(path: Path, size: int = START_BYTES) -> bytes:
    """The first bytes of a text; raises for a file that is missing or empty."""
    check_file(path, "open_source")
    with open_text(path) as (file, _):
        start = file.read(size)
    return text_start(path, start, "open_source")


def guess_format(path: Path) -> str | None:
    """Criteo's, libsvm's or libffm's format by the first row; "csv" where it has several fields; or None."""
    row = read_start(path).split(b"\n", 1)[0].rstrip(b"\r")
    if row.count(b"\t") + 1 in (len(CRITEO_COLUMNS) - 1, len(CRITEO_COLUMNS)):
        return "criteo"
    number = rb"[0-9.eE+-]+"
    if re.fullmatch(rb"[ \t]*%s([ \t]+[0-9]+:%s)+[ \t]*" % (number, number), row):
        return "libsvm"
    if re.fullmatch(rb"[ \t]*%s([ \t]+[0-9]+:[0-9]+:%s)+[ \t]*" % (number, number), row):
        return "libffm"
    if row.startswith(b"{") and row.endswith(b"}"):
        return "jsonl"
    return "csv" if len(layout_of(path, read_start(path), TextOptions()).first) > 1 else None


def _coded(codes: Mapping[str, Mapping[str, float]], columns: list[str], source: str) -> dict[int, separated.Codes]:
    for column in codes:
        if column not in columns:
            raise ValueError(
                f"open_source: codes must be of columns of {source}, got {column!r}; {did_you_mean(column, columns)}"
            )
    places = {column: at for at, column in enumerate(columns)}
    return {
        places[column]: [(hash_bytes(text.encode()), float(number)) for text, number in known.items()]
        for column, known in codes.items()
    }


def _text_or_none(text: bytes, missing: set[int]) -> str | None:
    return None if not text or (missing and hash_bytes(text) in missing) else text.decode("utf-8", "replace")
