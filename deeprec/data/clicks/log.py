"""Click logs as the trainer takes them: encoded once, in memory or in memory-mapped files, in parts.

    log = convert("train.tsv.gz", schema, "train.log", split=Split("random", (0.8, 0.1, 0.1)), format="criteo")
    for batch in log.parts["train"].batches(4096, seed=0, epoch=0):
        ...

A directory holds meta.json, the encoder, and for each part ids.bin (int32), values.bin (float32), labels.bin (float32),
groups.bin (int64) and for each bag its offsets (int64), ids (int32) and weights (float32), in order, little-endian.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec._files import read_json, replace_directory, sha256_of, unfinished_directory, write_atomically
from deeprec._record import RecordError, typed
from deeprec._suggest import did_you_mean
from deeprec.data.clicks.files import FileWriter, MemoryWriter, Writer, mapped
from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import Inputs
from deeprec.data.columns.rows import take
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.random_bits import random_bits
from deeprec.data.reading.chunks import Chunk, ColumnsToRead, Source
from deeprec.data.reading.errors import naming
from deeprec.data.reading.frames import refuse_written_lists
from deeprec.data.reading.sources import open_source
from deeprec.data.reading.text import OnBad, check_on_bad

_log = logging.getLogger("deeprec")

VERSION = 1
PARTS = ("train", "validation", "test")
KINDS = ("random", "tail", "files")
_SPLIT_STREAM = 0x60
_META = "meta.json"
_ENCODER = "encoder"

Progress = Callable[[str, int, int], None]
Part = NDArray[np.int8]


@dataclass(frozen=True)
class Split:
    """Which rows of a source are for training, for choosing and for testing.

    Attributes:
        kind: "random": each row by a random number of its own, a function of the seed and its number in the source;
            "tail": the last rows, in the order of the file, as when a log is sorted by time; "files": sources of their
            own.
        shares: of train, validation and test rows of the source, >= 0, sum 1; the default is (0.8, 0.1, 0.1), for
            "files" (1, 0, 0). With "files" the source is divided at random into the parts that have no file.
        seed: of the random numbers.
        validation, test: sources, for "files" only.
    """

    kind: str = "random"
    shares: tuple[float, float, float] | None = None
    seed: int = 0
    validation: Any = None
    test: Any = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Split: kind must be one of {', '.join(KINDS)}; {did_you_mean(str(self.kind), KINDS)}")
        files = {part: source for part in PARTS[1:] if (source := getattr(self, part)) is not None}
        if files and self.kind != "files":
            raise ValueError(f"Split: {', '.join(files)} need kind 'files', got {self.kind!r}")
        if self.kind == "files" and not files and self.shares is None:
            raise ValueError("Split: kind 'files' needs validation, test or shares, got none; pass their sources")
        shares = self.shares or ((1.0, 0.0, 0.0) if self.kind == "files" else (0.8, 0.1, 0.1))
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9 or not shares[0]:
            raise ValueError(f"Split: shares must be three numbers >= 0 of sum 1, train first, got {shares}")
        for part, share in zip(PARTS[1:], shares[1:], strict=True):
            if part in files and share:
                raise ValueError(f"Split: {part} has a source of its own, so its share must be 0, got {share}")
        object.__setattr__(self, "shares", tuple(float(share) for share in shares))

    def part_of(self, rows: NDArray[np.int64], total: int) -> Part:
        """0 (train), 1 (validation) or 2 (test) for rows of these numbers in a source of `total` rows, [m]."""
        assert self.shares is not None
        ends = np.cumsum(self.shares)[:2]
        ends[np.cumsum(self.shares[::-1])[::-1][1:] == 0] = 1  # not a last bit less where nothing follows
        if self.kind == "tail":
            return np.searchsorted(np.rint(ends * total), rows, "right").astype(np.int8)
        drawn = (random_bits(self.seed, _SPLIT_STREAM, rows) >> np.uint64(11)).astype(np.float64) / 2**53
        return np.searchsorted(ends, drawn, "right").astype(np.int8)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: what makes two splits of the same sources the same."""
        assert self.shares is not None
        return {"kind": self.kind, "shares": list(self.shares), "seed": self.seed}


@dataclass(frozen=True)
class _MetaPart:
    """Sizes of a part's files."""

    rows: int
    positives: int
    nnz: dict[str, int]


