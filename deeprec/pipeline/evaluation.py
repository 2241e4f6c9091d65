"""The figures of a pipeline, stage by stage, on held-out interactions; and of two pipelines on the same ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.random_bits import random_bits
from deeprec.evaluate import metrics
from deeprec.pipeline.config import ByClicks
from deeprec.pipeline.fitting import asked_before, ranker_users
from deeprec.pipeline.ranker import MOST_VALUES
from deeprec.pipeline.rerank import unit_rows
from deeprec.pipeline.rows import Ints, Lists, Proposed, ranked
from deeprec.pipeline.stages import TEST, TRAIN, VALIDATION, Stages

_USERS_A_BLOCK = 256
_BOOTSTRAPS, _BOOTSTRAP = 2000, 61
PARTS = {"validation": VALIDATION, "test": TEST}


@dataclass(frozen=True)
class Row:
    """A source or a stage.

    Attributes:
        name: of it.
        candidates: items that it leaves to a person, mean.
        recall: share of a person's held-out items among these, mean over people.
        own: share of the held-out items that no other source has; of sources alone.
        ndcg, hit_recall: NDCG@k and recall@k of its first k items; of filters NaN.
        diversity: mean of 1 - cos over the pairs of the first k items, by their columns; NaN without columns.
        coverage: share of the catalogue in anybody's first k.
        gini: of the exposure of the items in the first k: 0 is equal exposure, towards 1 a few items have all.
        popularity: mean number of training interactions of the items in the first k, as a share of the users.
    """

    name: str
    candidates: float
    recall: float
    own: float = float("nan")
    ndcg: float = float("nan")
    hit_recall: float = float("nan")
    diversity: float = float("nan")
    coverage: float = float("nan")
    gini: float = float("nan")
    popularity: float = float("nan")


@dataclass(frozen=True)
class Report:
    """Figures of a part.

    Attributes:
        part: "validation" or "test".
        k: length of the lists.
        users: people whose held-out items were sought.
        sources: one for each: recall of its quota, and figures of its own first k items.
        filters: share of the held-out items that the filters take out, and so nobody can get.
        stages: all candidates, the list after the ranking, after each re-ranking.
        single: name and NDCG@k of the best source alone.
        per_user: NDCG@k of each person at the end, for comparisons; not saved.
    """

    part: str
    k: int
    users: int
    sources: list[Row]
    filters: float
    stages: list[Row]
    single: tuple[str, float]
    per_user: dict[str, Any] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes None."""
        values = asdict(self)
        del values["per_user"]
        return dict(_plain(values))


@dataclass(frozen=True)
class Comparison:
    """NDCG@k of two pipelines for the same people.

    Attributes:
        first, second: means.
        difference: second less first, mean over people.
        low, high: of the 95% interval of the difference, by the bootstrap over people.
        better, worse: shares of people for whom the second is better, and worse.
        same_items: mean share of the first k items that both lists have.
        debiased: the difference of recall@k with each held-out item counting by the inverse of its training
            interactions (inverse propensity, normalised): what it would be if people met all items as often.
    """

    k: int
    users: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: float
    worse: float
    same_items: float
    debiased: float


class _Sum:
    """The figures of one row, block by block."""

    def __init__(self, name: str, k: int, counts: NDArray[np.int64], num_users: int) -> None:
        self.name, self.k, self.counts, self.num_users = name, k, counts, num_users
        self.candidates: list[Any] = []
        self.recall: list[Any] = []
        self.own: list[Any] = []
        self.top: list[Any] = []
        self.ndcg: list[Any] = []
        self.hits: list[Any] = []

    def add(self, lists: Lists, top: Ints, held: Lists) -> None:
        """Everything that is left to a block of people, and the first k of it."""
        keys = lists.owners() << 32 | lists.items
        is_hit = np.isin(held.owners() << 32 | held.items, keys)
        self.candidates.append(np.diff(lists.offsets))
        self.recall.append(_mean_of_rows(is_hit, held))
        top = np.pad(top[:, : self.k], ((0, 0), (0, max(0, self.k - top.shape[1]))), constant_values=-1)
        self.top.append(top)
        ranks = _ranks(top, held)
        self.ndcg.append(metrics.ndcg(ranks, self.k, held.offsets))
        self.hits.append(metrics.recall(ranks, self.k, held.offsets))

    def row(self, vectors: NDArray[np.float32] | None, num_items: int) -> Row:
        top = np.concatenate(self.top)
        has = (top >= 0).any()
        return Row(
            self.name,
            _mean(self.candidates),
            _mean(self.recall),
            _mean(self.own),
            _mean(self.ndcg),
            _mean(self.hits),
            diversity(top, vectors) if vectors is not None else float("nan"),
            metrics.coverage(top, self.k, num_items),
            metrics.gini(top, self.k, num_items) if has else float("nan"),
            float(self.counts[top[top >= 0]].mean() / max(1, self.num_users)) if has else float("nan"),
        )


