"""Batches of models that learn texts between sweeps: the texts of all items, then whole rows of users and of items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.batches.sides import Sides
from deeprec.device import to_device


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """Items and their texts.

    Attributes:
        items: [b], int64.
        words: [b, T], int64: ids of words from 1 on, then zeros.
    """

    items: Tensor
    words: Tensor

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: torch.device) -> DocumentBatch:
        """The batch on a device; itself where it is there."""
        if self.items.device == device:
            return self
        return DocumentBatch(to_device(self.items, device), to_device(self.words, device))


class Documents:
    """The texts of all items as compressed rows, cut into batches that are as wide as their longest text.

    Args:
        offsets: [num_items + 1]; words: [nnz], >= 1.
        batch_size: texts a step, >= 1.
        seed: of the order.
        device: where batches go; None: the CPU.
    """

    def __init__(
        self,
        offsets: NDArray[np.int64],
        words: NDArray[np.int32],
        *,
        batch_size: int,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        self.offsets, self.words = offsets, words
        self.batch_size, self.seed = batch_size, seed
        self.device = torch.device("cpu") if device is None else device

    def __len__(self) -> int:
        return -(-(len(self.offsets) - 1) // self.batch_size)

    def batch(self, items: NDArray[np.int64]) -> DocumentBatch:
        """The texts of these items."""
        lengths = self.offsets[items + 1] - self.offsets[items]
        table = np.zeros((len(items), int(lengths.max(initial=0))), dtype=np.int64)
        is_word = np.arange(table.shape[1]) < lengths[:, None]
        rows = np.repeat(self.offsets[items] - np.append(0, lengths.cumsum()[:-1]), lengths)
        table[is_word] = self.words[rows + np.arange(int(lengths.sum()))]
        return DocumentBatch(torch.from_numpy(items), torch.from_numpy(table)).to(self.device)

    def whole(self) -> Iterator[DocumentBatch]:
        """All items in their order."""
        for items in torch.arange(len(self.offsets) - 1).split(self.batch_size):
            yield self.batch(items.numpy())

    def shuffled(self, number: int) -> Iterator[DocumentBatch]:
        """All items once; texts of like lengths together, batches in random order."""
        draw = np.random.default_rng((self.seed, number))
        lengths = np.diff(self.offsets) + draw.uniform(0, 8, len(self.offsets) - 1)
        cuts = np.split(np.argsort(lengths), range(self.batch_size, len(lengths), self.batch_size))
        for at in draw.permutation(len(cuts)):
            yield self.batch(cuts[at].astype(np.int64))


class ItemContents(Protocol):
    """What is known of each item, in batches: `Documents`, or `term_bags.TermBags`."""

    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Batches in a pass."""

    def shuffled(self, number: int) -> Iterator[Any]:
        """All items once, in batches of random order, the same for a number."""


class DocumentsAndSides:
    """From the second epoch on `passes` passes over the texts; then every user's row and every item's.

    Args:
        sides: whole rows.
        documents: None: there are no texts.
        passes: over the texts in an epoch, >= 1.
        first_passes: over the texts before the rows of the first epoch, >= 0.
    """

    def __init__(self, sides: Sides, documents: ItemContents | None, passes: int, first_passes: int = 0) -> None:
        self.sides, self.documents, self.passes, self.first_passes = sides, documents, passes, first_passes

    def __len__(self) -> int:
        return len(self.sides) + (0 if self.documents is None else self.passes * len(self.documents))

    @property
    def num_examples(self) -> int:
        """Entries of the rows, each pair twice, and texts."""
        texts = 0 if self.documents is None else self.passes * (len(self.documents.offsets) - 1)
        return self.sides.num_examples + texts

    def epoch(self, number: int, skip: int = 0) -> Iterator[Any]:
        """The batches, without the first `skip`."""
        return islice(self._epoch(number), skip, None)

    def _epoch(self, number: int) -> Iterator[Any]:
        if self.documents is not None:
            begin = self.first_passes + number * self.passes if number else 0
            for each in range(self.passes if number else self.first_passes):
                yield from self.documents.shuffled(begin + each)
        yield from self.sides.epoch(number)