@dataclass(frozen=True)
class _Meta:
    """What meta.json holds."""

    version: int
    sha256: str
    schema: dict[str, Any]
    split: dict[str, Any]
    sources: list[dict[str, Any]]
    parts: dict[str, _MetaPart]


@dataclass(frozen=True)
class ClickLog:
    """A log encoded for training.

    Attributes:
        parts: "train", and "validation" and "test" where the split has them.
        encoder: fitted on the train rows; its `inputs` and `schema` are these.
        split: how the parts were made.
        sources: for each source name, part, sha256, valid rows, bad rows, and the first few bad ones.
        sha256: of all that the rows are made of: sources, schema, split, treatment of bad rows.
        directory: None in memory.
        name: for people; that of the train rows' source by default.
    """

    parts: dict[str, ClickPart]
    encoder: Encoder
    split: dict[str, Any]
    sources: list[dict[str, Any]]
    sha256: str
    directory: Path | None = field(default=None, compare=False)
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or str(self.sources[0]["name"]))

    @property
    def inputs(self) -> Inputs:
        """Sizes and names of the columns of the parts."""
        return self.encoder.inputs

    @property
    def schema(self) -> FeatureSchema:
        """What the columns were declared to be."""
        return self.encoder.schema

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each part."""
        return {name: len(part) for name, part in self.parts.items()}

    @property
    def bad(self) -> int:
        """Rows that were skipped."""
        return sum(source["bad"] for source in self.sources)

    @classmethod
    def open(cls, directory: str | Path) -> ClickLog:
        """A log that `convert` wrote; arrays are mapped, not read.

        Raises:
            FileNotFoundError: no log there. ValueError: one of another version, or with files cut short.
        """
        directory = Path(directory)
        path, remedy = directory / _META, "convert the rows anew"
        if not path.is_file():
            raise FileNotFoundError(f"ClickLog.open: no log in {directory}; convert one first")
        values = read_json(path, "ClickLog.open", remedy, allow_infinity=True)
        if values.get("version") != VERSION:
            got = f"{values.get('version')!r:.80}"
            raise ValueError(f"ClickLog.open: {directory} is of version {got}, {VERSION} is required; convert anew")
        encoder = Encoder.load(directory / _ENCODER)
        try:
            meta: _Meta = typed(_Meta, values, "")
            groups = encoder.schema.group is not None
            parts = {
                name: ClickPart(mapped(directory / name, encoder.inputs, counts.rows, counts.nnz, has_groups=groups))
                for name, counts in meta.parts.items()
            }
            return cls(parts, encoder, meta.split, meta.sources, meta.sha256, directory)
        except (RecordError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"ClickLog.open: {path} is damaged ({error}); {remedy}") from None


def convert(
    source: Any,
    schema: FeatureSchema,
    directory: str | Path,
    *,
    split: Split | None = None,
    encoder: Encoder | None = None,
    on_bad: OnBad = "raise",
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> ClickLog:
    """Encode a log of any size into memory-mapped files: one pass fits the encoder on the train rows, one encodes.

    The files are written beside `directory` and renamed when all is there, so that a kill leaves no half log, and the
    next conversion clears up after it. Memory: that of the encoder (see its module) and of the source's chunks.

    Args:
        source: what `open_source` takes; with split "files" the one to train on.
        directory: to be made.
        split: default 80 / 10 / 10 at random, seed 0.
        encoder: of earlier rows of the same schema; it grows on the train rows instead of one that is fitted on them.
        on_bad: "raise" refuses malformed rows and labels that are none, naming them; "skip" leaves them out and counts.
        overwrite: replace a log that is there.
        progress: called with (stage, done, total): "count", "fit" or "encode" and the name of the part's source, in
            bytes of a file or rows of a frame.
        **options: of `open_source`: format, columns, separator, ...
    Raises:
        FileExistsError: `directory` is there. ValueError, TypeError: columns that are missing or of another type, bad
            rows where they are refused, no train rows. OSError: the disk is full.
    """
    directory = Path(directory)
    if directory.exists() and not (overwrite and (directory / _META).is_file()):
        is_log = (directory / _META).is_file()
        remedy = "open it with ClickLog.open, or pass overwrite=True" if is_log else "choose another name"
        raise FileExistsError(f"convert: {directory} is there already; {remedy}")
    conversion = _Conversion(source, schema, split or Split(), encoder, on_bad, progress, options)
    with unfinished_directory(directory) as unfinished:
        log = conversion.run(lambda part, inputs: FileWriter(unfinished / part, inputs))
        log.encoder.save(unfinished / _ENCODER)
        meta = {
            "version": VERSION,
            "sha256": log.sha256,
            "schema": schema.as_dict(),
            "split": log.split,
            "sources": log.sources,
            "parts": conversion.part_counts(),
        }
        write_atomically(unfinished / _META, (json.dumps(meta, indent=1) + "\n").encode())
        replace_directory(unfinished, directory)
    return ClickLog.open(directory)


def in_memory(
    source: Any,
    schema: FeatureSchema,
    split: Split | None = None,
    *,
    encoder: Encoder | None = None,
    on_bad: OnBad = "raise",
    progress: Progress | None = None,
    **options: Any,
) -> ClickLog:
    """What `convert` makes, with arrays in memory: F * 4 + P * 4 + 4 bytes a row, twice that for a moment."""
    conversion = _Conversion(source, schema, split or Split(), encoder, on_bad, progress, options)
    return conversion.run(lambda part, inputs: MemoryWriter(inputs))


class _Conversion:
    """Two passes over the sources of a split."""

    def __init__(
        self,
        source: Any,
        schema: FeatureSchema,
        split: Split,
        encoder: Encoder | None,
        on_bad: OnBad,
        progress: Progress | None,
        options: dict[str, Any],
    ) -> None:
        check_on_bad(on_bad)
        if encoder is not None and encoder.schema != schema:
            raise ValueError("convert: the schema must be that of the encoder, got another; leave one of them out")
        if schema.label is None:
            raise ValueError("convert: the rows of a log must have a label, got a schema without; name its column")
        self.schema, self.split, self.start, self.on_bad = schema, split, encoder, on_bad
        self.progress = progress or (lambda stage, done, total: None)
        given = {"train": source, "validation": split.validation, "test": split.test}
        self.sources: dict[str, Source] = {
            part: open_source(rows, on_bad=on_bad, **options) for part, rows in given.items() if rows is not None
        }
        self.to_read = schema.columns_to_read()
        for opened in self.sources.values():
            with naming(opened.name):
                opened.check(self.to_read)
                refuse_written_lists(opened, [bag.name for bag in self.to_read.bags])
        assert split.shares is not None
        self.part_names = [p for p, share in zip(PARTS, split.shares, strict=True) if share or p in self.sources]
        self.writers: dict[str, Writer] = {}

    def run(self, new_writer: Callable[[str, Inputs], Writer]) -> ClickLog:
        total = self._count() if self.split.kind == "tail" else 0
        with self.sources["train"].naming_rows(self.to_read):
            rows = self._train_rows(total)
            if self.start is None:
                encoder = Encoder.fit(self.schema, rows, seed=self.split.seed, on_bad=self.on_bad)
            else:
                encoder = self.start.grown(rows)
        with ExitStack() as stack:
            for part in self.part_names:
                self.writers[part] = stack.enter_context(new_writer(part, encoder.inputs))
            described = [self._encode(part, encoder, total) for part in self.sources]
        for part, writer in self.writers.items():
            if not writer.rows:
                source = self.sources.get(part, self.sources["train"])
                raise ValueError(
                    f"convert: part {part!r} must have rows, got none of {source.name}; check the split's shares and "
                    "sources"
                )
        return ClickLog(
            {part: ClickPart(data) for part, writer in self.writers.items() if (data := writer.data) is not None},
            encoder,
            self.split.as_dict(),
            described,
            log_sha256(
                ((each["part"], each["sha256"]) for each in described),
                self.schema,
                self.split,
                self.on_bad,
                None if self.start is None else encoder,
            ),
        )

    def part_counts(self) -> dict[str, Any]:
        return {
            part: {"rows": writer.rows, "positives": writer.positives, "nnz": writer.nnz}
            for part, writer in self.writers.items()
        }

    def _count(self) -> int:
        assert self.schema.label is not None
        label = (self.schema.label,)
        to_read = ColumnsToRead(categorical=label) if self.schema.positive_values else ColumnsToRead(numeric=label)
        return sum(chunk.rows for chunk in self._chunks("count", "train", to_read))

    def _train_rows(self, total: int) -> Iterator[tuple[Chunk, NDArray[np.bool_]]]:
        for chunk in self._chunks("fit", "train", self.to_read):
            yield chunk, self._parts(chunk, total) == 0

    def _encode(self, name: str, encoder: Encoder, total: int) -> dict[str, Any]:
        """Encode a source into the writers of its parts; what it was."""
        source = self.sources[name]
        rows = bad_labels = 0
        for chunk in self._chunks("encode", name, self.to_read):
            with source.naming_rows(self.to_read):
                encoded, has_label = encoder.encode_labelled(chunk, self.on_bad)
            parts = self._parts(chunk, total) if name == "train" else np.full(chunk.rows, PARTS.index(name), np.int8)
            for number, part in enumerate(PARTS):
                chosen = np.flatnonzero((parts == number) & has_label)
                if len(chosen):
                    self.writers[part].append(encoded if len(chosen) == chunk.rows else take(encoded, chosen))
            rows += int(has_label.sum())
            bad_labels += chunk.rows - int(has_label.sum())
        first = [bad._asdict() for bad in source.bad.first]
        bad = source.bad.count + bad_labels
        if bad:
            _log.warning("convert: %s: %s bad rows skipped, %s of them for their label", source.name, bad, bad_labels)
        return {
            "part": name,
            "name": source.name,
            "sha256": source.sha256,
            "rows": rows,
            "bad": bad,
            "bad_labels": bad_labels,
            "first_bad": first,
        }

    def _parts(self, chunk: Chunk, total: int) -> Part:
        return self.split.part_of(np.arange(chunk.first_row, chunk.first_row + chunk.rows), total)

    def _chunks(self, stage: str, name: str, to_read: ColumnsToRead) -> Iterator[Chunk]:
        def report(done: int, total: int) -> None:
            self.progress(f"{stage} {name}", done, total)

        return self.sources[name].chunks(to_read, progress=report)


def log_sha256(
    sources: Iterable[tuple[str, str]],
    schema: FeatureSchema,
    split: Split,
    on_bad: OnBad,
    encoder: Encoder | None = None,
) -> str:
    """Checksum of all that decides the rows; names of files and bars of progress do not.

    Args:
        sources: (part, SHA-256) of each source, in the order of the parts.
        encoder: as it has grown by the rows; None: it was fitted on them.
    """
    made_of = {
        "version": VERSION,
        "sources": [list(source) for source in sources],
        "schema": schema.as_dict(),
        "split": split.as_dict(),
        "on_bad": on_bad,
        **({} if encoder is None else {"encoder": _encoder_sha256(encoder)}),
    }
    return sha256_of(json.dumps(made_of, sort_keys=True).encode())


def is_log_of(
    log: ClickLog,
    sources: Iterable[tuple[str, str]],
    schema: FeatureSchema,
    split: Split,
    encoder: Encoder | None,
    on_bad: OnBad,
) -> bool:
    """Whether a log is what sources would give; arguments of `log_sha256`, with the encoder before it grows."""
    if encoder is not None and not has_grown_from(log.encoder, encoder):
        return False
    sources, known = list(sources), None if encoder is None else log.encoder
    # Without a bad row it makes no difference what was to be done with one.
    treatments: tuple[OnBad, ...] = (on_bad,) if log.bad else ("raise", "skip")
    return log.sha256 in [log_sha256(sources, schema, split, treatment, known) for treatment in treatments]


def has_grown_from(encoder: Encoder, start: Encoder) -> bool:
    """Whether an encoder is of the same schema as another, and knows all that it knows by the same ids."""
    whole, before = ((each.schema, each.numbers, each.negative_label) for each in (encoder, start))
    return whole == before and all(
        np.array_equal(hashes, encoder.hashes[name][: len(hashes)]) for name, hashes in start.hashes.items()
    )


def _encoder_sha256(encoder: Encoder) -> str:
    """Checksum of what an encoder knows: its schema, vocabularies and numbers."""
    known = {
        "schema": encoder.schema.as_dict(),
        "numbers": {name: asdict(number) for name, number in encoder.numbers.items()},
        "negative_label": encoder.negative_label,
        "vocabularies": {name: sha256_of(hashes.tobytes()) for name, hashes in sorted(encoder.hashes.items())},
    }
    return sha256_of(json.dumps(known, sort_keys=True).encode())