def evaluate(pipeline: Stages, part: str = "test", *, k: int | None = None) -> Report:
    """The figures of a part, which no model of the pipeline was trained on.

    Histories are those before the part: the training interactions, and for the test those of validation too. What
    stands in them is taken out, as the protocol does. People whose rows taught the ranker are left out of "validation".

    Args:
        part: "test", or "validation" to choose options by.
        k: length of the lists; None: that of the config.
    Raises:
        ValueError: another part, or one without people.
    """
    if part not in PARTS:
        raise ValueError(f"pipeline: part must be validation or test, got {part!r}; take one of them")
    k = pipeline.config.k if k is None else k
    if part == "validation" and (late := [n for n, m in pipeline.models.items() if getattr(m.config, "refit", False)]):
        raise ValueError(
            f"pipeline: the validation part cannot measure {', '.join(late)}, which learned from it at the end; read "
            'report["validation"], or give the sources refit: false'
        )
    held, before, users = _held_out(pipeline, part)
    counts, num_items, num_users = pipeline.state.counts, len(pipeline.item_ids), len(pipeline.user_ids)
    names = [
        "candidates",
        "ranking: " + pipeline.config.ranking.kind,
        *(stage.kind for stage in pipeline.config.rerank),
    ]
    of_sources = [_Sum(name, k, counts, num_users) for name in pipeline.names]
    of_stages = [_Sum(name, k, counts, num_users) for name in names]
    hidden = []
    for start in range(0, len(users), _USERS_A_BLOCK):
        block = users[start : start + _USERS_A_BLOCK]
        targets = held.taken(block)
        asked = asked_before(pipeline, block, before)
        answer = pipeline.answer(asked, k)
        hidden.append(_mean_of_rows(_is_hidden(asked, targets), targets))
        hits = np.stack([_hits(one, targets) for one in answer.proposed], axis=1)
        for number, (one, total) in enumerate(zip(answer.proposed, of_sources, strict=True)):
            total.add(_lists(one.items), one.items, targets)
            total.own.append(_mean_of_rows(hits[:, number] & (hits.sum(1) == 1), targets))
        candidates = answer.candidates.lists
        plain = ranked(candidates, np.zeros(len(candidates.items), np.float32), k)
        of_stages[0].add(candidates, plain.items, targets)
        for stage, total in zip(answer.stages, of_stages[1:], strict=True):
            total.add(candidates, stage.items, targets)
    vectors = _described(pipeline)
    sources = [total.row(vectors, num_items) for total in of_sources]
    stages = [total.row(vectors, num_items) for total in of_stages]
    stages[0] = Row("candidates", stages[0].candidates, stages[0].recall)
    best = max(sources, key=lambda row: row.ndcg)
    final = of_stages[-1]
    per_user = {"users": users, "ndcg": np.concatenate(final.ndcg), "top": np.concatenate(final.top)}
    return Report(part, k, len(users), sources, _mean(hidden), stages, (best.name, best.ndcg), per_user)


def compare(first: Stages, second: Stages, part: str = "test", *, k: int | None = None) -> Comparison:
    """What would have been different if the second pipeline had served the people whose interactions were held out.

    Raises:
        ValueError: pipelines of other data or another split.
    """
    ours, theirs = first.state.data, second.state.data
    for key in ("sha256", "split_sha256"):
        if ours[key] != theirs[key]:
            what = "data" if key == "sha256" else "split"
            raise ValueError(
                f"pipeline: compare needs two pipelines of the same {what}, got {ours['name']} and {theirs['name']}; "
                "fit both on one log with one protocol"
            )
    k = k or first.config.k
    one, other = evaluate(first, part, k=k), evaluate(second, part, k=k)
    both, rows, other_rows = np.intersect1d(one.per_user["users"], other.per_user["users"], return_indices=True)
    before, after = one.per_user["ndcg"][rows], other.per_user["ndcg"][other_rows]
    difference = after - before
    low, high = _interval(difference)
    tops = one.per_user["top"][rows], other.per_user["top"][other_rows]
    same = [len(np.intersect1d(a[a >= 0], b[b >= 0])) / k for a, b in zip(*tops, strict=True)]
    targets, counts = _held_out(first, part)[0].taken(both), first.state.counts
    debiased = _debiased(tops[1], targets, counts) - _debiased(tops[0], targets, counts)
    return Comparison(
        k,
        len(both),
        float(before.mean()),
        float(after.mean()),
        float(difference.mean()),
        low,
        high,
        float((difference > 0).mean()),
        float((difference < 0).mean()),
        float(np.mean(same)),
        debiased,
    )


