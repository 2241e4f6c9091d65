"""How much of the exact answer an approximate index gives, and how long it takes, by the breadth of its search."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec._files import write_atomically

BREADTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_ENOUGH = 0.9995  # recall at which a broader search is not tried any more
_TIMED = 24  # queries, one at a time

Search = Callable[[Tensor, int], NDArray[np.int64]]  # of queries [b, D] and a breadth, items [b, k], -1 for none


@dataclass(frozen=True)
class RecallPoint:
    """One breadth of search.

    Attributes:
        breadth: candidates that the search keeps.
        recall: share of the exact k best items that it gives, over the queries that no option was chosen by.
        milliseconds: median of single queries, rescoring included.
    """

    breadth: int
    recall: float
    milliseconds: float


@dataclass(frozen=True)
class RecallReport:
    """What an index gives of the exact answer.

    Attributes:
        kind: of the index.
        num_items, width: items, and numbers in a vector.
        k: length of the lists that are compared.
        target: recall that was asked for.
        breadth: the smallest one that reached it on the queries for choosing, see `measure`; 0 for an exact index.
        recall, milliseconds: of that breadth on the other queries.
        exact_milliseconds: median of single queries by the exact scan, in the threads of torch.
        queries: what was asked: "users" of the model, "given" ones, or "items" where neither is known.
        num_choosing, num_queries: queries that the breadth was chosen by, and those that recall was measured on.
        points: all breadths that were tried, ascending.
    """

    kind: str
    num_items: int
    width: int
    k: int
    target: float
    breadth: int
    recall: float
    milliseconds: float
    exact_milliseconds: float
    queries: str
    num_choosing: int
    num_queries: int
    points: tuple[RecallPoint, ...] = ()

    @property
    def reaches_target(self) -> bool:
        """Whether recall on the queries that nothing was chosen by is at least the target."""
        return self.recall >= self.target

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    def plot(self, path: str | Path) -> None:
        """Draw recall against the time of a query into the PNG file `path`, a point a breadth."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.subplots()
        points = self.points or (RecallPoint(0, self.recall, self.milliseconds),)
        x, y = [point.milliseconds for point in points], [point.recall for point in points]
        axes.plot(x, y, marker="o", markersize=4, label=self.kind)
        for point in points:
            if point.breadth == self.breadth or point in (points[0], points[-1]):
                place = (point.milliseconds, point.recall)
                axes.annotate(f"{point.breadth}", place, textcoords="offset points", xytext=(5, -10), size=8)
        axes.axhline(self.target, color="0.4", linewidth=1, linestyle="--", zorder=0, label=f"target {self.target:g}")
        axes.axvline(self.exact_milliseconds, color="#c44e52", linewidth=1, zorder=0, label="exact scan")
        axes.set(xscale="log", xlabel="milliseconds of a query", ylabel=f"recall@{self.k} against the exact scan")
        axes.set_title(f"{self.num_items:,} items x {self.width}; numbers are breadths of search", size=9)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=140)
        write_atomically(Path(path), buffer.getvalue())


def recall_of(items: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Share of the exact items, rows [b, k] with -1 for none, that the other rows hold; 1 where there is none."""
    total = int((exact >= 0).sum())
    hits = sum(len(np.intersect1d(row[row >= 0], best[best >= 0])) for row, best in zip(items, exact, strict=True))
    return hits / total if total else 1.0


def _mean_and_error(items: NDArray[np.int64], exact: NDArray[np.int64]) -> tuple[float, float]:
    """Recall, and the standard error of its mean over the queries."""
    each = [recall_of(items[row : row + 1], exact[row : row + 1]) for row in range(len(exact))]
    return float(np.mean(each)), float(np.std(each) / np.sqrt(len(each)))


def measure(asked: Tensor, search: Search, exact: Search, breadths: Sequence[int], **facts: Any) -> RecallReport:
    """The report on a search, with the breadth chosen on every second query and recall taken on the others.

    The smallest breadth is chosen whose recall is at least the target by one standard error of the queries it is chosen
    on, so that the others most often reach it too.

    Args:
        asked: queries [b, D], b >= 2.
        search: the approximate one.
        exact: the same without a use for its breadth.
        breadths: to be tried, ascending, until one gives all.
        facts: fields of the report that are known: kind, num_items, width, k, target, queries.
    """
    chosen_by, others = asked[::2], asked[1::2]
    expected, expected_others = exact(chosen_by, 0), exact(others, 0)
    largest, points, breadth = max(facts["k"], facts["num_items"]), list[RecallPoint](), 0
    tried = sorted({min(each, largest) for each in breadths if each >= facts["k"]} or {largest})
    for each in tried:
        reached, error = _mean_and_error(search(chosen_by, each), expected)
        recall = recall_of(search(others, each), expected_others)
        points.append(RecallPoint(each, recall, _milliseconds(others, search, each)))
        if not breadth and reached - error >= facts["target"]:
            breadth = each
        if breadth and min(reached, recall) >= _ENOUGH:
            break
    breadth = breadth or tried[-1]
    at = next(point for point in points if point.breadth == breadth)
    return RecallReport(
        **facts,
        breadth=breadth,
        recall=at.recall,
        milliseconds=at.milliseconds,
        exact_milliseconds=_milliseconds(others[:8], exact, 0),
        num_choosing=len(chosen_by),
        num_queries=len(others),
        points=tuple(points),
    )


def exact_report(asked: Tensor, exact: Search, **facts: Any) -> RecallReport:
    """The report on an exact index, whose recall is 1."""
    taken = _milliseconds(asked[:8], exact, 0)
    facts |= {"milliseconds": taken, "exact_milliseconds": taken, "num_choosing": 0, "num_queries": len(asked)}
    return RecallReport(**facts, breadth=0, recall=1.0)


def _milliseconds(queries: Tensor, search: Search, breadth: int) -> float:
    """Median time of single queries; the first one warms up."""
    times = []
    for row in [0, *range(min(_TIMED, len(queries)))]:
        start = time.perf_counter()
        search(queries[row : row + 1], breadth)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) * 1e3 if len(times) > 1 else 0.0


def sample_of(vectors: Tensor, count: int) -> Tensor:
    """At most `count` rows of vectors, spread evenly over them."""
    if len(vectors) <= count:
        return vectors
    return vectors[torch.linspace(0, len(vectors) - 1, count).long()]
