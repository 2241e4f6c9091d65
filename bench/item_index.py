"""Recall and time of approximate indices against the exact scan, over vectors as a trained model has them.

Clusters of unequal size, a falling spectrum, lengths with a long tail (lognormal), and queries that mix a few clusters.
Each kind is built once, kept in a folder where one is given, and measured anew in a later run from there.

python -m bench.item_index [--items 1000000] [--width 64] [--kinds voyager,usearch:int8] [--keep DIR] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deeprec._hardware import hardware
from deeprec.kernels.score_topk import DotScorer, score_topk
from deeprec.serve import ItemIndex, RecallReport

_QUERIES = 1024


def vectors(count: int, width: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Items [count, width] and queries [_QUERIES, width]."""
    random = np.random.default_rng(seed)
    spectrum = (1.0 + np.arange(width)) ** -0.5
    clusters = max(4, count // 500)
    centers = random.normal(size=(clusters, width)) * spectrum
    weights = (1.0 + np.arange(clusters)) ** -0.7
    items = centers[random.choice(clusters, count, p=weights / weights.sum())]
    items = items + 0.6 * random.normal(size=items.shape) * spectrum
    items *= random.lognormal(0, 0.4, size=(count, 1))
    picked = centers[random.integers(0, clusters, size=(_QUERIES, 4))]
    queries = (picked * random.dirichlet(np.ones(4), size=_QUERIES)[..., None]).sum(1)
    queries = queries + 0.3 * random.normal(size=queries.shape) * spectrum
    return items.astype(np.float32), queries.astype(np.float32)


def built(kind: str, items: NDArray[np.float32], queries: NDArray[np.float32], keep: Path | None) -> ItemIndex:
    """The index of a kind such as voyager or usearch:int8, from its folder where it lies there."""
    name, _, storage = kind.partition(":")
    place = None if keep is None else keep / kind.replace(":", "-")
    if place is not None and place.exists():
        return ItemIndex.load(place)
    start = time.perf_counter()
    index = ItemIndex.build(items, kind=name, queries=queries, storage=storage or "float32")
    print(f"{kind}: built and measured in {time.perf_counter() - start:.0f} s", flush=True)
    if place is not None:
        index.save(place)
    return index


def show(kind: str, report: RecallReport, exact: float, budget: float) -> None:
    print(f"{kind}: breadth {report.breadth}, recall@{report.k} {report.recall:.4f}, {report.milliseconds:.3f} ms, "
          f"{exact / report.milliseconds:.1f} times as fast as the scan")  # fmt: skip
    for point in report.points:
        mark = "*" if point.recall >= report.target and point.milliseconds <= budget else " "
        print(f"  {mark} {point.breadth:5d}  {point.recall:.4f}  {point.milliseconds:.3f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--kinds", default="voyager,usearch:int8")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    items, queries = vectors(given.items, given.width)
    rows, asked = torch.from_numpy(items), torch.from_numpy(queries)
    times = []
    for row in range(24):
        start = time.perf_counter()
        score_topk(DotScorer(asked[row : row + 1], rows), 10)
        times.append(time.perf_counter() - start)
    exact = float(np.median(times)) * 1e3
    print(json.dumps({"items": given.items, "width": given.width, "threads": given.threads, **hardware()}))
    print(f"exact scan: {exact:.3f} ms a query (least {min(times) * 1e3:.3f}); a twentieth is {exact / 20:.3f} ms")
    for kind in given.kinds.split(","):
        show(kind, built(kind, items, queries, given.keep).recall_report(anew=True), exact, exact / 20)


if __name__ == "__main__":
    main()
