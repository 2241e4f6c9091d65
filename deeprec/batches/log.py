"""Training batches of a log of clicks: its rows, shuffled anew every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.inputs import Encoded
from deeprec.device import to_device


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Rows of a log as tensors.

    Attributes:
        ids: [B, F], int32 or int64, a column for each of `Inputs.fields`.
        values: [B, P], float32, a column for each of `Inputs.numerics`.
        bags: name to (ids [nnz], offsets [B + 1], weights [nnz] or None).
        labels: [B], float32, 0 or 1; None when serving.
    """

    ids: Tensor
    values: Tensor
    bags: dict[str, tuple[Tensor, Tensor, Tensor | None]]
    labels: Tensor | None = None

    @classmethod
    def of(cls, rows: Encoded) -> LogBatch:
        """Encoded rows as tensors over the same memory."""
        bags = {}
        for name, bag in rows.bags.items():
            weights = None if bag.weights is None else torch.from_numpy(bag.weights)
            bags[name] = (torch.from_numpy(bag.ids), torch.from_numpy(bag.offsets), weights)
        labels = None if rows.labels is None else torch.from_numpy(rows.labels)
        return cls(torch.from_numpy(rows.ids), torch.from_numpy(rows.values), bags, labels)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> LogBatch:
        """The batch on a device; itself where it is there."""
        if self.ids.device == device:
            return self
        bags = {
            name: (
                to_device(ids, device),
                to_device(offsets, device),
                None if weights is None else to_device(weights, device),
            )
            for name, (ids, offsets, weights) in self.bags.items()
        }
        labels = None if self.labels is None else to_device(self.labels, device)
        return LogBatch(to_device(self.ids, device), to_device(self.values, device), bags, labels)


class LogBatches:
    """The rows of a part of a log in shuffled batches, all of them once an epoch; see `ClickPart.batches`.

    A given (seed, epoch) yields the same batches on every machine. They lie on the CPU, as views of what is read.

    Args:
        part: the rows, in memory or on the disk.
        batch_size: rows a step, >= 1.
        seed: of the order.
    """

    def __init__(self, part: ClickPart, *, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"LogBatches: batch_size must be >= 1, got {batch_size}")
        self.part, self.batch_size, self.seed = part, batch_size, seed

    def __len__(self) -> int:
        return -(-len(self.part) // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Rows in an epoch."""
        return len(self.part)

    def epoch(self, number: int, skip: int = 0) -> Iterator[LogBatch]:
        """The batches of one epoch, without the first `skip`, which are not read."""
        return map(LogBatch.of, self.part.batches(self.batch_size, seed=self.seed, epoch=number, skip=skip))