def _held_out(pipeline: Stages, part: str) -> tuple[Lists, Lists, Ints]:
    """The items of a part by user, those before it, and the users who are measured."""
    history = pipeline.state.history
    held = history.of_parts(PARTS[part]).sets()
    before = history.of_parts(TRAIN) if part == "validation" else history.of_parts(TRAIN, VALIDATION)
    users = np.flatnonzero(np.diff(held.offsets))
    if part == "validation" and isinstance(pipeline.config.ranking, ByClicks):
        _, chose, others = ranker_users(pipeline.config.ranking, pipeline.state, pipeline.config.seed)
        users = np.union1d(chose, others)
    if not len(users):
        raise ValueError(f"pipeline: the {part} part must have a user, got none; take another protocol")
    return held, before, users


def diversity(top: Ints, vectors: NDArray[np.float32]) -> float:
    """Mean over lists of the mean of 1 - cos over the pairs of their items, for vectors [N, D] of unit length."""
    is_item = top >= 0
    counts = is_item.sum(1)
    sums, own = np.zeros(len(top)), np.zeros(len(top))
    for start in range(0, len(top), _USERS_A_BLOCK):
        rows = slice(start, start + _USERS_A_BLOCK)
        of_each = vectors[top[rows]] * is_item[rows, :, None]
        sums[rows] = (of_each.sum(1, dtype=np.float64) ** 2).sum(1)
        own[rows] = (of_each**2).sum((1, 2), dtype=np.float64)
    pairs = counts * (counts - 1)
    cosines = (sums - own) / np.maximum(pairs, 1)
    return float((1 - cosines[pairs > 0]).mean()) if (pairs > 0).any() else float("nan")


def _described(pipeline: Stages) -> NDArray[np.float32] | None:
    """Vectors by which items are alike: by a column of lists, else by another, of few values; None without any."""
    table = pipeline.state.items
    columns = [] if table is None else [name for name in table.columns if name != "item_id"]
    for is_list in (True, False):
        for column in columns:
            assert table is not None
            kind = table.schema[column]
            inner = kind.inner if isinstance(kind, pl.List) else kind
            if isinstance(kind, pl.List) != is_list or inner.is_nested() or inner.is_float():
                continue
            values = pipeline.values("diversity", column)
            if 1 < len(values.names) <= MOST_VALUES:
                return unit_rows(values.shares())
    return None


def _is_hidden(asked: Any, targets: Lists) -> NDArray[np.bool_]:
    keys = targets.owners() << 32 | targets.items
    is_hidden: NDArray[np.bool_] = np.isin(keys, asked.hidden.owners() << 32 | asked.hidden.items)
    return is_hidden if asked.is_out is None else is_hidden | asked.is_out[targets.items]


def _hits(one: Proposed, targets: Lists) -> NDArray[np.bool_]:
    lists = _lists(one.items)
    return np.isin(targets.owners() << 32 | targets.items, lists.owners() << 32 | lists.items)


def _lists(items: Ints) -> Lists:
    rows, columns = np.nonzero(items >= 0)
    return Lists(np.searchsorted(rows, np.arange(len(items) + 1)).astype(np.int64), items[rows, columns])


def _ranks(top: Ints, held: Lists) -> Ints:
    """The rank from 1 of each held-out item in the lists, ascending within a person; k + 1 where it is not there."""
    owners, width = held.owners(), top.shape[1]
    is_there = top[owners] == held.items[:, None]
    ranks = np.where(is_there.any(1), is_there.argmax(1) + 1, width + 1)
    order = np.lexsort((ranks, owners))
    ranks = ranks[order]
    # Those that are not there stand behind each other, as the metrics want distinct ranks.
    missing = ranks > width
    place = np.arange(len(ranks)) - held.offsets[owners]
    distinct: Ints = np.where(missing, width + 1 + place, ranks)
    return distinct


def _mean_of_rows(values: NDArray[Any], lists: Lists) -> NDArray[np.float64]:
    counts = np.diff(lists.offsets)
    sums = np.add.reduceat(np.append(values, 0).astype(np.float64), lists.offsets[:-1])
    means: NDArray[np.float64] = np.where(counts > 0, sums / np.maximum(counts, 1), 0)
    return means


def _mean(parts: list[Any]) -> float:
    return float(np.concatenate(parts).mean()) if parts else float("nan")


def _interval(difference: NDArray[Any]) -> tuple[float, float]:
    """The 95% interval of a mean by the bootstrap."""
    count = len(difference)
    means = np.empty(_BOOTSTRAPS)
    for draw in range(_BOOTSTRAPS):
        bits = random_bits(0, _BOOTSTRAP, np.arange(draw * count, (draw + 1) * count))
        means[draw] = difference[(bits % np.uint64(count)).astype(np.int64)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _debiased(top: Ints, held: Lists, counts: NDArray[np.int64]) -> float:
    """Recall@k with each held-out item counting 1 / its training interactions, normalised over all."""
    ranks_there = (top[held.owners()] == held.items[:, None]).any(1)
    weights = 1 / np.maximum(counts[held.items], 1)
    return float((ranks_there * weights).sum() / weights.sum())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and np.isnan(value) else value
