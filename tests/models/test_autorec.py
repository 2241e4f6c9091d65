"""Claims about AutoRec: its formula against dense PyTorch in float64, training, and the rating protocol."""

from __future__ import annotations

import dataclasses
import pickle
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

import deeprec
from deeprec.contract import Queries
from deeprec.data import Interactions, from_frame, load
from deeprec.data.sets.datasets import find
from deeprec.evaluate import evaluate, protocol
from deeprec.models import AutoRec, Schema
from deeprec.models.autorec import AutoRecConfig
from deeprec.train import fit
from deeprec.train.loop import train_epoch
from deeprec.train.optim import Adam
from deeprec.train.optimizers import Optimizers
from deeprec.train.schedules import Schedule

needs_ml_100k = pytest.mark.skipif(find("ml-100k") is None, reason="needs ml-100k, see `deeprec data list`")
needs_ml_1m = pytest.mark.skipif(find("ml-1m") is None, reason="needs ml-1m, see `deeprec data list`")


def ratings(num_users: int = 30, num_items: int = 20, density: float = 0.4, seed: int = 0) -> Interactions:
    """Ratings from 1 to 5 by two latent tastes."""
    draw = np.random.default_rng(seed)
    users, items = np.nonzero(draw.random((num_users, num_items)) < density)
    tastes = draw.normal(size=(num_users, 2)) @ draw.normal(size=(2, num_items))
    values = np.clip(np.round(3 + tastes[users, items]), 1, 5)
    return from_frame(pl.DataFrame({"user_id": users, "item_id": items, "rating": values}), rating="rating")


