"""The NCF leave-one-out split as plain NumPy, shared by the peer benchmarks (it imports nothing of deeprec).

Peers run in their own environments, so every one of them reads the same `.npz` (or makes it from the published
triple): users 0..num_users-1, one held-out item per user and `num_negatives` sampled candidates beside it.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class NcfSplit:
    """Training pairs and the validation candidates.

    Attributes:
        users, items: training pairs, int64 [nnz].
        candidates: int64 [num_users, 1 + num_negatives]; column 0 is the held-out item.
        num_users, num_items: table sizes.
    """

    users: np.ndarray
    items: np.ndarray
    candidates: np.ndarray
    num_users: int
    num_items: int

    def save(self, path: Path) -> None:
        np.savez(path, **self.__dict__)

    @staticmethod
    def load(path: Path) -> NcfSplit:
        with np.load(path) as stored:
            return NcfSplit(
                stored["users"],
                stored["items"],
                stored["candidates"],
                int(stored["num_users"]),
                int(stored["num_items"]),
            )


def read_pairs(path: Path) -> np.ndarray:
    """First two columns of a tab-separated rating file (plain or .gz), int64 [rows, 2]."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as lines:
        return np.array([line.split("\t")[:2] for line in lines], dtype=np.int64)


def find_file(prefix: Path, suffix: str) -> Path:
    """`prefix.suffix` or `prefix.suffix.gz`, whichever exists."""
    for name in (f"{prefix.name}.{suffix}", f"{prefix.name}.{suffix}.gz"):
        if (prefix.parent / name).exists():
            return prefix.parent / name
    raise FileNotFoundError(f"find_file: {prefix}.{suffix}[.gz] is needed")


def from_triple(prefix: Path, *, seed: int = 1, num_negatives: int = 99) -> NcfSplit:
    """Hold one random training pair per user out of `prefix.train.rating`, with seeded random candidates.

    Args:
        prefix: path before `.train.rating`, for instance `.../ncf/ml-1m`.
        seed: chooses the held-out pairs and the negatives.
        num_negatives: candidates beside the held-out item, none of them seen by the user.
    """
    pairs, test = read_pairs(find_file(prefix, "train.rating")), read_pairs(find_file(prefix, "test.rating"))
    return from_pairs(pairs, also_seen=test, seed=seed, num_negatives=num_negatives)


def from_pairs(
    pairs: np.ndarray, *, also_seen: np.ndarray | None = None, seed: int = 1, num_negatives: int = 99
) -> NcfSplit:
    """As `from_triple`, from training pairs [nnz, 2] and test pairs that are no negatives either."""
    test = pairs[:0] if also_seen is None else also_seen
    num_users, num_items = (int(np.concatenate([pairs[:, axis], test[:, axis]]).max()) + 1 for axis in (0, 1))
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(pairs))
    held_users, first = np.unique(pairs[shuffled, 0], return_index=True)
    if len(held_users) != num_users:
        raise ValueError(f"from_pairs: every user needs a training row, got {len(held_users)} of {num_users}")
    held = shuffled[first]  # one row per user, in user order
    seen = np.zeros((num_users, num_items), dtype=bool)
    seen[pairs[:, 0], pairs[:, 1]] = True
    seen[test[:, 0], test[:, 1]] = True
    candidates = np.empty((num_users, 1 + num_negatives), dtype=np.int64)
    candidates[:, 0] = pairs[held, 1]
    for user in range(num_users):
        candidates[user, 1:] = rng.choice(np.flatnonzero(~seen[user]), num_negatives, replace=False)
    keep = np.ones(len(pairs), dtype=bool)
    keep[held] = False
    return NcfSplit(pairs[keep, 0], pairs[keep, 1], candidates, num_users, num_items)


def hit_rate(split: NcfSplit, score: Callable[[np.ndarray, np.ndarray], np.ndarray], k: int = 10) -> float:
    """HR@k on the candidates, the held-out item last among equals; `score(users, items)` returns [n] floats."""
    hits, block = 0, 64
    for start in range(0, split.num_users, block):
        rows = split.candidates[start : start + block]
        users = np.repeat(np.arange(start, start + len(rows)), rows.shape[1])
        scores = score(users, rows.reshape(-1)).reshape(rows.shape)
        hits += int(((scores[:, 1:] >= scores[:, :1]).sum(axis=1) < k).sum())
    return hits / split.num_users
