"""Every registered model: built, trained, scored, saved, loaded."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.config import taken_options
from deeprec.contract import NEW_USERS, SIMILAR_ITEMS
from deeprec.data import from_frame
from deeprec.models import Batch, Schema, create, names, recommenders
from deeprec.models.ncf import NCFRecommender
from deeprec.registry import model_class

SMALL = {"epochs": 3, "factors": 4, "hidden": 4}
NCF = [name for name in recommenders() if issubclass(model_class(name), NCFRecommender)]


@pytest.fixture(scope="module")
def data():
    """Two groups of users who like two groups of items, with string user ids and large integer item ids."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(60):
        liked = rng.permutation(20)[:9] + 20 * (user % 2)
        rows += [(f"user-{user}", 3_000_000_000 + int(item), t, 1 + t % 5) for t, item in enumerate(liked)]
    columns = dict(zip(("user_id", "item_id", "timestamp", "rating"), zip(*rows, strict=True), strict=True))
    return from_frame(pl.DataFrame(columns), timestamp="timestamp", rating="rating")


def options(name):
    known = taken_options(model_class(name).config_class)
    return {key: value for key, value in SMALL.items() if key in known}


@pytest.fixture(scope="module", params=recommenders())
def fitted(request, data):
    return create(request.param, **options(request.param)).fit(data, protocol="full", seed=3)


def test_recommend_returns_external_ids_and_no_seen_item(fitted, data):
    frame = fitted.recommend(["user-0", "user-7"], k=5)
    assert frame.columns == ["user_id", "rank", "item_id", "score"]
    assert frame["rank"].to_list() == [1, 2, 3, 4, 5] * 2
    users = data.user_ids.encode(frame["user_id"].to_list())
    items = data.item_ids.encode(frame["item_id"].to_list())
    for user, item in zip(users, items, strict=True):
        begin, end = fitted.seen.offsets[user], fitted.seen.offsets[user + 1]
        assert item not in fitted.seen.items[begin:end]


def test_recommended_scores_are_those_of_score(fitted):
    frame = fitted.recommend(["user-3"], k=6)
    scores = fitted.score(frame.select("user_id", "item_id"))
    np.testing.assert_allclose(frame["score"].to_numpy(), scores, rtol=1e-4, atol=1e-5)
    assert (np.diff(frame["score"].to_numpy()) <= 0).all()


def test_score_items_matches_score_pairs(fitted, data):
    users = torch.tensor([0, 5])
    grid = fitted.score_items(users)
    assert grid.shape == (2, data.num_items)
    every = torch.arange(data.num_items).repeat(2)
    pairs = fitted.score_pairs(users.repeat_interleave(data.num_items), every)
    torch.testing.assert_close(grid.flatten().float(), pairs, rtol=1e-4, atol=1e-5)


