"""Training batches of logged feedback: what each user was shown in order, what came of it, and what followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.batches.sequences import Histories, batches_of_like_length
from deeprec.data import Interactions, LoggedInteractions
from deeprec.device import to_device

REWARDS = ("rating", "one")


class Feedback(NamedTuple):
    """Events of all users, one user after the other, each in order.

    Attributes:
        histories: the items.
        rewards: [nnz], float32.
        propensities: [nnz], float32, of the events; None where the data has none.
    """

    histories: Histories
    rewards: NDArray[np.float32]
    propensities: NDArray[np.float32] | None

    @classmethod
    def of(cls, data: Interactions, reward: str = "rating") -> Feedback:
        """The events of `data` by its order.

        Args:
            reward: "rating", those of the data, 1 where it has none; or "one".
        Raises:
            ValueError: the data has no order, or another word.
        """
        if reward not in REWARDS:
            raise ValueError(f"Feedback: reward must be one of {', '.join(REWARDS)}, got {reward!r}")
        histories = Histories.of(data)
        assert data.order is not None  # Histories asked for it
        rows = np.lexsort((data.order, data.users))
        has_ratings = reward == "rating" and data.ratings is not None
        rewards = data.ratings[rows] if has_ratings else np.ones(len(rows))  # type: ignore[index]
        propensities = data.propensities[rows] if isinstance(data, LoggedInteractions) else None
        return cls(histories, rewards.astype(np.float32), propensities)

    def those(self, is_taken: NDArray[np.bool_]) -> Histories:
        """The histories of the events [nnz] that are taken, with no place for the others."""
        offsets, items = self.histories
        before = np.concatenate([[0], np.cumsum(is_taken)]).astype(np.int64)
        return Histories(before[offsets], items[is_taken])


def discounted_returns(
    rewards: NDArray[np.floating], offsets: NDArray[np.int64], discount: float
) -> NDArray[np.float32]:
    """R_t = sum over t' >= t of discount^(t' - t) r_t', [nnz], within each user's events offsets[u] to offsets[u + 1].

    Args:
        discount: in [0, 1].
    """
    returns = rewards.astype(np.float64).copy()
    if discount:
        lengths = np.diff(offsets)
        for back in range(2, int(lengths.max(initial=0)) + 1):  # all users at once, from their ends
            places = offsets[1:][lengths >= back] - back
            returns[places] += discount * returns[places + 1]
    return returns.astype(np.float32)


@dataclass(frozen=True, slots=True)
class FeedbackBatch:
    """A training step's windows of events, each at the right end of its row; as wide as the longest: l <= L.

    Attributes:
        users: [b] internal ids, int64.
        items: [b, l] internal ids, int64; -1 before the first event.
        rewards, returns: [b, l], float32, 0 where there is no event.
        propensities: [b, l], float32, 1 where there is no event; None where the data has none.
        mask: [b, l], bool: whether there is an event.
        num_events: true entries of `mask`, known without waiting for a device.
    """

    users: Tensor
    items: Tensor
    rewards: Tensor
    returns: Tensor
    propensities: Tensor | None
    mask: Tensor
    num_events: int

    def __len__(self) -> int:
        return self.num_events

    def to(self, device: torch.device) -> FeedbackBatch:
        """The batch on a device; itself where it is there."""
        if self.users.device == device:
            return self
        names = ("users", "items", "rewards", "returns", "mask")
        there = {name: to_device(getattr(self, name), device) for name in names}
        propensities = None if self.propensities is None else to_device(self.propensities, device)
        return FeedbackBatch(**there, propensities=propensities, num_events=self.num_events)


class FeedbackBatches:
    """One window of each user an epoch: the last `length` events; every event of it is trained on.

    Users with windows of like length share a batch. A given (seed, epoch) yields the same batches on every machine,
    device and thread count.

    Args:
        train: the training interactions, with an order. Ratings are rewards.
        batch_size: users a step, >= 1.
        length: L, events in the longest window, >= 1.
        seed: of the order.
        discount: of the returns, in [0, 1].
        reward: as of `Feedback.of`.
        device: where the events are kept and the batches cut; None: the CPU.
    Raises:
        ValueError: no order, no event, a number out of range.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        length: int,
        seed: int,
        discount: float = 0.0,
        reward: str = "rating",
        device: torch.device | None = None,
    ) -> None:
        if batch_size < 1 or length < 1 or not 0 <= discount <= 1:
            raise ValueError(
                "FeedbackBatches: batch_size and length must be >= 1 and discount in [0, 1], got "
                f"{batch_size}, {length} and {discount}"
            )
        device = torch.device("cpu") if device is None else device
        self.batch_size, self.seed = batch_size, seed
        (offsets, items), rewards, propensities = Feedback.of(train, reward)
        self._widths = torch.from_numpy(np.diff(offsets)).clamp(max=length)  # on the CPU: sizes without waiting
        self._users = (self._widths > 0).nonzero().squeeze(1)
        if not len(self._users):
            raise ValueError(f"FeedbackBatches: {train.name} must have an event, got none; hold out less")
        self._num_events = int(self._widths.sum())
        self._ends = to_device(torch.from_numpy(offsets[1:].copy()), device)
        self._items = to_device(torch.from_numpy(items), device)
        columns = [rewards, discounted_returns(rewards, offsets, discount)]
        columns += [] if propensities is None else [propensities]
        self._columns = [to_device(torch.from_numpy(column), device) for column in columns]

    def __len__(self) -> int:
        return -(-len(self._users) // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Events in an epoch."""
        return self._num_events

    def epoch(self, number: int, skip: int = 0) -> Iterator[FeedbackBatch]:
        """The batches of one epoch, without the first `skip`: shuffled, then sorted by length within pools."""
        (seed,) = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64) >> 1
        generator = torch.Generator().manual_seed(int(seed))
        batches = batches_of_like_length(self._users, self._widths, self.batch_size, generator)
        for users in batches[skip:]:
            yield self._batch(users)

    def _batch(self, users: Tensor) -> FeedbackBatch:
        widths, device = self._widths[users], self._items.device
        width = int(widths.max())
        there, missing = to_device(users, device), to_device(width - widths, device)
        columns = torch.arange(width, device=device)
        mask = columns >= missing.unsqueeze(1)
        places = ((self._ends[there] - width).unsqueeze(1) + columns).clamp(min=0)
        items = self._items[places].long().masked_fill(~mask, -1)
        rewards, returns = (column[places].masked_fill(~mask, 0.0) for column in self._columns[:2])
        propensities = None
        if len(self._columns) > 2:
            propensities = self._columns[2][places].masked_fill(~mask, 1.0)
        return FeedbackBatch(there, items, rewards, returns, propensities, mask, int(widths.sum()))
