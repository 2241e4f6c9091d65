"""DropoutNet: what is hidden and how much of it, the loss by hand, cold items and new users, and bad input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.data import Interactions, from_frame, with_features
from deeprec.evaluate import protocol
from deeprec.models import create

SMALL = {"factors": 6, "out_factors": 6, "layers": (16,), "als_alpha": 10.0, "als_l2": 1.0, "als_epochs": 5,
         "step_items": 40, "batch_size": 16, "best": 8, "lr": 0.01}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Two kinds of articles for two kinds of people; each article has three of the twelve tags of its kind."""
    draw = np.random.default_rng(0)
    users, items = (part.ravel() for part in np.meshgrid(np.arange(40), np.arange(60)))
    is_met = (draw.random(len(users)) < 0.5) & (users % 2 == items % 2)
    made = from_frame(pl.DataFrame({"user_id": users[is_met], "item_id": items[is_met]}))
    tags = [[f"{'ab'[item % 2]}{n}" for n in draw.choice(12, 3, replace=False)] for item in range(60)]
    return with_features(
        made,
        items=pl.DataFrame({"item_id": np.arange(60), "tags": tags, "year": draw.random(60)}),
        users=pl.DataFrame({"user_id": np.arange(40), "kind": (np.arange(40) % 2).astype(str)}),
    )


def _built(data: Interactions, **options: object) -> object:
    model = create("dropoutnet", **{**SMALL, **options})
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    return model


def test_exactly_half_of_each_side_is_hidden(data: Interactions) -> None:
    model = _built(data, item_content=("tags", "year"))
    batches = model.batches(data, 0)
    first, again = (list(batches.epoch(2)) for _ in range(2))
    assert sorted(torch.cat([batch.users for batch in first]).tolist()) == list(range(40))
    assert torch.equal(first[1].items, again[1].items)
    assert torch.equal(next(batches.epoch(2, skip=1)).items, first[1].items)
    for batch in first:
        assert float(batch.shows_user.sum()) == len(batch.users) - int(len(batch.users) / 2 + 0.5)
        assert float(batch.shows_item.sum()) == len(batch.items) - int(len(batch.items) / 2 + 0.5)
        assert not (batch.is_mean * (1 - batch.shows_user)).any()
    sides = torch.cat([batch.shows_item[: len(batch.users) * batch.own] for batch in first])
    assert 0 < float(sides.mean()) < 1  # drawn apart from the users


def test_the_best_items_are_those_with_the_largest_products(data: Interactions) -> None:
    model = _built(data)
    batch = next(model.batches(data, 0).epoch(0))
    products = model.user_factors @ model.item_factors.T
    best = products.topk(8, 1).indices
    for row, user in enumerate(batch.users.tolist()):
        assert set(batch.items[row * batch.own : (row + 1) * batch.own].tolist()) <= set(best[user].tolist())


def test_the_loss_is_that_of_a_few_lines(data: Interactions) -> None:
    model = _built(data, item_content=("tags", "year"), user_content=("kind",))
    batch = next(model.batches(data, 0).epoch(0))
    loss = model.loss(batch)  # in training, with the statistics of the batch

    def standard(values: torch.Tensor) -> torch.Tensor:
        return (values - values.mean(0)) / values.std(0, correction=0)

    def tower(part: object, inputs: torch.Tensor, rows: object) -> torch.Tensor:
        dense = torch.zeros(len(inputs), part.of_terms.shape[0])
        owners = torch.arange(len(inputs)).repeat_interleave(rows.offsets.diff())
        dense[owners, rows.terms] = rows.weights
        hidden = torch.cat([inputs, rows.values], 1) @ part.first.weight.T + part.first.bias + dense @ part.of_terms
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
        return torch.tanh(hidden) @ part.layers[0].weight.T + part.layers[0].bias

    users, items = model.user_factors, model.item_factors
    offsets, indices = data.csr()
    means = torch.stack([items[torch.from_numpy(indices[a:b]).long()].mean(0) for a, b in pairwise(offsets)])
    shown = torch.where(batch.is_mean[:, None] > 0, standard(means)[batch.users], standard(users)[batch.users])
    ours = tower(model.user_tower, shown * batch.shows_user[:, None], batch.of_users)
    theirs = tower(model.item_tower, standard(items)[batch.items] * batch.shows_item[:, None], batch.of_items)
    errors = (ours @ theirs.T - users[batch.users] @ items[batch.items].T).square()
    own = torch.stack([errors[j, j * batch.own : (j + 1) * batch.own] for j in range(len(errors))])
    torch.testing.assert_close(loss, (own.mean() + errors.mean()) / 2, rtol=1e-4, atol=1e-5)


