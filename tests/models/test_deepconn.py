"""DeepCoNN: documents without the pair's own review, the factorisation machine, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.batches.reviews import ReviewDocuments
from deeprec.data import Interactions, from_frame
from deeprec.models import create

SMALL = {"factors": 3, "width": 4, "embedding_dim": 5, "filters": 6, "length": 40, "batch_size": 32}


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Users and items of two kinds, which their reviews show; who is of one kind with an item likes it."""
    draw = np.random.default_rng(0)
    users, items = (part.ravel() for part in np.meshgrid(np.arange(40), np.arange(30)))
    kept = draw.random(len(users)) < 0.3
    users, items = users[kept], items[kept]
    rated = np.where(users % 2 == items % 2, 5.0, 1.0)
    who, what = ["red", "blue"], ["war battle", "love kisses"]
    texts = [f"{who[user % 2]} thing of {what[item % 2]}" for user, item in zip(users, items, strict=True)]
    frame = pl.DataFrame({"user_id": users, "item_id": items, "rating": rated, "review": texts})
    return from_frame(frame, review="review")


def test_documents_lack_the_review_of_the_pair() -> None:
    draw = np.random.default_rng(1)
    owners = draw.integers(0, 5, 12).astype(np.int32)
    lengths = draw.integers(0, 5, 12)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    words = draw.integers(1, 50, offsets[-1]).astype(np.int32)
    order = draw.permutation(12)
    documents = ReviewDocuments(owners, offsets, words, 6, order, 7)
    asked = np.arange(12)
    for without in (None, asked):
        table = documents.batch(owners.astype(np.int64), without)
        for row in asked:
            mine = sorted(np.flatnonzero(owners == owners[row]), key=lambda each: order[each])
            expected = [
                word
                for each in mine
                if without is None or each != row
                for word in words[offsets[each] : offsets[each + 1]]
            ][:7]
            assert table[row].tolist() == expected + [0] * (table.shape[1] - len(expected))
    assert documents.batch(np.array([5])).shape == (1, 0)  # who wrote nothing