def test_save_and_load_keep_every_score(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = deeprec.load(tmp_path / "model")
    assert type(loaded) is type(fitted)
    assert loaded.config == fitted.config
    assert loaded.recommend(["user-1"], k=4).equals(fitted.recommend(["user-1"], k=4))


def test_recommend_for_history_returns_new_items_and_is_repeatable(fitted):
    history = [3_000_000_001, 3_000_000_002]
    if NEW_USERS not in fitted.capabilities:
        with pytest.raises(ValueError, match=rf"serves users that it never saw.*, got {fitted.name}; such are "):
            fitted.recommend_for_history(history)
        return
    first = fitted.recommend_for_history(history, k=5)
    assert len(first) == 5
    assert not set(history) & set(first["item_id"].to_list())
    assert first.equals(fitted.recommend_for_history(history, k=5))


def test_unknown_user_is_named_with_a_remedy(fitted):
    with pytest.raises(ValueError, match="nobody"):
        fitted.recommend(["nobody"])


def test_k_below_one_is_refused(fitted):
    with pytest.raises(ValueError, match="k must be >= 1"):
        fitted.recommend(["user-1"], k=0)


def test_k_beyond_the_catalogue_returns_what_there_is(fitted, data):
    frame = fitted.recommend(["user-1"], k=10_000)
    user = int(data.user_ids.encode(["user-1"])[0])
    assert len(frame) == data.num_items - (fitted.seen.offsets[user + 1] - fitted.seen.offsets[user])


def test_similar_items_exclude_the_item_itself(fitted):
    if SIMILAR_ITEMS not in fitted.capabilities:
        with pytest.raises(ValueError, match=f"knows similar items, got {fitted.name}; such are .*autorec, .*cdae"):
            fitted.similar_items([3_000_000_001])
        return
    frame = fitted.similar_items([3_000_000_001, 3_000_000_030], k=3)
    assert frame.columns == ["item_id", "rank", "similar_item_id", "score"]
    assert (frame["item_id"] != frame["similar_item_id"]).all()
    assert frame["score"].is_between(-1.0001, 1.0001).all()


@pytest.mark.parametrize("name", NCF)
def test_is_a_plain_module_with_a_plain_optimizer(name):
    torch.manual_seed(0)
    model = create(name, schema=Schema(30, 40), factors=4)
    users, items = torch.randint(30, (16,)), torch.randint(40, (16, 5))
    labels = torch.zeros(16, 5)
    labels[:, 0] = 1
    optimizer = torch.optim.Adagrad([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(Batch(users, items, labels))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", [n for n in NCF if n != "mf"])
def test_loss_starts_at_ln_2(name):
    model = create(name, schema=Schema(50, 60), generator=torch.Generator().manual_seed(0))
    batch = Batch(torch.arange(50), torch.randint(60, (50, 5)), torch.randint(2, (50, 5)).float())
    assert float(model.loss(batch).detach()) == pytest.approx(0.6931, abs=2e-3)


@pytest.mark.parametrize("name", NCF)
def test_scores_of_pairs_equal_plain_forward(name):
    model = create(name, schema=Schema(20, 30), factors=8)
    users, items = torch.randint(20, (70,)), torch.randint(30, (70,))
    torch.testing.assert_close(model.score_pairs(users, items), model(users, items), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NCF)
def test_fused_loss_equals_plain_forward(name):
    special = {"l2": 0.0, "reduction": "mean"} if name == "mf" else {}
    model = create(name, schema=Schema(20, 30), factors=8, **special)
    users, items, labels = torch.randint(20, (7,)), torch.randint(30, (7, 5)), torch.rand(7, 5)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(model(users.unsqueeze(1), items), labels)
    torch.testing.assert_close(model.loss(Batch(users, items, labels)), plain, rtol=1e-5, atol=1e-6)


def test_training_separates_two_tastes(data):
    model = create("mf", factors=8, epochs=40, batch_size=64, lr=0.02, init_std=0.1).fit(data, protocol="full")
    frame = model.recommend(["user-0", "user-1"], k=5)
    even = frame.filter(pl.col("user_id") == "user-0")["item_id"].to_numpy() - 3_000_000_000
    odd = frame.filter(pl.col("user_id") == "user-1")["item_id"].to_numpy() - 3_000_000_000
    assert (even < 20).mean() >= 0.8
    assert (odd >= 20).mean() >= 0.8
    new = model.recommend_for_history([3_000_000_021, 3_000_000_025, 3_000_000_030], k=5)
    assert ((new["item_id"].to_numpy() - 3_000_000_000) >= 20).mean() >= 0.8


def test_unknown_option_suggests_the_nearest():
    with pytest.raises(ValueError, match="factors"):
        create("neumf", factrs=8)


def test_unknown_model_suggests_the_nearest():
    with pytest.raises(ValueError, match="neumf"):
        create("neumff")


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0), ("lr", 0), ("batch_size", 2), ("num_negatives", 0), ("optimizer", "adamw"), ("factors", 0)],
)
def test_option_out_of_range_is_refused(option, value):
    with pytest.raises(ValueError, match=option):
        create("gmf", **{option: value})


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    ("option", "value", "error", "message"),
    [
        ("epochs", 2.5, TypeError, "epochs must be a whole number, got 2.5"),
        ("epochs", "3", TypeError, "epochs must be a whole number, got '3'"),
        ("epochs", True, TypeError, "epochs must be a whole number, got True"),
        ("lr", "0.1", TypeError, "lr must be a number, got '0.1'"),
        ("lr", None, TypeError, "lr must be a number, got None"),
        ("lr", float("nan"), ValueError, "lr must be finite, got nan"),
        ("l2", float("inf"), ValueError, "l2 must be finite, got inf"),
        ("refit", "no", TypeError, "refit must be True or False, got 'no'"),
        ("optimizer", 3, TypeError, "optimizer must be text, got 3"),
    ],
)
def test_option_of_another_type_is_refused(name, option, value, error, message):
    with pytest.raises(error, match=message):
        create(name, **{option: value})


def test_tuples_are_of_what_they_should_be_and_numbers_pythons_own():
    for name, options, message in (
        ("cfn", {"features": "genres"}, r"features must be a tuple, got 'genres'; take \('genres',\)"),
        ("cfn", {"rating_range": (1.0,)}, "rating_range must be a tuple of 2 values, got"),
        ("autorec", {"inner": 250}, r"inner must be a tuple, got 250; take \(250,\)"),
        ("autorec", {"inner": (2.5,)}, "inner must be a whole number, got 2.5"),
    ):
        with pytest.raises(TypeError, match=message):
            create(name, **options)
    config = create("autorec", inner=[250], hidden=np.int64(7), epochs=3.0, l2=np.float32(2), lr=1).config
    found = (config.inner, config.hidden, config.epochs, config.l2, config.lr)
    assert found == ((250,), 7, 3, 2.0, 1.0)
    assert [type(value) for value in found] == [tuple, int, int, float, float]


def test_unfitted_model_says_what_to_do():
    with pytest.raises(ValueError, match="fit"):
        create("gmf").recommend([1])


@pytest.mark.parametrize("name", NCF)
def test_backward_gives_the_gradients_of_the_loss(name):
    model = create(name, schema=Schema(20, 30), factors=8)
    batch = Batch(torch.randint(20, (7,)), torch.randint(30, (7, 5)), torch.rand(7, 5))
    model.loss(batch).backward()
    expected = {key: p.grad.to_dense() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    loss = model.backward(batch)
    assert not loss.requires_grad
    found = {key: p.grad.to_dense() for key, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient)
