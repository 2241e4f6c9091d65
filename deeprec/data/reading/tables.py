"""Whole tables out of Parquet files, JSON lines and separated text; every error names the file, and its line if any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from deeprec.data.reading import separated
from deeprec.data.reading.errors import START_BYTES, check_file, reading
from deeprec.data.reading.frames import table_of
from deeprec.data.reading.layout import SPACES, TextOptions, layout_of
from deeprec.data.reading.missing import LEADING_ZEROS, LONG_NUMBERS, MISSING_NUMBERS
from deeprec.data.reading.records import records
from deeprec.data.reading.rows import Dialect, Row, plain, split_rows
from deeprec.data.reading.text import OnBad, is_compiled, parse_plain_numbers, read_bytes


class Table(NamedTuple):
    """A file as columns; of a separated text all columns are text.

    Attributes:
        frame: null where a field is empty.
        dropped: malformed rows that were passed over.
        place: what messages call a row of the frame: "line 7" of a text, "row 6" (from 0) otherwise.
        has_names: whether the columns have names of their own; else they are called "0", "1", ...
    """

    frame: pl.DataFrame
    dropped: int = 0
    place: Callable[[int], str] = "row {}".format
    has_names: bool = True


def read_table(
    path: Path, options: TextOptions | None = None, on_bad: OnBad = "raise", format: str | None = None
) -> Table:
    """A table of any form, by its name or `format`: Parquet, JSON lines, or separated text, plain or gzip.

    Args:
        options: of a text; `missing` of all forms.
        on_bad: malformed rows of a text: "raise" names the first, "skip" drops them.
    """
    options = options or TextOptions()
    kind = format or {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(
        Path(path.name.removesuffix(".gz")).suffix.lower(), "text"
    )
    if kind == "parquet":
        return Table(_without_missing(read_parquet(path), options.missing))
    if kind in ("jsonl", "mind"):
        data = read_bytes(path)
        frame, bad = records(data, kind, path, on_bad)
        return Table(_without_missing(frame, options.missing), len(bad))
    return read_separated(path, options, on_bad)


def _without_missing(frame: pl.DataFrame, missing: Sequence[str]) -> pl.DataFrame:
    """`frame` with null for texts that mean a missing value."""
    if not missing:
        return frame
    texts = pl.selectors.string()
    return frame.with_columns(pl.when(texts.is_in(list(missing))).then(None).otherwise(texts).name.keep())


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """A Parquet file, or some of its columns."""
    check_file(path)
    with reading(path, "a whole Parquet file"):
        return pl.read_parquet(path, columns=columns, glob=False)  # brackets in a name are brackets


def read_separated(
    path: Path, options: TextOptions | None = None, on_bad: OnBad = "raise", text: SeparatedText | None = None
) -> Table:
    """A separated text, plain or gzip, all columns as text; blank lines are passed over.

    Args:
        options: what its first rows need not tell.
        on_bad: rows with another number of fields or an open quote: "raise" names the first, "skip" drops them.
        text: the file's, where it is in memory already.
    Raises:
        ValueError: a header without names of its own, a malformed row, text that is not UTF-8.
    """
    options = options or TextOptions()
    text = text or SeparatedText.read(path, options)
    checked = separated.parse_log(text.body, text.dialect, bytes(len(text.names)), [])
    if checked.num_bad and on_bad == "raise":
        raise ValueError(text.complaint(checked.bad[0]))
    frame = None if checked.num_bad else _by_polars(text.body, text.names, text.dialect, checked.rows)
    if frame is None:
        frame = _row_by_row(text)
    is_plain = not checked.num_bad and checked.rows == checked.lines + (not text.body.endswith(b"\n"))
    lines: list[int] = []

    def place(row: int) -> str:
        if is_plain:  # each line is a row
            return f"line {text.first_line + row}"
        if not lines:
            rows = split_rows(text.body, text.dialect)
            lines.extend(one.line for one in rows if _is_whole(one, len(text.names)))
        return f"line {text.first_line + lines[row]}"

    return Table(_without_missing(frame, options.missing), checked.num_bad, place, text.has_names)


class SeparatedText(NamedTuple):
    """A separated text in memory.

    Attributes:
        body: its rows of data, as the parsers take them.
        first_line: number of the line, from 1, with which the body begins.
        names, has_names: as of `Layout`.
    """

    path: Path
    body: bytes
    first_line: int
    dialect: Dialect
    names: list[str]
    has_names: bool

    @classmethod
    def read(cls, path: Path, options: TextOptions) -> SeparatedText:
        """A file; `read_separated` says what it raises."""
        data = read_bytes(path)
        kind = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else None
        start = data if len(data) <= START_BYTES else data[:START_BYTES]
        layout = layout_of(path, start, options, default=kind)
        dialect = layout.dialect
        if dialect.quote not in data:
            dialect = dialect._replace(quote=b"")
        body = bytes(plain(data[layout.start :] if layout.start else data, dialect))
        return cls(path, body, 1 + data.count(b"\n", 0, layout.start), dialect, layout.names, layout.has_names)

    def head(self, rows: int) -> pl.DataFrame:
        """The first whole rows, all columns as text."""
        fields: list[list[str | None]] = []
        for row in split_rows(self.body, self.dialect):
            if _is_whole(row, len(self.names)):
                fields.append([field.decode("utf-8", "replace") or None for field in row.fields])
            if len(fields) == rows:
                break
        return pl.DataFrame({name: pl.Series([row[at] for row in fields], dtype=pl.String)
                             for at, name in enumerate(self.names)})  # fmt: skip

    def complaint(self, bad: separated.Bad) -> str:
        """What is wrong with a row, and what to do."""
        separator = self.dialect.separator.decode()
        problem = _complaint(bad, len(self.names), SPACES if self.dialect.has_runs else separator, self.has_names)
        line = self.first_line + bad.line
        return f"read: {self.path}, line {line}: {problem}; correct it or pass on_bad='skip'"


def numbers_of(text: SeparatedText, columns: dict[str, str]) -> pl.DataFrame | None:
    """Columns of plain numbers, about three times faster than by `read_separated`; None where that must read them, as
    a field is something else, or there is no compiled module.

    Args:
        columns: name -> "i" (whole numbers) or "f" (finite ones).
    """
    if not is_compiled() or text.dialect.quote or not text.body:
        return None
    checked = separated.parse_log(text.body, text.dialect, bytes(len(text.names)), [])
    if checked.num_bad or _has_leading_zeros(text.body):  # 007 is another id than 7
        return None
    kinds = {name: columns.get(name, "-") for name in text.names}
    numbers, bad = parse_plain_numbers(text.body, text.dialect.separator.decode(), "".join(kinds.values()))
    if bad or not len(numbers) or len(numbers[0]) != checked.rows or not checked.rows:
        return None
    names = [name for name in text.names if name in columns]
    return pl.DataFrame(dict(zip(names, numbers, strict=True)))


def _has_leading_zeros(body: bytes) -> bool:
    """Whether a 0 stands before a digit and behind neither a digit nor a point."""
    text = np.frombuffer(b"\n" + body, dtype=np.uint8)
    if len(text) < 3:
        return False
    is_zero = text[1:-1] == ord("0")
    is_zero &= (text[2:] - np.uint8(ord("0"))) < 10
    is_zero &= (text[:-2] - np.uint8(ord("0"))) >= 10
    is_zero &= text[:-2] != ord(".")
    return bool(is_zero.any())


def _complaint(bad: separated.Bad, count: int, separator: str, has_names: bool) -> str:
    text = bad.text.decode("utf-8", "replace")
    if bad.reason == separated.UNCLOSED:
        return f"a quoted field must end in a quote, got {text[:40]!r} and no more quote"
    first = "header" if has_names else "first row"
    got = text if bad.reason == separated.TOO_FEW else f"more, the first of them {text!r}"
    return f"a row of a table separated by {separator!r} must have {count} fields, as the {first} has, got {got}"


def _by_polars(body: bytes, names: list[str], dialect: Dialect, rows: int) -> pl.DataFrame | None:
    """The fast way, or None where it disagrees about the rows or refuses the text."""
    if not rows:
        return pl.DataFrame({name: pl.Series(name, [], pl.String) for name in names})
    if len(dialect.separator) > 1:
        if dialect.quote or b"\x1f" in body:
            return None
        body, dialect = body.replace(dialect.separator, b"\x1f"), dialect._replace(separator=b"\x1f")
    quote = dialect.quote.decode() or None
    try:
        frame = pl.read_csv(
            body, has_header=False, new_columns=names, separator=dialect.separator.decode(), quote_char=quote,
            infer_schema=False,
        )  # fmt: skip
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if frame.width != len(names):
        return None
    if frame.height != rows:  # blank lines are rows of nulls to polars
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    if frame.height != rows:
        return None
    return frame.with_columns(pl.all().replace("", None)) if b'""' in body else frame


def _row_by_row(text: SeparatedText) -> pl.DataFrame:
    columns: list[list[str | None]] = [[] for _ in text.names]
    for row in split_rows(text.body, text.dialect):
        if not _is_whole(row, len(text.names)):
            continue
        for name, column, field in zip(text.names, columns, row.fields, strict=True):
            try:
                column.append(field.decode() or None)
            except UnicodeDecodeError:
                raise ValueError(
                    f"read: {text.path}, line {text.first_line + row.line}: {name} must be UTF-8, got {field[:60]!r}; "
                    "convert the file (iconv -f LATIN1 -t UTF-8)"
                ) from None
    series = [pl.Series(name, column, pl.String) for name, column in zip(text.names, columns, strict=True)]
    return pl.DataFrame(series)


def _is_whole(row: Row, count: int) -> bool:
    return row.is_closed and len(row.fields) == count


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns of text as whole numbers or numbers where all of a column is, or is missing (see `missing`); as they are
    otherwise, and where that would lose leading zeros or digits."""
    columns = frame.get_columns()
    texts = [at for at, column in enumerate(columns) if column.dtype == pl.String]
    left = [at for at in texts if columns[at].null_count() < len(columns[at])]
    # All columns at once: a hundred thousand expressions one by one take a minute.
    text = pl.DataFrame([columns[at].alias(str(at)) for at in left])
    text = text.select(pl.all().str.strip_chars(" \t"))
    is_missing = pl.all().str.to_lowercase().is_in([*MISSING_NUMBERS, ""])
    text = text.with_columns(pl.when(is_missing).then(None).otherwise(pl.all()).name.keep())
    has_zeros = text.select(pl.all().str.contains(LEADING_ZEROS).any())
    is_long = text.select(pl.all().str.contains(LONG_NUMBERS).any())
    left = [at for at in left if not has_zeros.item(0, str(at)) and text.get_column(str(at)).null_count() < len(text)]
    for kind in (pl.Int64, pl.Float64):
        if kind == pl.Float64:
            left = [at for at in left if not is_long.item(0, str(at))]
        cast = text.select(pl.col([str(at) for at in left]).cast(kind, strict=False)).get_columns()
        for at, column in zip(left, cast, strict=True):
            if column.null_count() == text.get_column(column.name).null_count():
                columns[at] = column.alias(columns[at].name)
        left = [at for at in left if columns[at].dtype == pl.String]
    return table_of(columns)
