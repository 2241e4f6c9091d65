"""Blocks of separated text to columns: hashes, numbers and bags, one pass, the same rows and errors with and without
the compiled module.

Rows end in a line feed, or a carriage return and a line feed. With a quote character a field that begins with one
reaches to the next one that is not doubled, separators and line ends included (RFC 4180); what follows before the next
separator is taken as it is, and a quote inside an unquoted field is a character like others (as in Python's csv).
Rows of nothing but spaces are passed over.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprec.data.hashing import Hashes, hash_buffers, hash_bytes

try:
    from deeprec import _host  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # no compiler at installation: plain Python splits, some thirty times slower
    _host = None

# What is wanted of a column, to be added up.
HASH, NUMBER, BAG = 1, 2, 4

# Why a row is bad. Also in csrc/host/log.cpp.
NOT_A_NUMBER, INFINITE, TOO_FEW, TOO_MANY, UNCLOSED, BAD_WEIGHT = range(6)
KEPT_BAD = 5

_NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INFINITE = re.compile(rb"[+-]?(inf|infinity)", re.IGNORECASE)
_NAN = re.compile(rb"[+-]?nan", re.IGNORECASE)
_WORDS = {b"true": 1.0, b"True": 1.0, b"false": 0.0, b"False": 0.0}


class BagChunk(NamedTuple):
    """The bags of one column: row b holds hashes[offsets[b]:offsets[b + 1]].

    Attributes:
        offsets: [rows + 1], int64, from 0 to nnz.
        hashes: [nnz], uint64.
        weights: [nnz], float32, finite, or None where the column has none.
    """

    offsets: NDArray[np.int64]
    hashes: Hashes
    weights: NDArray[np.float32] | None = None


class Bad(NamedTuple):
    """A bad row of a block: line from 0 in the block, column from 0, why (see above), what was found."""

    line: int
    column: int
    reason: int
    text: bytes


class Parsed(NamedTuple):
    """The good rows of a block; `hashes`, `numbers` and `bags` by position of their column.

    Attributes:
        rows: number of good rows.
        lines: line feeds in the block.
        num_bad, bad: all bad rows, and the first `KEPT_BAD` of them.
    """

    rows: int
    hashes: dict[int, Hashes]
    numbers: dict[int, NDArray[np.float64]]
    bags: dict[int, BagChunk]
    lines: int
    num_bad: int
    bad: list[Bad]


class Dialect(NamedTuple):
    """How fields are told apart.

    Attributes:
        separator: one or more bytes.
        quote: one byte, or empty for none.
        missing: hashes of the texts, beside the empty one, that mean a missing value.
    """

    separator: bytes
    quote: bytes = b""
    missing: tuple[int, ...] = ()


def parse_log(data: bytes, dialect: Dialect, kinds: bytes, bag_separators: list[tuple[bytes, bytes]]) -> Parsed:
    """The columns of whole rows of text.

    Args:
        data: rows; the last one may lack its line feed.
        dialect: separator, quote and missing values.
        kinds: a byte for each column, a sum of `HASH`, `NUMBER` and `BAG`; 0 skips it. Rows have as many fields.
        bag_separators: for each column of bags, from the left, what separates its tokens, and a token from its weight
            (empty: no weights).
    """
    if _host is not None and hasattr(_host, "parse_log"):
        rows, hashes, numbers, bags, lines, num_bad, bad = _host.parse_log(
            data, dialect.separator, dialect.quote, list(dialect.missing), kinds, bag_separators
        )
        named = {column: BagChunk(*parts) for column, parts in bags.items()}
        return Parsed(rows, hashes, numbers, named, lines, num_bad, [Bad(*one) for one in bad])
    return _parse_log_python(data, dialect, kinds, bag_separators)


def cut_log(data: bytes, dialect: Dialect) -> int:
    """Length of the whole rows at the beginning of `data`: where the last line feed outside quotes ends, or 0."""
    if _host is not None and hasattr(_host, "cut_log"):
        return int(_host.cut_log(data, dialect.separator, dialect.quote))
    if not dialect.quote or dialect.quote not in data:
        return data.rfind(b"\n") + 1
    end = 0
    for row in _split_quoted(data, dialect):
        if row.has_end:
            end = row.end
    return end


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
    rows = _split_quoted if dialect.quote and dialect.quote in data else _split_plain
    for row in rows(data, dialect):
        if len(row.fields) > 1 or row.is_quoted or row.fields[0].strip(b" "):
            yield row


def _split_plain(data: bytes, dialect: Dialect) -> Iterator[Row]:
    position, line = 0, 0
    while position < len(data):
        end = data.find(b"\n", position)
        stop = len(data) if end < 0 else end
        text = data[position : stop - (data[stop - 1 : stop] == b"\r" and stop > position)]
        position = stop + 1
        yield Row(line, text.split(dialect.separator), position, end >= 0)
        line += 1


def _split_quoted(data: bytes, dialect: Dialect) -> Iterator[Row]:
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


class _BadField(Exception):
    """Column, reason and text of the first bad field of a row."""


def _parse_log_python(data: bytes, dialect: Dialect, kinds: bytes, bag_separators: list[tuple[bytes, bytes]]) -> Parsed:
    """What `_host.parse_log` does: same arguments, same answer."""
    bag_columns = [column for column, kind in enumerate(kinds) if kind & BAG]
    texts: dict[int, list[bytes]] = {column: [] for column, kind in enumerate(kinds) if kind & HASH}
    numbers = {column: array("d") for column, kind in enumerate(kinds) if kind & NUMBER}
    bags = {column: _BagBuilder(*separators) for column, separators in zip(bag_columns, bag_separators, strict=True)}
    rows, num_bad, bad = 0, 0, list[Bad]()
    for row in split_rows(data, dialect):
        try:
            values, tokens = _read_row(row, kinds, numbers, bags, dialect)
        except _BadField as wrong:
            num_bad += 1
            if len(bad) < KEPT_BAD:
                column, reason, text = wrong.args
                bad.append(Bad(row.line, column, reason, text[:60]))
            continue
        rows += 1
        for column, found in texts.items():
            found.append(row.fields[column])
        for column, kept in numbers.items():
            kept.append(values[column])
        for column, bag in bags.items():
            bag.append(*tokens[column])
    hashes = {column: blank_missing(hash_texts(found), dialect) for column, found in texts.items()}
    arrays = {column: np.array(kept, dtype=np.float64) for column, kept in numbers.items()}
    made = {column: bag.finish(dialect) for column, bag in bags.items()}
    return Parsed(rows, hashes, arrays, made, data.count(b"\n"), num_bad, bad)


def _read_row(
    row: Row, kinds: bytes, numbers: dict[int, array[float]], bags: dict[int, _BagBuilder], dialect: Dialect
) -> tuple[dict[int, float], dict[int, tuple[list[bytes], list[float]]]]:
    if not row.is_closed:
        raise _BadField(len(row.fields) - 1, UNCLOSED, row.fields[-1])
    values: dict[int, float] = {}
    tokens: dict[int, tuple[list[bytes], list[float]]] = {}
    for column, (kind, text) in enumerate(zip(kinds, row.fields, strict=False)):
        if kind & NUMBER:
            values[column] = _number(text, column, dialect)
        if column in bags:
            tokens[column] = bags[column].split(text, column)
    if len(row.fields) < len(kinds):
        raise _BadField(len(row.fields), TOO_FEW, str(len(row.fields)).encode())
    if len(row.fields) > len(kinds):
        raise _BadField(len(kinds), TOO_MANY, row.fields[len(kinds)])
    return values, tokens


def _number(text: bytes, column: int, dialect: Dialect) -> float:
    trimmed = text.strip(b" \t")
    if not trimmed:
        return float("nan")
    if not _NUMBER.fullmatch(trimmed):
        if _NAN.fullmatch(trimmed) or (dialect.missing and hash_bytes(trimmed) in dialect.missing):
            return float("nan")
        if trimmed in _WORDS:
            return _WORDS[trimmed]
        raise _BadField(column, INFINITE if _INFINITE.fullmatch(trimmed) else NOT_A_NUMBER, text)
    if dialect.missing and hash_bytes(trimmed) in dialect.missing:
        return float("nan")
    value = float(trimmed)
    if value in (float("inf"), float("-inf")):
        raise _BadField(column, INFINITE, text)
    return value


class _BagBuilder:
    """Tokens of one column of bags; empty tokens are passed over."""

    def __init__(self, separator: bytes, weight_separator: bytes) -> None:
        self.separator, self.weight_separator = separator, weight_separator
        self.offsets = array("q", [0])
        self.tokens: list[bytes] = []
        self.weights = array("f")

    def split(self, text: bytes, column: int) -> tuple[list[bytes], list[float]]:
        tokens = [token for token in text.split(self.separator) if token] if self.separator else [text] if text else []
        if not self.weight_separator:
            return tokens, []
        pairs = [token.rpartition(self.weight_separator) for token in tokens]
        weights = []
        for (name, found, weight), token in zip(pairs, tokens, strict=True):
            trimmed = weight.strip(b" \t")
            value = float(trimmed) if found and name and _NUMBER.fullmatch(trimmed) else float("nan")
            if not abs(value) <= 3.4028234663852886e38:
                raise _BadField(column, BAD_WEIGHT, token)
            weights.append(value)
        return [name for name, _, _ in pairs], weights

    def append(self, tokens: list[bytes], weights: list[float]) -> None:
        self.tokens += tokens
        self.weights.extend(weights)
        self.offsets.append(len(self.tokens))

    def finish(self, dialect: Dialect) -> BagChunk:
        weights = np.array(self.weights, dtype=np.float32) if self.weight_separator else None
        return BagChunk(np.array(self.offsets, dtype=np.int64), hash_texts(self.tokens), weights)


def hash_texts(texts: list[bytes]) -> Hashes:
    """The hash of each text."""
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)), out=offsets[1:])
    return hash_buffers(offsets, b"".join(texts))


def blank_missing(hashes: Hashes, dialect: Dialect) -> Hashes:
    """`hashes` with 0 for each of `dialect.missing`."""
    if dialect.missing:
        hashes[np.isin(hashes, np.array(dialect.missing, dtype=np.uint64))] = 0
    return hashes
