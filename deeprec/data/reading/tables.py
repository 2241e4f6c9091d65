"""Whole tables out of Parquet files and separated text; every error names the file, and the line where there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from deeprec.data.reading import separated
from deeprec.data.reading.errors import check_file, reading
from deeprec.data.reading.frames import table_of
from deeprec.data.reading.missing import LEADING_ZEROS, LONG_NUMBERS, MISSING_NUMBERS
from deeprec.data.reading.separated import Dialect
from deeprec.data.reading.text import OnBad, read_bytes

_QUOTE = b'"'


class TextTable(NamedTuple):
    """A separated text, all columns as text.

    Attributes:
        frame: null where a field is empty.
        dropped: malformed rows that were passed over.
        line_of: line of the file, from 1, of a row of the frame.
    """

    frame: pl.DataFrame
    dropped: int
    line_of: Callable[[int], int]


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """A Parquet file, or some of its columns."""
    check_file(path)
    with reading(path, "a whole Parquet file"):
        return pl.read_parquet(path, columns=columns, glob=False)  # brackets in a name are brackets


def read_separated(path: Path, separator: str | None = None, on_bad: OnBad = "raise") -> TextTable:
    """A separated text with a header row, plain or gzip, quoted as RFC 4180 says; blank lines are passed over.

    Args:
        separator: None: a tab where the first line has one, else a comma.
        on_bad: rows with another number of fields or an open quote: "raise" names the first, "skip" drops them.
    Raises:
        ValueError: a header without names of its own, a malformed row, text that is not UTF-8.
    """
    data = read_bytes(path)
    if separator is None:
        separator = "\t" if b"\t" in data[: data.find(b"\n")] else ","
    dialect = Dialect(separator.encode(), _QUOTE if _QUOTE in data else b"")
    header = next(separated.split_rows(data, dialect))
    if not header.is_closed:
        raise ValueError(f"read: {path}, line 1: a quoted name must end in a quote, got {header.fields[-1][:40]!r} and "
                         "no more quote; close it")  # fmt: skip
    names = names_of(path, header.fields)
    body = data[header.end :]
    first_line = 2 + data.count(b"\n", 0, header.end - 1) - (header.end > len(data))
    checked = separated.parse_log(body, dialect, bytes(len(names)), [])
    if checked.num_bad and on_bad == "raise":
        bad = checked.bad[0]
        raise ValueError(
            f"read: {path}, line {first_line + bad.line}: {_complaint(bad, len(names), separator)}; "
            "correct it or pass on_bad='skip'"
        )
    frame = None if checked.num_bad else _by_polars(body, names, dialect, checked.rows)
    if frame is None:
        frame = _row_by_row(path, body, names, dialect, first_line)

    is_plain = not checked.num_bad and checked.rows == checked.lines + (not body.endswith(b"\n"))
    lines: list[int] = []

    def line_of(row: int) -> int:
        if is_plain:  # each line is a row
            return first_line + row
        if not lines:
            lines.extend(one.line for one in separated.split_rows(body, dialect) if _is_whole(one, len(names)))
        return first_line + lines[row]

    return TextTable(frame, checked.num_bad, line_of)


def names_of(path: Path, header: list[bytes]) -> list[str]:
    """Names of columns; ValueError where one is not UTF-8 or two are the same."""
    try:
        names = [field.decode() for field in header]
    except UnicodeDecodeError as error:
        raise ValueError(f"read: {path}, line 1: names must be UTF-8, got {error.object[:60]!r}; convert the file "
                         "(iconv -f LATIN1 -t UTF-8)") from None  # fmt: skip
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"read: each column of {path} must have a name of its own, got {twice[:5]} more than once; rename them, or "
            "pass columns=[...] for a text without a header"
        )
    return names


def _complaint(bad: separated.Bad, count: int, separator: str) -> str:
    text = bad.text.decode("utf-8", "replace")
    if bad.reason == separated.UNCLOSED:
        return f"a quoted field must end in a quote, got {text[:40]!r} and no more quote"
    got = text if bad.reason == separated.TOO_FEW else f"more, the first of them {text!r}"
    return f"a row of a table separated by {separator!r} must have {count} fields, as the header has, got {got}"


def _by_polars(body: bytes, names: list[str], dialect: Dialect, rows: int) -> pl.DataFrame | None:
    """The fast way, or None where it disagrees about the rows or refuses the text."""
    if not rows or len(dialect.separator) != 1:
        return None
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


def _row_by_row(path: Path, body: bytes, names: list[str], dialect: Dialect, first_line: int) -> pl.DataFrame:
    columns: list[list[str | None]] = [[] for _ in names]
    for row in separated.split_rows(body, dialect):
        if not _is_whole(row, len(names)):
            continue
        for name, column, field in zip(names, columns, row.fields, strict=True):
            try:
                column.append(field.decode() or None)
            except UnicodeDecodeError:
                raise ValueError(
                    f"read: {path}, line {first_line + row.line}: {name} must be UTF-8, got {field[:60]!r}; "
                    "convert the file (iconv -f LATIN1 -t UTF-8)"
                ) from None
    return pl.DataFrame([pl.Series(name, column, pl.String) for name, column in zip(names, columns, strict=True)])


def _is_whole(row: separated.Row, count: int) -> bool:
    return row.is_closed and len(row.fields) == count


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns of text as whole numbers or numbers where all of a column is, or is missing (see `missing`); as they are
    otherwise, and where that would lose leading zeros or digits."""
    columns = frame.get_columns()
    left = [at for at, column in enumerate(columns) if column.null_count() < len(column)]
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