def test_the_factors_are_those_of_als(data: Interactions) -> None:
    model = _built(data)
    next(model.batches(data, 7).epoch(0))
    als = create("als", factors=6, alpha=10.0, l2=1.0, epochs=5, patience=0, refit=False)
    als.build(als.schema_for(data), torch.Generator().manual_seed(7))
    sides = als.batches(data, 7)
    for epoch in range(5):
        for batch in sides.epoch(epoch):
            als.backward(batch)
    assert torch.equal(model.item_factors, als.item_factors)
    before = model.item_factors.clone()
    next(model.batches(data, 7).epoch(1))  # as a run that is resumed: they are there
    assert torch.equal(model.item_factors, before)


def test_cold_items_are_ranked_by_their_content(data: Interactions) -> None:
    rule = protocol("cold-items", test_share=0.2, validation_share=0.1, cutoffs=(3,))
    figures = {}
    for content in (("tags",), ()):
        model = create("dropoutnet", **SMALL, item_content=content, epochs=25)
        figures[content] = model.fit(data, protocol=rule, baselines=False).evaluate()["recall@3"]
    assert figures[("tags",)] > 1.5 * figures[()]
    cold = model.has_item[:, 0] == 0
    assert len(model.item_codes[cold].unique(dim=0)) == 1  # without content nothing tells them apart


def test_new_users_get_their_kind(data: Interactions) -> None:
    model = create("dropoutnet", **SMALL, item_content=("tags",), epochs=25)
    model.fit(data, protocol="random", baselines=False)
    best = model.recommend_for_history([1, 3, 5, 7], 4)["item_id"].to_list()
    assert sum(item % 2 for item in best) >= 3


def test_scores_before_and_after_saving_are_the_same(tmp_path: object, data: Interactions) -> None:
    import deeprec

    model = create("dropoutnet", **SMALL, item_content=("tags", "year"), user_content=("kind",), epochs=2)
    model.fit(data, protocol="random", out=tmp_path / "run", baselines=False)
    again, users = deeprec.load(tmp_path / "run"), torch.arange(40)
    assert torch.equal(again.score_items(users), model.score_items(users))
    assert again.recommend_for_history([1, 3], 4).equals(model.recommend_for_history([1, 3], 4))


def test_what_is_missing_is_said(data: Interactions) -> None:
    with pytest.raises(
        ValueError, match=r"item_content must be columns of the item table, got 'tag' and columns .*tags"
    ):
        create("dropoutnet", item_content=("tag",)).fit(data)
    with pytest.raises(ValueError, match="hidden_share must lie in"):
        create("dropoutnet", hidden_share=1.0)
    with pytest.raises(ValueError, match="layers must be widths >= 1"):
        create("dropoutnet", layers=(8, 0))
    with pytest.raises(ValueError, match="vocabulary has no effect here"):
        create("dropoutnet", vocabulary=5)
    missing = data.item_features.with_columns(year=pl.Series([None, *[0.5] * 59]))
    with pytest.raises(ValueError, match="year must be known and finite"):
        create("dropoutnet", item_content=("year",)).fit(with_features(data, items=missing))
