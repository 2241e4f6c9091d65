"""`Encoder`: what a schema's features mean in numbers, fitted on the train rows, the same when serving.

Fitting streams. Memory: 23 to 46 bytes for each distinct value of a vocabulary, about 60 at the peak (a column of ten
million values took 0.6 GB), as much again when the encoder is used, and for the columns with quantiles a uniform sample
of one to two million rows, 8 bytes a number. Nothing depends on how a source is cut into chunks, but for the last bits
of means.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from deeprec._files import make_folder, read_json, read_regular, sha256_of, write_atomically
from deeprec._record import RecordError, typed
from deeprec.data.columns.inputs import BagField, Bags, Encoded, Field, Inputs
from deeprec.data.columns.numbers import (
    Moments,
    NumberState,
    Rows,
    Sample,
    buckets,
    column_of,
    logarithm,
    number_state,
    numbers_of,
    transformed,
)
from deeprec.data.columns.schema import Bag, Categorical, Cross, FeatureSchema, Numeric
from deeprec.data.reading.chunks import BagChunk, Chunk, RowError, Vocabulary, hash_text
from deeprec.data.reading.hashing import TEXT_HASH_VERSION, Hashes, VocabularyLike, mix
from deeprec.data.reading.sources import open_source
from deeprec.data.reading.text import OnBad

_log = logging.getLogger("deeprec")

VERSION = 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STATE = "encoder.json"
_VOCABULARIES = "vocabularies.safetensors"
FILES = (_STATE, _VOCABULARIES)
_REMEDY = "restore the folder or fit anew"


@dataclass(frozen=True)
class _State:
    """What encoder.json holds."""

    version: int
    text_hash_version: int
    schema: dict[str, Any]
    numbers: dict[str, NumberState]
    negative_label: float | None
    vocabularies_sha256: str


class Encoder:
    """Chunks of a source to the ids and numbers of models.

    Made by `fit` or `load`. Ids of a vocabulary: 0 is unknown (unseen, or too rare in train), then most frequent first,
    ties by hash; a missing value is a value like others. Hash buckets: all ids are values.

    Attributes:
        schema: what was declared.
        inputs: sizes and names of what `encode` returns: fields (crosses last), numerics, bags (crosses last).
    """

    def __init__(
        self,
        schema: FeatureSchema,
        vocabularies: dict[str, Hashes],
        numbers: dict[str, NumberState],
        negative_label: float | None = None,
    ) -> None:
        self.schema = schema
        self.hashes = vocabularies
        self.numbers = numbers
        self.negative_label = negative_label
        self.inputs = _inputs(schema, vocabularies, numbers)

    @cached_property
    def _lookup(self) -> dict[str, VocabularyLike]:
        """Made for the first row that is encoded: who trains on converted rows has none, and needs the memory."""
        return {name: Vocabulary(hashes) for name, hashes in self.hashes.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled tables, which are made again where rows are encoded."""
        return {name: value for name, value in self.__dict__.items() if name != "_lookup"}

    @classmethod
    def fit(
        cls,
        schema: FeatureSchema,
        chunks: Iterable[tuple[Chunk, Rows | None]],
        *,
        seed: int = 0,
        on_bad: OnBad = "raise",
    ) -> Encoder:
        """An encoder fitted on the rows where the mask is true; None means all rows.

        Args:
            chunks: with the columns of `schema.wanted()`, and for each of them its train rows, bool, [rows].
            seed: of the sample that quantiles are taken from.
            on_bad: "skip" passes over rows whose label is none.
        Raises:
            ValueError: no train row, an infinite number, a label that is none (also outside the train rows), a missing
                number where the schema refuses them; the message names the row.
        """
        fitting = _Fitting(schema, seed, on_bad)
        for chunk, rows in chunks:
            fitting.add(chunk, rows)
        return fitting.finish()

    def encode(self, chunk: Chunk, with_labels: bool = True) -> Encoded:
        """The rows of a chunk as ids and numbers.

        Args:
            chunk: with the columns of `schema.wanted(with_label=with_labels)`.
            with_labels: False leaves labels and groups None, as when serving.
        Raises:
            ValueError: a column that is missing, an infinite number, a label that is none, a missing number where the
                schema refuses them; the message names column and row.
        """
        if with_labels:
            return self.encode_good(chunk, "raise")[0]
        fields = self.inputs.fields
        ids = np.empty((chunk.rows, len(fields)), dtype=np.int32)
        column = {field.name: at for at, field in enumerate(fields)}
        values = np.empty((chunk.rows, len(self.inputs.numerics)), dtype=np.float32)
        at_value = 0
        bags: dict[str, Bags] = {}
        for feature in self.schema.features:
            if isinstance(feature, Categorical):
                ids[:, column[feature.name]] = self._ids(feature, column_of(chunk, feature.column, "hashes"))
            elif isinstance(feature, Bag):
                bags[feature.name] = self._bags(feature, column_of(chunk, feature.column, "bags"))
            elif isinstance(feature, Numeric) and feature.is_bucketised:
                ids[:, column[feature.name]] = buckets(numbers_of(chunk, feature), self.numbers[feature.name])
            elif isinstance(feature, Numeric):
                x = numbers_of(chunk, feature)
                values[:, at_value] = transformed(feature, self.numbers[feature.name], x)
                at_value += 1
                if feature.missing_indicator:
                    values[:, at_value] = np.isnan(x)
                    at_value += 1
        for feature in self.schema.features:
            if isinstance(feature, Cross):
                crossed = _cross(feature, {name: ids[:, at] for name, at in column.items()}, bags)
                if isinstance(crossed, Bags):
                    bags[feature.name] = crossed
                else:
                    ids[:, column[feature.name]] = crossed
        return Encoded(ids, values, {bag.name: bags[bag.name] for bag in self.inputs.bags})

    def encode_good(self, chunk: Chunk, on_bad: OnBad) -> tuple[Encoded, Rows]:
        """(all rows of a chunk, which of them have a label that is one); "raise" refuses the others."""
        labels, is_good = labels_of(chunk, self.schema, self.negative_label)
        if on_bad == "raise" and not is_good.all():
            raise _bad_label(chunk, self.schema, int(np.argmin(is_good)), self.negative_label)
        encoded = self.encode(chunk, with_labels=False)
        encoded.labels, encoded.groups = labels, self._groups(chunk)
        return encoded, is_good

    def stream(self, source: Any, *, with_labels: bool = False) -> Iterator[Encoded]:
        """All rows of a source, a chunk at a time.

        Args:
            source: what `open_source` takes; its columns may stand in any order.
        Raises:
            ValueError: a column that is missing (with the nearest name) or infinite. TypeError: one of another type.
        """
        opened, wanted = open_source(source), self.schema.wanted(with_label=with_labels)
        with opened.naming_rows(wanted):
            for chunk in opened.chunks(wanted):
                yield self.encode(chunk, with_labels)

    def save(self, directory: str | Path) -> dict[str, str]:
        """Write encoder.json and vocabularies.safetensors into `directory`, which is made if it is not there.

        Returns:
            SHA-256 of the files, by name.
        """
        directory = Path(directory)
        make_folder(directory)
        packed = save_tensors({name: np.ascontiguousarray(hashes) for name, hashes in self.hashes.items()})
        state = {
            "version": VERSION,
            "text_hash_version": TEXT_HASH_VERSION,
            "schema": self.schema.as_dict(),
            "numbers": {name: asdict(number) for name, number in self.numbers.items()},
            "negative_label": self.negative_label,
            "vocabularies_sha256": sha256_of(packed),
        }
        # Infinity is a word that Python's json knows; floats are written with all their digits.
        text = (json.dumps(state, indent=1) + "\n").encode()
        write_atomically(directory / _VOCABULARIES, packed)
        write_atomically(directory / _STATE, text)
        return {_STATE: sha256_of(text), _VOCABULARIES: sha256_of(packed)}

    @classmethod
    def load(cls, directory: str | Path) -> Encoder:
        """What `save` wrote; nothing is executed.

        Raises:
            FileNotFoundError. ValueError: damaged files, or those of another version; names the file.
        """
        directory = Path(directory)
        path, packed_path = directory / _STATE, directory / _VOCABULARIES
        values = read_json(path, "Encoder.load", _REMEDY, allow_infinity=True)
        packed = read_regular(packed_path, "Encoder.load", _REMEDY)
        try:
            state: _State = typed(_State, values, "")
            versions = state.version, state.text_hash_version
            if versions != (VERSION, TEXT_HASH_VERSION):
                raise ValueError(
                    f"it is of version {versions}, this deeprec reads {(VERSION, TEXT_HASH_VERSION)}: fit the encoder "
                    "anew"
                )
            schema = FeatureSchema.from_dict(state.schema)
            _check_numbers(schema, state.numbers)
        except (RecordError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"Encoder.load: {path} is no encoder that can be read ({error}); {_REMEDY}") from None
        if sha256_of(packed) != state.vocabularies_sha256:
            raise ValueError(f"Encoder.load: {packed_path} is damaged or of another encoder; {_REMEDY}")
        try:
            hashes = load_tensors(packed)
            _check_vocabularies(schema, hashes)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"Encoder.load: {packed_path} holds no vocabularies ({error}); {_REMEDY}") from None
        return cls(schema, hashes, state.numbers, state.negative_label)

    def _ids(self, feature: Categorical | Bag, hashes: Hashes) -> NDArray[np.int32]:
        if feature.num_buckets is not None:
            return _modulo(hashes, feature.num_buckets)
        return self._lookup[feature.name].lookup(hashes)

    def _bags(self, feature: Bag, chunk: BagChunk) -> Bags:
        offsets, hashes, weights = chunk
        if feature.is_weighted and weights is None:
            raise ValueError(
                f"encode: {feature.name} must have weights, got values alone; drop weight_separator from the schema"
            )
        if feature.max_length is not None:
            lengths = np.diff(offsets)
            place = np.arange(len(hashes)) - np.repeat(offsets[:-1], lengths)
            kept = place < feature.max_length
            hashes, weights = hashes[kept], None if weights is None else weights[kept]
            offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, feature.max_length))])
        if not feature.is_weighted:
            return Bags(self._ids(feature, hashes), offsets.astype(np.int64))
        seen = self.numbers.get(feature.name, NumberState())
        assert weights is not None
        bounded = weights.clip(np.float32(seen.low), np.float32(seen.high))
        return Bags(self._ids(feature, hashes), offsets.astype(np.int64), bounded)

    def _groups(self, chunk: Chunk) -> NDArray[np.int64] | None:
        if self.schema.group is None:
            return None
        groups: NDArray[np.int64] = column_of(chunk, self.schema.group, "hashes").view(np.int64)
        return groups


