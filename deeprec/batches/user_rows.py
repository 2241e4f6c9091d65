"""Terms of users with what they met: whole, drawn for an epoch, without the positive of a row, or of later users."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deeprec.data import Terms
from deeprec.data.columns.terms import joined
from deeprec.device import to_device
from deeprec.nn.scoring import owners_of
from deeprec.nn.tower import TermBatch, TermRows

POOLINGS = ("mean", "sqrt", "sum")
POWERS = {"mean": -1.0, "sqrt": -0.5, "sum": 0.0}
_STREAM = 11  # of the run's seed: those before are of other draws


class UserRows:
    """Rows of terms of users; behind their own come the items they met, each by a weight for histories of its length.

    Args:
        static: terms of all users, but for the histories.
        histories: offsets [num_users + 1] and items [nnz], int32, ascending and distinct within a user; None: the rows
            have none.
        num_items: terms of a history.
        pooling: weight of each of n items: "mean" 1 / n, "sqrt" 1 / sqrt(n), "sum" 1.
        length: at most so many items of a history are drawn for an epoch; 0: all.
        seed: of these draws.
        device: where the rows are kept.

    Attributes:
        whole: the rows with whole histories.
    """

    def __init__(
        self,
        static: Terms,
        histories: tuple[NDArray[np.int64], NDArray[np.int32]] | None,
        num_items: int,
        *,
        pooling: str,
        length: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.static, self.histories, self.num_items = static, histories, num_items
        self.pooling, self.length, self.seed, self.device = pooling, length, seed, device
        self._drawn: tuple[int, TermRows] | None = None
        if histories is None:
            self.whole = TermRows(static, device)
            return
        offsets, items = histories
        lengths = np.diff(offsets)
        weights = np.repeat(np.maximum(lengths, 1).astype(np.float64) ** POWERS[pooling], lengths)
        self.whole = self._with(offsets, items, weights.astype(np.float32))

    def _with(self, offsets: Any, items: Any, weights: Any) -> TermRows:
        """The rows with these histories."""
        met = Terms(offsets, items, weights, np.empty((len(offsets) - 1, 0), np.float32), self.num_items)
        return TermRows(joined(self.static, met), self.device)

    def move(self, device: torch.device) -> None:
        """Go to another device."""
        self.device = device
        self.whole.move(device)
        if self._drawn is not None:
            self._drawn[1].move(device)

    def of_epoch(self, epoch: int) -> TermRows:
        """The rows with what is drawn of the histories for an epoch; their weights are made by `without`."""
        if self.histories is None or not self.length:
            return self.whole
        if self._drawn is None or self._drawn[0] != epoch:
            offsets, items = self.histories
            lengths = np.diff(offsets)
            owners = np.repeat(np.arange(len(lengths)), lengths)
            order = np.lexsort((np.random.default_rng((self.seed, _STREAM, epoch)).random(len(items)), owners))
            is_drawn = np.arange(len(items)) - offsets[:-1][owners] < self.length
            kept = np.sort(order[is_drawn])
            bounds = np.concatenate([[0], np.cumsum(np.minimum(lengths, self.length))])
            self._drawn = epoch, self._with(bounds, items[kept], np.ones(len(kept), np.float32))
        return self._drawn[1]

    def without(self, epoch: int, users: Tensor, items: Tensor) -> TermBatch:
        """The rows of users for an epoch as if they had not met the items.

        What is left of a history of n items weighs as one of n - 1, and what is drawn of it as much as all of it.

        Args:
            users, items: [b], int64, on the CPU.
        """
        rows = self.of_epoch(epoch)
        batch = rows.batch(users)
        if self.histories is None:
            return batch
        lengths = rows.lengths[users]
        others = torch.from_numpy(np.diff(self.histories[0]))[users] - 1
        shown = lengths - torch.from_numpy(np.diff(self.static.offsets))[users]
        owners = owners_of(F.pad(lengths.cumsum(0), (1, 0)), self.device)
        is_met = batch.ids >= self.static.size
        is_hidden = batch.ids == to_device(items, self.device)[owners] + self.static.size
        hidden = F.pad(is_hidden.long().cumsum(0), (1, 0))[batch.offsets].diff()
        there = to_device(others.clip(1).double() ** POWERS[self.pooling] * others, self.device)
        weights = (there / (to_device(shown, self.device) - hidden).clip(1)).to(batch.weights.dtype)
        of_met = torch.where(is_hidden, 0.0, weights[owners])
        return batch._replace(weights=torch.where(is_met, of_met, batch.weights))


def rows_of_histories(
    static: Terms, offsets: Tensor, items: Tensor, num_items: int, pooling: str, device: torch.device
) -> TermBatch:
    """Rows of users of these terms who met items[offsets[j]:offsets[j + 1]], weighted as `UserRows.whole`.

    Args:
        static: b rows.
        offsets: [b + 1], int64, on the CPU.
        items: [nnz], int64, on the device, distinct within a row; those from num_items on have no term.
    """
    own, counts = torch.from_numpy(np.diff(static.offsets)), offsets.diff()
    bounds = F.pad((own + counts).cumsum(0), (1, 0))
    # Where each entry goes: those of the terms first, then the items.
    to_terms = torch.repeat_interleave(bounds[:-1] - torch.from_numpy(static.offsets[:-1]), own)
    to_items = torch.repeat_interleave(bounds[:-1] + own - offsets[:-1], counts)
    places = torch.cat([to_terms + torch.arange(len(to_terms)), to_items + torch.arange(len(to_items))])
    order = to_device(places.argsort(), device)
    weights = to_device(counts.clip(1).double() ** POWERS[pooling], device).float()[owners_of(offsets, device)]
    has_term = items < num_items
    ids, of_terms, values = (
        to_device(torch.from_numpy(each), device)
        for each in (static.ids.astype(np.int64), static.weights, static.values)
    )
    return TermBatch(
        to_device(bounds, device),
        torch.cat([ids, torch.where(has_term, items + static.size, static.size)])[order],
        torch.cat([of_terms, torch.where(has_term, weights, 0.0)])[order],
        values,
    )
