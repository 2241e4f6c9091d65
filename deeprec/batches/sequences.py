"""Training batches of sequences: what each user did in order, and at every place of it the item that came next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sample_negatives import sample_negatives

_BATCHES_A_POOL = 32  # of which the users are sorted by length: fewer pad more, more leave less to chance
_TARGETS_A_DRAW = 1 << 18  # negatives are drawn in blocks, so memory does not grow with the data


class Histories(NamedTuple):
    """The items of each user in the order they were met, repeats included: user u has items[offsets[u]:offsets[u + 1]].

    Attributes:
        offsets: [num_users + 1], int64.
        items: [nnz], int32.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]

    @classmethod
    def of(cls, data: Interactions) -> Histories:
        """The histories of all users by `data.order`; rows of equal time in the order of the data, which is the file's.

        Raises:
            ValueError: the data has no order.
        """
        if data.order is None:
            raise ValueError(
                f"Histories: the data must have an order, got {data.name} without; pass timestamp= when reading it"
            )
        rows = np.lexsort((data.order, data.users))  # stable
        offsets = np.zeros(data.num_users + 1, dtype=np.int64)
        np.cumsum(data.user_counts(), out=offsets[1:])
        return cls(offsets, data.items[rows])


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """A training step's windows of histories, each at the right end of its row, and the next item at every place.

    A batch is as wide as its longest window: l <= L.

    Attributes:
        users: [b] internal ids, int64.
        items: [b, l] internal ids, int64; the padding index before the first item.
        targets: [b, l], int64, the item that came after each of `items`; the padding index where there is none.
        mask: [b, l], bool: whether there is an item.
        negatives: [b, l, n], int64, items that the user has not met, for each target; the padding index where there is
            none. None with n = 0.
        num_targets: true entries of `mask`, known without waiting for a device.
    """

    users: Tensor
    items: Tensor
    targets: Tensor
    mask: Tensor
    negatives: Tensor | None
    num_targets: int

    def __len__(self) -> int:
        return self.num_targets

    def to(self, device: torch.device) -> SequenceBatch:
        """The batch on a device; itself where it is there."""
        if self.users.device == device:
            return self
        names = ("users", "items", "targets", "mask")
        there = {name: to_device(getattr(self, name), device) for name in names}
        negatives = None if self.negatives is None else to_device(self.negatives, device)
        return SequenceBatch(**there, negatives=negatives, num_targets=self.num_targets)


