"""Negatives at the size of MovieLens-1M beside rejection in NumPy: `python -m bench sample_negatives`."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.harness import Case, Contender, Target, Trial, rotating
from bench.workloads import NUM_BATCHES
from deeprec.kernels.sample_negatives import alias_table, sample_negatives, sample_negatives_reference

NUM_USERS, NUM_ITEMS, PER_USER, NUM_NEGATIVES = 6_040, 3_706, 165, 4
SIZES = (256, 4_096, NUM_USERS * PER_USER)
NUMPY = "NumPy rejection"

TARGETS = (Target("uniform negatives", "sample_negatives uniform", NUMPY, 1.0),)


def numpy_rejection(users: np.ndarray, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a user would write: draw, look up, redraw the hits."""
    drawn = rng.integers(0, NUM_ITEMS, (len(users), NUM_NEGATIVES))
    while (bad := seen[users[:, None], drawn]).any():
        drawn[bad] = rng.integers(0, NUM_ITEMS, int(bad.sum()))
    return drawn


def _hits(drawn: Tensor, users: Tensor, seen: np.ndarray) -> Tensor:
    """How many negatives the user has seen, which must be none; a rival draws other numbers than we do."""
    return torch.tensor(int(seen[users.numpy()[:, None], drawn.numpy()].sum()))


def _trial(rows: int, by_popularity: bool) -> Trial:
    rng = np.random.default_rng(0)
    lists = np.sort(np.argsort(rng.random((NUM_USERS, NUM_ITEMS)), axis=1)[:, :PER_USER], axis=1)
    seen = np.zeros((NUM_USERS, NUM_ITEMS), dtype=bool)
    np.put_along_axis(seen, lists, True, axis=1)
    indptr = torch.arange(NUM_USERS + 1) * PER_USER
    indices = torch.from_numpy(lists.astype(np.int32).ravel())
    popularity = alias_table(torch.from_numpy(seen.sum(0)), exponent=0.75) if by_popularity else None
    batches = [torch.from_numpy(rng.integers(0, NUM_USERS, rows)) for _ in range(NUM_BATCHES if rows < 10**5 else 1)]
    few = batches[0][:20_000]
    expected = sample_negatives_reference(few, indptr, indices, NUM_ITEMS, NUM_NEGATIVES, 1, 0, *(popularity or ()))
    # Integers: the reference itself is the truth, and nothing may differ. A rival owes no seen item, and no more.
    trial = Trial([expected.double(), torch.zeros((), dtype=torch.float64)], tolerance=1e-12)

    def ours(users: Tensor) -> Tensor:
        return sample_negatives(users, indptr, indices, NUM_ITEMS, NUM_NEGATIVES, seed=1, popularity=popularity)

    trial.add("deeprec", rotating(ours, batches), lambda: [ours(few), _hits(ours(few), few, seen)])
    if not by_popularity:
        run = partial(numpy_rejection, seen=seen, rng=rng)

        def check() -> list[Tensor]:
            return [expected, _hits(torch.from_numpy(run(few.numpy())), few, seen)]

        arrays = [users.numpy() for users in batches]
        trial.contenders.append(Contender(NUMPY, rotating(run, arrays), check))
    return trial


def cases() -> list[Case]:
    """Uniform and by popularity: a small batch, a batch, an epoch."""
    return [
        Case(
            f"sample_negatives, {kind}, {rows:,} users x {NUM_NEGATIVES}",
            f"sample_negatives {'uniform' if kind == 'uniform' else 'popularity'}",
            partial(_trial, rows, kind != "uniform"),
            bytes=rows * (8 + 4 * NUM_NEGATIVES),
        )
        for kind in ("uniform", "by popularity^0.75")
        for rows in SIZES
    ]
