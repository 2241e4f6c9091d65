"""`Encoder`: what a schema's features mean in numbers, fitted on the train rows, the same when serving.

Fitting streams. Memory: 23 to 46 bytes for each distinct value of a vocabulary, about 60 at the peak (a column of ten
million values took 0.6 GB), as much again when the encoder is used, and for the columns with quantiles a uniform sample
of one to two million rows, 8 bytes a number. Nothing depends on how a source is cut into chunks, but for the last bits
of means.
"""

from __future__ import annotations

import json
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
from deeprec.data.columns.fitting import Counts, Fitting, bad_label, labels_of
from deeprec.data.columns.hashed import cross, modulo
from deeprec.data.columns.inputs import BagField, Bags, Encoded, Field, Inputs, SequenceField, TextField, VectorField
from deeprec.data.columns.kinds import MEDIA, Bag, Categorical, Cross, Numeric, Sequence, Text, Vector, WithIds
from deeprec.data.columns.numbers import NumberState, Rows, buckets, column_of, numbers_of, transformed
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.tokens import token_hashes
from deeprec.data.reading.chunks import BagChunk, Chunk, RowError, Vocabulary
from deeprec.data.reading.hashing import TEXT_HASH_VERSION, Hashes, VocabularyLike, as_series, buffers, hash_values
from deeprec.data.reading.sources import open_source
from deeprec.data.reading.text import OnBad

