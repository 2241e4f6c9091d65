"""Training batches of a user's positive, its negatives, and all else that the user met: their neighbourhood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deeprec.contract import Seen
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sample_negatives import sample_negatives

_GROUPS_A_DRAW = 1 << 20  # negatives are drawn in blocks, so memory does not grow with the data


@dataclass(frozen=True, slots=True)
class NeighbourBatch:
    """A training step's positives with the other items of their users.

    Attributes:
        users: [b] internal ids, int64.
        items: [b, 1 + n], int64, the positive first, then items that the user has not met.
        neighbours: [nnz], int64, for each row the training items of its user without the positive, ascending.
        owners: [nnz], int64, ascending: the row of each.
        counts: [b], int64, how many each row has.
    """

    users: Tensor
    items: Tensor
    neighbours: Tensor
    owners: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.users)

    def to(self, device: torch.device) -> NeighbourBatch:
        """The batch on a device; itself where it is there."""
        if self.users.device == device:
            return self
        return NeighbourBatch(*(to_device(getattr(self, name), device) for name in self.__slots__))


class NeighbourBatches:
    """Every training row once an epoch, with the user's other items and `num_negatives` items that they have not met.

    The positive is in no neighbourhood of its own row, or the model would learn to find it there. Negatives as in
    `deeprec.batches.pairs.PairwiseBatches`. A given (seed, epoch) yields the same batches on every machine, device and
    thread count.

    Args:
        train: the training interactions; every row is a positive.
        batch_size: positives a step, >= 1.
        num_negatives: n, >= 1.
        seed: of shuffling and sampling.
        avoid: the items of each user that are no negatives, ascending and distinct in a row; None: those of `train`.
        device: where the interactions are kept, the negatives drawn and the batches cut; None: the CPU.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        num_negatives: int,
        seed: int,
        avoid: Seen | None = None,
        device: torch.device | None = None,
    ) -> None:
        device = torch.device("cpu") if device is None else device
        self.batch_size, self.num_negatives, self.seed, self.num_items = (
            batch_size,
            num_negatives,
            seed,
            train.num_items,
        )
        offsets, met = train.csr()
        owners = np.repeat(np.arange(train.num_users, dtype=np.int64), np.diff(offsets))
        places = np.searchsorted(
            owners * train.num_items + met, train.users.astype(np.int64) * train.num_items + train.items
        )
        # On the CPU, so that the size of a batch is known without waiting for a device.
        self._others = torch.from_numpy(np.diff(offsets)[train.users] - 1)
        columns = (train.users.astype(np.int64), train.items.astype(np.int64), places, offsets, met)
        self._users, self._items, self._places, self.offsets, self.met = (
            to_device(torch.from_numpy(column), device) for column in columns
        )
        self._avoid = (self.offsets, self.met)
        if avoid is not None:
            self._avoid = (to_device(torch.from_numpy(avoid[0]), device), to_device(torch.from_numpy(avoid[1]), device))

    def __len__(self) -> int:
        return -(-len(self._users) // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Positives in an epoch."""
        return len(self._users)

    def epoch(self, number: int, skip: int = 0) -> Iterator[NeighbourBatch]:
        """The batches of one epoch, without the first `skip`."""
        order_seed, sample_seed = np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64) >> 1
        order = torch.randperm(len(self._users), generator=torch.Generator().manual_seed(int(order_seed)))
        block = _GROUPS_A_DRAW // self.batch_size * self.batch_size or self.batch_size
        for start in range(skip * self.batch_size, len(order), block):
            rows = order[start : start + block]
            there = to_device(rows, self._users.device)
            users, positives, places = self._users[there], self._items[there], self._places[there]
            lists = (*self._avoid, self.num_items, self.num_negatives)
            negatives = sample_negatives(users, *lists, seed=int(sample_seed), offset=start)
            items = torch.cat([positives.unsqueeze(1), negatives], 1)
            for first in range(0, len(rows), self.batch_size):
                part = slice(first, first + self.batch_size)
                yield self._batch(users[part], items[part], places[part], self._others[rows[part]])

    def _batch(self, users: Tensor, items: Tensor, places: Tensor, others: Tensor) -> NeighbourBatch:
        """One step.

        Args:
            places: [b] of the positives among the items of all users.
            others: [b] entries of each row, on the CPU.
        """
        device, total = users.device, int(others.sum())
        before = to_device(others.cumsum(0) - others, device)
        counts = to_device(others, device)
        owners = torch.repeat_interleave(torch.arange(len(users), device=device), counts, output_size=total)
        entries = torch.arange(total, device=device) + (self.offsets[users] - before)[owners]
        entries = entries + (entries >= places[owners])  # from the positive on, the one behind it
        return NeighbourBatch(users, items, self.met[entries].long(), owners, counts)
