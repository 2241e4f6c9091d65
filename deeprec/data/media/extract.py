"""Vectors of the media of a table of items: read and decoded side by side, encoded in batches, kept by content."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._files import read_regular, replacing, write_atomically
from deeprec.data.media.cache import ContentCache, content_key, writing_cache
from deeprec.data.media.decoders import Decoded, Decoder, MediaBatch
from deeprec.data.media.errors import MediaError
from deeprec.data.media.features import Encoder, TextFeatures, Vectors, weighted_words, word_weights
from deeprec.data.media.files import MediaFiles

OnBadMedia: TypeAlias = Literal["zeros", "raise"]

_SLICE = 1 << 14  # rows in memory at a time when they are written


class Extracted(NamedTuple):
    """What became of the items.

    Attributes:
        rows: of the cache, int64 [N]; -1 of an item without a vector.
        bad: the faults, in the order of the items.
        num_missing: items without a medium, whose key is missing or empty.
        num_new: contents that were decoded and encoded now; the others were in the cache.
    """

    rows: NDArray[np.int64]
    bad: list[MediaError]
    num_missing: int
    num_new: int


class Prepared(NamedTuple):
    """A medium on its way to the encoder: its row in the cache, or its content decoded, or what is wrong with it."""

    key: bytes = b""
    row: int | None = None
    decoded: Decoded | None = None
    fault: MediaError | None = None


def prepare(item: Any, key: str, files: MediaFiles | None, decoder: Decoder, cache: ContentCache) -> Prepared:
    """Look for a medium in the cache, and decode it where it is not there; faults are returned.

    Args:
        key: of the files; without files the text itself.
    """
    try:
        with io.BytesIO(key.encode(errors="replace")) if files is None else files.open(key) as file:
            content = content_key(file)
            row = cache.row(content)
            return Prepared(content, row, None if row is not None else decoder.decode(file))
    except MediaError as error:
        fault = error.of(path=key if files is not None else "its text", item=str(item))
    except (OSError, MemoryError) as error:
        words = "needs more memory than there is" if isinstance(error, MemoryError) else f"cannot be read ({error})"
        fault = MediaError(words, "make it smaller, or check its disk", path=key, item=str(item))
    return Prepared(fault=fault)


def prepared(
    items: Sequence[Any], keys: Sequence[str | None], prepare_one: Callable[[Any, str], Prepared], workers: int
) -> Iterator[tuple[int, Prepared]]:
    """(number, medium) of each item that has a key, in order; `workers` threads are a few items ahead.

    Decoders work outside of Python's lock, so threads are as good as processes and share the cache.
    """
    ahead: deque[tuple[int, Future[Prepared]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number, (item, key) in enumerate(zip(items, keys, strict=True)):
                if key:
                    ahead.append((number, pool.submit(prepare_one, item, key)))
                if len(ahead) > 4 * workers:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def extract(
    items: Sequence[Any],
    keys: Sequence[str | None],
    encoder: Encoder,
    files: MediaFiles | None,
    cache: ContentCache,
    *,
    workers: int = 2,
    batch_size: int = 32,
    on_bad: OnBadMedia = "zeros",
    on_progress: Callable[[int], None] = lambda done: None,
) -> Extracted:
    """See to it that the vector of every item is in the cache.

    At most 4 * workers + batch_size media are in memory. A run that was killed is begun again: what is in the cache is
    not decoded. A medium that cannot be decoded is tried again in every run.

    Args:
        items: ids, [N]; of messages.
        keys: of the media of the items, [N], or the texts themselves; None or "": the item has none.
        files: where the media lie; None: keys are texts.
        cache: of vectors, see `vector_cache`.
        workers: threads that read and decode, >= 1.
        batch_size: of the encoder, >= 1.
        on_bad: "raise" ends at the first medium that cannot be decoded; "zeros" goes on without it.
        on_progress: called with the number of items done.
    Raises:
        MediaError: with on_bad "raise". ValueError: workers or batch_size below 1.
    """
    if workers < 1 or batch_size < 1:
        raise ValueError(f"extract: workers and batch_size must be >= 1, got {workers} and {batch_size}")
    rows = np.full(len(items), -1, dtype=np.int64)
    bad: list[MediaError] = []
    waiting: list[tuple[int, Prepared]] = []
    before = len(cache)

    def encode() -> None:
        if not waiting:
            return
        decoded = [each.decoded for _, each in waiting if each.decoded is not None]
        values = [each.values for each in decoded]
        lengths = [each.length for each in decoded]
        is_text = isinstance(values[0], str)
        batch = MediaBatch(values if is_text else np.stack(values), np.asarray(lengths, dtype=np.int64))
        numbers = [number for number, _ in waiting]
        rows[numbers] = cache.add([each.key for _, each in waiting], _checked(encoder(batch), encoder), lengths)
        waiting.clear()

    def prepare_one(item: Any, key: str) -> Prepared:
        return prepare(item, key, files, encoder.decoder, cache)

    for number, medium in prepared(items, keys, prepare_one, workers):
        if medium.fault is not None:
            if on_bad == "raise":
                raise medium.fault
            bad.append(medium.fault)
        elif medium.row is not None:
            rows[number] = medium.row
        else:
            waiting.append((number, medium))
        if len(waiting) == batch_size:
            encode()
        on_progress(number + 1)
    encode()
    return Extracted(rows, bad, sum(not key for key in keys), len(cache) - before)


def vector_cache(parent: Path, encoder: Encoder) -> Any:
    """The cache of the vectors of an encoder, as `writing_cache` opens it."""
    identity = f"{encoder.name} of {encoder.decoder.identity}"
    return writing_cache(parent, identity, (encoder.width,), np.float32)


def write_vectors(path: Path, rows: NDArray[np.int64], cache: ContentCache, weights: Vectors | None = None) -> None:
    """Write a .npy of float32 [N, width], zeros where a row is -1, whole or not at all; some rows at a time.

    Args:
        weights: of buckets of words, see `weighted_words`; None: vectors as they are.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), *cache.shape)}
    with replacing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for vectors in _slices(rows, cache):
            written = vectors if weights is None else weighted_words(vectors, weights)
            file.write(np.ascontiguousarray(written, dtype="<f4").tobytes())