VERSION = 1
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
            chunks: with the columns of `schema.columns_to_read()`, and for each of them its train rows, bool, [rows].
            seed: of the sample that quantiles are taken from.
            on_bad: "skip" passes over rows whose label is none.
        Raises:
            ValueError: no train row, an infinite number, a label that is none (also outside the train rows), a missing
                number where the schema refuses them; the message names the row.
        """
        fitting = Fitting(schema, seed, on_bad)
        for chunk, rows in chunks:
            fitting.add(chunk, rows)
        return cls(schema, *fitting.finish())

    def grown(self, chunks: Iterable[tuple[Chunk, Rows | None]]) -> Encoder:
        """The same encoder with the new values of later rows: nothing that it knows changes, ids least of all.

        New values come after the old ones, most frequent first, ties by hash, if they occur `min_count` times in these
        rows, until a vocabulary is full (`max_size`). Statistics of numbers stay those of the first train rows. Hash
        buckets do not grow; crosses stay as large, but rows with new values fall into other buckets than before.

        Args:
            chunks: as of `fit`; labels are not read.
        """
        counts = Counts(self.schema)
        for chunk, rows in chunks:
            counts.add(chunk, rows)
        hashes = {}
        for feature, values in counts.finish():
            old = self.hashes[feature.name]
            new = values[~np.isin(values, old)]
            if feature.max_size is not None:
                new = new[: max(0, feature.max_size - len(old))]
            hashes[feature.name] = np.concatenate([old, new])
        return Encoder(self.schema, hashes, self.numbers, self.negative_label)

    def encode(self, chunk: Chunk, with_labels: bool = True) -> Encoded:
        """The rows of a chunk as ids and numbers.

        Args:
            chunk: with the columns of `schema.columns_to_read(with_label=with_labels)`.
            with_labels: False leaves labels and groups None, as when serving.
        Raises:
            ValueError: a column that is missing, an infinite number, a label that is none, a missing number where the
                schema refuses them; the message names column and row.
        """
        if with_labels and self.schema.label is not None:
            return self.encode_labelled(chunk, "raise")[0]
        encoded = self._blank(chunk.rows)
        column = {field.name: at for at, field in enumerate(self.inputs.fields)}
        value = {name: at for at, name in enumerate(self.inputs.numerics)}
        for feature in self.schema.features:
            name = feature.name
            if isinstance(feature, Categorical):
                encoded.ids[:, column[name]] = self._ids(feature, column_of(chunk, feature.column, "hashes"))
            elif isinstance(feature, Numeric) and feature.is_bucketised:
                encoded.ids[:, column[name]] = buckets(numbers_of(chunk, feature), self.numbers[name])
            elif isinstance(feature, Numeric):
                x = numbers_of(chunk, feature)
                encoded.values[:, value[name]] = transformed(feature, self.numbers[name], x)
                if feature.missing_indicator:
                    encoded.values[:, value[name] + 1] = np.isnan(x)
            elif isinstance(feature, Vector):
                encoded.values[:, self.inputs.columns_of(name)] = _vectors(chunk, feature)
            elif isinstance(feature, Bag):
                encoded.bags[name] = self._bags(feature, column_of(chunk, feature.column, "bags"))
            elif isinstance(feature, Sequence):
                _check_parallel(chunk, feature, self.schema)
                encoded.bags[name] = self._sequence(feature, column_of(chunk, feature.column, "bags"))
            elif not isinstance(feature, Cross):
                encoded.bags[name] = self._text(feature, column_of(chunk, feature.column, "texts"))
        self._cross(encoded)
        return encoded

    def unknown(self, rows: int) -> Encoded:
        """So many rows of which nothing is known: ids 0, numbers that are missing, empty bags, vectors of zeros."""
        encoded = self._blank(rows)
        value = {name: at for at, name in enumerate(self.inputs.numerics)}
        for feature in self.schema.features:
            if isinstance(feature, Numeric) and not feature.is_bucketised:
                encoded.values[:, value[feature.name]] = self.numbers[feature.name].fill
                if feature.missing_indicator:
                    encoded.values[:, value[feature.name] + 1] = 1.0
        self._cross(encoded)
        return encoded

    def ids_of(self, name: str, values: Any) -> NDArray[np.int32]:
        """The ids that a categorical feature has for values, [n]: text, numbers, booleans or times.

        Raises:
            KeyError: no such feature.
        """
        for feature in self.schema.features:
            if isinstance(feature, Categorical) and feature.name == name:
                return self._ids(feature, hash_values(as_series(values)))
        raise KeyError(name)

    def encode_labelled(self, chunk: Chunk, on_bad: OnBad) -> tuple[Encoded, Rows]:
        """(all rows of a chunk, which of them have a label that is one); "raise" refuses the others."""
        labels, has_label = labels_of(chunk, self.schema, self.negative_label)
        if on_bad == "raise" and not has_label.all():
            raise bad_label(chunk, self.schema, int(np.argmin(has_label)), self.negative_label)
        encoded = self.encode(chunk, with_labels=False)
        encoded.labels, encoded.groups = labels, self._groups(chunk)
        return encoded, has_label

    def stream(self, source: Any, *, with_labels: bool = False) -> Iterator[Encoded]:
        """All rows of a source, a chunk at a time.

        Args:
            source: what `open_source` takes; its columns may stand in any order.
        Raises:
            ValueError: a column that is missing (with the nearest name) or infinite. TypeError: one of another type.
        """
        opened, to_read = open_source(source), self.schema.columns_to_read(with_label=with_labels)
        with opened.naming_rows(to_read):
            for chunk in opened.chunks(to_read):
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

    def _blank(self, rows: int) -> Encoded:
        """Rows of zeros and empty bags, to be written over."""
        inputs, none = self.inputs, np.zeros(rows + 1, dtype=np.int64)
        bags: dict[str, Bags] = {}
        for bag in inputs.bags:
            bags[bag.name] = Bags(np.empty(0, np.int32), none, np.empty(0, np.float32) if bag.is_weighted else None)
        bags |= {sequence.name: Bags(np.empty(0, np.int32), none) for sequence in inputs.sequences}
        bags |= {text.name: Bags(np.empty(0, np.uint8), none) for text in inputs.texts}
        ids = np.zeros((rows, len(inputs.fields)), dtype=np.int32)
        return Encoded(ids, np.zeros((rows, inputs.num_values), dtype=np.float32), bags)

    def _cross(self, encoded: Encoded) -> None:
        """Write the crosses of what is there."""
        column = {field.name: at for at, field in enumerate(self.inputs.fields)}
        for feature in self.schema.features:
            if isinstance(feature, Cross):
                crossed = cross(feature, {name: encoded.ids[:, at] for name, at in column.items()}, encoded.bags)
                if isinstance(crossed, Bags):
                    encoded.bags[feature.name] = crossed
                else:
                    encoded.ids[:, column[feature.name]] = crossed

    def _ids(self, feature: WithIds, hashes: Hashes) -> NDArray[np.int32]:
        owner = self.schema.ids_from(feature)
        if owner.num_buckets is not None:
            return modulo(hashes, owner.num_buckets)
        return self._lookup[owner.name].lookup(hashes)

    def _sequence(self, feature: Sequence, chunk: BagChunk) -> Bags:
        offsets, hashes, _ = chunk
        if feature.length is not None:
            lengths = np.diff(offsets)
            after = np.repeat(offsets[1:], lengths) - np.arange(len(hashes))  # 1 for the last one of a row
            hashes = hashes[after <= feature.length]
            offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, feature.length))])
        return Bags(self._ids(feature, hashes), offsets.astype(np.int64))

    def _text(self, feature: Any, texts: Any) -> Bags:
        if not isinstance(feature, Text) or feature.is_raw:
            offsets, data = buffers(texts)
            return Bags(np.frombuffer(data, dtype=np.uint8), offsets)
        tokens = token_hashes(texts, feature.tokens)
        offsets, hashes = _first(tokens.offsets, feature.length, tokens.hashes)
        return Bags(self._ids(feature, hashes), offsets)

    def _bags(self, feature: Bag, chunk: BagChunk) -> Bags:
        offsets, hashes, weights = chunk
        if feature.is_weighted and weights is None:
            raise ValueError(
                f"encode: {feature.name} must have weights, got values alone; drop weight_separator from the schema"
            )
        arrays = (hashes,) if weights is None else (hashes, weights)
        offsets, hashes, *rest = _first(offsets, feature.max_length, *arrays)
        if not feature.is_weighted:
            return Bags(self._ids(feature, hashes), offsets.astype(np.int64))
        seen = self.numbers.get(feature.name, NumberState())
        bounded = rest[0].clip(np.float32(seen.low), np.float32(seen.high))
        return Bags(self._ids(feature, hashes), offsets.astype(np.int64), bounded)

    def _groups(self, chunk: Chunk) -> NDArray[np.int64] | None:
        if self.schema.group is None:
            return None
        groups: NDArray[np.int64] = column_of(chunk, self.schema.group, "hashes").view(np.int64)
        return groups


def _check_parallel(chunk: Chunk, feature: Sequence, schema: FeatureSchema) -> None:
    """Raise RowError where a row has more or fewer entries than in the sequence that a feature is parallel to."""
    if not feature.parallel_to:
        return
    other = next(f for f in schema.sequences if f.name == feature.parallel_to)
    own, others = (np.diff(column_of(chunk, f.column, "bags").offsets) for f in (feature, other))
    if (own != others).any():
        row = int(np.argmax(own != others))
        raise RowError(
            "encode",
            feature.name,
            chunk.first_row + row,
            f"as many entries as in {other.name!r}, to which it is parallel, are required, {others[row]}, got "
            f"{own[row]}; correct the row",
        )


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
    expected = {feature.name for feature in schema.with_vocabulary()}
    if expected != set(hashes):
        raise ValueError(f"vocabularies of {sorted(expected)} are needed, got {sorted(hashes)}")
    for name, values in hashes.items():
        if values.ndim != 1 or values.dtype != np.uint64:
            raise ValueError(f"{name} must be uint64 [n], got {values.dtype} {list(values.shape)}")


def _first(offsets: NDArray[np.int64], most: int | None, *entries: Any) -> tuple[Any, ...]:
    """Offsets and entries with at most so many of each row, its first ones; None: all."""
    if most is not None:
        lengths = np.diff(offsets)
        kept = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) < most
        offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, most))])
        entries = tuple(entry[kept] for entry in entries)
    return offsets.astype(np.int64), *entries


def _vectors(chunk: Chunk, feature: Vector) -> NDArray[np.float32]:
    """[rows, width], finite."""
    if feature.columns:
        with np.errstate(over="ignore"):
            numbers = [column_of(chunk, column, "numbers").astype(np.float32) for column in feature.columns]
        values = np.stack(numbers, axis=1)
    else:
        values = column_of(chunk, feature.column, "vectors")
    is_missing = np.isnan(values).all(axis=1)
    bad = ~np.isfinite(values).all(axis=1)
    if feature.missing == "zeros":
        bad &= ~is_missing
    if bad.any():
        row = int(np.argmax(bad))
        got = "none" if is_missing[row] else str(values[row][~np.isfinite(values[row])][0])
        problem = f"a vector of {feature.num_values} finite numbers is required, got {got}; correct the row"
        problem += ", or set missing: zeros in the schema" if is_missing[row] else ""
        raise RowError("encode", feature.name, chunk.first_row + row, problem)
    return np.where(is_missing[:, None], np.float32(0), values)


def _inputs(schema: FeatureSchema, vocabularies: dict[str, Hashes], numbers: dict[str, NumberState]) -> Inputs:
    fields: list[Field] = []
    numerics: list[str] = []
    bags: dict[str, BagField] = {}
    sequences: list[SequenceField] = []
    texts: list[TextField] = []

    def size(feature: WithIds) -> int:
        owner = schema.ids_from(feature)
        return owner.num_buckets or len(vocabularies[owner.name]) + 1

    for f in schema.features:
        if isinstance(f, Numeric) and f.is_bucketised:
            fields.append(Field(f.name, len(numbers[f.name].boundaries) + 2))
        elif isinstance(f, Numeric):
            numerics += [f.name, f"{f.name}_missing"] if f.missing_indicator else [f.name]
        elif isinstance(f, Categorical):
            fields.append(Field(f.name, size(f)))
        elif isinstance(f, Bag):
            bags[f.name] = BagField(f.name, size(f), f.pooling, f.is_weighted)
        elif isinstance(f, Sequence):
            sequences.append(SequenceField(f.name, size(f), f.length, f.vocabulary, f.parallel_to, f.pooling))
        elif isinstance(f, Text) and not f.is_raw:
            sequences.append(SequenceField(f.name, size(f), f.length))
        elif isinstance(f, (Text, *MEDIA)):
            texts.append(TextField(f.name, f.kind, getattr(f, "folder", "")))
    plain = dict(bags)
    for f in schema.features:
        if isinstance(f, Cross):
            bag = next((plain[name] for name in f.columns if name in plain), None)
            if bag is None:
                fields.append(Field(f.name, f.num_buckets, is_cross=True))
            else:
                bags[f.name] = BagField(f.name, f.num_buckets, bag.pooling, bag.is_weighted, is_cross=True)
    vectors = tuple(VectorField(f.name, f.num_values) for f in schema.vectors)
    return Inputs(tuple(fields), tuple(numerics), tuple(bags.values()), tuple(sequences), tuple(texts), vectors)
