"""The ten best of up to a million items from a compressed copy: `python -m bench prefilter_topk`, or
`python -m bench.prefilter_topk` for the least time of each alone.

`score_topk` reads all vectors in float32 and is the rival, as both give the same bits; for one query a read of as many
bytes as each copy has stands beside them as the limit.
"""

from __future__ import annotations

import itertools
import time
from functools import partial

import torch

from bench.harness import Case, Target, Trial, check_parity
from deeprec.kernels.prefilter_topk import PreparedItems, PreparedScorer, prefilter_topk
from deeprec.kernels.score_topk import DotScorer, score_topk

K = 10
SIZES = ((6_000, 64), (100_000, 64), (1_000_000, 64), (1_000_000, 128))  # items, D
QUERIES = (1, 8, 256)
OURS = {"int8": "deeprec", "bfloat16": "deeprec, bfloat16"}
EXACT, READ = "deeprec, score_topk", {dtype: f"one read of the {dtype} copy" for dtype in OURS}
GROUP = "ten best, {} queries"
TARGETS = tuple(
    Target(f"prefilter_topk, {queries} queries", GROUP.format(queries), EXACT, reach, ours=OURS[dtype], over="median")
    for queries in QUERIES
    for dtype, reach in (("int8", 3.0 if queries < 256 else 2.0), ("bfloat16", 2.0 if queries < 256 else 1.5))
)


def _trial(num_items: int, dim: int, queries: int, device: str) -> Trial:
    users, items = torch.randn(queries, dim), torch.randn(num_items, dim)
    best = score_topk(DotScorer(users, items), K)
    trial = Trial([best.values.double(), best.ids.double()], tolerance=1e-30)  # the same bits
    for dtype, name in OURS.items():
        scorer = PreparedScorer(users, PreparedItems.of(items, dtype))
        trial.add(name, lambda scorer=scorer: list(prefilter_topk(scorer, K)))
    trial.add(EXACT, lambda: list(score_topk(DotScorer(users, items), K)))
    if queries == 1 and device == "cpu":
        for dtype, name in READ.items():
            part = torch.randn(num_items, dim // (4 if dtype == "int8" else 2))
            trial.add(name, part.sum, lambda: list(trial.expected))
    return trial


def cases(device: str = "cpu") -> list[Case]:
    """All sizes and numbers of queries; on another device than a CPU both contenders are score_topk."""
    return [
        Case(
            f"{queries} of {num_items:,} x {dim}",
            GROUP.format(queries),
            partial(_trial, num_items, dim, queries, device),
            float(num_items * (dim + 4)),
            2.0 * queries * num_items * dim,
            size=num_items,
            effort=0.5,
            turns=1,
        )
        for (num_items, dim), queries in itertools.product(SIZES, QUERIES)
    ]


def main() -> None:
    """Each contender in milliseconds, the least of its runs, in turn and again."""
    torch.manual_seed(0)
    for case in cases():
        trial = case.build()
        for contender in trial.contenders:
            check_parity(contender, trial)
        least = {contender.name: (float("inf"), float("inf")) for contender in trial.contenders}
        for _, contender in itertools.product(range(15 if case.flops < 1e10 else 4), trial.contenders):
            start, cpu = time.perf_counter(), time.process_time()
            contender.step()
            spent = time.perf_counter() - start, time.process_time() - cpu
            least[contender.name] = min(spent[0], least[contender.name][0]), min(spent[1], least[contender.name][1])
        times = ", ".join(f"{name} {1e3 * wall:.3f} ({1e3 * cpu:.3f})" for name, (wall, cpu) in least.items())
        print(f"{case.name}: {times} ms (cpu)", flush=True)


if __name__ == "__main__":
    main()