class SequenceBatches:
    """One window of each user an epoch, the last of the history: up to `length` items, each with the one after it.

    Of a history of n items the last min(n - 1, length) are targets, and the item before each is shown; what is older is
    not trained on. Users with one item have nothing to predict and are left out. Users with windows of like length
    share a batch. Negatives are uniform over the items without a training interaction of the user. A given (seed,
    epoch) yields the same batches on every machine, device and thread count.

    Args:
        train: the training interactions, with an order; see `Histories.of`.
        batch_size: users a step, >= 1.
        length: L, items in the longest window, >= 1.
        seed: of shuffling and sampling.
        num_negatives: n, negatives for each target, >= 0.
        padding: what stands where a window has no item: -1, or an index outside the catalogue for models that keep a
            row of their table for it.
        device: where the histories are kept, the negatives drawn and the batches cut; None: the CPU.
    Raises:
        ValueError: no order, no user with two items, a number out of range; with negatives, a user who met all items.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        length: int,
        seed: int,
        num_negatives: int = 0,
        padding: int = -1,
        device: torch.device | None = None,
    ) -> None:
        if batch_size < 1 or length < 1 or num_negatives < 0:
            raise ValueError(
                "SequenceBatches: batch_size and length must be >= 1 and num_negatives >= 0, got "
                f"{batch_size}, {length} and {num_negatives}"
            )
        if 0 <= padding < train.num_items:
            raise ValueError(
                f"SequenceBatches: padding must be no item, got {padding} of {train.num_items} items; take -1 or "
                f"{train.num_items}"
            )
        device = torch.device("cpu") if device is None else device
        self.batch_size, self.num_negatives, self.padding, self.seed = batch_size, num_negatives, padding, seed
        self.num_items = train.num_items
        histories = Histories.of(train)
        # On the CPU, so that sizes are known without waiting for a device.
        self._widths = (torch.from_numpy(histories.offsets).diff() - 1).clamp(max=length)
        self._users = (self._widths > 0).nonzero().squeeze(1)
        if not len(self._users):
            raise ValueError(
                f"SequenceBatches: a user must have two items at least, {train.name} has none who does; hold out less"
            )
        self._num_targets = int(self._widths[self._users].sum())
        self._ends = to_device(torch.from_numpy(histories.offsets[1:].copy()), device)
        self._items = to_device(torch.from_numpy(histories.items), device)
        if num_negatives:
            offsets, items = train.csr()
            most = int(np.diff(offsets).argmax())
            if offsets[most + 1] - offsets[most] >= train.num_items:
                raise ValueError(
                    "SequenceBatches: each user must leave an item to sample, got user "
                    f"{train.user_ids.values[most]!r} who met all {train.num_items}; leave the user out"
                )
            self._met = (to_device(torch.from_numpy(offsets), device), to_device(torch.from_numpy(items), device))

    def __len__(self) -> int:
        return -(-len(self._users) // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Targets in an epoch."""
        return self._num_targets

    def epoch(self, number: int, skip: int = 0) -> Iterator[SequenceBatch]:
        """The batches of one epoch, without the first `skip`."""
        order_seed, sample_seed = np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64) >> 1
        batches = self._order(int(order_seed))
        done = sum(self._targets_of(users) for users in batches[:skip])
        start = skip
        while start < len(batches):
            stop, total = start, 0
            while stop < len(batches) and (stop == start or total < _TARGETS_A_DRAW):
                total += self._targets_of(batches[stop])
                stop += 1
            yield from self._block(batches[start:stop], int(sample_seed), done)
            start, done = stop, done + total

    def _targets_of(self, users: Tensor) -> int:
        return int(self._widths[users].sum())

    def _order(self, seed: int) -> list[Tensor]:
        """The users of each batch."""
        generator = torch.Generator().manual_seed(seed)
        return batches_of_like_length(self._users, self._widths, self.batch_size, generator)

    def _block(self, batches: list[Tensor], seed: int, done: int) -> Iterator[SequenceBatch]:
        """Batches whose negatives are drawn together, after `done` targets of the epoch."""
        device = self._items.device
        widths = [self._widths[users] for users in batches]
        counts, widest = [int(part.sum()) for part in widths], [int(part.max()) for part in widths]
        users, lengths = to_device(torch.cat(batches), device), to_device(torch.cat(widths), device)
        negatives: tuple[Tensor | None, ...] = (None,) * len(batches)
        if self.num_negatives:
            owners = torch.repeat_interleave(users, lengths, output_size=sum(counts))
            lists = (*self._met, self.num_items, self.num_negatives)
            negatives = sample_negatives(owners, *lists, seed=seed, offset=done).split(counts)
        sizes = [len(part) for part in batches]
        for group, group_lengths, width, count, drawn in zip(
            users.split(sizes), lengths.split(sizes), widest, counts, negatives, strict=True
        ):
            yield self._batch(group, width - group_lengths, width, count, drawn)

    def _batch(self, users: Tensor, missing: Tensor, width: int, count: int, drawn: Tensor | None) -> SequenceBatch:
        """The windows of users [b], the longest of which is `width`.

        Args:
            missing: [b] entries of padding before each window.
            count: targets of all windows.
            drawn: [count, n] negatives of the targets, row after row.
        """
        columns = torch.arange(width, device=users.device)
        mask = columns >= missing.unsqueeze(1)
        places = (self._ends[users] - width).unsqueeze(1) + columns  # of the targets; the items come one before
        targets = self._items[places.clamp(min=0)].long().masked_fill(~mask, self.padding)
        items = self._items[(places - 1).clamp(min=0)].long().masked_fill(~mask, self.padding)
        negatives = None
        if drawn is not None:
            # Draw k stands after k others, and after the padding of its row and of the rows before.
            gaps = torch.repeat_interleave(missing.cumsum(0), width - missing, output_size=count)
            negatives = drawn.new_full((*mask.shape, self.num_negatives), self.padding)
            negatives.view(-1, self.num_negatives)[torch.arange(count, device=users.device) + gaps] = drawn
        return SequenceBatch(users, items, targets, mask, negatives, count)


def batches_of_like_length(rows: Tensor, widths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """The rows of each batch: shuffled, sorted by width within pools, and the batches shuffled.

    Args:
        rows: [n], int64, on the CPU. widths: of all rows that there are.
    """
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    batches: list[Tensor] = []
    for pool in shuffled.split(_BATCHES_A_POOL * batch_size):
        batches += pool[widths[pool].argsort(stable=True)].split(batch_size)
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