def dense(model: AutoRec, data: Interactions) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Predictions, squared errors, parameters and regularised objective of the formula, in float64."""
    config = model.config
    matrix = torch.zeros(data.num_users, data.num_items, dtype=torch.float64)
    matrix[data.users, data.items] = torch.from_numpy(data.ratings).double()
    is_seen = matrix > 0
    low, high = float(data.ratings.min()), float(data.ratings.max())
    if config.output == "sigmoid":
        matrix = torch.where(is_seen, (matrix - low) / (high - low), 0)
    if config.side == "item":
        matrix, is_seen = matrix.T, is_seen.T
    parameters = [p.detach().double().requires_grad_() for p in model.parameters()]
    v, mu, w, b = parameters[:4]
    inner = parameters[4:]
    weights, biases = inner[: len(inner) // 2], inner[len(inner) // 2 :]
    activation = torch.sigmoid if config.activation == "sigmoid" else torch.clone
    codes = activation(matrix @ v + mu)
    for weight, bias in zip(weights, biases, strict=True):
        codes = activation(codes @ weight + bias)
    out = codes @ w.T + b
    out = torch.sigmoid(out) if config.output == "sigmoid" else out
    errors = ((out - matrix)[is_seen] ** 2).sum()
    objective = errors + config.l2 / 2 * sum(weight.square().sum() for weight in (v, w, *weights))
    out = low + (high - low) * out if config.output == "sigmoid" else out
    return (out.T if config.side == "item" else out).detach(), errors.detach(), parameters, objective


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize("output", ["identity", "sigmoid"])
@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
@pytest.mark.parametrize("optimizer", ["rprop", "adam"])
@pytest.mark.parametrize("inner", [(), (5, 3)])
def test_loss_gradients_and_predictions_are_the_formula(
    side: str, output: str, activation: str, optimizer: str, inner: tuple[int, ...]
) -> None:
    data = ratings()
    options = {"side": side, "output": output, "activation": activation, "optimizer": optimizer, "inner": inner}
    model = AutoRec(Schema(data.num_users, data.num_items), hidden=7, init_std=0.3, l2=0.7, **options)
    (batch,) = model.batches(data, seed=0).epoch(0)
    predictions, errors, parameters, objective = dense(model, data)
    got = model.backward(batch)
    torch.testing.assert_close(got.double(), errors, rtol=1e-5, atol=1e-5)
    assert float(got) + model.penalty() == pytest.approx(float(objective.detach()), rel=1e-5)
    exact = torch.autograd.grad(objective, parameters)
    for p, want in zip(model.parameters(), exact, strict=True):
        torch.testing.assert_close(p.grad.to_dense().double(), want, rtol=1e-4, atol=1e-4)
    model.eval()
    users = torch.arange(data.num_users).repeat_interleave(data.num_items)
    items = torch.arange(data.num_items).repeat(data.num_users)
    got = model.predict_ratings(users, items).view(data.num_users, data.num_items)
    torch.testing.assert_close(got.double(), predictions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize("optimizer_class", [torch.optim.Adagrad, torch.optim.Adam, partial(Adam, mode="dense")])
def test_a_loop_in_plain_torch_trains_what_is_predicted(side: str, optimizer_class: Any) -> None:
    data = ratings(200, 150, density=0.05)
    model = AutoRec(Schema(data.num_users, data.num_items), side=side, hidden=8, optimizer="adam", batch_size=8)
    model.sparse_grad = optimizer_class is not torch.optim.Adam
    optimizer = optimizer_class(model.parameters(), lr=0.02)
    batches = model.batches(data, seed=0)
    users, items = (torch.from_numpy(ids) for ids in (data.users, data.items))
    errors = []
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
        predicted = model.predict_ratings(users, items)
        errors.append(float((predicted - torch.from_numpy(data.ratings)).square().sum()))
        if isinstance(optimizer, Adam):
            optimizer.flush()  # predictions have seen to it already
        # All rows in one step, without a gradient: what the loss says of the weights as they are now.
        with torch.no_grad():
            assert errors[-1] == pytest.approx(float(model.loss(batches.whole())), rel=1e-4)
    assert errors[0] > errors[1] > errors[2]


def test_averaged_weights_are_served_with_codes_of_their_own() -> None:
    data = ratings(60, 50)
    model = AutoRec(hidden=8, epochs=6, optimizer="adam", batch_size=8, lr=0.05, l2=0.1, weight_averaging=0.8)
    model.fit(data, protocol="rating", seed=0)
    codes = model._encode_whole(model._rows.whole()).detach()
    torch.testing.assert_close(model.codes[:, :-1], codes)


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize("output", ["identity", "sigmoid"])
@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "batch_size": 16, "lr": 0.02}])
def test_what_has_no_ratings_is_predicted_within_their_range(side: str, output: str, options: dict[str, Any]) -> None:
    data = ratings(80, 60)
    cold_user, cold_item = 4, 7
    train = data.take((data.users != cold_user) & (data.items != cold_item))
    model = AutoRec(side=side, output=output, hidden=8, epochs=40, l2=1.0, refit=False, **options)
    model.fit(train, protocol="rating", seed=0)
    every_user, every_item = torch.arange(data.num_users), torch.arange(data.num_items)
    of_user = model.predict_ratings(torch.full_like(every_item, cold_user), every_item)
    of_item = model.predict_ratings(every_user, torch.full_like(every_user, cold_item))
    for rated in (of_user, of_item):
        assert ((rated > 1) & (rated < 5)).all()
        assert abs(float(rated.mean() - train.ratings.mean())) < 0.5


def test_a_new_column_who_rates_as_the_mean_column_and_one_without_ratings_are_the_mean_column() -> None:
    data = ratings(80, 60)
    train = data.take(data.users < 20)  # most columns have no ratings
    options = {"epochs": 60, "l2": 1.0, "refit": False, "from_biases": False}
    model = AutoRec(hidden=8, **options).fit(train, protocol="rating", seed=0)
    columns = torch.cat([model.decoder, model.decoder_bias[:, None]], 1).detach()
    center = columns[model._rows.indices].mean(0, keepdim=True)  # a column as often as it has ratings
    rating = model.codes[:1] @ center.T
    (row,) = model.encode(Queries(history=(torch.tensor([0, 1]), torch.tensor([0])), ratings=rating[0]))
    torch.testing.assert_close(row, center)
    nobody = Queries(torch.tensor([50]))
    torch.testing.assert_close(model.encode(nobody)[0], center)
    loaded = AutoRec(model.schema, hidden=8)
    state = model.state_dict()
    loaded.load_state_dict(state)
    assert torch.equal(loaded.encode(nobody)[0], model.encode(nobody)[0])
    del state["center"]  # as folders of before have it
    loaded.load_state_dict(state)
    torch.testing.assert_close(loaded.center, columns.mean(0))


@pytest.mark.parametrize("count", [5, 200])
def test_a_new_column_is_the_ridge_regression_on_its_ratings(count: int) -> None:
    data = ratings(60, 300)
    options = {"epochs": 40, "l2": 3.0, "refit": False, "from_biases": False}
    model = AutoRec(hidden=12, **options).fit(data, protocol="rating", seed=0)
    items = torch.arange(count)
    given = torch.from_numpy(np.random.default_rng(0).uniform(1, 5, count).astype(np.float32))
    (row,) = model.encode(Queries(history=(torch.tensor([0, count]), items), ratings=given))
    columns = torch.cat([model.decoder, model.decoder_bias[:, None]], 1).detach().double()
    center, codes = columns[model._rows.indices].mean(0), model.codes[:count].double()
    gram = codes[:, :-1].T @ codes[:, :-1] + 1.5 * torch.eye(12)
    vector = torch.linalg.solve(gram, codes[:, :-1].T @ (given.double() - codes @ center))
    torch.testing.assert_close(row[0, :-1].double(), center[:-1] + vector, rtol=1e-3, atol=1e-4)
    assert row[0, -1] == pytest.approx(float(center[-1]))


def test_works_in_float64_and_can_be_pickled() -> None:
    data = ratings()
    model = AutoRec(Schema(data.num_users, data.num_items), hidden=7, inner=(5,), init_std=0.3).double()
    (batch,) = model.batches(data, seed=0).epoch(0)
    loss = model.loss(batch)
    assert loss.dtype == torch.float64
    _, errors, *_ = dense(model, data)
    torch.testing.assert_close(loss.detach(), errors, rtol=1e-12, atol=0)
    loss.backward()
    assert all(p.grad.dtype == torch.float64 for p in model.parameters())
    users, items = torch.arange(20), torch.arange(20)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own bytes)
    assert torch.equal(again.predict_ratings(users, items), model.predict_ratings(users, items))


def test_bad_ratings_are_refused_before_training_starts() -> None:
    data = ratings()

    def refused(message: str, changed: Interactions, **options: Any) -> None:
        seen: list[Any] = []
        with pytest.raises(ValueError, match=message):
            AutoRec(hidden=3, **options).fit(changed, protocol="rating", on_progress=seen.append)
        assert not seen

    refused("must lie in rating_range 1 to 4, got 5", data, rating_range=(1.0, 4.0))
    refused("must have ratings", dataclasses.replace(data, ratings=None))
    frame = data.to_frame()
    twice = from_frame(pl.concat([frame, frame]), duplicates="keep")
    refused("may rate an item once, got .* of user 0 and item .*; read the data with duplicates='latest'", twice)
    with pytest.raises(ValueError, match="rating_range must ascend"):
        AutoRec(rating_range=(5.0, 1.0))
    model = AutoRec(hidden=3, output="sigmoid", epochs=2, rating_range=(0.0, 10.0)).fit(data, protocol="rating")
    assert model.limits.tolist() == [0.0, 10.0]
    with pytest.raises(ValueError, match="must lie in rating_range 0 to 10, got 11"):
        model.predict_for_user([0], [11])
    with pytest.raises(ValueError, match="must lie in rating_range 0 to 10, got -1"):
        model.predict_for_item([0], [-1])


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "batch_size": 8, "lr": 0.01, "l2": 1.0}])
@pytest.mark.parametrize("side", ["item", "user"])
def test_learns_saves_and_loads(side: str, options: dict[str, Any], tmp_path: Any) -> None:
    data = ratings(150, 120)
    model = AutoRec(side=side, hidden=16, epochs=60, **({"l2": 2.0} | options))
    result = fit(model, data, protocol="rating", seed=0, out=tmp_path / "run")
    flat = float(np.std(data.ratings))
    assert result.card.metrics["rmse"] < 0.9 * flat
    assert result.card.protocol["task"] == "rating"
    best = min(entry["rmse"] for entry in result.history if "rmse" in entry)
    assert result.card.validation_metrics["rmse"] == best  # the smallest error chose the epoch
    loaded = deeprec.load(tmp_path / "run")
    users, items = torch.arange(20), torch.arange(20)
    assert torch.equal(loaded.predict_ratings(users, items), model.predict_ratings(users, items))
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("optimizer", ["rprop", "lbfgs"])
def test_an_interrupted_run_ends_bit_for_bit_where_the_whole_one_ends(optimizer: str, tmp_path: Any) -> None:
    data = ratings(60, 50)

    def run(name: str, stop_after: int | None = None, resume: bool = False) -> AutoRec:
        def stop(progress: Any) -> None:
            if progress.metrics is not None and progress.epoch == stop_after:
                raise KeyboardInterrupt

        model = AutoRec(hidden=6, epochs=12, l2=1.0, optimizer=optimizer)
        fit(model, data, protocol="rating", seed=1, out=tmp_path / name, resume=resume, on_progress=stop)
        return model

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop_after=5)
    parts = run("parts", resume=True)
    for (key, want), got in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(got, want), key


def objectives(**options: Any) -> list[float]:
    """Objective after each epoch on a fixed small matrix."""
    data = ratings()
    model = AutoRec(hidden=7, init_std=0.3, l2=0.7, **options)
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    batches, optimizers = model.batches(data, 0), Optimizers(model)
    (whole,) = batches.epoch(0)
    values = []
    for epoch in range(model.config.epochs):
        train_epoch(model, optimizers, batches, epoch)
        values.append(float(model.loss(whole).detach()) + model.penalty())
    return values


def test_lbfgs_finds_a_lower_objective_than_as_many_gradients_of_rprop() -> None:
    lbfgs, rprop = objectives(optimizer="lbfgs", epochs=6), objectives(optimizer="rprop", epochs=120, lr=0.01)
    assert all(after < before for before, after in pairwise(lbfgs))
    assert lbfgs[-1] < rprop[-1]


def test_lbfgs_needs_little_more_than_one_gradient_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    backward = AutoRec.backward
    monkeypatch.setattr(AutoRec, "backward", lambda self, batch: calls.append(1) or backward(self, batch))
    AutoRec(hidden=8, l2=2.0, epochs=10, optimizer="lbfgs", refit=False).fit(ratings(80, 60), protocol="rating", seed=0)
    assert len(calls) < 130  # of 100 iterations; from a first step of lr = 0.001 each searched in vain at first


def test_pretraining_starts_the_deep_model_from_the_shallow_one_and_its_codes() -> None:
    data = ratings(150, 120)
    shared: dict[str, Any] = {"hidden": 16, "l2": 2.0, "init_std": 0.3, "refit": False}
    deep = AutoRec(inner=(8,), pretrain=True, pretrain_epochs=60, layer_epochs=1500, epochs=1, **shared)
    result = fit(deep, data, protocol="rating", seed=0)
    start = result.history[0]
    assert start["epoch"] == 0
    assert start["rmse"] < 0.9 * float(np.std(data.ratings))
    plain = AutoRec(inner=(8,), epochs=1, **shared)
    assert start["rmse"] < fit(plain, data, protocol="rating", seed=0).history[0]["rmse"]


def test_learning_rates_follow_the_schedule() -> None:
    linear = AutoRecConfig(optimizer="sgd", lr=1.0, epochs=4, lr_schedule="linear")
    assert [Schedule(linear, 1).share(t) for t in range(4)] == [1, 0.75, 0.5, 0.25]
    decaying = AutoRecConfig(optimizer="sgd", lr=1.0, lr_decay=0.5)
    assert [Schedule(decaying, 1).share(t) for t in range(3)] == [1, 1 / 1.5, 1 / 2]
    data, used = ratings(), []

    def look(progress: Any) -> None:
        if progress.metrics is not None:
            used.append(progress.loss)

    # With SGD from the same weights, one epoch's loss after the other tells the rates apart.
    for schedule in ("constant", "linear"):
        config = {"optimizer": "sgd", "lr": 1e-3, "epochs": 3, "batch_size": 8, "refit": False, "lr_schedule": schedule}
        fit(AutoRec(hidden=4, **config), data, protocol="rating", seed=0, on_progress=look)
    assert used[0] == used[3]  # the first epoch has the full rate
    assert used[2] < used[5]  # later ones less, so there is less progress


class Constant(nn.Module):
    """Predicts what it is told for each user or item."""

    def __init__(self, by_user: np.ndarray, by_item: np.ndarray) -> None:
        super().__init__()
        self.by_user, self.by_item = torch.from_numpy(by_user), torch.from_numpy(by_item)

    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        return self.by_user[users.long()] + self.by_item[items.long()]


@needs_ml_1m
def test_floors_of_the_protocol_on_ml_1m() -> None:
    # Measured for the reference sheet, chapter 0, on random 90/10 of ML-1M; here one split, within two intervals.
    rating = protocol("rating", validation="none", default_rating=3.0)
    split = rating.split(load("ml-1m"))
    train = split.train
    mean = float(train.ratings.mean(dtype=np.float64))

    def means(index: np.ndarray, count: int, fill: float) -> np.ndarray:
        total, number = np.bincount(index, train.ratings, count), np.bincount(index, minlength=count)
        return np.where(number > 0, total / np.maximum(number, 1), fill)

    def damped(index: np.ndarray, values: np.ndarray, count: int, damping: float) -> np.ndarray:
        return np.bincount(index, values, count) / (np.bincount(index, minlength=count) + damping)

    users, items = np.zeros(train.num_users), np.zeros(train.num_items)
    item_bias = damped(train.items, train.ratings - mean, train.num_items, 4)
    user_bias = damped(train.users, train.ratings - mean - item_bias[train.items], train.num_users, 6)
    floors = {
        1.1175: Constant(users + mean, items),
        1.0355: Constant(means(train.users, train.num_users, mean), items),
        0.9777: Constant(users, means(train.items, train.num_items, 3.0)),
        0.9065: Constant(mean + user_bias, item_bias),
    }
    for want, model in floors.items():
        assert evaluate(model, split, rating)["rmse"] == pytest.approx(want, abs=0.004)
    unseen = (train.item_counts()[split.test.items] == 0).sum()
    assert 10 <= unseen <= 30


def test_a_cold_item_gets_the_default_and_predictions_are_clamped() -> None:
    data = ratings(40, 30)
    rating = protocol("rating", metrics=("mae",), default_rating=3.0)
    split = rating.split(data)
    cold = int(split.test.items[0])
    train = split.train.take(split.train.items != cold)
    split = dataclasses.replace(split, train=train, test=split.test.take(split.test.items == cold))
    model = Constant(np.full(data.num_users, 99.0), np.zeros(data.num_items))
    assert evaluate(model, split, rating)["mae"] == pytest.approx(float(np.abs(split.test.ratings - 3).mean()))
    own = protocol("rating", metrics=("mae",))
    assert evaluate(model, split, own)["mae"] == pytest.approx(float(np.abs(split.test.ratings - 5).mean()))
    warm = protocol("rating").split(data)
    exact = float(np.sqrt(np.square(warm.test.ratings - 5).mean()))
    assert evaluate(model, warm, protocol("rating"))["rmse"] == pytest.approx(exact)
    assert evaluate(model, warm, protocol("rating", clamp=False))["rmse"] > 90


def test_rmse_of_the_rarest_fifth_is_over_these_items_alone() -> None:
    data = ratings(200, 10, density=0.5)
    keep = data.users >= 19 * data.items  # item 9 has the fewest ratings, then item 8
    split = protocol("rating").split(data.take(keep))
    rating = protocol("rating", metrics=("rmse", "rmse_rare"), clamp=False)
    model = Constant(np.full(data.num_users, 3.0), np.where(np.arange(10) >= 8, 0.5, 0.0))
    assert (np.argsort(split.train.item_counts())[:2] == [9, 8]).all()
    figures = evaluate(model, split, rating)
    rare = split.test.ratings[split.test.items >= 8]
    assert len(rare) > 3
    assert figures["rmse_rare"] == pytest.approx(float(np.sqrt(np.square(3.5 - rare).mean())))
    none = dataclasses.replace(split, test=split.test.take(split.test.items < 8))
    assert np.isnan(evaluate(model, none, rating)["rmse_rare"])


def test_a_figure_that_is_not_defined_cannot_choose_the_epoch() -> None:
    data = ratings(200, 10, density=0.5)
    rare = protocol("rating", metrics=("rmse_rare",), validation_share=0.002, seed=2)
    counts = rare.split(data).train.item_counts()
    assert not set(rare.split(data).validation.items) & set(np.argsort(counts, kind="stable")[:2])
    with pytest.raises(ValueError, match=r"rmse_rare must be a number .* another select="):
        AutoRec(hidden=3, epochs=3).fit(data, protocol=rare)
    model = AutoRec(hidden=3, epochs=3)
    both = dataclasses.replace(rare, metrics=("rmse_rare", "rmse"))
    assert np.isfinite(fit(model, data, protocol=both, select="rmse").card.metrics["rmse"])


def test_protocols_and_models_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="must fit the task 'rating'"):
        protocol("rating", metrics=("hr",))
    with pytest.raises(ValueError, match="must fit the task 'ranking'"):
        protocol("full", metrics=("rmse",))
    assert protocol("rating").differences(protocol("random"))
    data = ratings()
    with pytest.raises(ValueError, match="needs a model that predicts ratings, got popularity"):
        deeprec.models.create("popularity").fit(data, protocol="rating")
    bare = from_frame(data.to_frame().select("user_id", "item_id"))
    with pytest.raises(ValueError, match="must have ratings"):
        AutoRec(hidden=4, epochs=1).fit(bare, protocol="full")
    for options, message in (
        ({"batch_size": 8}, "needs the full batch"),
        ({"side": "both"}, "item or user"),
        ({"hidden": 0}, "hidden.* must be >= 1"),
        ({"optimizer": "newton"}, "optimizer must be one of"),
        ({"inner": (0,)}, "inner"),
        ({"pretrain": True}, "pretrain needs inner layers"),
        ({"pretrain_lr": -1.0}, "pretrain_lr must be >= 0"),
        ({"lr_schedule": "cyclic"}, "lr_schedule must be one of"),
        ({"reduction": "mean"}, "reduction has no effect here"),
        ({"weight_decay": 0.1}, "weight_decay must be 0 with rprop, got 0.1; take l2"),
        ({"precision": "bfloat16"}, "precision has no effect here"),
        ({"num_negatives": 4}, "num_negatives has no effect here"),
    ):
        with pytest.raises(ValueError, match=message):
            AutoRec(**options)


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize("output", ["identity", "sigmoid"])
def test_a_new_user_is_scored_in_ratings_and_likes_what_was_liked(side: str, output: str) -> None:
    # Two groups of users, each rates its half of the items 5 and the other half 1.
    draw = np.random.default_rng(0)
    users, items = np.nonzero(draw.random((80, 40)) < 0.5)
    values = np.where(users % 2 == items % 2, 5.0, 1.0)
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items, "rating": values}), rating="rating")
    model = AutoRec(side=side, output=output, hidden=8, epochs=80, l2=0.5).fit(data, protocol="rating", seed=0)
    for half in (0, 1):
        frame = model.recommend_for_history([half, half + 2, half + 4], k=10)
        assert (frame["item_id"].to_numpy() % 2 == half).all()
        assert frame["score"].is_between(2.0, 7.0).all()


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize("output", ["identity", "sigmoid"])
def test_a_new_user_or_item_is_rated_as_one_like_it_is(side: str, output: str) -> None:
    draw = np.random.default_rng(0)
    users, items = np.nonzero(draw.random((80, 40)) < 0.5)
    values = np.where(users % 2 == items % 2, 5.0, 1.0)
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items, "rating": values}), rating="rating")
    model = AutoRec(side=side, output=output, hidden=8, epochs=80, l2=0.5).fit(data, protocol="rating", seed=0)
    for half in (0, 1):
        own, other = range(half, half + 12, 2), range(1 - half, 13 - half, 2)
        given = [5] * len(own) + [1] * len(other)
        likes, by_user = model.predict_for_user([*own, *other], given), model.predict_for_item([*own, *other], given)
        for frame, column, count in ((likes, "item_id", 40), (by_user, "user_id", 80)):
            assert len(frame) == count
            alike = pl.col(column) % 2 == half
            assert frame.filter(alike)["rating"].min() > frame.filter(~alike)["rating"].max()
            assert frame.filter(alike)["rating"].mean() > frame.filter(~alike)["rating"].mean() + 0.5
            assert frame["rating"].is_between(1, 5).all()
        listed = model.recommend_for_history([*own, *other], k=8, ratings=given)
        assert (listed["item_id"].to_numpy() % 2 == half).all()
    for call, ids in ((model.predict_for_user, [0, 2]), (model.predict_for_item, [0, 2])):
        with pytest.raises(ValueError, match="one finite number for each"):
            call(ids, [5])
        with pytest.raises(ValueError, match="one finite number for each"):
            call(ids, [5, float("nan")])
        with pytest.raises(ValueError, match="may be rated once"):
            call([0, 0], [5, 5])


def test_a_model_without_ratings_says_so() -> None:
    model = deeprec.models.create("popularity").fit(ratings(), protocol="full")
    for call in (model.predict_for_user, model.predict_for_item):
        with pytest.raises(ValueError, match="that predicts ratings"):
            call([0], [5])


@needs_ml_100k
def test_beats_the_item_means_on_ml_100k() -> None:
    model = AutoRec(hidden=50, epochs=120, l2=60.0)
    result = fit(model, load("ml-100k"), protocol="rating", seed=0)
    assert result.card.metrics["rmse"] < 0.95  # item means: about 1.02
