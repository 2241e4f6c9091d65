"""`EncodedTable`: a row of encoded columns for each user or item, by number; new ones come after them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from deeprec._files import read_regular, write_atomically
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import Bags, Encoded, Inputs, TextField
from deeprec.data.columns.kinds import MEDIA, Media
from deeprec.data.columns.numbers import Rows
from deeprec.data.columns.rows import join, take
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.media.files import MediaFiles
from deeprec.data.reading.chunks import Chunk
from deeprec.data.reading.frames import refuse_written_lists
from deeprec.data.reading.sources import open_source

_log = logging.getLogger("deeprec")

ROWS = "rows.safetensors"  # beside the files of the encoder

Numbers = NDArray[np.int64]


class EncodedTable:
    """Encoded rows of users or items, in memory.

    Attributes:
        encoder: what made the rows, and makes those of later users or items.
        rows: row i describes number i. The table holds 4 bytes for each id and number of a row.
        missing_files: for each column of media, the numbers whose file is named but not there.
    """

    def __init__(self, encoder: Encoder, rows: Encoded, missing_files: dict[str, Numbers] | None = None) -> None:
        self.encoder, self.rows = encoder, rows
        self.missing_files = missing_files or {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def inputs(self) -> Inputs:
        """Sizes and names of the columns."""
        return self.encoder.inputs

    @classmethod
    def fit(
        cls,
        schema: FeatureSchema,
        source: Any,
        *,
        numbers: NDArray[Any] | None = None,
        size: int | None = None,
        train: Rows | None = None,
    ) -> EncodedTable:
        """The table of a source, with an encoder fitted on the rows of train users or items only.

        Args:
            schema: of the rows; a label is not read.
            source: what `open_source` takes, one row for each user or item.
            numbers: of the users or items that the rows describe, [rows], distinct; one below 0 has no place in the
                table and is passed over. None: row i describes number i.
            size: rows of the table; a number without a row gets one of which nothing is known. None: as many as rows.
            train: which rows the encoder is fitted on, [rows]; None: all that have a place.
        Raises:
            ValueError: numbers that are too few, too many, repeated or beyond the size; what `Encoder.fit` raises.
        """
        schema = FeatureSchema(schema.features, label=None, notes=schema.notes)
        opened, to_read = open_source(source), schema.columns_to_read(with_label=False)
        opened.check(to_read)
        refuse_written_lists(opened, [bag.name for bag in to_read.bags])
        chunks = list(_chunks(schema, opened))
        count = sum(chunk.rows for chunk in chunks)
        placed = np.arange(count) if numbers is None else np.asarray(numbers, dtype=np.int64)
        size = (count if numbers is None else int(placed.max(initial=-1)) + 1) if size is None else size
        known = placed[placed >= 0]
        is_right = placed.shape == (count,) and known.max(initial=-1) < size and len(np.unique(known)) == len(known)
        if not is_right:
            raise ValueError(
                f"EncodedTable.fit: numbers must be distinct and below {size}, one for each of the {count} rows, got "
                f"{len(placed)} from {placed.min(initial=0)} to {placed.max(initial=0)}"
            )
        fitted = placed >= 0 if train is None else np.asarray(train, dtype=np.bool_) & (placed >= 0)
        masks = np.split(fitted, np.cumsum([chunk.rows for chunk in chunks])[:-1]) if chunks else []
        encoder = Encoder.fit(schema, zip(chunks, masks, strict=True))
        rows = join([encoder.encode(chunk) for chunk in chunks])
        return cls._placed(encoder, rows, placed, size, _missing_files(schema, chunks))

    @classmethod
    def _placed(
        cls, encoder: Encoder, rows: Encoded, placed: Numbers, size: int, missing: dict[str, Numbers]
    ) -> EncodedTable:
        """The table whose row placed[i] is row i, with rows of unknowns where there is none."""
        row_of = np.full(size, len(rows), dtype=np.int64)
        row_of[placed[placed >= 0]] = np.flatnonzero(placed >= 0)
        by_number = take(join([rows, encoder.unknown(1)]), row_of)
        files = {name: np.sort(placed[at][placed[at] >= 0]) for name, at in missing.items()}
        for name, numbers in files.items():
            if len(numbers):
                shown = ", ".join(repr(key) for key in take(by_number, numbers[:3]).bags[name].texts())
                _log.warning("EncodedTable: %s: %d files are not there, such as %s", name, len(numbers), shown)
        return cls(encoder, by_number, files)

    def gather(self, numbers: NDArray[Any]) -> Encoded:
        """The rows of users or items, [b] integers in [0, len(self)), any order, as a tower takes them."""
        return take(self.rows, numbers)

    def encode(self, source: Any) -> Encoded:
        """Rows of users or items that the encoder need not have seen; what it does not know is unknown.

        Raises:
            ValueError, TypeError: a column that is missing or of another type, a number that is infinite.
        """
        parts = list(self.encoder.stream(source))
        return join(parts) if parts else self.encoder.unknown(0)

    def appended(self, source: Any) -> EncodedTable:
        """This table with the rows of new users or items after its own: the first one has number len(self)."""
        chunks = list(_chunks(self.encoder.schema, source))
        if not chunks:
            return self
        rows = join([self.encoder.encode(chunk) for chunk in chunks])
        new = self._placed(
            self.encoder, rows, np.arange(len(rows)), len(rows), _missing_files(self.encoder.schema, chunks)
        )
        files = {
            name: np.concatenate([self.missing_files.get(name, numbers[:0]), numbers + len(self)])
            for name, numbers in new.missing_files.items()
        }
        return EncodedTable(self.encoder, join([self.rows, new.rows]), files)

    def save(self, directory: str | Path) -> None:
        """Write the files of the encoder, and rows.safetensors, into `directory`, which is made if it is not there."""
        self.encoder.save(directory)
        tensors: dict[str, NDArray[Any]] = {"ids": self.rows.ids, "values": self.rows.values}
        for at, bags in enumerate(self.rows.bags.values()):
            arrays = zip(Bags._fields, bags, strict=True)
            tensors |= {f"bag{at}_{part}": array for part, array in arrays if array is not None}
        tensors |= {f"missing_{name}": numbers for name, numbers in self.missing_files.items()}
        packed = save_tensors({name: np.ascontiguousarray(array) for name, array in tensors.items()})
        write_atomically(Path(directory) / ROWS, packed)

    @classmethod
    def load(cls, directory: str | Path) -> EncodedTable:
        """What `save` wrote; nothing is executed.

        Raises:
            FileNotFoundError. ValueError: files that are damaged or not of one table.
        """
        encoder, path = Encoder.load(directory), Path(directory) / ROWS
        try:
            tensors = load_tensors(read_regular(path, "EncodedTable.load", "save the table anew"))
            bags = {}
            for at, bag in enumerate(encoder.inputs.compressed):
                parts = [tensors.pop(f"bag{at}_{part}", None) for part in Bags._fields]
                bags[bag.name] = Bags(*parts)  # type: ignore[arg-type]
            rows = Encoded(tensors.pop("ids"), tensors.pop("values"), bags)
            _check_rows(encoder, rows)
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"EncodedTable.load: {path} is damaged ({error}); save the table anew") from None
        return cls(encoder, rows, {name.removeprefix("missing_"): numbers for name, numbers in tensors.items()})


def _chunks(schema: FeatureSchema, source: Any) -> Iterator[Chunk]:
    opened, to_read = open_source(source), schema.columns_to_read(with_label=False)
    with opened.naming_rows(to_read):
        yield from opened.chunks(to_read)


def _missing_files(schema: FeatureSchema, chunks: list[Chunk]) -> dict[str, Numbers]:
    """For each column of media, the rows whose file is named but not there."""
    media = [feature for feature in schema.features if isinstance(feature, MEDIA)]
    parts: dict[str, list[Numbers]] = {feature.name: [np.empty(0, dtype=np.int64)] for feature in media}
    for chunk in chunks:
        for feature in media:
            parts[feature.name].append(chunk.first_row + missing_files(feature, chunk.texts[feature.column]))
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def missing_files(feature: Media, keys: pl.Series) -> Numbers:
    """The rows of a column of media whose file is named but not there, or would lie outside of the folder."""
    try:
        files = MediaFiles(feature.folder)
    except FileNotFoundError:
        return np.array([row for row, key in enumerate(keys.to_list()) if key], dtype=np.int64)
    return np.array([row for row, key in enumerate(keys.to_list()) if key and key not in files], dtype=np.int64)


def _check_rows(encoder: Encoder, rows: Encoded) -> None:
    """Raise ValueError unless the arrays are those of the encoder's inputs."""
    inputs, n = encoder.inputs, len(rows.ids)
    expected: list[tuple[str, NDArray[Any], Any, tuple[int, ...]]] = [
        ("ids", rows.ids, np.int32, (n, len(inputs.fields))),
        ("values", rows.values, np.float32, (n, inputs.num_values)),
    ]
    for field in inputs.compressed:
        bags = rows.bags[field.name]
        expected.append((f"offsets of {field.name}", bags.offsets, np.int64, (n + 1,)))
        kind = np.uint8 if isinstance(field, TextField) else np.int32
        expected.append((field.name, bags.ids, kind, (int(bags.offsets[-1]),)))
    for name, array, dtype, shape in expected:
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}")
    sizes = [(rows.ids[:, at], field.size) for at, field in enumerate(inputs.fields)]
    sizes += [(rows.bags[field.name].ids, field.size) for field in inputs.bags]
    sizes += [(rows.bags[field.name].ids, field.size) for field in inputs.sequences]
    if any(len(ids) and not 0 <= ids.min() <= ids.max() < size for ids, size in sizes):
        raise ValueError("an id lies outside of its vocabulary")
