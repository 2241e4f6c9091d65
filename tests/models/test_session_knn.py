"""Session-KNN against its formulas in plain Python, and popularity of the last days."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.contract import Queries
from deeprec.data import Interactions, from_frame
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models import model_class

SessionKNN, Popularity = model_class("session-knn"), model_class("popularity")
DAY = 86400


def make(seed: int, num_sessions: int = 60, num_items: int = 15) -> Interactions:
    generator = np.random.default_rng(seed)
    rows = [
        (
            session,
            int(generator.integers(0, num_items)),
            1_600_000_000 + 1000 * (session * 7 % num_sessions) + step // 2,
        )
        for session in range(num_sessions)
        for step in range(int(generator.integers(1, 8)))
    ]
    return from_frame(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"), duplicates="keep")


def expected(data: Interactions, present: list[int], config) -> list[float]:
    """The paper's formulas, a session at a time."""
    present = present[-config.length :]
    rows = list(zip(data.users.tolist(), data.items.tolist(), data.order.tolist(), strict=True))
    past = {user: {item for owner, item, _ in rows if owner == user} for user in set(data.users.tolist())}
    last = {user: max(time for owner, _, time in rows if owner == user) for user in past}
    place = {item: number for number, item in enumerate(present, 1)}
    shared = sorted((user for user in past if past[user] & place.keys()), key=lambda user: -last[user])
    near = {}
    for user in shared[: config.sample]:
        both = past[user] & place.keys()
        near[user] = np.float32(
            sum(place[item] for item in both) / len(present)
            if config.variant == "v-sknn"
            else len(both) / math.sqrt(len(past[user]) * len(place))
        )
    scores = [0.0] * data.num_items
    for user in sorted(near, key=lambda user: (-near[user], -last[user]))[: config.neighbors]:
        weight = max(place[item] for item in past[user] & place.keys()) / len(present)
        for item in past[user]:
            scores[item] += near[user] * (weight if config.variant == "s-sknn" else 1)
    return scores


@pytest.mark.parametrize("variant", ["s-knn", "v-sknn", "s-sknn"])
@pytest.mark.parametrize(("neighbors", "sample", "length"), [(100, 1000, 50), (3, 1000, 50), (5, 8, 2), (1, 1, 1)])
def test_scores_agree_with_plain_python(
    variant: str, neighbors: int, sample: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(0)
    model = SessionKNN(variant=variant, neighbors=neighbors, sample=sample, length=length)
    model.build(model.schema_for(data))
    model.fit_directly(data)
    generator = np.random.default_rng(1)
    present = [generator.integers(0, data.num_items, size).tolist() for size in (1, 3, 6, 12, 2, 0, 4)]
    present[1][2] = present[1][0]  # an item that comes again
    offsets = torch.tensor([0, *np.cumsum([len(each) for each in present]).tolist()])
    items = torch.tensor([item for each in present for item in each])
    for entries in (1 << 22, 10):
        monkeypatch.setattr("deeprec.models.session_knn._ENTRIES_A_BLOCK", entries)
        scores = model.scorer(model.encode(Queries(history=(offsets, items)))).scores(0, len(present))
        for row, each in zip(scores.tolist(), present, strict=True):
            assert row == pytest.approx(expected(data, each, model.config), rel=1e-6, abs=1e-6)
    own = [data.items[np.flatnonzero(data.users == user)].tolist() for user in (0, 7)]
    of_users = model.score_items(torch.tensor([0, 7]))
    for row, each in zip(of_users.tolist(), own, strict=True):
        assert row == pytest.approx(expected(data, each, model.config), rel=1e-6, abs=1e-6)


def test_order_matters_where_the_variant_says_so(tmp_path: Path) -> None:
    data = make(2)
    for variant, differs in (("s-knn", False), ("v-sknn", True), ("s-sknn", True)):
        model = SessionKNN(variant=variant)
        model.fit(InteractionTask(data, deeprec.evaluate.protocol("next-event", holdout="sessions")))
        one, other = (model.recommend_for_history(items, 5) for items in ([1, 2, 3], [3, 2, 1]))
        assert (one.rows() != other.rows()) == differs
        model.save(tmp_path / variant)
        assert deeprec.load(tmp_path / variant).recommend_for_history([1, 2, 3], 5).equals(one)


def test_shuffled_rows_give_the_same_scores() -> None:
    data = make(3).canonical()
    rows = np.random.default_rng(0).permutation(len(data))
    distinct = np.lexsort((data.items, data.order, data.users))
    scores = []
    for order in (distinct, rows[np.lexsort((data.items[rows], data.order[rows], data.users[rows]))]):
        model = SessionKNN(neighbors=4, sample=10, variant="v-sknn")
        taken = data.take(order)
        model.build(model.schema_for(taken))
        model.fit_directly(taken)
        scores.append(model.score_items(torch.arange(data.num_users)))
    assert torch.equal(*scores)


@pytest.mark.parametrize("option", ["neighbors", "sample", "length"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be >= 1, got 0"):
        SessionKNN(**{option: 0})
    with pytest.raises(ValueError, match="variant must be"):
        SessionKNN(variant="stan")


def test_popularity_of_the_last_days_counts_from_the_last_row_that_trains() -> None:
    start = 1_600_000_000
    rows = [(1, 1, 0), (2, 1, 1), (3, 1, 2), (1, 2, 8.5), (2, 2, 9), (1, 3, 10), (3, 1, 2.5), (3, 2, 3)]
    for ticks in (1, 10**6):
        frame = pl.DataFrame(
            {
                "user_id": [row[0] for row in rows],
                "item_id": [row[1] for row in rows],
                "timestamp": [int((start + DAY * row[2]) * ticks) for row in rows],
            }
        )
        data = from_frame(frame, duplicates="keep")
        for days, counts in ((0, [4, 3, 1]), (7, [0, 2, 1]), (7.5, [0, 3, 1]), (7.6, [1, 3, 1]), (0.5, [0, 0, 1])):
            model = Popularity(days=days)
            model.build(model.schema_for(data))
            model.fit_directly(data)
            assert model.counts.tolist() == counts
    model = Popularity(days=7)
    blind = from_frame(pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2]}))
    model.build(model.schema_for(blind))
    with pytest.raises(ValueError, match="days=7 needs times, got frame without"):
        model.fit_directly(blind)
    with pytest.raises(ValueError, match="days must be >= 0, got -1"):
        Popularity(days=-1)
