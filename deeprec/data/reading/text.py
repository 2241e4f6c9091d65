"""Text files (plain or gzip) as bytes, and numbers out of separated text."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.reading.errors import check_file, reading, text_start

try:
    from deeprec import _host  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # no compiler at installation: polars parses, about three times slower
    _host = None

OnBad = Literal["raise", "skip"]

_GZIP_MAGIC = b"\x1f\x8b"


def with_gz(path: Path) -> Path | None:
    """`path`, or `path`.gz where only that exists, or None."""
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None


def needed(folder: Path, file: str) -> Path:
    """The file of a data set's folder, or the same packed as .gz; FileNotFoundError without either."""
    path = with_gz(folder / file)
    if path is None:
        raise FileNotFoundError(f"load: {file} (or with .gz) must be in {folder}; get all files of the set")
    return path


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Content of a text file, unpacked when it is gzip, without a byte order mark.

    Raises:
        ValueError: one called .gz that is not gzip, gzip that ends early or is damaged, UTF-16, or bytes that are no
            text; and what `check_file` and `reading` raise.
    """
    path = Path(path)
    check_file(path)
    with reading(path):
        data = path.read_bytes()
    if data.startswith(_GZIP_MAGIC):
        with reading(path):
            data = gzip.decompress(data)
    elif path.suffix == ".gz":
        raise ValueError(
            f"read: {path} must be a gzip file, got bytes {data[:4]!r}; "
            "drop the .gz from its name if it is plain text, or download it again"
        )
    return text_start(path, data)


def parse_numbers(
    data: bytes, separator: str, columns: dict[str, str], path: object, on_bad: OnBad = "raise"
) -> tuple[dict[str, NDArray[Any]], int]:
    """Columns of numbers from separated text.

    Args:
        data: lines of fields; blank lines and fields beyond those named are passed over.
        separator: one or more characters between fields.
        columns: name -> "i" (int64) or "f" (float64, finite), left to right; "-" skips the field.
        path: for messages.
        on_bad: "raise" names the first bad lines; "skip" drops them.
    Returns:
        (name -> array over the valid lines, number of lines dropped).
    Raises:
        ValueError: a field that is missing or not a number, or no valid line at all.
    """
    check_on_bad(on_bad)
    parse = _parse_table_python if _host is None else _host.parse_table
    arrays, bad_lines, errors = parse(data, separator, "".join(columns.values()))
    if len(bad_lines) and on_bad == "raise":
        line, column, text = errors[0]
        name, kind = list(columns.items())[column]
        expected = "an integer" if kind == "i" else "a number"
        got = repr(text.decode("utf-8", "replace")) if text else "nothing (too few fields)"
        raise ValueError(
            f"read: {path}, line {line}: {name} must be {expected}, got {got} ({len(bad_lines):,} bad "
            f"lines: {first_few(bad_lines)}); correct them or pass on_bad='skip'"
        )
    named = dict(zip((name for name, kind in columns.items() if kind != "-"), arrays, strict=True))
    if not len(next(iter(named.values()))):
        raise ValueError(f"read: {path} must hold at least one valid line, got none of {len(bad_lines)}")
    return named, len(bad_lines)


def is_compiled() -> bool:
    """Whether the compiled module is there."""
    return _host is not None


def parse_plain_numbers(data: bytes, separator: str, kinds: str) -> tuple[list[NDArray[Any]], int]:
    """(arrays of the lines that are numbers, how many are not) by compiled code; `kinds` as in `parse_numbers`."""
    compiled: Any = _host
    arrays, bad_lines, _ = compiled.parse_table(data, separator, kinds)
    return arrays, len(bad_lines)


def check_on_bad(on_bad: str) -> None:
    """Raises ValueError unless `on_bad` is "raise" or "skip"."""
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad must be 'raise' or 'skip', got {on_bad!r}")


def first_few(lines: Any, count: int = 5) -> str:
    """'3, 7, 9, ...': the first of many numbers."""
    return ", ".join(str(line) for line in lines[:count]) + (", ..." if len(lines) > count else "")


def _parse_table_python(
    data: bytes, separator: str, kinds: str
) -> tuple[list[NDArray[Any]], NDArray[np.int64], list[tuple[int, int, bytes]]]:
    """What `_host.parse_table` does, with polars: same arguments, same answer."""
    lines = pl.Series(data.decode("utf-8", "replace").split("\n")).str.strip_suffix("\r")
    numbers = pl.Series(np.arange(1, len(lines) + 1))
    full = lines.str.strip_chars(" \t") != ""
    lines, numbers = lines.filter(full), numbers.filter(full)
    fields = lines.str.splitn(separator, len(kinds) + 1).struct.unnest()
    texts = [fields.to_series(column).str.strip_chars(" \t") for column in range(len(kinds))]
    is_whole = np.ones(len(lines), dtype=np.bool_)
    bad_column = np.zeros(len(lines), dtype=np.int64)
    values: list[pl.Series] = []
    for column, kind in enumerate(kinds):
        text = texts[column]
        value = text if kind == "-" else text.cast(pl.Int64 if kind == "i" else pl.Float64, strict=False)
        okay = value.is_not_null()
        if kind == "f":
            okay &= value.is_finite().fill_null(False)
        bad_column[is_whole & ~okay.to_numpy()] = column
        is_whole &= okay.to_numpy()
        values.append(value)
    wrong = np.flatnonzero(~is_whole)
    errors = [
        (int(numbers[int(row)]), int(at), (texts[int(at)][int(row)] or "")[:60].encode())
        for row, at in zip(wrong[:5], bad_column[wrong[:5]], strict=True)
    ]
    arrays = [
        value.filter(pl.Series(is_whole)).to_numpy() for value, kind in zip(values, kinds, strict=True) if kind != "-"
    ]
    return arrays, numbers.to_numpy()[wrong], errors
