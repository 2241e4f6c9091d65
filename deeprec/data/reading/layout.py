"""How a separated text is written: separator, quote, header row, comments; as told, or as its first rows show it.

Every reader of text asks `layout_of`, so that one file is the same table to all of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from deeprec._suggest import did_you_mean
from deeprec.data.reading.frames import check_names
from deeprec.data.reading.hashing import hash_bytes
from deeprec.data.reading.rows import Dialect, Row, plain, split_rows

_log = logging.getLogger("deeprec")

_WORDS = {
    "tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "colons": "::", "space": " ",
}  # fmt: skip
SPACES = "spaces"  # a separator: blanks and tabs, however many
_MARKS = (b",", b"\t", b";", b"|", b"::")
_SAMPLED_ROWS = 100
_NUMBER = re.compile(rb"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")


@dataclass(frozen=True)
class TextOptions:
    """What a caller says about a separated text; `told` makes one of words of the command line.

    Attributes:
        separator: between fields, one or more characters; a word (tab, comma, semicolon, pipe, colons, space), or
            "spaces" for any number of blanks and tabs. None: the first rows tell.
        quote: one character around fields that hold separators or line ends; None: a quote is a character like others.
        missing: texts that mean a missing value beside the empty one.
        header: whether the first row holds names. None: the first rows tell; a row of numbers is data.
        comment: text that begins lines to be passed over.
        skip_lines: first lines of the file to be passed over, >= 0.
        columns: names of the columns; a first row that is the same names is passed over.
    """

    separator: str | None = None
    quote: str | None = '"'
    missing: tuple[str, ...] = ()
    header: bool | None = None
    comment: str | None = None
    skip_lines: int = 0
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        separator = self.separator
        if separator is not None:
            if not isinstance(separator, str) or not separator:
                raise ValueError(f"read: separator must be text, got {separator!r}; such as ';' or tab")
            separator = _WORDS.get(separator, separator)
            object.__setattr__(self, "separator", separator)
        bad = set("\r\n\0" + (self.quote or "")) & set(separator or "")
        if bad or len((self.quote or "").encode()) > 1 or self.quote in ("\r", "\n", "\0"):
            raise ValueError(
                "read: separator must be free of line ends and of the quote, and quote one byte or None, "
                f"got {separator!r} and {self.quote!r}"
            )
        if self.header not in (None, True, False):
            raise ValueError(f"read: header must be true or false, got {self.header!r}")
        if isinstance(self.skip_lines, bool) or not isinstance(self.skip_lines, int) or self.skip_lines < 0:
            raise ValueError(f"read: skip_lines must be a whole number >= 0, got {self.skip_lines!r}")


TEXT_OPTIONS = tuple(TextOptions.__dataclass_fields__)


def told(**options: Any) -> TextOptions:
    """`TextOptions`; lists may be texts with commas ("NA,?"), and quote "none" is None.

    Raises:
        TypeError: an unknown option. ValueError: as `TextOptions`.
    """
    for name in options:
        if name not in TEXT_OPTIONS:
            raise TypeError(f"read: an option of a text must be one of {', '.join(TEXT_OPTIONS)}, got {name!r}; "
                            f"{did_you_mean(name, TEXT_OPTIONS)}")  # fmt: skip
    for name in ("missing", "columns"):
        value = options.get(name)
        if value is not None:
            parts: Iterable[Any] = value.split(",") if isinstance(value, str) else _listed(value)
            options[name] = tuple(str(part) for part in parts)
    if str(options.get("quote", "")).lower() == "none":
        options["quote"] = None
    return TextOptions(**options)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


class Layout(NamedTuple):
    """How one text is written.

    Attributes:
        names: of the columns; "0", "1", ... where the text has none.
        first: fields of the first row.
        has_names: whether they come from a header row or the caller.
        start: bytes of the text, as it lies in the file without a byte order mark, before its first row of data.
    """

    dialect: Dialect
    names: list[str]
    first: list[bytes]
    has_names: bool
    start: int


def layout_of(path: Path, text: bytes, options: TextOptions, *, default: str | None = None) -> Layout:
    """The layout of a text by its beginning.

    Args:
        text: whole rows, or the first MiB of them, without a byte order mark.
        default: the separator that its name promises; taken where a first row has it.
    Raises:
        ValueError: no row of fields, names that are not UTF-8 or stand twice.
    """
    skipped = _line_end(text, options.skip_lines)
    missing = hashes_of(options.missing)
    quote = (options.quote or "").encode()
    comment = (options.comment or "").encode()
    bare = plain(text[skipped:], Dialect(b",", quote, missing, comment=comment))
    separator = options.separator or _guess_separator(bare, quote, default)
    is_spaces = separator == SPACES
    dialect = Dialect(b" " if is_spaces else separator.encode(), quote, missing, is_spaces, comment)
    rows = _first_rows(plain(text[skipped:], dialect), dialect)
    if not rows:
        raise ValueError(f"read: {path} must begin with a row of fields, got {text[:60]!r} and nothing else")
    first = rows[0]
    if not first.is_closed:
        raise ValueError(
            f"read: {path}, line {options.skip_lines + first.line + 1}: a quoted name must end in a quote, got "
            f"{first.fields[-1][:40]!r} and no more quote; close it, or pass quote=None for a quote like others"
        )
    widths = {len(row.fields) for row in rows[1:]}
    if len(first.fields) == 1 and len(rows) > 3 and len(widths) == 1 and widths != {1} and not first.is_quoted:
        line = options.skip_lines + first.line + 1
        _log.warning(
            "%s: line %d is passed over as a title, as it has no separator: %r", path, line, first.fields[0][:60]
        )
        return layout_of(path, text, replace(options, skip_lines=line, separator=separator), default=default)
    if options.columns is not None:
        texts = [field.decode("utf-8", "replace") for field in first.fields]
        is_header = texts == list(options.columns) if options.header is None else options.header
        names, has_names = list(options.columns), True
    else:
        fields = [row.fields for row in rows if row.is_closed]
        is_header = _is_header(fields) if options.header is None else options.header
        names = names_of(path, first.fields, options.skip_lines + first.line + 1) if is_header else []
        names = names or [str(at) for at in range(len(first.fields))]
        has_names = is_header
    if not is_header:
        return Layout(dialect, names, first.fields, has_names, skipped)
    lines = options.skip_lines + plain(text[skipped:], dialect).count(b"\n", 0, first.end) if first.has_end else -1
    return Layout(dialect, names, first.fields, has_names, _line_end(text, lines) if lines >= 0 else len(text))


def _line_end(text: bytes, lines: int) -> int:
    """Bytes of the first lines of a text."""
    end = 0
    for _ in range(lines):
        end = text.find(b"\n", end) + 1
        if not end:
            return len(text)
    return end


def hashes_of(texts: Sequence[str]) -> tuple[int, ...]:
    """The hash of each text that is not empty."""
    return tuple(hash_bytes(text.encode()) for text in texts if text)


def names_of(path: Path, header: list[bytes], line: int = 1) -> list[str]:
    """Names of columns; ValueError where one is not UTF-8 or two are the same."""
    try:
        names = [field.decode() for field in header]
    except UnicodeDecodeError as error:
        raise ValueError(f"read: {path}, line {line}: names must be UTF-8, got {error.object[:60]!r}; convert the file "
                         "(iconv -f LATIN1 -t UTF-8)") from None  # fmt: skip
    check_names(names, f"read: each column of {path}", "rename them, or pass columns=[...] for a text without a header")
    return names


def _first_rows(text: bytes, dialect: Dialect) -> list[Row]:
    rows: list[Row] = []
    for row in split_rows(text, dialect):
        if rows and not row.has_end and len(rows) > 1:
            break  # perhaps cut short
        rows.append(row)
        if len(rows) == _SAMPLED_ROWS:
            break
    return rows


def _guess_separator(text: bytes, quote: bytes, default: str | None) -> str:
    lines = [line.rstrip(b"\r") for line in text[: 1 << 18].split(b"\n")[:21] if line.strip()][:20]
    if quote:
        lines = [re.sub(rb"%s[^%s]*%s" % ((re.escape(quote),) * 3), b"", line) for line in lines]
    if not lines:
        return default or ","
    if default not in (None, SPACES) and str(default).encode() in lines[0]:
        return default
    scores = {mark: _regularity([line.count(mark) for line in lines]) for mark in _MARKS}
    best = max(_MARKS, key=lambda mark: scores[mark])
    if scores[best][0] <= 0.5:
        if default == SPACES or _is_spaced(lines):
            return SPACES
        best = max(_MARKS, key=lambda mark: lines[0].count(mark))
        if not lines[0].count(best):
            return default or ","
    follows = all(line.count(best) == line.count(best + b" ") for line in lines)
    return best.decode() + (" " if follows and best not in (b"\t", b"::") else "")


def _regularity(counts: list[int]) -> tuple[float, int]:
    """(share of the rows that have a mark as often as most of those that have it, how often): the separator's is the
    largest, as rows have as many fields each."""
    present = [count for count in counts if count]
    usual = max(set(present), key=lambda count: (present.count(count), count)) if present else 0
    return present.count(usual) / len(counts), usual


def _is_spaced(lines: list[bytes]) -> bool:
    rows = [line.split() for line in lines]
    if len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
        return True
    return any(len(row) > 1 for row in rows) and all(_NUMBER.fullmatch(word) for row in rows for word in row[:50])


def _is_header(rows: list[list[bytes]]) -> bool:
    """Whether the first row is names, by the columns that hold numbers in all other rows; else it holds no value that
    comes again below it."""
    first, rest = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if not rest:
        return not all(_NUMBER.fullmatch(field) for field in first)
    names = data = 0
    for at, name in enumerate(first):
        values = [row[at] for row in rest if row[at].strip()]
        if not name.strip() or not values or not all(map(_NUMBER.fullmatch, values)):
            continue
        data += bool(_NUMBER.fullmatch(name))
        names += not _NUMBER.fullmatch(name)
    if names or data:
        return names >= data
    return not any(name.strip() and any(row[at] == name for row in rest) for at, name in enumerate(first))
