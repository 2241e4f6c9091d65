"""Training batches of ratings: rows of the rating matrix, those of users or those of items."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from deeprec.batches.corruption import Corrupt
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.embedding_bag import BagPlan
from deeprec.kernels.sampled_linear_loss import csr_plan

SIDES = ("item", "user")


@dataclass(frozen=True, slots=True)
class RowBatch:
    """A training step's rows of the rating matrix.

    Attributes:
        rows: [b], int64.
        offsets: [b + 1], int64; indices: [nnz] columns, int64.
        labels: [nnz] targets, float32.
        inputs: [nnz] what the encoder is shown of them, float32.
        weights: [nnz] of the squared errors, float32; None: all 1.
        plan: entries by column, where it is used again; else None.
        share: share of the rows that these are: of the regulariser that they carry.
    """

    rows: Tensor
    offsets: Tensor
    indices: Tensor
    labels: Tensor
    inputs: Tensor
    weights: Tensor | None
    plan: BagPlan | None
    share: float

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> RowBatch:
        """The batch on a device; itself where it is there. A plan stays behind: it is made anew where it is used."""
        if self.rows.device == device:
            return self
        names = ("rows", "offsets", "indices", "labels", "inputs")
        there = {name: to_device(getattr(self, name), device) for name in names}
        weights = None if self.weights is None else to_device(self.weights, device)
        return RowBatch(**there, weights=weights, plan=None, share=self.share)


class RatingRows:
    """Rows of the rating matrix in shuffled batches; all of them in one, always the same, with batch_size 0.

    The order and the noise are drawn on the CPU: the same batches on every device.

    Args:
        train: interactions with ratings; a user may rate an item once.
        side: "item" for a row an item, "user" for a row a user.
        batch_size: rows a step, >= 1; 0: all of them.
        seed: of the order and the noise.
        corrupt: what the encoder is shown of the targets; None: the targets themselves.
        device: where the ratings are kept and the batches cut; None: the CPU.

    Attributes:
        lengths: [num_rows] ratings of each row, on the CPU, so that sizes are known without waiting for a device.
        offsets, indices, ratings: the matrix as CSR, in the units of the data.
        column_counts: [num_columns] ratings of each column.
        targets: [nnz] what is to be reconstructed, the ratings by default.
        shown: [nnz] what the encoder is shown of them, before any corruption; None: the targets.
        weights: [nnz] of their squared errors, float32, for batches without corruption; None: all 1.
        order: [nnz], the row of `train` that each is, on the CPU.

    Raises:
        ValueError: no ratings, a side that there is not, a batch_size below 0, or an item that a user rated twice.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        side: str,
        batch_size: int,
        seed: int,
        corrupt: Corrupt | None = None,
        device: torch.device | None = None,
    ) -> None:
        device = torch.device("cpu") if device is None else device
        if train.ratings is None:
            raise ValueError(
                f"RatingRows: the data must have ratings, got {train.name} without; pass rating= when reading it"
            )
        if not len(train):
            raise ValueError(f"RatingRows: the training part must have a rating, {train.name} has none; hold out less")
        if side not in SIDES:
            raise ValueError(f"RatingRows: side must be {' or '.join(SIDES)}, got {side!r}")
        if batch_size < 0:
            raise ValueError(f"RatingRows: batch_size must be >= 0 (0: all rows in one step), got {batch_size}")
        rows, columns, self.num_rows, self.num_columns = train.users, train.items, train.num_users, train.num_items
        if side == "item":
            rows, columns, self.num_rows, self.num_columns = columns, rows, self.num_columns, self.num_rows
        order = np.lexsort((columns, rows))
        is_twice = (np.diff(rows[order]) == 0) & (np.diff(columns[order]) == 0)
        if is_twice.any():
            place = order[int(is_twice.argmax())]
            user, item = train.user_ids.values[int(train.users[place])], train.item_ids.values[int(train.items[place])]
            raise ValueError(
                f"RatingRows: a user may rate an item once, got {int(is_twice.sum())} more in {train.name}, the first "
                f"of user {user!r} and item {item!r}; read the data with duplicates='latest'"
            )
        self.indices = to_device(torch.from_numpy(columns[order].astype(np.int64)), device)
        self.ratings = to_device(torch.from_numpy(train.ratings[order]), device)
        counts = np.bincount(rows, minlength=self.num_rows)
        self.lengths = torch.from_numpy(counts)
        self.offsets = to_device(torch.from_numpy(np.concatenate([[0], counts.cumsum()]).astype(np.int64)), device)
        column_counts = np.bincount(columns, minlength=self.num_columns)
        self.column_counts = to_device(torch.from_numpy(column_counts), device)
        self.targets = self.ratings
        self.shown: Tensor | None = None
        self.weights: Tensor | None = None
        self.order = torch.from_numpy(order)
        self.batch_size, self.seed, self.corrupt = batch_size, seed, corrupt
        self._plan: BagPlan | None = None

    def __len__(self) -> int:
        rows = int((self.lengths > 0).sum())
        return -(-rows // self.batch_size) if self.batch_size else 1

    @property
    def num_examples(self) -> int:
        """Ratings in an epoch."""
        return len(self.ratings)

    @property
    def counts(self) -> Tensor:
        """[num_rows] ratings of each row."""
        return self.offsets.diff()

    def whole(self) -> RowBatch:
        """All rows, nothing hidden."""
        if self._plan is None:
            self._plan = csr_plan(self.offsets, self.indices, self.num_columns)
        every = torch.arange(self.num_rows, device=self.offsets.device)
        shown = self.targets if self.shown is None else self.shown
        return RowBatch(every, self.offsets, self.indices, self.targets, shown, self.weights, self._plan, 1.0)

    def epoch(self, number: int, skip: int = 0) -> Iterator[RowBatch]:
        """The batches of one epoch without the first `skip`; rows without ratings are left out."""
        return islice(self._epoch(number), skip, None)  # the noise of those before is drawn, as it comes in order

    def _epoch(self, number: int) -> Iterator[RowBatch]:
        (seed,) = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64) >> 1
        generator = torch.Generator().manual_seed(int(seed))
        if not self.batch_size:
            yield self._corrupted(self.whole(), generator)
            return
        shuffled = torch.randperm(self.num_rows, generator=generator)
        device = self.offsets.device
        for chosen in shuffled[self.lengths[shuffled] > 0].split(self.batch_size):
            lengths = self.lengths[chosen]
            nnz = int(lengths.sum())
            rows, counts = to_device(chosen, device), to_device(lengths, device)
            offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            first = self.offsets[rows] - offsets[:-1]
            places = torch.arange(nnz, device=device) + torch.repeat_interleave(first, counts, output_size=nnz)
            targets = self.targets[places]
            share = len(rows) / self.num_rows
            shown = targets if self.shown is None else self.shown[places]
            weights = None if self.weights is None else self.weights[places]
            batch = RowBatch(rows, offsets, self.indices[places], targets, shown, weights, None, share)
            yield self._corrupted(batch, generator)

    def _corrupted(self, batch: RowBatch, generator: torch.Generator) -> RowBatch:
        if self.corrupt is None:
            return batch
        inputs, weights = self.corrupt(batch.inputs, batch.offsets, generator)
        return dataclasses.replace(batch, inputs=inputs, weights=weights)
