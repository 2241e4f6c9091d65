"""Training batches of likes: users with a corrupted copy of their likes, and the items that are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sample_negatives import sample_negatives

_LIKES_A_DRAW = 1 << 17  # users are drawn for in blocks: fewer calls, and memory that does not grow with the data


@dataclass(frozen=True, slots=True)
class UserBatch:
    """A training step's users: their likes as they are corrupted, and the items that are scored.

    Attributes:
        users: [b], int64.
        input_offsets: [b + 1]; input_indices: [kept] likes that the corruption left; input_values: [kept], 1 / (1 - q).
        offsets: [b + 1]; indices: [nnz (1 + n)] every like, each followed by its n sampled items. All of these int32.
        labels: [nnz (1 + n)], float32: 1 for a like, else the label of a sampled item.
    """

    users: Tensor
    input_offsets: Tensor
    input_indices: Tensor
    input_values: Tensor
    offsets: Tensor
    indices: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> UserBatch:
        """The batch on a device; itself where it is there."""
        if self.users.device == device:
            return self
        return UserBatch(*(to_device(getattr(self, field.name), device) for field in fields(self)))


class Likes:
    """Users in shuffled batches, with the corruption and the sampled items of each epoch; users without likes left out.

    A given (seed, epoch) yields the same batches on every machine, device and thread count.

    Args:
        train: the training interactions; each item that a user has is a like, ratings are ignored.
        batch_size: users a step, >= 1.
        corruption: q in [0, 1], the probability that a like is dropped from the input.
        num_negatives: n, items without a like of the user sampled for each like, >= 0.
        negative_label: label of these.
        seed: of the order, the corruption and the sampled items.
        device: where the likes are kept and the batches cut; None: the CPU.

    Attributes:
        offsets, items: the likes of all users as CSR, [num_users + 1] int64 and [nnz] int32, on the device.
        likes_a_batch: mean number of likes in a batch.

    Raises:
        ValueError: a number out of range, or a user who likes every item and so leaves none to sample.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        corruption: float,
        num_negatives: int,
        seed: int,
        negative_label: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        device = torch.device("cpu") if device is None else device
        if batch_size < 1 or num_negatives < 0 or not 0 <= corruption <= 1:
            raise ValueError(
                "Likes: batch_size must be >= 1, num_negatives >= 0 and corruption in [0, 1], got "
                f"{batch_size}, {num_negatives} and {corruption}"
            )
        self.batch_size, self.corruption, self.num_negatives, self.seed = batch_size, corruption, num_negatives, seed
        self.num_items = train.num_items
        offsets, items = train.csr()
        # On the CPU, so that sizes are known without waiting for a device.
        self._lengths = torch.from_numpy(offsets).diff()
        self.offsets = to_device(torch.from_numpy(offsets), device)
        self.items = to_device(torch.from_numpy(items), device)
        if num_negatives and int(self._lengths.max()) >= self.num_items:
            user = train.user_ids.values[int(self._lengths.argmax())]
            raise ValueError(
                f"Likes: each user must leave an item to sample, got user {user!r} who likes all {self.num_items}; "
                "leave the user out"
            )
        self.likes_a_batch = len(items) * min(1.0, batch_size / max(1, int((self._lengths > 0).sum())))
        group = torch.full((1 + num_negatives,), negative_label)
        group[0] = 1.0
        self._labels = to_device(group, device).repeat(len(items))

    def __len__(self) -> int:
        return -(-int((self._lengths > 0).sum()) // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Scored items in an epoch."""
        return len(self._labels)

    def epoch(self, number: int, skip: int = 0) -> Iterator[UserBatch]:
        """The batches of one epoch, without the first `skip`."""
        return islice(self._epoch(number), skip, None)  # the corruption of those before is drawn, as it comes in order

    def _epoch(self, number: int) -> Iterator[UserBatch]:
        order_seed, sample_seed = np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64) >> 1
        generator = torch.Generator().manual_seed(int(order_seed))
        order = torch.randperm(len(self._lengths), generator=generator)
        users, done = order[self._lengths[order] > 0], 0
        size = self.batch_size
        mean = max(1, len(self.items) // max(1, len(users)))
        for block in users.split(max(1, _LIKES_A_DRAW // (mean * size)) * size):
            yield from self._block(block, int(sample_seed), done, generator)
            done += int(self._lengths[block].sum())

    def _block(self, users: Tensor, seed: int, done: int, generator: torch.Generator) -> Iterator[UserBatch]:
        """The batches of `users`, whose corruption and sampled items are drawn together."""
        device = self.items.device
        lengths = self._lengths[users]
        bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        total, counts, users = int(bounds[-1]), to_device(lengths, device), to_device(users, device)
        start_of = self.offsets[users] - to_device(bounds, device)[:-1]
        first = torch.repeat_interleave(start_of, counts, output_size=total)
        likes = self.items[torch.arange(total, device=device) + first]
        owners = torch.repeat_interleave(users.int(), counts, output_size=total)
        lists = (self.offsets, self.items, self.num_items, self.num_negatives)
        negatives = sample_negatives(owners, *lists, seed=seed, offset=done)
        scored = torch.cat([likes.unsqueeze(1), negatives], 1).view(-1)
        kept_bounds, kept = bounds, likes
        if self.corruption:
            is_kept = torch.rand(total, generator=generator) >= self.corruption
            kept = likes[to_device(is_kept.nonzero().squeeze(1), device)]
            kept_bounds = torch.cat([bounds.new_zeros(1), is_kept.cumsum(0)])[bounds]
        values = torch.full((len(kept),), 1 / (1 - self.corruption) if len(kept) else 1.0, device=device)
        bounds, kept_bounds = bounds.int() * (1 + self.num_negatives), kept_bounds.int()
        starts, kept_starts = to_device(bounds, device), to_device(kept_bounds, device)
        for start in range(0, len(users), self.batch_size):
            chosen = users[start : start + self.batch_size]
            stop = start + len(chosen)
            begin, end = int(kept_bounds[start]), int(kept_bounds[stop])
            at, upto = int(bounds[start]), int(bounds[stop])
            yield UserBatch(
                chosen,
                kept_starts[start : stop + 1] - begin,
                kept[begin:end],
                values[begin:end],
                starts[start : stop + 1] - at,
                scored[at:upto],
                self._labels[: upto - at],
            )
