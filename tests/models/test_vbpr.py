"""VBPR: its formula, content alone for items that nobody met, scales of features, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import deeprec
from deeprec.data import Interactions, from_frame, with_features
from deeprec.evaluate import evaluate, protocol
from deeprec.models import VBPR, create

SMALL = {"features": ("seen", "heard"), "factors": 4, "content_factors": 3, "epochs": 2}


def by_taste(num_users: int = 60, num_items: int = 120, num_tastes: int = 6) -> Interactions:
    """Users who take items of one kind, which is seen and heard in each with noise."""
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(num_users), 8)
    each = num_items // num_tastes
    items = np.concatenate([num_tastes * draw.permutation(each)[:8] + user % num_tastes for user in range(num_users)])
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users))}))
    met = np.unique(items)
    kinds = np.eye(num_tastes)[met % num_tastes]
    seen, heard = (10 * kinds @ draw.normal(size=(num_tastes, w)) + draw.normal(size=(len(met), w)) for w in (5, 3))
    return with_features(data, items=pl.DataFrame({"item_id": met, "seen": seen, "heard": 0.01 * heard}))


@pytest.fixture(scope="module")
def data() -> Interactions:
    return by_taste()


def test_scores_and_loss_are_the_papers(data: Interactions) -> None:
    model = create("vbpr", **SMALL, l2=0.3, content_l2=0.2)
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    batch = next(iter(model.batches(data, 0).epoch(0)))
    with torch.no_grad():
        model.item_bias.weight.normal_()
        model.content_bias.normal_()
    model._mapped = None
    users, items, f = model.users.weight, model.items.weight, model.vectors
    gamma, theta = users[:, :4], users[:, 4:]
    scores = gamma @ items.T + theta @ (f @ model.content).T + (f @ model.content_bias).T + model.item_bias.weight.T
    torch.testing.assert_close(model.score_items(torch.arange(data.num_users)), scores.detach())
    expected = torch.zeros(())
    for user, (i, *negatives) in zip(batch.users.tolist(), batch.items.tolist(), strict=True):
        for j in negatives:
            rows = (users[user], items[i], items[j], model.item_bias.weight[[i, j]])
            expected = expected - F.logsigmoid(scores[user, i] - scores[user, j])
            expected = expected + 0.15 * sum(row.square().sum() for row in rows)
            expected = expected + 0.1 * (model.content.square().sum() + model.content_bias.square().sum())
    torch.testing.assert_close(model.loss(batch), expected, rtol=1e-4, atol=1e-3)


def test_features_are_scaled_by_the_items_that_somebody_met(data: Interactions) -> None:
    model = create("vbpr", **SMALL)
    model.build(model.schema_for(data))
    model.batches(data.take(data.items > 10), 0)
    for part in model.vectors[11:].split([5, 3], 1):
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), atol=1e-5, rtol=0)
        assert float(part.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)


def test_content_alone_ranks_items_that_nobody_met(data: Interactions, tmp_path: Any) -> None:
    rule = protocol("cold-items", cutoffs=(5,))
    split = rule.split(data)
    model = VBPR(features=("seen", "heard"), factors=8, content_factors=8, epochs=15, lr=0.1, patience=0)
    model.fit(data, protocol=rule, seed=1)
    is_cold = split.train.item_counts() == 0
    assert not model.items.weight[is_cold].any()
    assert not model.item_bias.weight[is_cold].any()
    figures = evaluate(model, split, rule)
    shuffled = data.item_features.with_columns(pl.col("seen", "heard").shuffle(seed=2))
    blind = VBPR(features=("seen", "heard"), factors=8, content_factors=8, epochs=15, lr=0.1, patience=0)
    blind.fit(with_features(data, items=shuffled), protocol=rule, seed=1)
    chance = evaluate(blind, split, rule)
    assert figures["recall@5"] > 0.9
    assert chance["recall@5"] < 0.7
    model.save(tmp_path / "model")
    loaded = deeprec.load(tmp_path / "model")
    assert loaded.recommend([3], k=5).equals(model.recommend([3], k=5))


def test_later_rows_keep_the_scales_and_known_features(data: Interactions) -> None:
    early = data.take(data.users < 50)
    model = create("vbpr", **SMALL).fit(early, protocol="full", seed=0)
    scales = model.scales.clone()
    model.fit_more(data, epochs=1, seed=0)
    assert torch.equal(model.scales, scales)
    others = data.item_features.with_columns(seen=pl.col("seen").shuffle(seed=1))
    with pytest.raises(ValueError, match="features of known items must be as they were"):
        model.fit_more(with_features(data, items=others), epochs=1, seed=0)


def test_bad_features_are_refused(data: Interactions) -> None:
    with pytest.raises(ValueError, match="must name each column once"):
        create("vbpr", features=("seen", "seen"))
    with pytest.raises(ValueError, match="content_factors has no effect here"):
        create("vbpr", content_factors=9)
    with pytest.raises(ValueError, match=r"must be one of .*seen.*got 'sene'"):
        create("vbpr", features=("sene",)).fit(data)
    values = data.item_features["seen"].to_list()
    for wrong, message in ((float("nan"), "seen"), (None, "seen")):
        broken = [[wrong, *row[1:]] if at == 7 else row for at, row in enumerate(values)]
        table = data.item_features.with_columns(seen=pl.Series(broken))
        with pytest.raises(ValueError, match=message):
            create("vbpr", features=("seen",)).fit(with_features(data, items=table))
    table = data.item_features.with_columns(seen=pl.Series([None, *values[1:]]))
    with pytest.raises(ValueError, match="seen"):
        create("vbpr", features=("seen",)).fit(with_features(data, items=table))
