"""Batches of models that learn from the content of items what sweeps over interactions found: rows, then contents."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.batches.media import ItemMedia
from deeprec.batches.sides import SideBatch, Sides
from deeprec.data.media.decoders import AudioDecoder
from deeprec.data.media.files import MediaFiles
from deeprec.device import to_device

_log = logging.getLogger("deeprec")


@dataclass(frozen=True, slots=True)
class ContentBatch:
    """Items and what is in them.

    Attributes:
        items: [b], int64.
        values: [w, P] numbers, or [w, T] samples of sounds, float32.
        lengths: [w], int64, samples of each sound before the padding; None: of numbers.
        owners: [w], int64, ascending, place in `items` of what each row belongs to.
        offsets, users: who met each item, compressed rows [b + 1] and [nnz], int64.
        learns: whether it is trained on; else it is read, to know what the model makes of each item.
    """

    items: Tensor
    values: Tensor
    lengths: Tensor | None
    owners: Tensor
    offsets: Tensor
    users: Tensor
    learns: bool

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: torch.device) -> ContentBatch:
        """The batch on a device; itself where it is there."""
        if self.items.device == device:
            return self
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        there = {name: to_device(x, device) for name, x in given.items() if isinstance(x, Tensor)}
        return ContentBatch(**{**given, **there})


class Contents(Protocol):
    """What is in items."""

    def one(self, items: NDArray[np.int64], draw: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """Values and lengths, a row for each item: a part of it that is drawn."""

    def all(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor | None, NDArray[np.int64]]:
        """Values, lengths, and the place in `items` of each row: all parts of each item, one at least."""


class VectorContents:
    """Numbers [num_items, P] of which each item has one row."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def one(self, items: NDArray[np.int64], draw: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """The rows of the items; nothing is drawn."""
        return self.vectors[to_device(torch.from_numpy(items), self.vectors.device)], None

    def all(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor | None, NDArray[np.int64]]:
        """The rows of the items."""
        return (*self.one(items, np.random.default_rng()), np.arange(len(items)))


class ClipContents:
    """Sounds: windows of each item's clip, at random places to learn from, one after the other to be read.

    What cannot be decoded is silence, and named in the log.

    Args:
        keys: of the clips, [N]; files: where they lie.
        decoder: of the clips.
        window: seconds of a window, > 0; a shorter clip is one window.
        items: ids, [N], for messages.
    """

    def __init__(
        self, keys: Sequence[str | None], files: MediaFiles, decoder: AudioDecoder, window: float, items: Sequence[Any]
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="deeprec-clips-")
        self.media = ItemMedia(keys, files, decoder, self._folder.name, items=items)
        self.samples = max(1, round(decoder.rate * window))
        self._num_named = 0

    def _gather(self, items: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        values, lengths, _ = self.media.gather(items)
        for fault in self.media.bad[self._num_named :]:
            _log.warning("the sound of an item is taken as silence: %s", fault)
        self._num_named = len(self.media.bad)
        return values.numpy(), lengths.numpy()

    def one(self, items: NDArray[np.int64], draw: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """A window of each clip, [b, samples]."""
        values, lengths = self._gather(items)
        starts = np.floor(draw.random(len(items)) * (np.maximum(lengths - self.samples, 0) + 1)).astype(np.int64)
        return self._windows(values, lengths, np.arange(len(items)), starts)

    def all(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor | None, NDArray[np.int64]]:
        """Windows one after the other; what is left at the end of a clip, less than a window, is not heard."""
        values, lengths = self._gather(items)
        counts = np.maximum(lengths // self.samples, 1)
        owners = np.repeat(np.arange(len(items)), counts)
        places = np.arange(len(owners)) - np.repeat(counts.cumsum() - counts, counts)
        return (*self._windows(values, lengths, owners, places * self.samples), owners)

    def _windows(
        self,
        values: NDArray[np.float32],
        lengths: NDArray[np.int64],
        owners: NDArray[np.int64],
        starts: NDArray[np.int64],
    ) -> tuple[Tensor, Tensor]:
        width = min(self.samples, values.shape[1])
        places = np.minimum(starts[:, None] + np.arange(width), values.shape[1] - 1)
        heard = np.clip(lengths[owners] - starts, 0, width)
        windows = values[owners[:, None], places] * (np.arange(width) < heard[:, None])
        return torch.from_numpy(windows.astype(np.float32)), torch.from_numpy(heard)


class ContentsAndSides:
    """A sweep over every user's row and every item's; then `passes` over the contents of the items that somebody met;
    then the contents of all items, to be read. Without contents an epoch is the sweep.

    Args:
        sides: whole rows.
        contents: None: there are none.
        met_by: offsets [num_items + 1] and users [nnz], who met each item.
        passes: over the contents in an epoch, >= 1.
        batch_size: items a step, >= 1.
        seed: of the order and of what is drawn.
        device: where batches go.
    """

    def __init__(
        self,
        sides: Sides,
        contents: Contents | None,
        met_by: tuple[NDArray[np.int64], NDArray[np.int32]],
        *,
        passes: int,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.sides, self.contents, self.passes = sides, contents, passes
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.offsets, self.users = met_by
        self.met = np.flatnonzero(np.diff(self.offsets) > 0)

    def __len__(self) -> int:
        learnt, read = (-(-count // self.batch_size) for count in (len(self.met), len(self.offsets) - 1))
        return len(self.sides) + (0 if self.contents is None else self.passes * learnt + read)

    @property
    def num_examples(self) -> int:
        """Entries of the rows, each pair twice, and items."""
        items = 0 if self.contents is None else self.passes * len(self.met) + len(self.offsets) - 1
        return self.sides.num_examples + items

    def epoch(self, number: int, skip: int = 0) -> Iterator[ContentBatch | SideBatch]:
        """The batches, without the first `skip`."""
        return islice(self._epoch(number), skip, None)

    def _epoch(self, number: int) -> Iterator[ContentBatch | SideBatch]:
        yield from self.sides.epoch(number)
        if self.contents is None:
            return
        draw, size = np.random.default_rng((self.seed, number)), self.batch_size
        for _ in range(self.passes):
            for items in np.split(draw.permutation(self.met), range(size, len(self.met), size)):
                values, lengths = self.contents.one(items, draw)
                yield self._batch(items, values, lengths, np.arange(len(items)), learns=True)
        for part in torch.arange(len(self.offsets) - 1).split(size):
            values, lengths, owners = self.contents.all(part.numpy())
            yield self._batch(part.numpy(), values, lengths, owners, learns=False)

    def _batch(
        self, items: NDArray[np.int64], values: Tensor, lengths: Tensor | None, owners: NDArray[np.int64], learns: bool
    ) -> ContentBatch:
        counts = np.diff(self.offsets)[items] if learns else np.zeros(len(items), np.int64)
        ends = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
        places = np.repeat(self.offsets[:-1][items] - ends[:-1], counts) + np.arange(ends[-1])
        users = torch.from_numpy(self.users[places].astype(np.int64))
        rows = (torch.from_numpy(items), values, lengths, torch.from_numpy(owners), torch.from_numpy(ends), users)
        return ContentBatch(*rows, learns=learns).to(self.device)
