"""Training batches of short windows that slide over each history: the last L items, and the T that came next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.batches.sequences import Histories
from deeprec.contract import Seen
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sample_negatives import sample_negatives

_NEGATIVES_A_DRAW = 1 << 20  # negatives are drawn in blocks, so memory does not grow with the data


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """A training step's windows.

    Attributes:
        users: [b] internal ids, int64.
        items: [b, L] internal ids, int64, the latest at the end; -1 before the first item of a short history.
        targets: [b, T], int64, the items that came next, in order; -1 behind the last where there are fewer.
        negatives: [b, T n], int64, items that the user has not met; None with n = 0.
        num_targets: entries of `targets` that are items, known without waiting for a device.
        seed, offset: of further draws: a number of the epoch, and how many windows of it came before.
    """

    users: Tensor
    items: Tensor
    targets: Tensor
    negatives: Tensor | None
    num_targets: int
    seed: int
    offset: int

    def __len__(self) -> int:
        return self.num_targets

    def to(self, device: torch.device) -> WindowBatch:
        """The batch on a device; itself where it is there."""
        if self.users.device == device:
            return self
        users, items, targets = (to_device(each, device) for each in (self.users, self.items, self.targets))
        negatives = None if self.negatives is None else to_device(self.negatives, device)
        return WindowBatch(users, items, targets, negatives, self.num_targets, self.seed, self.offset)


class SlidingBatches:
    """Every window of L items of each history, with the T items after it, shuffled anew each epoch.

    A history of n >= L + T items has n - L - T + 1 windows; a shorter one of at least two items has one, whose targets
    are its last min(T, n - 1) items. Users with one item have nothing to predict and are left out. Negatives are
    uniform over the items without a training interaction of the user, or without one of `avoid`. A given (seed, epoch)
    yields the same batches on every machine, device and thread count.

    Args:
        train: the training interactions, with an order; see `Histories.of`.
        batch_size: windows a step, >= 1.
        length: L, items of a window, >= 1.
        num_targets: T, items after it, >= 1.
        num_negatives: n, negatives for each target, >= 0.
        seed: of shuffling and sampling.
        avoid: the items of each user that are no negatives, ascending and distinct in a row; None: those of `train`.
        device: where the histories are kept, the negatives drawn and the batches cut; None: the CPU.
    Attributes:
        met: the items that are no negatives of each user, offsets [num_users + 1] and items [nnz], on the device.
    Raises:
        ValueError: no order, no user with two items, a number out of range; with negatives, a user who met all items.
    Reference: Tang and Wang 2018 (WSDM), section 3.4.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        length: int,
        num_targets: int,
        num_negatives: int,
        seed: int,
        avoid: Seen | None = None,
        device: torch.device | None = None,
    ) -> None:
        if min(batch_size, length, num_targets) < 1 or num_negatives < 0:
            raise ValueError(
                "SlidingBatches: batch_size, length and num_targets must be >= 1 and num_negatives >= 0, got "
                f"{batch_size}, {length}, {num_targets} and {num_negatives}"
            )
        device = torch.device("cpu") if device is None else device
        self.batch_size, self.length, self.targets, self.negatives = batch_size, length, num_targets, num_negatives
        self.seed, self.num_items = seed, train.num_items
        histories = Histories.of(train)
        users, places = _windows(histories.offsets, length, num_targets)
        if not len(users):
            raise ValueError(
                f"SlidingBatches: a user must have two items at least, {train.name} has none who does; hold out less"
            )
        # On the CPU, so that the number of targets of a batch is known without waiting for a device.
        self._counts = np.minimum(num_targets, histories.offsets[users + 1] - places)
        self._offsets, self._items, self._users, self._places = (
            to_device(torch.from_numpy(each), device) for each in (*histories, users, places)
        )
        offsets, items = Seen(*train.csr()) if avoid is None else avoid
        if num_negatives:
            _require_unmet(train, offsets, users)
        self.met = (to_device(torch.from_numpy(offsets), device), to_device(torch.from_numpy(items), device))

    def __len__(self) -> int:
        return -(-len(self._users) // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Targets in an epoch."""
        return int(self._counts.sum())

    def epoch(self, number: int, skip: int = 0) -> Iterator[WindowBatch]:
        """The batches of one epoch, without the first `skip`."""
        order_seed, sample_seed = (
            np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64) >> 1
        ).tolist()
        order = torch.randperm(len(self._users), generator=torch.Generator().manual_seed(order_seed))
        draws = max(1, self.targets * self.negatives)
        block = max(1, _NEGATIVES_A_DRAW // (draws * self.batch_size)) * self.batch_size
        for first in range(skip * self.batch_size, len(order), block):
            rows = order[first : first + block]
            counts = self._counts[rows.numpy()]
            there = to_device(rows, self._users.device)
            users, places = self._users[there], self._places[there]
            negatives = None
            if self.negatives:
                lists = (*self.met, self.num_items, draws)
                negatives = sample_negatives(users, *lists, seed=sample_seed, offset=first)
            for start in range(0, len(rows), self.batch_size):
                part = slice(start, start + self.batch_size)
                items, targets = self._cut(users[part], places[part])
                drawn = None if negatives is None else negatives[part]
                number_of = int(counts[part].sum())
                yield WindowBatch(users[part], items, targets, drawn, number_of, sample_seed, first + start)

    def _cut(self, users: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Items [b, L] before some places, and items [b, T] from there on."""
        around = torch.arange(-self.length, self.targets, device=users.device) + places.unsqueeze(1)
        first, end = self._offsets[users].unsqueeze(1), self._offsets[users + 1].unsqueeze(1)
        is_there = (around >= first) & (around < end)
        items = self._items[around.clamp(0, len(self._items) - 1)].long().masked_fill(~is_there, -1)
        return items[:, : self.length], items[:, self.length :]


def _windows(offsets: NDArray[np.int64], length: int, targets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The user of each window, and the place of its first target among the items of all."""
    counts = np.diff(offsets)
    is_long = counts >= length + targets
    windows = np.where(is_long, counts - length - targets + 1, counts >= 2)
    first = offsets[:-1] + np.where(is_long, length, np.maximum(counts - targets, 1))
    users = np.repeat(np.arange(len(counts)), windows)
    within = np.arange(len(users)) - np.repeat(windows.cumsum() - windows, windows)
    return users, first[users] + within


def _require_unmet(train: Interactions, offsets: NDArray[np.int64], users: NDArray[np.int64]) -> None:
    """Raise ValueError for a user of a window who met all items."""
    met = np.diff(offsets)[users]
    if met.max() >= train.num_items:
        raise ValueError(
            "SlidingBatches: each user must leave an item to sample, got user "
            f"{train.user_ids.values[int(users[met.argmax()])]!r} who met all {train.num_items}; leave the user out"
        )
