"""Negatives a second at the size of MovieLens-1M, beside NumPy rejection: `python -m bench.sample_negatives`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from deeprec.kernels._library import cpu_isa
from deeprec.kernels.sample_negatives import alias_table, sample_negatives, sample_negatives_reference

NUM_USERS, NUM_ITEMS, PER_USER, NUM_NEGATIVES = 6_040, 3_706, 165, 4


def numpy_rejection(users: np.ndarray, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a user would write: draw, look up, redraw the hits."""
    drawn = rng.integers(0, NUM_ITEMS, (len(users), NUM_NEGATIVES))
    while (bad := seen[users[:, None], drawn]).any():
        drawn[bad] = rng.integers(0, NUM_ITEMS, int(bad.sum()))
    return drawn


def report(name: str, run: Callable[[], object], count: int, repeats: int = 9) -> None:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(
        f"{name:44s} {median * 1e3:9.3f} ms  ({min(seconds) * 1e3:.3f} to {max(seconds) * 1e3:.3f})  "
        f"{count / median / 1e6:7.1f} M negatives/s"
    )


def main() -> None:
    rng = np.random.default_rng(0)
    lists = np.sort(np.argsort(rng.random((NUM_USERS, NUM_ITEMS)), axis=1)[:, :PER_USER], axis=1)
    seen = np.zeros((NUM_USERS, NUM_ITEMS), dtype=bool)
    np.put_along_axis(seen, lists, True, axis=1)
    indptr = torch.arange(NUM_USERS + 1) * PER_USER
    indices = torch.from_numpy(lists.astype(np.int32).ravel())
    users = torch.from_numpy(rng.integers(0, NUM_USERS, NUM_USERS * PER_USER))
    table = alias_table(torch.from_numpy(seen.sum(0)), exponent=0.75)

    few = users[:20_000]
    for popularity in (None, table):
        got = sample_negatives(few, indptr, indices, NUM_ITEMS, NUM_NEGATIVES, seed=1, popularity=popularity)
        expected = sample_negatives_reference(few, indptr, indices, NUM_ITEMS, NUM_NEGATIVES, 1, 0, *(popularity or ()))
        if not torch.equal(got, expected):
            raise SystemExit("sample_negatives differs from its reference: no timing")
    print(f"{NUM_USERS} users x {NUM_ITEMS} items, {PER_USER} seen each, {NUM_NEGATIVES} negatives a row")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {cpu_isa() or 'reference'}; median (min to max)"
    )
    for rows in (len(users), 4_096, 256):
        part = users[:rows]
        for name, popularity in (("uniform", None), ("popularity^0.75", table)):
            report(
                f"sample_negatives {name}, B = {rows}",
                lambda part=part, popularity=popularity: sample_negatives(
                    part, indptr, indices, NUM_ITEMS, NUM_NEGATIVES, seed=1, popularity=popularity
                ),
                rows * NUM_NEGATIVES,
            )
        report(
            f"numpy rejection uniform, B = {rows}",
            lambda part=part: numpy_rejection(part.numpy(), seen, rng),
            rows * NUM_NEGATIVES,
            repeats=5,
        )


if __name__ == "__main__":
    main()
