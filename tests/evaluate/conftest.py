"""Small stand-ins for the data types, so that these tests depend on no reader and no split."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch


@dataclass
class FakeInteractions:
    users: np.ndarray
    items: np.ndarray
    num_users: int
    num_items: int
    name: str = "fake"
    official: object | None = None

    def __len__(self) -> int:
        return len(self.users)

    def csr(self):
        pairs = np.unique(np.stack([self.users, self.items]), axis=1) if len(self) else np.zeros((2, 0), dtype=int)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(pairs[0], minlength=self.num_users))])
        return indptr, pairs[1].astype(np.int32)

    def item_counts(self) -> np.ndarray:
        return np.bincount(self.items, minlength=self.num_items)


class TableScorer:
    """Scores out of a table [num_users, num_items]."""

    def __init__(self, table) -> None:
        self.table = torch.as_tensor(table, dtype=torch.float32)

    def score_pairs(self, users, items):
        return self.table[users, items]

    def score_items(self, users):
        return self.table[users]


@pytest.fixture
def table_scorer():
    return TableScorer


@pytest.fixture
def interactions():
    def make(pairs, num_users: int, num_items: int, **more) -> FakeInteractions:
        array = np.asarray(pairs, dtype=np.int32).reshape(-1, 2)
        return FakeInteractions(array[:, 0], array[:, 1], num_users, num_items, **more)

    return make


@pytest.fixture
def make_split(interactions):
    """Disjoint random parts with `positives` test items a user, one validation item, seeded negatives."""

    def make(num_users=30, num_items=50, positives=1, train=5, negatives=8, seed=0):
        generator = np.random.default_rng(seed)
        rows = [generator.permutation(num_items) for _ in range(num_users)]
        cut = [0, train, train + 1, train + 1 + positives]
        parts = [
            interactions([(u, i) for u, row in enumerate(rows) for i in row[a:b]], num_users, num_items)
            for a, b in pairwise(cut)
        ]
        lists = np.stack([row[cut[-1] : cut[-1] + negatives] for row in rows])
        return SimpleNamespace(
            train=parts[0],
            validation=parts[1],
            test=parts[2],
            test_negatives=np.repeat(lists, positives, axis=0),
            validation_negatives=lists,
        )

    return make