class _Fitting:
    """The sums, counts and samples of the train rows so far."""

    def __init__(self, schema: FeatureSchema, seed: int, on_bad: OnBad) -> None:
        self.schema, self.on_bad = schema, on_bad
        self.rows = 0
        self.positives = 0
        self.negative_label: float | None = None
        # Features that read the same column with the same values share one vocabulary's counts.
        self.counted = {
            (type(f), f.column): Vocabulary()
            for f in schema.features
            if isinstance(f, (Categorical, Bag)) and f.num_buckets is None
        }
        numeric = [f for f in schema.features if isinstance(f, Numeric)]
        self.moments = {f.name: Moments() for f in numeric}
        self.sample = Sample([f for f in numeric if f.quantiles], seed)
        self.weights = {f.name: (math.inf, -math.inf) for f in schema.features if isinstance(f, Bag) and f.is_weighted}

    def add(self, chunk: Chunk, rows: Rows | None) -> None:
        labels, is_good = labels_of(chunk, self.schema, self.negative_label)
        if not is_good.all():
            if self.on_bad == "raise":
                raise _bad_label(chunk, self.schema, int(np.argmin(is_good)), self.negative_label)
            rows = is_good if rows is None else rows & is_good
        chosen = np.ones(chunk.rows, dtype=np.bool_) if rows is None else rows
        if self.negative_label is None:
            self.negative_label = _negative_label(chunk, self.schema, chosen)
        count = int(chosen.sum())
        if not count:
            return
        for (kind, name), vocabulary in self.counted.items():
            if kind is Categorical:
                vocabulary.count(column_of(chunk, name, "hashes"), rows)
            else:
                bag = column_of(chunk, name, "bags")
                entries = None if rows is None else np.repeat(rows, np.diff(bag.offsets))
                vocabulary.count(bag.hashes, entries)
        for feature in self.schema.features:
            if isinstance(feature, Numeric):
                x = numbers_of(chunk, feature)
                self.moments[feature.name].add(logarithm(feature, x if rows is None else x[rows]))
            elif isinstance(feature, Bag) and feature.is_weighted:
                bag = column_of(chunk, feature.column, "bags")
                some = slice(None) if rows is None else np.repeat(rows, np.diff(bag.offsets))
                if bag.weights is not None and len(seen := bag.weights[some]):
                    low, high = self.weights[feature.name]
                    self.weights[feature.name] = min(low, float(seen.min())), max(high, float(seen.max()))
        self.sample.add(chunk, rows, count)
        self.rows += count
        self.positives += int(labels[chosen].sum())

    def finish(self) -> Encoder:
        if not self.rows:
            raise ValueError("Encoder.fit: at least one train row is required, got none; check the split")
        if self.positives in (0, self.rows):
            _log.warning(
                "Encoder.fit: all %s train rows have label %d; check label, positive_from and positive_values",
                f"{self.rows:,}",
                self.positives > 0,
            )
        kept: dict[str, Hashes] = {}
        readers: dict[Any, list[Categorical | Bag]] = {key: [] for key in self.counted}
        for f in self.schema.features:
            if isinstance(f, (Categorical, Bag)) and f.num_buckets is None:
                readers[type(f), f.column].append(f)
        for key, features in readers.items():
            counts = self.counted.pop(key)  # freed before the next one is sorted
            for f in features:
                kept[f.name] = counts.finish(f.min_count, f.max_size)[0]
            del counts
        numbers = {
            f.name: number_state(f, self.moments[f.name], self.sample.of(f))
            for f in self.schema.features
            if isinstance(f, Numeric)
        }
        for name, (low, high) in self.weights.items():
            numbers[name] = NumberState(low=low, high=high) if low <= high else NumberState(low=0.0, high=0.0)
        return Encoder(self.schema, kept, numbers, self.negative_label)


