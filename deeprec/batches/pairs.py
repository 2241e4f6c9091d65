"""Training batches of implicit feedback: shuffled positives, each with negatives drawn anew every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sample_negatives import sample_negatives

_GROUPS_A_DRAW = 1 << 20  # negatives are drawn in blocks, so memory does not grow with the data


@dataclass(frozen=True, slots=True)
class PairBatch:
    """A training step's examples: each user with a group of items, the positive first.

    Attributes:
        users: [b] internal ids.
        items: [b, 1 + n] internal ids.
        labels: [b, 1 + n], float32.
    """

    users: Tensor
    items: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.numel()

    def to(self, device: torch.device) -> PairBatch:
        """The batch on a device; itself where it is there."""
        if self.users.device == device:
            return self
        return PairBatch(*(to_device(getattr(self, name), device) for name in ("users", "items", "labels")))


class PairwiseBatches:
    """Positives with `num_negatives` unseen items each, He et al. 2017, section 4.1.

    Negatives are uniform over the items without a training interaction of the user, or without one of `avoid`;
    held-out items may be drawn, as in every published code. A given (seed, epoch) yields the same batches on every
    machine, device and thread count.

    Args:
        train: the training interactions; every row is a positive.
        batch_size: examples a step, positives and negatives together.
        num_negatives: n, negatives for each positive.
        seed: of shuffling and sampling.
        avoid: the items of each user that are no negatives, as compressed rows: offsets [num_users + 1], int64, and
            items [nnz], int32, ascending and distinct within a row; None: those of `train`.
        device: where the interactions are kept, the negatives drawn and the batches cut; None: the CPU.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        num_negatives: int,
        seed: int,
        avoid: tuple[np.ndarray, np.ndarray] | None = None,
        device: torch.device | None = None,
    ) -> None:
        device = torch.device("cpu") if device is None else device
        self.num_items = train.num_items
        self.num_negatives = num_negatives
        self.groups = max(1, batch_size // (1 + num_negatives))
        self.seed = seed
        columns = (np.ascontiguousarray(train.users), np.ascontiguousarray(train.items), *(avoid or train.csr()))
        self._users, self._items, self._offsets, self._seen = (
            to_device(torch.from_numpy(column), device) for column in columns
        )
        self._labels = torch.zeros(self.groups, 1 + num_negatives, device=device)
        self._labels[:, 0] = 1.0

    def __len__(self) -> int:
        return -(-len(self._users) // self.groups)

    @property
    def num_examples(self) -> int:
        """Examples in an epoch, positives and negatives."""
        return len(self._users) * (1 + self.num_negatives)

    def epoch(self, number: int, skip: int = 0) -> Iterator[PairBatch]:
        """The batches of one epoch, without the first `skip`."""
        order_seed, sample_seed = np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64) >> 1
        order = torch.randperm(len(self._users), generator=torch.Generator().manual_seed(int(order_seed)))
        block = _GROUPS_A_DRAW // self.groups * self.groups or self.groups
        for start in range(skip * self.groups, len(order), block):
            rows = to_device(order[start : start + block], self._users.device)
            users = self._users[rows]
            negatives = sample_negatives(
                users,
                self._offsets,
                self._seen,
                self.num_items,
                self.num_negatives,
                seed=int(sample_seed),
                offset=start,
            )
            items = torch.cat([self._items[rows].unsqueeze(1), negatives.to(torch.int32)], dim=1)
            for group, group_items in zip(users.split(self.groups), items.split(self.groups), strict=True):
                labels = self._labels if len(group) == self.groups else self._labels[: len(group)]
                yield PairBatch(group, group_items, labels)
