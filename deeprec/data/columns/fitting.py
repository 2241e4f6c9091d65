"""What an encoder learns from the train rows: counts of values, moments and samples of numbers, what a label is."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprec.data.columns.kinds import Bag, Categorical, Numeric, Text, WithIds
from deeprec.data.columns.numbers import (
    Moments,
    NumberState,
    Rows,
    Sample,
    column_of,
    logarithm,
    number_state,
    numbers_of,
)
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.tokens import token_hashes
from deeprec.data.reading.chunks import Chunk, RowError, Vocabulary, hash_text
from deeprec.data.reading.hashing import Hashes
from deeprec.data.reading.text import OnBad

_log = logging.getLogger("deeprec")

Key = tuple[str, str, str]  # kind, column and tokens: what has one count


class Fitted(NamedTuple):
    """What was learned.

    Attributes:
        vocabularies: of each feature with one, the hashes of its values, most frequent first, ties by hash.
        numbers: of each numeric feature and weighted bag.
        negative_label: what stands for "no", where the labels do not say it otherwise.
    """

    vocabularies: dict[str, Hashes]
    numbers: dict[str, NumberState]
    negative_label: float | None


class Counts:
    """How often the values of the features with a vocabulary occur; those that read the same have one count."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.readers: dict[Key, list[WithIds]] = {}
        for feature in schema.with_vocabulary():
            tokens = feature.tokens if isinstance(feature, Text) else ""
            self.readers.setdefault((feature.kind, feature.column, tokens), []).append(feature)
        self.counted = {key: Vocabulary() for key in self.readers}

    def add(self, chunk: Chunk, rows: Rows | None) -> None:
        """Count the values of the rows where the mask is true; None means all rows."""
        for (kind, name, tokens), vocabulary in self.counted.items():
            if kind == Categorical.kind:
                vocabulary.count(column_of(chunk, name, "hashes"), rows)
                continue
            if kind == Text.kind:
                bag = token_hashes(column_of(chunk, name, "texts"), tokens)
            else:
                bag = column_of(chunk, name, "bags")
            vocabulary.count(bag.hashes, None if rows is None else np.repeat(rows, np.diff(bag.offsets)))

    def finish(self) -> Iterator[tuple[WithIds, Hashes]]:
        """Each feature and the values of its vocabulary."""
        for key, features in self.readers.items():
            counts = self.counted.pop(key)  # freed before the next one is sorted
            for feature in features:
                yield feature, counts.finish(feature.min_count, feature.max_size)[0]
            del counts


class Fitting:
    """The sums, counts and samples of the train rows so far."""

    def __init__(self, schema: FeatureSchema, seed: int, on_bad: OnBad) -> None:
        self.schema, self.on_bad = schema, on_bad
        self.rows = 0
        self.positives = 0
        self.negative_label: float | None = None
        self.counts = Counts(schema)
        numeric = [f for f in schema.features if isinstance(f, Numeric)]
        self.moments = {f.name: Moments() for f in numeric}
        self.sample = Sample([f for f in numeric if f.quantiles], seed)
        self.weights = {f.name: (math.inf, -math.inf) for f in schema.features if isinstance(f, Bag) and f.is_weighted}

    def add(self, chunk: Chunk, rows: Rows | None) -> None:
        """Take the rows where the mask is true; None means all rows."""
        labels, has_label = labels_of(chunk, self.schema, self.negative_label)
        if not has_label.all():
            if self.on_bad == "raise":
                raise bad_label(chunk, self.schema, int(np.argmin(has_label)), self.negative_label)
            rows = has_label if rows is None else rows & has_label
        chosen = np.ones(chunk.rows, dtype=np.bool_) if rows is None else rows
        if self.negative_label is None:
            self.negative_label = _negative_label(chunk, self.schema, chosen)
        count = int(chosen.sum())
        if not count:
            return
        self.counts.add(chunk, rows)
        for feature in self.schema.features:
            if isinstance(feature, Numeric):
                x = numbers_of(chunk, feature)
                self.moments[feature.name].add(logarithm(feature, x if rows is None else x[rows]))
            elif isinstance(feature, Bag) and feature.is_weighted:
                bag = column_of(chunk, feature.column, "bags")
                chosen_ids = slice(None) if rows is None else np.repeat(rows, np.diff(bag.offsets))
                if bag.weights is not None and len(seen := bag.weights[chosen_ids]):
                    low, high = self.weights[feature.name]
                    self.weights[feature.name] = min(low, float(seen.min())), max(high, float(seen.max()))
        self.sample.add(chunk, rows, count)
        self.rows += count
        self.positives += int(labels[chosen].sum())

    def finish(self) -> Fitted:
        """What was learned; ValueError where there was no train row."""
        if not self.rows:
            raise ValueError("Encoder.fit: at least one train row is required, got none; check the split")
        if self.schema.label is not None and self.positives in (0, self.rows):
            _log.warning(
                "Encoder.fit: all %s train rows have label %d; check label, positive_from and positive_values",
                f"{self.rows:,}",
                self.positives > 0,
            )
        kept = {feature.name: hashes for feature, hashes in self.counts.finish()}
        numbers = {
            f.name: number_state(f, self.moments[f.name], self.sample.of(f))
            for f in self.schema.features
            if isinstance(f, Numeric)
        }
        for name, (low, high) in self.weights.items():
            numbers[name] = NumberState(low=low, high=high) if low <= high else NumberState(low=0.0, high=0.0)
        return Fitted(kept, numbers, self.negative_label)


def labels_of(
    chunk: Chunk, schema: FeatureSchema, negative_label: float | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(labels [rows], 0 or 1; whether each is one); zeros, all of them fine, where rows have no label."""
    if schema.label is None:
        return np.zeros(chunk.rows, dtype=np.float32), np.ones(chunk.rows, dtype=np.bool_)
    if schema.positive_values:
        hashes = column_of(chunk, schema.label, "hashes")
        return np.isin(hashes, hash_text(schema.positive_values)).astype(np.float32), hashes != 0
    x = column_of(chunk, schema.label, "numbers")
    if schema.positive_from is not None:
        return (x >= schema.positive_from).astype(np.float32), ~np.isnan(x)
    if negative_label is None:
        negative_label = -1.0 if (x == -1).any() else 0.0
    return (x == 1).astype(np.float32), (x == 1) | (x == negative_label)


def _negative_label(chunk: Chunk, schema: FeatureSchema, rows: Rows) -> float | None:
    """What stands for "no" in the first train rows that have one."""
    if schema.label is None or schema.positive_values or schema.positive_from is not None:
        return None
    x = column_of(chunk, schema.label, "numbers")[rows]
    negatives = x[x != 1]
    return float(negatives[0]) if len(negatives) else None


def bad_label(chunk: Chunk, schema: FeatureSchema, row: int, negative_label: float | None) -> RowError:
    """The error about the label of a row of a chunk."""
    assert schema.label is not None
    if schema.positive_values or schema.positive_from is not None:
        got, expected = "nothing", "a value"
    else:
        got = str(column_of(chunk, schema.label, "numbers")[row])
        got = "nothing" if got == "nan" else got
        expected = "0 or 1, or -1 or 1," if negative_label is None else f"{negative_label:g} or 1"
    problem = (
        f"{expected} is required, got {got}; correct the row, or set positive_from or positive_values in the schema"
    )
    return RowError("encode", f"label {schema.label}", chunk.first_row + row, problem)
