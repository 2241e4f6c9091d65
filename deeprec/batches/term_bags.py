"""Batches of items as bags of terms, corrupted for a denoising autoencoder, with terms that they lack beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.data import Terms
from deeprec.device import to_device


@dataclass(frozen=True, slots=True)
class TermBatch:
    """Items and their terms: compressed rows of what is shown, and of where the reconstruction is looked at.

    Attributes:
        items: [b], int64.
        offsets: [b + 1], int64; row r shows values[p] at terms[p], offsets[r] <= p < offsets[r + 1].
        terms: [nnz], int64, ascending and distinct within a row; values: [nnz], float32.
        target_offsets: [b + 1], int64; target_terms: [m], int64: the terms of each item, then drawn ones.
        targets: [m], float32, 0 at drawn ones.
        target_weights: [m], float32: 1 at the item's own terms; how many that it lacks a drawn one stands for.
    """

    items: Tensor
    offsets: Tensor
    terms: Tensor
    values: Tensor
    target_offsets: Tensor
    target_terms: Tensor
    targets: Tensor
    target_weights: Tensor

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: torch.device) -> TermBatch:
        """The batch on a device; itself where it is there."""
        if self.items.device == device:
            return self
        return TermBatch(*(to_device(getattr(self, field.name), device) for field in fields(self)))


class TermBags:
    """The terms of all items, cut into batches.

    Args:
        terms: a row an item, weights in [0, 1]: what is to be reconstructed.
        inputs: [nnz], float32: the weights by which the encoder is shown the same terms.
        batch_size: items a step, >= 1.
        noise: share of the terms of an item that is hidden from the encoder, in [0, 1); drawn anew in every pass.
        absent: terms drawn for each item, >= 1; those that it has do not count. Together they weigh as much as all
            that it lacks, so that the mean of the loss is that over the whole vocabulary.
        seed: of order, noise and draws.
        device: where batches go; None: the CPU.
    """

    def __init__(
        self,
        terms: Terms,
        inputs: NDArray[np.float32],
        *,
        batch_size: int,
        noise: float,
        absent: int,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        self.terms, self.shown, self.offsets = terms, replace(terms, weights=inputs), terms.offsets
        self.batch_size, self.noise, self.absent, self.seed = batch_size, noise, absent, seed
        self.device = torch.device("cpu") if device is None else device

    def __len__(self) -> int:
        return -(-len(self.terms) // self.batch_size)

    def whole(self) -> Iterator[TermBatch]:
        """All items in their order, as they are, without targets."""
        nothing = np.zeros(0, np.int64)
        for start in range(0, len(self.terms), self.batch_size):
            items = np.arange(start, min(start + self.batch_size, len(self.terms)))
            rows = self.shown.take(items)
            yield self._made(items, rows.offsets, rows.ids, rows.weights, np.zeros(len(items) + 1, np.int64), nothing,
                             nothing.astype(np.float32), nothing.astype(np.float32))  # fmt: skip

    def shuffled(self, number: int) -> Iterator[TermBatch]:
        """All items once in random order, the same for a number."""
        draw = np.random.default_rng((self.seed, number))
        order = draw.permutation(len(self.terms))
        for start in range(0, len(order), self.batch_size):
            yield self._corrupted(order[start : start + self.batch_size], draw)

    def _corrupted(self, items: NDArray[np.int64], draw: np.random.Generator) -> TermBatch:
        rows, shown = self.terms.take(items), self.shown.take(items)
        size, count = self.terms.size, len(items)
        lengths = np.diff(rows.offsets)
        owners = np.repeat(np.arange(count), lengths)
        is_shown = draw.random(len(owners)) >= self.noise
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum(np.bincount(owners[is_shown], minlength=count), out=offsets[1:])
        drawn = draw.integers(size, size=(count, self.absent))
        keys = owners * size + rows.ids  # ascending
        is_own = np.zeros(drawn.shape, np.bool_)
        if len(keys):
            asked = np.arange(count)[:, None] * size + drawn
            is_own = keys[np.minimum(np.searchsorted(keys, asked), len(keys) - 1)] == asked
        shares = (size - lengths) / np.maximum((~is_own).sum(1), 1)
        # Row by row the own terms, then the drawn ones.
        target_offsets = rows.offsets + np.arange(count + 1) * self.absent
        places = np.arange(len(owners)) + owners * self.absent
        where = (target_offsets[1:, None] - self.absent + np.arange(self.absent)).ravel()
        terms, targets, weights = (
            np.zeros(int(target_offsets[-1]), kind) for kind in (np.int64, np.float32, np.float32)
        )
        terms[places], targets[places], weights[places] = rows.ids, rows.weights, 1.0
        terms[where], weights[where] = drawn.ravel(), np.where(is_own, 0.0, shares[:, None]).ravel()
        return self._made(
            items, offsets, rows.ids[is_shown], shown.weights[is_shown], target_offsets, terms, targets, weights
        )

    def _made(self, *parts: NDArray[np.generic]) -> TermBatch:
        floats = [part if part.dtype == np.float32 else part.astype(np.int64, copy=False) for part in parts]
        return TermBatch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in floats)).to(self.device)