def _check_numbers(schema: FeatureSchema, numbers: dict[str, NumberState]) -> None:
    """Raise ValueError unless there is a usable state for each numeric feature; older files have none of weights."""
    features = [f.name for f in schema.features if isinstance(f, Numeric)]
    weighted = {f.name for f in schema.features if isinstance(f, Bag) and f.is_weighted}
    if set(features) != set(numbers) - weighted:
        raise ValueError(f"numbers must be those of {sorted(features)}, got {sorted(numbers)}")
    for name, state in numbers.items():
        is_finite = np.isfinite([state.shift, state.scale, state.fill, *state.boundaries]).all()
        if not is_finite or (np.diff(state.boundaries) < 0).any() or not state.low <= state.high:
            raise ValueError(f"numbers.{name} must be finite with ascending bounds, got {state}")


def _check_vocabularies(schema: FeatureSchema, hashes: dict[str, Hashes]) -> None:
    """Raise ValueError unless there is a list of hashes for each feature with a vocabulary."""
    wanted = {f.name for f in schema.features if isinstance(f, (Categorical, Bag)) and f.num_buckets is None}
    if wanted != set(hashes):
        raise ValueError(f"vocabularies of {sorted(wanted)} are needed, got {sorted(hashes)}")
    for name, values in hashes.items():
        if values.ndim != 1 or values.dtype != np.uint64:
            raise ValueError(f"{name} must be uint64 [n], got {values.dtype} {list(values.shape)}")


