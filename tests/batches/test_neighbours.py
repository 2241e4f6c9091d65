"""Claims about neighbourhoods: all other items of the user, never the positive, and negatives that were not met."""

from __future__ import annotations

import numpy as np
import torch

from deeprec.batches.neighbours import NeighbourBatches
from deeprec.contract import Seen
from deeprec.data import synthetic

DATA = synthetic(num_users=40, num_items=60, num_interactions=500, seed=2)
MET = {user: sorted(set(DATA.items[DATA.users == user].tolist())) for user in range(DATA.num_users)}


def rows_of(batches: NeighbourBatches, epoch: int = 0) -> list[tuple[int, int, list[int], list[int]]]:
    rows = []
    for batch in batches.epoch(epoch):
        assert batch.owners.tolist() == sorted(batch.owners.tolist())
        assert batch.counts.tolist() == np.bincount(batch.owners, minlength=len(batch)).tolist()
        for row, (user, items) in enumerate(zip(batch.users.tolist(), batch.items.tolist(), strict=True)):
            rows.append((user, items[0], items[1:], batch.neighbours[batch.owners == row].tolist()))
    return rows


def test_each_row_comes_once_with_all_other_items_of_its_user() -> None:
    batches = NeighbourBatches(DATA, batch_size=7, num_negatives=3, seed=1)
    rows = rows_of(batches)
    expected = sorted(zip(DATA.users.tolist(), DATA.items.tolist(), strict=True))
    assert sorted((user, item) for user, item, _, _ in rows) == expected
    assert len(batches) == -(-len(DATA) // 7)
    for user, item, negatives, neighbours in rows:
        assert neighbours == [other for other in MET[user] if other != item]
        assert len(negatives) == 3
        assert not set(negatives) & set(MET[user])


def test_epochs_are_repeatable_and_can_be_entered_anywhere() -> None:
    first, second = (NeighbourBatches(DATA, batch_size=16, num_negatives=2, seed=4) for _ in range(2))
    assert rows_of(first, 3) == rows_of(second, 3)
    assert rows_of(first, 3) != rows_of(first, 4)
    whole, later = list(first.epoch(1)), list(first.epoch(1, skip=11))
    for a, b in zip(whole[11:], later, strict=True):
        assert all(
            torch.equal(getattr(a, name), getattr(b, name)) for name in ("users", "items", "neighbours", "owners")
        )


def test_items_to_avoid_are_no_negatives() -> None:
    rows = np.tile(np.delete(np.arange(DATA.num_items, dtype=np.int32), 5), DATA.num_users)
    avoid = Seen(np.arange(DATA.num_users + 1) * (DATA.num_items - 1), rows)
    batches = NeighbourBatches(DATA, batch_size=64, num_negatives=2, seed=0, avoid=avoid)
    assert all((batch.items[:, 1:] == 5).all() for batch in batches.epoch(0))
