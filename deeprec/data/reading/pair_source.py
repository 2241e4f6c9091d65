"""Logs that are text files of libsvm or libffm: a label and pairs of index and value, plain or gzip."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deeprec.data.reading import separated
from deeprec.data.reading.chunks import BadRow, Chunk, ColumnsToRead, Progress
from deeprec.data.reading.errors import START_BYTES
from deeprec.data.reading.hashing import Hashes
from deeprec.data.reading.separated import BY_FIELD, BY_PLACE, ONE_BAG, BagChunk, Pairs
from deeprec.data.reading.text_source import TextSource, read_start


class PairSource(TextSource):
    """libsvm, libffm, and libsvm whose rows are as long each ("libfm"); see `open_source`."""

    def __init__(self, path: Path, kind: str, *, columns: Sequence[str] | None = None, **options: Any) -> None:
        start = read_start(path)
        whole = start[: start.rfind(b"\n") + 1 or None]
        self.mode = {"libsvm": ONE_BAG, "libffm": BY_FIELD, "libfm": BY_PLACE}[kind]
        self._fields = _fields_of(whole, self.mode, columns)
        names = ["features"] if self.mode == ONE_BAG else [f"field_{number}" for number in self._fields]
        super().__init__(path, ["label", *names], **options)
        bags = separated.parse_pairs(whole, self.mode, self._fields).bags
        self.weighted = tuple(
            name for name, bag in zip(names, bags, strict=True) if bag.weights is not None and (bag.weights != 1).any()
        )

    def head(self, rows: int = 1000) -> pl.DataFrame:
        text = read_start(self.path, max(START_BYTES, 2000 * rows))
        tokens = [separated.split_pairs(line) for line in text[: self._cut(text) or None].split(b"\n")]
        tokens = [row for row in tokens if row]
        pairs: list[list[list[tuple[str, float]]]] = []
        labels: list[float] = []
        for row in tokens:
            parsed = separated.parse_pairs(b" ".join(row), self.mode, self._fields)
            if parsed.rows:
                labels.append(float(parsed.labels[0]))
                pairs.append(_pairs_of(row[1:], self.mode, self._fields))
            if len(pairs) == rows:
                break
        series = {
            name: _series_of_pairs([row[slot] for row in pairs], self.mode == ONE_BAG)
            for slot, name in enumerate(self.columns[1:])
        }
        return pl.DataFrame({"label": pl.Series(labels, dtype=pl.Float64), **series})

    def check(self, to_read: ColumnsToRead) -> None:
        super().check(to_read)
        wrong = [name for name in (*to_read.categorical, *(bag.name for bag in to_read.bags)) if name == "label"]
        if wrong:
            raise TypeError(f"chunks: column 'label' of {self.name} is numeric; take it out of categorical and bags")

    def _chunks(self, to_read: ColumnsToRead, progress: Progress) -> Iterator[Chunk]:
        weighted = {bag.name: bag.weight_separator is not None for bag in to_read.bags}
        for pairs in self._parsed(self._parser(to_read), progress):
            bags = dict(zip(self.columns[1:], pairs.bags, strict=True))
            numbers = {
                name: pairs.labels if name == "label" else _single_values(bags[name], name, self.name)
                for name in to_read.numeric
            }
            hashes = {name: _single_hashes(bags[name], name, self.name) for name in to_read.categorical}
            taken = {name: _bag_of(bags[name], has_weights, name, self.name) for name, has_weights in weighted.items()}
            yield Chunk(pairs.rows, 0, hashes, numbers, taken)

    def _parser(self, to_read: ColumnsToRead) -> Callable[[memoryview], Pairs]:
        return lambda text: separated.parse_pairs(text, self.mode, self._fields)

    def _complaint(self, reason: int, row: BadRow) -> str:
        if reason in (separated.TOO_FEW, separated.TOO_MANY):
            return (
                f"rows of libfm must have as many entries each, {len(self._fields)}, got {row.text} "
                "(pass format='libsvm' for rows of any length)"
            )
        if reason == separated.UNKNOWN_FIELD:
            return (
                f"fields must be among those of the first MiB, got {row.text!r}; "
                "pass columns=['label', 'field_0', ...] with all of them"
            )
        if reason == separated.NOT_AN_INDEX:
            form = "field:index:value" if self.mode == BY_FIELD else "index:value"
            return f"entries must be {form} with integers from 0, got {row.text!r}"
        return super()._complaint(reason, row)


def _fields_of(text: bytes, mode: int, columns: Sequence[str] | None) -> list[int]:
    """Numbers of the fields: of `columns`, or seen in `text`."""
    if columns is not None:
        numbers = [re.fullmatch(r"field_([0-9]{1,18})", name) for name in columns[1:]]
        are_valid = (
            list(columns) == ["label", "features"] if mode == ONE_BAG else columns[0] == "label" and all(numbers)
        )
        if not are_valid:
            rest = "features" if mode == ONE_BAG else "field_0, field_1, ..."
            raise ValueError(f"open_source: columns must be label, {rest} in this format, got {list(columns)}")
        return [int(number[1]) for number in numbers if number]
    if mode == BY_FIELD:
        return sorted({int(number) for number in re.findall(rb"[ \t]([0-9]{1,18}):[0-9]+:", text)})
    first = next((tokens for tokens in map(separated.split_pairs, text.split(b"\n")) if tokens), [])
    return list(range(len(first) - 1)) if mode == BY_PLACE else []


def _single_hashes(bag: BagChunk, name: str, source: str) -> Hashes:
    """A bag of at most one entry of value 1 a row as a categorical column."""
    lengths = np.diff(bag.offsets)
    if (lengths > 1).any() or (bag.weights is not None and (bag.weights != 1).any()):
        raise ValueError(
            f"chunks: column {name!r} of {source} must have at most one entry a row, of value 1, to be categorical; "
            "declare it a bag, or numeric"
        )
    out = np.zeros(len(lengths), dtype=np.uint64)
    out[lengths == 1] = bag.hashes
    return out


def _single_values(bag: BagChunk, name: str, source: str) -> Any:
    """A bag of at most one entry a row as a numeric column: its value."""
    lengths = np.diff(bag.offsets)
    if (lengths > 1).any():
        raise ValueError(
            f"chunks: column {name!r} of {source} must have at most one entry a row to be numeric; declare it a bag"
        )
    out = np.full(len(lengths), np.nan)
    out[lengths == 1] = bag.weights
    return out


def _bag_of(bag: BagChunk, has_weights: bool, name: str, source: str) -> BagChunk:
    if has_weights:
        return bag
    if bag.weights is not None and (bag.weights != 1).any():
        raise ValueError(
            f"chunks: column {name!r} of {source} has values other than 1, which a bag without weights would lose; "
            "declare it with weight_separator=':'"
        )
    return BagChunk(bag.offsets, bag.hashes)


def _pairs_of(tokens: list[bytes], mode: int, fields: list[int]) -> list[list[tuple[str, float]]]:
    """(index, value) of valid tokens, by column."""
    slots = {field: slot for slot, field in enumerate(fields)}
    out: list[list[tuple[str, float]]] = [[] for _ in (fields if mode != ONE_BAG else (0,))]
    for place, token in enumerate(tokens):
        parts = token.decode().split(":")
        slot = 0 if mode == ONE_BAG else place if mode == BY_PLACE else slots[int(parts[0])]
        out[slot].append((str(int(parts[-2])), float(parts[-1])))
    return out


def _series_of_pairs(rows: list[list[tuple[str, float]]], is_bag: bool) -> pl.Series:
    """Text where each row has at most one entry of value 1, numbers where it has one of other values, else lists."""
    if is_bag or any(len(row) > 1 for row in rows):
        return pl.Series([[index for index, _ in row] for row in rows], dtype=pl.List(pl.String))
    if all(value == 1 for row in rows for _, value in row):
        return pl.Series([row[0][0] if row else None for row in rows], dtype=pl.String)
    return pl.Series([row[0][1] if row else None for row in rows], dtype=pl.Float64)
