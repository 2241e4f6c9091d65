"""Blocks of separated text to columns: hashes, numbers and bags, one pass, the same rows and errors with and without
the compiled module. What a row is, `rows.py` says.
"""

from __future__ import annotations

import re
from array import array
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprec._compiled import host as _host
from deeprec.data.reading.hashing import Hashes, hash_buffers, hash_bytes
from deeprec.data.reading.missing import means_no_number
from deeprec.data.reading.rows import Data, Dialect, Row, split_quoted, split_rows

# What is wanted of a column, to be added up.
HASH, NUMBER, BAG = 1, 2, 4

# Why a row is bad. Also in csrc/host/log.cpp.
NOT_A_NUMBER, INFINITE, TOO_FEW, TOO_MANY, UNCLOSED, BAD_WEIGHT, NOT_AN_INDEX, UNKNOWN_FIELD, NOT_A_CODE = range(9)
KEPT_BAD = 5

_LARGEST_FLOAT = float(np.finfo(np.float32).max)

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
    """The valid rows of a block; `hashes`, `numbers` and `bags` by position of their column.

    Attributes:
        rows: number of valid rows.
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


Codes = list[tuple[int, float]]


def parse_log(
    data: Data,
    dialect: Dialect,
    kinds: bytes,
    bag_separators: list[tuple[bytes, bytes]],
    codes: dict[int, Codes] | None = None,
) -> Parsed:
    """The columns of whole rows of text.

    Args:
        data: rows; the last one may lack its line feed.
        dialect: separator, quote and missing values.
        kinds: a byte for each column, a sum of `HASH`, `NUMBER` and `BAG`; 0 skips it. Rows have as many fields.
        bag_separators: for each column of bags, from the left, what separates its tokens, and a token from its weight
            (empty: no weights).
        codes: for a column of numbers that is texts, the hash of each text and its number.
    """
    if _host is not None:
        rows, hashes, numbers, bags, lines, num_bad, bad = _host.parse_log(
            data, dialect.separator, dialect.quote, list(dialect.missing), kinds, bag_separators, codes or {}
        )
        named = {column: BagChunk(*parts) for column, parts in bags.items()}
        return Parsed(rows, hashes, numbers, named, lines, num_bad, [Bad(*one) for one in bad])
    return _parse_log_python(bytes(data), dialect, kinds, bag_separators, codes or {})


def cut_log(data: Data, dialect: Dialect) -> int:
    """Length of the whole rows at the beginning of `data`: where the last line feed outside quotes ends, or 0."""
    if _host is not None:
        return int(_host.cut_log(data, dialect.separator, dialect.quote))
    text = bytes(data)
    if not dialect.quote or dialect.quote not in text:
        return text.rfind(b"\n") + 1
    end = 0
    for row in split_quoted(text, dialect):
        if row.has_end:
            end = row.end
    return end


class _BadField(Exception):
    """Column, reason and text of the first bad field of a row."""


def _parse_log_python(
    data: bytes,
    dialect: Dialect,
    kinds: bytes,
    bag_separators: list[tuple[bytes, bytes]],
    codes: dict[int, Codes],
) -> Parsed:
    """What `_host.parse_log` does: same arguments, same answer."""
    bag_columns = [column for column, kind in enumerate(kinds) if kind & BAG]
    texts: dict[int, list[bytes]] = {column: [] for column, kind in enumerate(kinds) if kind & HASH}
    numbers = {column: array("d") for column, kind in enumerate(kinds) if kind & NUMBER}
    bags = {column: _BagBuilder(*separators) for column, separators in zip(bag_columns, bag_separators, strict=True)}
    rows, num_bad, bad = 0, 0, list[Bad]()
    for row in split_rows(data, dialect):
        try:
            values, tokens = _read_row(row, kinds, bags, codes, dialect)
        except _BadField as wrong:
            num_bad += 1
            if len(bad) < KEPT_BAD:
                column, reason, text = wrong.args
                bad.append(Bad(row.line, column, reason, text[:60]))
            continue
        rows += 1
        for column, fields in texts.items():
            fields.append(row.fields[column])
        for column, kept in numbers.items():
            kept.append(values[column])
        for column, bag in bags.items():
            bag.append(*tokens[column])
    hashes = {
        column: blank_missing(hash_texts([field.strip(b" \t") for field in fields]), dialect)
        for column, fields in texts.items()
    }
    arrays = {column: np.array(kept, dtype=np.float64) for column, kept in numbers.items()}
    made = {column: bag.finish() for column, bag in bags.items()}
    return Parsed(rows, hashes, arrays, made, data.count(b"\n"), num_bad, bad)


def _read_row(
    row: Row, kinds: bytes, bags: dict[int, _BagBuilder], codes: dict[int, Codes], dialect: Dialect
) -> tuple[dict[int, float], dict[int, tuple[list[bytes], list[float]]]]:
    if not row.is_closed:
        raise _BadField(len(row.fields) - 1, UNCLOSED, row.fields[-1])
    values: dict[int, float] = {}
    tokens: dict[int, tuple[list[bytes], list[float]]] = {}
    for column, (kind, text) in enumerate(zip(kinds, row.fields, strict=False)):
        if kind & NUMBER:
            values[column] = _number(text, column, codes.get(column), dialect)
        if column in bags:
            tokens[column] = bags[column].split(b"" if _is_missing(text, dialect) else text, column)
    if len(row.fields) < len(kinds):
        raise _BadField(len(row.fields), TOO_FEW, str(len(row.fields)).encode())
    if len(row.fields) > len(kinds):
        raise _BadField(len(kinds), TOO_MANY, row.fields[len(kinds)])
    return values, tokens


def _is_missing(text: bytes, dialect: Dialect) -> bool:
    trimmed = text.strip(b" \t")
    return not trimmed or (bool(dialect.missing) and hash_bytes(trimmed) in dialect.missing)


def _number(text: bytes, column: int, codes: Codes | None, dialect: Dialect) -> float:
    trimmed = text.strip(b" \t")
    if _is_missing(trimmed, dialect):
        return float("nan")
    if codes is None:
        return _plain_number(trimmed, column, text)
    known = dict(codes)
    if hash_bytes(trimmed) not in known:
        raise _BadField(column, NOT_A_CODE, text)
    return known[hash_bytes(trimmed)]


def number_of(text: bytes) -> float:
    """The number that a text is, without blanks around it: NaN where it is missing, infinite where it is none."""
    try:
        return _plain_number(text, 0, text) if text else float("nan")
    except _BadField:
        return float("inf")


def _plain_number(trimmed: bytes, column: int, text: bytes) -> float:
    if trimmed in _WORDS:
        return _WORDS[trimmed]
    if _NAN.fullmatch(trimmed) or means_no_number(trimmed.decode("utf-8", "replace")):
        return float("nan")
    if not _NUMBER.fullmatch(trimmed):
        raise _BadField(column, INFINITE if _INFINITE.fullmatch(trimmed) else NOT_A_NUMBER, text)
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
        self.weights = array("d")

    def split(self, text: bytes, column: int) -> tuple[list[bytes], list[float]]:
        parts = text.split(self.separator) if self.separator else [text]
        tokens = [token for part in parts if (token := part.strip(b" \t"))]
        if not self.weight_separator:
            return tokens, []
        pairs = [token.rpartition(self.weight_separator) for token in tokens]
        weights = []
        for (name, colon, weight), token in zip(pairs, tokens, strict=True):
            trimmed = weight.strip(b" \t")
            value = float(trimmed) if colon and name.strip(b" \t") and _NUMBER.fullmatch(trimmed) else float("nan")
            if not abs(value) <= _LARGEST_FLOAT:
                raise _BadField(column, BAD_WEIGHT, token)
            weights.append(value)
        return [name.rstrip(b" \t") for name, _, _ in pairs], weights

    def append(self, tokens: list[bytes], weights: list[float]) -> None:
        self.tokens += tokens
        self.weights.extend(weights)
        self.offsets.append(len(self.tokens))

    def finish(self) -> BagChunk:
        weights = np.array(self.weights, dtype=np.float32) if self.weight_separator else None
        return BagChunk(np.array(self.offsets, dtype=np.int64), hash_texts(self.tokens), weights)


def parse_bags(
    offsets: NDArray[np.int64], data: bytes, separators: tuple[bytes, bytes], dialect: Dialect
) -> tuple[BagChunk, NDArray[np.int64], list[Bad]]:
    """Bags out of a column of texts, text i = data[offsets[i]:offsets[i + 1]], as `parse_log` makes them.

    Returns:
        (bags, rows whose weights are bad and whose bags are therefore empty, the first few of these).
    """
    if _host is not None:
        bags, rows, bad = _host.parse_bags(offsets, data, *separators, list(dialect.missing))
        return BagChunk(*bags), rows, [Bad(*one) for one in bad]
    return _parse_bags_python(offsets, data, separators, dialect)


def _parse_bags_python(
    offsets: NDArray[np.int64], data: bytes, separators: tuple[bytes, bytes], dialect: Dialect
) -> tuple[BagChunk, NDArray[np.int64], list[Bad]]:
    builder = _BagBuilder(*separators)
    bad: list[Bad] = []
    for row, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        text = data[start:end]
        try:
            builder.append(*builder.split(b"" if _is_missing(text, dialect) else text, 0))
        except _BadField as wrong:
            builder.append([], [])
            bad.append(Bad(row, wrong.args[0], wrong.args[1], wrong.args[2][:60]))
    return builder.finish(), np.array([one.line for one in bad], dtype=np.int64), bad[:KEPT_BAD]


class Pairs(NamedTuple):
    """The valid rows of a block of libsvm or libffm: labels, -1 as 0, and a weighted bag for each column."""

    rows: int
    labels: NDArray[np.float64]
    bags: list[BagChunk]
    lines: int
    num_bad: int
    bad: list[Bad]


# Ways to read "label index:value ...": one bag a row; "field:index:value" in a bag a field; a bag for each place.
ONE_BAG, BY_FIELD, BY_PLACE = range(3)


def parse_pairs(data: Data, mode: int, fields: list[int]) -> Pairs:
    """Rows of libsvm or libffm; what follows a `#` is passed over.

    Args:
        data: rows; the last one may lack its line feed.
        mode: `ONE_BAG`, `BY_FIELD` or `BY_PLACE`.
        fields: numbers of the fields, a bag for each (not for `ONE_BAG`); with `BY_PLACE` all rows have as many pairs.
    """
    if _host is not None:
        rows, labels, bags, lines, num_bad, bad = _host.parse_pairs(data, mode, fields)
        return Pairs(rows, labels, [BagChunk(*parts) for parts in bags], lines, num_bad, [Bad(*one) for one in bad])
    return _parse_pairs_python(bytes(data), mode, fields)


def _parse_pairs_python(data: bytes, mode: int, fields: list[int]) -> Pairs:
    slots = {number: slot for slot, number in enumerate(fields)}
    bags = [_BagBuilder(b" ", b":") for _ in (fields if mode != ONE_BAG else (0,))]
    labels = array("d")
    num_bad, bad = 0, list[Bad]()
    for line, row in enumerate(data.split(b"\n")):
        tokens = split_pairs(row)
        if not tokens:
            continue
        try:
            label = _plain_number(tokens[0], 0, tokens[0])
            if label != label:
                raise _BadField(0, NOT_A_NUMBER, tokens[0])
            pairs = _read_pairs(tokens[1:], mode, slots, len(bags))
        except _BadField as wrong:
            num_bad += 1
            if len(bad) < KEPT_BAD:
                column, reason, text = wrong.args
                bad.append(Bad(line, column, reason, text[:60]))
            continue
        labels.append(0.0 if label == -1 else label)
        for bag, (names, weights) in zip(bags, pairs, strict=True):
            bag.append(names, weights)
    made = [bag.finish() for bag in bags]
    return Pairs(len(labels), np.array(labels, dtype=np.float64), made, data.count(b"\n"), num_bad, bad)


def split_pairs(row: bytes) -> list[bytes]:
    """Tokens of a row of libsvm up to a comment."""
    tokens = [token for token in re.split(rb"[ \t\r]", row) if token]
    for place, token in enumerate(tokens):
        if token.startswith(b"#"):
            return tokens[:place]
    return tokens


def _read_pairs(
    tokens: list[bytes], mode: int, slots: dict[int, int], num_slots: int
) -> list[tuple[list[bytes], list[float]]]:
    pairs: list[tuple[list[bytes], list[float]]] = [([], []) for _ in range(num_slots)]
    for place, token in enumerate(tokens):
        slot, rest = 0, token
        if mode == BY_FIELD:
            field, rest = _take_integer(token, token, num_slots + 1)
            if field not in slots:
                raise _BadField(num_slots + 1, UNKNOWN_FIELD, token)
            slot = slots[field]
        elif mode == BY_PLACE:
            slot = place
            if place >= num_slots:
                continue
        index, rest = _take_integer(rest, token, slot + 1)
        trimmed = rest.strip(b" \t")
        weight = float(trimmed) if _NUMBER.fullmatch(trimmed) else float("nan")
        if not abs(weight) <= _LARGEST_FLOAT:
            raise _BadField(slot + 1, BAD_WEIGHT, token)
        pairs[slot][0].append(str(index).encode())
        pairs[slot][1].append(weight)
    if mode == BY_PLACE and len(tokens) != num_slots:
        raise _BadField(len(tokens) + 1, TOO_FEW if len(tokens) < num_slots else TOO_MANY, str(len(tokens)).encode())
    return pairs


def _take_integer(text: bytes, token: bytes, column: int) -> tuple[int, bytes]:
    """Takes "123:" off the front."""
    digits, colon, rest = text.partition(b":")
    if not colon or not re.fullmatch(rb"[0-9]+", digits) or int(digits) >= 1 << 63:
        raise _BadField(column, NOT_AN_INDEX, token)
    return int(digits), rest


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