def _modulo(hashes: Hashes, num_buckets: int) -> NDArray[np.int32]:
    """Hashes to [0, num_buckets) by their high halves, without a division."""
    return (((hashes >> np.uint64(32)) * np.uint64(num_buckets)) >> np.uint64(32)).astype(np.int32)


def _cross(cross: Cross, ids: dict[str, NDArray[np.int32]], bags: dict[str, Bags]) -> NDArray[np.int32] | Bags:
    """h_0 = 0, h_c = mix(h_(c-1) + (id_c + 1) g), modulo the buckets; mix and g are splitmix64's."""
    bag: Bags | None = None
    state: Any = np.uint64(0)
    with np.errstate(over="ignore"):
        for name in cross.columns:
            if name in bags:
                bag = bags[name]
                lengths = np.diff(bag.offsets)
                state = np.repeat(state, lengths) if np.ndim(state) else state
                column = bag.ids
            else:
                column = ids[name] if bag is None else np.repeat(ids[name], lengths)
            state = mix(state + (column.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    crossed = _modulo(state, cross.num_buckets)
    return crossed if bag is None else Bags(crossed, bag.offsets, bag.weights)


def _inputs(schema: FeatureSchema, vocabularies: dict[str, Hashes], numbers: dict[str, NumberState]) -> Inputs:
    fields: list[Field] = []
    numerics: list[str] = []
    bags: dict[str, BagField] = {}
    for f in schema.features:
        if isinstance(f, Numeric) and f.is_bucketised:
            fields.append(Field(f.name, len(numbers[f.name].boundaries) + 2))
        elif isinstance(f, Numeric):
            numerics += [f.name, f"{f.name}_missing"] if f.missing_indicator else [f.name]
        elif isinstance(f, (Categorical, Bag)):
            size = f.num_buckets or len(vocabularies[f.name]) + 1
            if isinstance(f, Categorical):
                fields.append(Field(f.name, size))
            else:
                bags[f.name] = BagField(f.name, size, f.pooling, f.is_weighted)
    plain = dict(bags)
    for f in schema.features:
        if isinstance(f, Cross):
            bag = next((plain[name] for name in f.columns if name in plain), None)
            if bag is None:
                fields.append(Field(f.name, f.num_buckets, is_cross=True))
            else:
                bags[f.name] = BagField(f.name, f.num_buckets, bag.pooling, bag.is_weighted, is_cross=True)
    return Inputs(tuple(fields), tuple(numerics), tuple(bags.values()))


def labels_of(
    chunk: Chunk, schema: FeatureSchema, negative_label: float | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(labels [rows], 0 or 1; whether each is one)."""
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
    if schema.positive_values or schema.positive_from is not None:
        return None
    x = column_of(chunk, schema.label, "numbers")[rows]
    negatives = x[x != 1]
    return float(negatives[0]) if len(negatives) else None


def _bad_label(chunk: Chunk, schema: FeatureSchema, row: int, negative_label: float | None) -> RowError:
    if schema.positive_values or schema.positive_from is not None:
        got, wanted = "nothing", "a value"
    else:
        got = str(column_of(chunk, schema.label, "numbers")[row])
        got = "nothing" if got == "nan" else got
        wanted = "0 or 1, or -1 or 1," if negative_label is None else f"{negative_label:g} or 1"
    problem = f"{wanted} is required, got {got}; correct the row, or set positive_from or positive_values in the schema"
    return RowError("encode", f"label {schema.label}", chunk.first_row + row, problem)
