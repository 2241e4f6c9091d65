"""Rows of separated text and their fields.

Rows end in a line feed, or a carriage return and a line feed. With a quote character a field that begins with one
reaches to the next one that is not doubled, separators and line ends included (RFC 4180); what follows before the next
separator is taken as it is, and a quote inside an unquoted field is a character like others (as in Python's csv).
Rows of nothing but spaces are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, overload

Data = bytes | memoryview  # contiguous


class Dialect(NamedTuple):
    """How fields are told apart.

    Attributes:
        separator: one or more bytes.
        quote: one byte, or empty for none.
        missing: hashes of the texts, beside the empty one, that mean a missing value (in a column of bags: none).
        has_runs: blanks and tabs, however many, are one separator, which is a blank; see `plain`.
        comment: what begins a line to be passed over, or empty; see `plain`.
    """

    separator: bytes
    quote: bytes = b""
    missing: tuple[int, ...] = ()
    has_runs: bool = False
    comment: bytes = b""


@overload
def plain(data: bytes, dialect: Dialect) -> bytes: ...
@overload
def plain(data: memoryview, dialect: Dialect) -> Data: ...
def plain(data: Data, dialect: Dialect) -> Data:
    """Whole rows as the parsers take them: comments as blank lines, runs of blanks as one; as many lines as before."""
    if dialect.comment and dialect.comment in bytes(data):
        data = re.sub(rb"(?m)^[ \t]*%s[^\n]*" % re.escape(dialect.comment), b"", bytes(data))
    if not dialect.has_runs:
        return data
    text = bytes(data)
    quoted = text.split(dialect.quote) if dialect.quote and dialect.quote in text else [text]
    quoted[::2] = [_single_blanks(part) for part in quoted[::2]]  # what stands in quotes stays
    return dialect.quote.join(quoted).strip(b" ")


def _single_blanks(text: bytes) -> bytes:
    text = text.replace(b"\t", b" ")
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text.replace(b" \r\n", b"\r\n").replace(b" \n", b"\n").replace(b"\n ", b"\n")


class Row(NamedTuple):
    """Fields of one row: line from 0, where it ends, whether by a line feed, and whether all quotes were closed."""

    line: int
    fields: list[bytes]
    end: int
    has_end: bool
    is_closed: bool = True
    is_quoted: bool = False


def split_rows(data: bytes, dialect: Dialect) -> Iterator[Row]:
    """All rows of `data` that are not blank."""
    rows = split_quoted if dialect.quote and dialect.quote in data else split_plain
    for row in rows(data, dialect):
        if len(row.fields) > 1 or row.is_quoted or row.fields[0].strip(b" "):
            yield row


def split_plain(data: bytes, dialect: Dialect) -> Iterator[Row]:
    position, line = 0, 0
    while position < len(data):
        end = data.find(b"\n", position)
        stop = len(data) if end < 0 else end
        text = data[position : stop - (data[stop - 1 : stop] == b"\r" and stop > position)]
        position = stop + 1
        yield Row(line, text.split(dialect.separator), position, end >= 0)
        line += 1


def split_quoted(data: bytes, dialect: Dialect) -> Iterator[Row]:
    separator, quote = dialect.separator, dialect.quote
    position, line, size = 0, 0, len(data)
    while position < size:
        first_line, fields, is_closed, is_quoted = line, list[bytes](), True, False
        while True:
            text = b""
            if data.startswith(quote, position):
                is_quoted = True
                text, position, is_closed = _unquote(data, position + 1, quote)
                line += text.count(b"\n")
            end = data.find(b"\n", position)
            stop = size if end < 0 else end
            next_field = data.find(separator, position, stop)
            if next_field >= 0:
                fields.append(text + data[position:next_field])
                position = next_field + len(separator)
                continue
            rest = data[position:stop]
            fields.append(text + rest.removesuffix(b"\r"))
            position = stop + 1
            break
        line += end >= 0
        yield Row(first_line, fields, position, end >= 0, is_closed, is_quoted)


def _unquote(data: bytes, position: int, quote: bytes) -> tuple[bytes, int, bool]:
    """(text, position after the closing quote, whether there was one) of a quoted field that starts here."""
    parts: list[bytes] = []
    while True:
        end = data.find(quote, position)
        if end < 0:
            return b"".join([*parts, data[position:]]), len(data), False
        parts.append(data[position:end])
        position = end + 1
        if not data.startswith(quote, position):
            return b"".join(parts), position, True
        parts.append(quote)
        position += 1