def test_ratings_are_those_of_the_equations(data: Interactions) -> None:
    model = create("deepconn", **SMALL).double()
    model.build(model.schema_for(data), torch.Generator().manual_seed(0)).double()
    batch = next(model.batches(data, 0).epoch(0))
    model.eval()
    x, y = model.user_cnn(batch.user_words), model.item_cnn(batch.item_words)
    z = torch.cat([x, y], 1)
    expected = model.fm_bias + z @ model.fm_linear
    for a in range(8):
        for b in range(a + 1, 8):
            expected = expected + z[:, a] * z[:, b] * (model.fm_vectors[a] @ model.fm_vectors[b])
    loss = (expected - batch.ratings).square().mean()
    torch.testing.assert_close(model.loss(batch), loss)
    mine = torch.autograd.grad(model.loss(batch), list(model.parameters()))
    for one, other in zip(mine, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture(scope="module")
def fitted(data: Interactions) -> tuple[Interactions, deeprec.models.Model]:
    options = {**SMALL, "epochs": 12, "lr": 0.01, "dropout": 0.1, "patience": 0}
    return data, create("deepconn", **options).fit(data, protocol="rating", seed=0)


def test_tastes_are_read_in_reviews(fitted: tuple[Interactions, deeprec.models.Model]) -> None:
    _, model = fitted
    assert model.evaluate()["rmse"] < 1.0  # 2.0 for the mean and for biases
    shown = model.recommend([0], k=5)["item_id"].to_list()
    assert sum(item % 2 == 0 for item in shown) >= 4
    assert all(item % 2 for item in model.similar_items([1], k=5)["similar_item_id"])


def test_predictions_leave_out_the_review_of_the_pair(fitted: tuple[Interactions, deeprec.models.Model]) -> None:
    _, model = fitted
    train = model._fitted_on.split.train
    rows = np.arange(0, len(train), 9)
    users, items = (torch.from_numpy(column[rows].astype(np.int64)) for column in (train.users, train.items))
    of_users, of_items = model._documents(train)
    with torch.no_grad():
        x, y = model.user_cnn(of_users.batch(users.numpy(), rows)), model.item_cnn(of_items.batch(items.numpy(), rows))
        torch.testing.assert_close(model.predict_ratings(users, items), model._machine(x, y) + model.mean)
        x, y = model.user_cnn(of_users.batch(users.numpy())), model.item_cnn(of_items.batch(items.numpy()))
        torch.testing.assert_close(model.score_pairs(users, items), model._machine(x, y) + model.mean)


def test_a_saved_model_leaves_it_out_too(fitted: tuple[Interactions, deeprec.models.Model], tmp_path: Path) -> None:
    data, model = fitted
    users, items = (torch.from_numpy(column.astype(np.int64)) for column in (data.users, data.items))
    again = deeprec.load(model.save(tmp_path / "model"))
    assert torch.equal(again.predict_ratings(users, items), model.predict_ratings(users, items))
    assert torch.equal(again.score_items(users[:3]), model.score_items(users[:3]))


def test_own_reviews_in_training_are_a_leak() -> None:
    draw = np.random.default_rng(0)
    rated = draw.choice([1.0, 5.0], 480)  # by 240 users, twice each, of no kind: there is nothing to learn
    texts = [f"it is {'great' if rating > 3 else 'awful'}" for rating in rated]
    ids = {"user_id": np.arange(480) % 240, "item_id": np.arange(480) // 9}
    frame = pl.DataFrame({**ids, "rating": rated, "review": texts})
    data = from_frame(frame, review="review")
    errors = {}
    for with_own in (False, True):
        options = {**SMALL, "with_own": with_own, "epochs": 12, "lr": 0.01, "dropout": 0.0, "patience": 0}
        losses: list[float] = []
        model = create("deepconn", **options)
        model.fit(data, protocol="rating", seed=0, on_progress=lambda told, to=losses: to.append(told.loss))
        errors[with_own] = min(losses), model.evaluate()["rmse"]
    assert errors[True][0] < 2.6 < 3.2 < errors[False][0]  # 4 is the variance: it has read what the rating was,
    assert min(errors[True][1], errors[False][1]) > 1.8  # which says nothing of those that are to come


def test_what_cannot_be_is_said(data: Interactions) -> None:
    with pytest.raises(ValueError, match="deepconn: the data must have ratings"):
        create("deepconn").fit(data.of_pairs(data.users, data.items), protocol="full")
    twice = data.take(np.append(np.arange(len(data)), 0))
    model = create("deepconn", **SMALL)
    model.build(model.schema_for(twice))
    with pytest.raises(ValueError, match="a user may rate an item once, got 1 more in frame, the first of user 1 "):
        model.batches(twice, 0)
    model = create("deepconn", **SMALL, epochs=1).fit(data, protocol="rating")
    with pytest.raises(ValueError, match="later reviews have other words; train anew"):
        model.fit_more(data, protocol="rating")
    for name, value in (("dropout", 1.0), ("window", 0), ("vocabulary", 0)):
        with pytest.raises(ValueError, match=name):
            create("deepconn", **{name: value})


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="DEEPREC_DATA names no folder with real data")
def test_reviews_say_more_than_the_mean_of_all_ratings() -> None:
    data = deeprec.data.load("amazon-beauty-reviews")
    options = {"filters": 32, "embedding_dim": 32, "length": 60, "vocabulary": 3000, "lr": 0.002, "epochs": 3}
    model = create("deepconn", **options).fit(data, protocol="rating", seed=0)
    errors = {of: create("bias", of=of).fit(data, protocol="rating").evaluate()["rmse"] for of in ("global", "both")}
    assert errors["both"] < model.evaluate()["rmse"] < errors["global"] - 0.005  # biases alone say more than reviews