def text_weights(path: Path, encoder: Encoder, rows: NDArray[np.int64], cache: ContentCache) -> Vectors | None:
    """The weights of buckets of words of `path`, written there by these texts if there are none; None of other media.

    What was written once stays, so that the vectors of known items do not change when others arrive.

    Raises:
        ValueError: a file that holds something else.
    """
    if not isinstance(encoder, TextFeatures):
        return None
    if not path.exists():
        num_with = np.zeros(encoder.width, dtype=np.int64)
        for vectors in _slices(rows, cache):
            num_with += (vectors != 0).sum(axis=0)
        buffer = io.BytesIO()
        np.save(buffer, word_weights(int((rows >= 0).sum()), num_with))
        write_atomically(path, buffer.getvalue())
    content = io.BytesIO(read_regular(path, "features extract", "delete it, it is made again"))
    try:
        weights = np.load(content, allow_pickle=False)
        is_right = weights.shape == (encoder.width,) and weights.dtype == np.float32
    except (ValueError, EOFError):
        is_right = False
    if not is_right:
        raise ValueError(f"features extract: {path} must hold {encoder.width} weights; delete it, it is made again")
    return np.asarray(weights)


def vector_table(ids: pl.Series, name: str, path: Path, is_known: NDArray[np.bool_]) -> pl.DataFrame:
    """The ids, NAME_vector with a list of numbers for each, and NAME_ok, of the vectors in a .npy."""
    vectors = pl.Series(f"{name}_vector", np.load(path, mmap_mode="r")).cast(pl.List(pl.Float32))
    return pl.DataFrame([ids, vectors, pl.Series(f"{name}_ok", is_known)])


def report(bad: Sequence[MediaError]) -> pl.DataFrame:
    """Faults by item: item_id, file, fault, remedy, all text."""
    columns = {"item_id": "item", "file": "path", "fault": "what", "remedy": "remedy"}
    return pl.DataFrame({name: pl.Series([getattr(each, attribute) for each in bad], dtype=pl.String)
                         for name, attribute in columns.items()})  # fmt: skip


def _checked(vectors: Vectors, encoder: Encoder) -> Vectors:
    if vectors.shape[1:] != (encoder.width,) or not np.isfinite(vectors).all():
        raise ValueError(
            f"extract: {encoder.name} must make finite vectors of {encoder.width} numbers, got {list(vectors.shape)}, "
            f"{int((~np.isfinite(vectors)).sum())} of them not finite; mend the encoder"
        )
    return vectors


def _slices(rows: NDArray[np.int64], cache: ContentCache) -> Iterator[Vectors]:
    """The vectors of rows, some at a time; zeros of -1."""
    for start in range(0, len(rows), _SLICE):
        part = rows[start : start + _SLICE]
        vectors = np.zeros((len(part), *cache.shape), dtype=np.float32)
        vectors[part >= 0] = cache.take(part[part >= 0])[0]
        yield vectors
