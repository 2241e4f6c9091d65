"""Negatives at the size of MovieLens-1M beside rejection in NumPy or torch: `python -m bench sample_negatives`."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.harness import Case, Contender, Target, Trial, rotating
from bench.workloads import NUM_BATCHES, scale
from deeprec.kernels.sample_negatives import alias_table, sample_negatives, sample_negatives_reference

NUM_USERS, NUM_ITEMS, PER_USER, NUM_NEGATIVES = 6_040, 3_706, 165, 4
SIZES = (256, 4_096, NUM_USERS * PER_USER)
GPU_TIMES = 16  # as many users as on the CPU
NUMPY, TORCH = "NumPy rejection", "torch rejection"

TARGETS = (
    Target("uniform negatives", "sample_negatives uniform", NUMPY, 1.0),
    Target("uniform negatives", "sample_negatives uniform", TORCH, 1.0, device="cuda"),
)


def numpy_rejection(users: np.ndarray, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a user would write: draw, look up, redraw the hits."""
    drawn = rng.integers(0, NUM_ITEMS, (len(users), NUM_NEGATIVES))
    while (bad := seen[users[:, None], drawn]).any():
        drawn[bad] = rng.integers(0, NUM_ITEMS, int(bad.sum()))
    return drawn


def torch_rejection(users: Tensor, seen: Tensor) -> Tensor:
    """The same on a device, in as many rounds as it takes: each waits for the count of the hits."""
    drawn = torch.randint(NUM_ITEMS, (len(users), NUM_NEGATIVES), device=users.device)
    bad = seen[users.unsqueeze(1), drawn]
    while count := int(bad.sum()):
        drawn[bad] = torch.randint(NUM_ITEMS, (count,), device=users.device)
        bad = seen[users.unsqueeze(1), drawn]
    return drawn


def _hits(drawn: Tensor, users: Tensor, seen: np.ndarray) -> Tensor:
    """How many negatives the user has seen, which must be none; a rival draws other numbers than we do."""
    return torch.tensor(int(seen[users.cpu().numpy()[:, None], drawn.cpu().numpy()].sum()))


def _trial(rows: int, by_popularity: bool, device: str) -> Trial:
    rng = np.random.default_rng(0)
    lists = np.sort(np.argsort(rng.random((NUM_USERS, NUM_ITEMS)), axis=1)[:, :PER_USER], axis=1)
    seen = np.zeros((NUM_USERS, NUM_ITEMS), dtype=bool)
    np.put_along_axis(seen, lists, True, axis=1)
    indptr = torch.arange(NUM_USERS + 1) * PER_USER
    indices = torch.as_tensor(lists.astype(np.int32).ravel())
    popularity = alias_table(torch.as_tensor(seen.sum(0)), exponent=0.75) if by_popularity else None
    batches = [torch.as_tensor(rng.integers(0, NUM_USERS, rows)) for _ in range(_turns(rows))]
    few = batches[0][:20_000]
    expected = sample_negatives_reference(few, indptr, indices, NUM_ITEMS, NUM_NEGATIVES, 1, 0, *(popularity or ()))
    # Integers: the reference itself is the truth, and nothing may differ. A rival owes no seen item, and no more.
    trial = Trial([expected.double(), torch.zeros((), dtype=torch.float64)], tolerance=1e-12)

    def ours(users: Tensor) -> Tensor:
        return sample_negatives(users, indptr, indices, NUM_ITEMS, NUM_NEGATIVES, seed=1, popularity=popularity)

    trial.add("deeprec", rotating(ours, batches), lambda: [ours(few), _hits(ours(few), few, seen)])
    if not by_popularity and device == "cpu":
        run = partial(numpy_rejection, seen=seen, rng=rng)

        def check() -> list[Tensor]:
            return [expected, _hits(torch.from_numpy(run(few.numpy())), few, seen)]

        arrays = [users.numpy() for users in batches]
        trial.contenders.append(Contender(NUMPY, rotating(run, arrays), check))
    elif not by_popularity:
        reject = partial(torch_rejection, seen=torch.as_tensor(seen))
        trial.add(TORCH, rotating(reject, batches), lambda: [expected, _hits(reject(few), few, seen)])
    return trial


def _turns(rows: int) -> int:
    return NUM_BATCHES if rows < 10**5 else 1


def cases(device: str = "cpu") -> list[Case]:
    """Uniform and by popularity: a small batch, a batch, an epoch."""
    times = 1 if device == "cpu" else GPU_TIMES
    return [
        Case(
            f"sample_negatives, {kind}, {times * rows:,} users x {NUM_NEGATIVES}",
            f"sample_negatives {'uniform' if kind == 'uniform' else 'popularity'}",
            partial(_trial, times * rows, kind != "uniform", device),
            bytes=times * rows * (8 + 4 * NUM_NEGATIVES),
            scale=scale(device, f"{times * rows:,} users", f"{rows:,}"),
            turns=_turns(times * rows),
        )
        for kind in ("uniform", "by popularity^0.75")
        for rows in SIZES
    ]
