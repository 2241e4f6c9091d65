"""Batches of models that are fitted by turns: whole rows of the users, then whole rows of the items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.data import Interactions
from deeprec.device import to_device

ENTRIES_A_BATCH = 1 << 22  # enough that a batch costs nothing beside its entries, few enough for progress to be seen


@dataclass(frozen=True, slots=True)
class SideBatch:
    """Adjacent rows of the matrix of interactions, those of users or those of items.

    Attributes:
        of_users: whether its rows are users and its columns items; the other way round otherwise.
        begin, end: its rows.
        is_first, is_last: of its side.
        offsets: [end - begin + 1], int32; row r holds the columns indices[offsets[r - begin]:offsets[r - begin + 1]].
        indices: [nnz], int32, ascending and distinct within a row.
        values: [nnz], float32.
        sums: [end - begin], float32, the values of each row added up.
    """

    of_users: bool
    begin: int
    end: int
    is_first: bool
    is_last: bool
    offsets: Tensor
    indices: Tensor
    values: Tensor
    sums: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> SideBatch:
        """The batch on a device; itself where it is there."""
        if self.indices.device == device:
            return self
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        there = {name: to_device(x, device) for name, x in given.items() if isinstance(x, Tensor)}
        return SideBatch(**{**given, **there})


class Sides:
    """Every user's row, then every item's, in batches of whole rows; the same in every epoch.

    Args:
        train: the training interactions; what comes twice for a user and an item is one entry, the values added up.
        values: [len(train)], float32, of the interactions; None: 1 for each pair.
        entries_a_batch: least entries of a batch but the last of a side, >= 1.
        device: where the batches are kept; None: the CPU.
    Attributes:
        mean_value: of the entries.
    Raises:
        ValueError: no interaction.
    """

    def __init__(
        self,
        train: Interactions,
        values: NDArray[np.float32] | None = None,
        *,
        entries_a_batch: int = ENTRIES_A_BATCH,
        device: torch.device | None = None,
    ) -> None:
        device = torch.device("cpu") if device is None else device
        if not len(train):
            raise ValueError(f"Sides: the training part must have an interaction, {train.name} has none; hold out less")
        offsets, items = train.csr()
        of_pairs = np.ones(len(items), dtype=np.float32)
        if values is not None:
            keys = train.pair_keys()
            order = np.argsort(keys, kind="stable")
            starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
            of_pairs = np.add.reduceat(values[order].astype(np.float64), starts).astype(np.float32)
        self.mean_value = float(of_pairs.mean(dtype=np.float64))
        users = np.repeat(np.arange(train.num_users, dtype=np.int32), np.diff(offsets))
        by_item = np.argsort(items, kind="stable")
        counts = np.bincount(items, minlength=train.num_items)
        item_offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
        sides = (
            (True, offsets, items, of_pairs),
            (False, item_offsets, users[by_item], of_pairs[by_item]),
        )
        self._batches = [batch.to(device) for side in sides for batch in _cut(*side, entries_a_batch)]

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def num_examples(self) -> int:
        """Entries in an epoch: each pair once as its user's and once as its item's."""
        return sum(map(len, self._batches))

    def epoch(self, number: int, skip: int = 0) -> Iterator[SideBatch]:
        """The batches, without the first `skip`."""
        return islice(iter(self._batches), skip, None)


def _cut(
    of_users: bool, offsets: NDArray[np.int64], indices: NDArray[np.int32], values: NDArray[np.float32], size: int
) -> Iterator[SideBatch]:
    """One side in batches, each with an entry at least."""
    num_rows = len(offsets) - 1
    cuts = np.unique(np.searchsorted(offsets, np.arange(0, int(offsets[-1]), size)))
    cuts = cuts[offsets[cuts] < offsets[-1]]  # the empty rows after the last entry go with it
    cuts[0] = 0  # those before the first with that
    sums = np.add.reduceat(np.append(values.astype(np.float64), 0.0), offsets[:-1]) * (np.diff(offsets) > 0)
    bounds = [*cuts.tolist(), num_rows]
    for begin, end in pairwise(bounds):
        first, last = int(offsets[begin]), int(offsets[end])
        yield SideBatch(
            of_users,
            begin,
            end,
            begin == 0,
            end == num_rows,
            torch.from_numpy((offsets[begin : end + 1] - first).astype(np.int32)),
            torch.from_numpy(np.ascontiguousarray(indices[first:last])),
            torch.from_numpy(np.ascontiguousarray(values[first:last])),
            torch.from_numpy(sums[begin:end].astype(np.float32)),
        )
