"""IPS-MF: the loss by hand, weights that make the error of a biased sample that of all items, and Coat."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from deeprec.contract import Schema
from deeprec.data import IdMap, Interactions, LoggedInteractions, load, synthetic, with_propensities
from deeprec.models.ips_mf import IPSMF
from deeprec.train.loop import train_epoch
from deeprec.train.optimizers import Optimizers


def _ratings(seed: int = 0) -> LoggedInteractions:
    rng = np.random.default_rng(seed)
    keys = rng.choice(6 * 8, 20, replace=False)
    maps = (IdMap.from_values(np.arange(size), name) for size, name in ((6, "user"), (8, "item")))
    data = Interactions(
        (keys // 8).astype(np.int32), (keys % 8).astype(np.int32), *maps, rng.integers(1, 6, 20).astype(np.float32)
    )
    return with_propensities(data, rng.uniform(0.05, 0.9, 20))


@pytest.mark.parametrize("propensity", ["data", "popularity", "none"])
def test_the_batches_of_an_epoch_add_up_to_the_loss_by_hand(propensity: str) -> None:
    data = _ratings()
    model = IPSMF(
        Schema(6, 8), factors=3, l2=0.7, batch_size=2, propensity=propensity, generator=torch.Generator().manual_seed(1)
    ).double()
    batches = model.batches(data, 0)
    assert data.ratings is not None
    chances = {
        "data": data.propensities.astype(float),
        "popularity": data.item_counts()[data.items] / 6,
        "none": np.ones(20),
    }[propensity]
    weights = 1 / chances / (1 / chances).mean()
    mean = (weights * data.ratings).mean()
    assert model.mean.item() == pytest.approx(mean, rel=1e-6)
    users, items = model.users.detach().numpy(), model.items.detach().numpy()
    predicted = model.mean.item() + (users[data.users] * items[data.items]).sum(1)
    rated = np.unique(data.users)  # users without a rating are in no batch
    penalty = 0.7 * ((users[rated] ** 2).sum() + len(rated) / 6 * (items**2).sum())
    total = (weights * (predicted - data.ratings) ** 2).sum() + penalty
    got = sum(float(model.loss(_wide(batch)).detach()) * len(batch) for batch in batches.epoch(0))
    assert got == pytest.approx(total, rel=1e-5)


def _wide(batch):  # type: ignore[no-untyped-def]
    return dataclasses.replace(
        batch, labels=batch.labels.double(), weights=None if batch.weights is None else batch.weights.double()
    )


def _biased(seed: int) -> tuple[LoggedInteractions, np.ndarray]:
    """Ratings that users of a low-rank truth give the more often, the higher; and the whole matrix."""
    rng = np.random.default_rng(seed)
    truth = np.clip(2.5 + rng.normal(size=(150, 2)) @ rng.normal(size=(2, 60)) * 0.8 + rng.normal(size=60) * 0.4, 1, 5)
    chances = 0.6 * np.exp(1.2 * (truth - 5))
    users, items = np.nonzero(rng.random(truth.shape) < chances)
    maps = (IdMap.from_values(np.arange(size), name) for size, name in ((150, "user"), (60, "item")))
    ratings = (truth + rng.normal(size=truth.shape) * 0.3)[users, items].astype(np.float32)
    data = Interactions(users.astype(np.int32), items.astype(np.int32), *maps, ratings)
    return with_propensities(data, chances[users, items]), truth


def _fitted(data: Interactions, epochs: int = 60, **options: object) -> IPSMF:
    generator = torch.Generator().manual_seed(0)
    model = IPSMF(Schema(data.num_users, data.num_items), generator=generator, **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    optimizers, batches = Optimizers(model), model.batches(data, 0)
    for epoch in range(epochs):
        train_epoch(model, optimizers, batches, epoch)
    return model.eval()


def test_weights_make_what_was_chosen_speak_for_all() -> None:
    errors: dict[str, list[float]] = {"none": [], "data": []}
    for seed in range(3):
        data, truth = _biased(seed)
        for propensity, each in errors.items():
            model = _fitted(data, factors=4, l2=1.0, propensity=propensity)
            predicted = model(torch.arange(150)[:, None], torch.arange(60)[None]).numpy()
            each.append(float(((predicted - truth) ** 2).mean()))
    assert np.mean(errors["data"]) < 0.8 * np.mean(errors["none"])
    assert all(one < other for one, other in zip(errors["data"], errors["none"], strict=True))


@pytest.mark.skipif(not (Path(os.environ.get("DEEPREC_DATA", "")) / "coat").is_dir(), reason="DEEPREC_DATA has no coat")
def test_coat_shown_at_random_is_rated_better_with_weights() -> None:
    data = load("coat")
    assert data.official is not None
    train, test = data.take(data.official.train_index), data.take(data.official.test_index)
    assert test.ratings is not None
    users, items = (torch.from_numpy(column.astype(np.int64)) for column in (test.users, test.items))
    errors = {}
    for propensity in ("none", "data"):
        model = _fitted(train, epochs=40, propensity=propensity, l2=10.0)
        errors[propensity] = float(np.mean((model.predict_ratings(users, items).numpy() - test.ratings) ** 2))
    assert errors["data"] < 1.2
    assert errors["data"] < errors["none"] - 0.08


def test_a_recommendation_that_can_be_checked_by_hand() -> None:
    model = IPSMF(Schema(6, 8), factors=2, propensity="none")
    with torch.no_grad():
        model.users.copy_(torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]]))
        model.items.copy_(torch.arange(16.0).reshape(8, 2).flip(0) * torch.tensor([1.0, -1.0]))
        model.user_bias[5] = 0.25
        model.item_bias[3] = 100.0
        model.mean.fill_(3.0)
    scores = model.score_items(torch.tensor([0, 5]))
    assert scores[0].tolist() == pytest.approx([17, 15, 13, 111, 9, 7, 5, 3])
    assert scores[1].tolist() == pytest.approx([-11.75, -9.75, -7.75, 94.25, -3.75, -1.75, 0.25, 2.25])
    assert model(torch.tensor([5]), torch.tensor([3])).item() == pytest.approx(94.25)


def test_where_propensities_come_from() -> None:
    data = _ratings()
    plain = data.without_propensities()
    popular = data.item_counts()[data.items] / 6
    assert IPSMF(propensity="auto").propensities(data) == pytest.approx(data.propensities)
    assert IPSMF(propensity="auto").propensities(plain) == pytest.approx(popular)
    assert IPSMF(propensity="popularity").propensities(data) == pytest.approx(popular)
    assert IPSMF(propensity="none").propensities(data) is None
    floored = IPSMF(propensity="data", floor=0.5).propensities(data)
    assert floored is not None
    assert floored.min() == 0.5
    with pytest.raises(ValueError, match="propensity 'data' needs the propensities of the ratings"):
        IPSMF(Schema(6, 8), propensity="data").batches(plain, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"propensity": "given"}, "propensity must be one of auto, data, popularity, none"),
        ({"floor": 1.0}, r"floor must lie in \[0, 1\)"),
        ({"propensity": "none", "floor": 0.1}, "floor has no effect here"),
        ({"init_std": 0.0}, "init_std must be > 0"),
        ({"factors": 0}, "factors must be >= 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        IPSMF(**options)  # type: ignore[arg-type]


def test_data_without_ratings_is_named() -> None:
    data = synthetic(40, 30, 300, seed=3)
    with pytest.raises(ValueError, match="must have ratings"):
        IPSMF(Schema(40, 30)).batches(dataclasses.replace(data, ratings=None), 0)
