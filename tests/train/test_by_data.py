"""Options that the data chooses, and the simple methods beside every result."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import deeprec
from deeprec.config import ByData, Only, TrainConfig, defaults_by_data
from deeprec.contract import Facts
from deeprec.data import from_frame, load_clicks, synthetic
from deeprec.evaluate import Card, read_card
from deeprec.models import GMF, create, names
from deeprec.registry import config_class
from deeprec.train import fit


@dataclasses.dataclass(frozen=True)
class _Config(TrainConfig):
    by_data = {  # noqa: RUF012  # a ClassVar of the base
        "batch_size": ByData(lambda facts, _: max(8, facts.rows // 50), "50 steps an epoch, from 8 on"),
        "lr": ByData(lambda _, config: config.batch_size / 1000, "by the size of a batch"),
    }
    factors: int = 8


class _Small(GMF):
    config_class = _Config


@pytest.fixture
def data() -> Any:
    return synthetic(num_users=60, num_items=40, num_interactions=1200, seed=2)


def test_left_out_options_are_chosen_and_given_ones_stay(data: Any) -> None:
    model = _Small(epochs=1)
    card = fit(model, data, protocol="full", baselines=False).card
    rows = len(model._fitted_on.split.train)
    assert model.config.batch_size == rows // 50
    assert model.config.lr == model.config.batch_size / 1000  # a rule sees what was chosen before it
    assert card.chosen == ("batch_size", "lr")
    assert card.config["batch_size"] == rows // 50
    given = fit(_Small(epochs=1, batch_size=256), data, protocol="full", baselines=False).card  # the class's default
    assert (given.config["batch_size"], given.config["lr"], given.chosen) == (256, 0.256, ("lr",))


def test_a_config_is_taken_as_it_is(data: Any) -> None:
    card = fit(_Small(config=_Config(epochs=1)), data, protocol="full", baselines=False).card
    assert (card.config["batch_size"], card.config["lr"], card.chosen) == (256, 0.001, ())


def test_each_fit_chooses_anew_and_fit_more_does_not(data: Any) -> None:
    model = _Small(epochs=1)
    fit(model, data, protocol="full", baselines=False)
    first = model.config
    fit(model, data.take(np.arange(600)), protocol="full", baselines=False)
    assert model.config.batch_size < first.batch_size
    frame = data.to_frame().sort("timestamp")
    model = _Small(epochs=1).fit(frame[:900], protocol="full")
    chosen = model.config
    assert model.fit_more(frame[900:], protocol="full", epochs=2).config == dataclasses.replace(chosen, epochs=2)


def test_what_has_no_effect_is_not_chosen() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config(TrainConfig):
        conditions = (Only(("l2",), "optimizer=adam", lambda config: config.optimizer == "adam"),)
        by_data = {"l2": ByData(lambda *_: 0.5, "always")}  # noqa: RUF012

    assert Config().for_data(Facts(10), ())[0].l2 == 0.5
    assert Config(optimizer="sgd").for_data(Facts(10), ("optimizer",)) == (Config(optimizer="sgd"), ())


def test_every_rule_gives_an_option_that_its_class_takes() -> None:
    sizes = [0, 1, 30, 1000, 10**5, 10**8]
    for name in names():
        kind = config_class(name)
        for rows in sizes:
            ratings = {"rating_range": (1.0, 5.0), "rating_spread": 1.1}
            facts = Facts(rows, users=rows // 10, items=rows // 20, columns=20, values=rows, positives=rows // 5)
            for each in (facts, facts._replace(**ratings)):
                config, chosen = kind().for_data(each, ())  # the class checks them
                assert set(chosen) <= set(defaults_by_data(kind)), name
                assert all(rule.how for rule in defaults_by_data(kind).values()), name
                assert kind(**{key: getattr(config, key) for key in chosen}) == config, name


def test_rates_fall_and_penalties_rise_with_the_rows() -> None:
    sizes = [10**power for power in range(1, 9)]
    for name, option, low, high, falls in (
        ("gmf", "lr", 0.001, 0.005, True),
        ("ease", "l2", 20.0, 1000.0, False),
    ):
        chosen = [
            getattr(config_class(name)().for_data(Facts(rows, users=100, items=100), ())[0], option) for rows in sizes
        ]
        assert chosen == sorted(chosen, reverse=falls), name
        assert (min(chosen), max(chosen)) == (low, high), name
    given = config_class("gmf")(optimizer="sgd", lr=0.3)
    assert given.for_data(Facts(50), ("optimizer", "lr"))[0].lr == 0.3
    assert config_class("gmf")(optimizer="sgd").for_data(Facts(50), ("optimizer",))[0].lr == 0.001


def test_a_run_goes_on_with_what_the_data_chose(data: Any, tmp_path: Path) -> None:
    done = fit(_Small(epochs=1), data, protocol="full", out=tmp_path, baselines=False)
    deeprec.registry._MODELS["gmf"], kept = f"{__name__}:_Small", deeprec.registry._MODELS["gmf"]
    try:
        again = fit(_Small(epochs=1), data, protocol="full", out=tmp_path, resume=True, baselines=False)
    except ModuleNotFoundError:  # the test's module is none that a folder could name
        pytest.fail("the model of the folder could not be found")
    finally:
        deeprec.registry._MODELS["gmf"] = kept
    assert again.was_finished
    assert again.card.config == done.card.config


# -- baselines ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="deeprec"):
        yield caplog


def test_rankings_stand_beside_popularity_and_item_knn(
    data: Any, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    card = fit(GMF(epochs=1, lr=1e-9), data, protocol="full", out=tmp_path).card
    assert list(card.baselines) == ["popularity", "item-knn"]
    for name, figures in card.baselines.items():
        assert figures == fit(create(name), data, protocol="full").card.metrics
    assert read_card(tmp_path).baselines == card.baselines
    best = max(figures["hr@10"] for figures in card.baselines.values())
    assert card.metrics["hr@10"] < best  # untrained
    assert any("hr@10" in line and "is worse than" in line for line in warnings.messages)


def test_ratings_stand_beside_means_and_biases(data: Any) -> None:
    card = fit(create("bias", of="global"), data, protocol="rating").card
    assert card.baselines == {}  # they are the model itself
    card = fit(create("autorec", epochs=1), data, protocol="rating").card
    assert list(card.baselines) == ["global mean", "user mean", "item mean", "biases"]
    rmse = {label: figures["rmse"] for label, figures in card.baselines.items()}
    assert rmse["biases"] < min(rmse["user mean"], rmse["item mean"]) < rmse["global mean"]


def test_clicks_stand_beside_the_base_rate_and_logistic_regression(warnings: pytest.LogCaptureFixture) -> None:
    log = load_clicks("synthetic", rows=3000, fields=4, values=30)
    untrained = {"epochs": 1, "lr": 1e-9, "factors": 2, "start_at_base_rate": False, "first_order_lr": 0.0}
    card = fit(create("fm", **untrained), log).card
    assert list(card.baselines) == ["base rate", "lr"]
    assert card.baselines["base rate"]["auc"] == 0.5
    train, test = log.parts["train"], log.parts["test"]
    rate, share = train.positives / len(train), test.positives / len(test)
    constant = -share * np.log(rate) - (1 - share) * np.log1p(-rate)
    assert card.baselines["base rate"]["log_loss"] == pytest.approx(constant, rel=1e-3)
    assert any("log_loss" in line for line in warnings.messages)


def test_a_baseline_that_cannot_be_had_is_left_out(
    data: Any, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("item-knn: too many items")

    monkeypatch.setattr("deeprec.models.item_knn.ItemKNN.fit_directly", refuse)
    assert list(fit(GMF(epochs=1), data, protocol="full").card.baselines) == ["popularity"]
    assert any("item-knn is left out: item-knn: too many items" in line for line in warnings.messages)


def test_logistic_regression_sees_a_sample_of_a_large_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprec.evaluate.tasks._BASELINE_ROWS", 500)
    log = load_clicks("synthetic", rows=3000, fields=4, values=30)
    task = create("lr").task_for(log, None)
    small = task.for_baselines(seed=3)
    assert 400 < len(small.log.parts["train"]) < 600
    assert small.log.parts["test"] is log.parts["test"]
    part = log.parts["train"].sampled(500, seed=3)
    assert np.array_equal(part.labels, small.log.parts["train"].labels)


@pytest.mark.parametrize(("mine", "worse"), [(0.5, ["hr@10 0.5 is worse than 0.6 of item-knn"]), (0.6, []), (0.7, [])])
def test_a_card_says_which_baseline_is_better(mine: float, worse: list[str]) -> None:
    beside = {"popularity": {"hr@10": 0.1}, "item-knn": {"hr@10": 0.6}, "broken": {"hr@10": None}}
    card = Card("gmf", {}, {}, {}, {"hr@10": mine}, 0, 1.0, baselines=beside)
    assert card.beaten_by() == worse


# -- bias --------------------------------------------------------------------------------------------------------------


def _ratings(scale: float = 1.0, shift: float = 0.0, *, num: int = 4000) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    users, items = rng.integers(200, size=num), rng.integers(150, size=num)
    values = 3 + rng.normal(0, 0.5, 200)[users] + rng.normal(0, 0.3, 150)[items] + rng.normal(0, 0.7, num)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "rating": values * scale + shift})
    return frame.unique(["user_id", "item_id"], keep="first", maintain_order=True)


def test_biases_are_found_on_any_scale() -> None:
    plain, other = (create("bias") for _ in range(2))
    for model, (scale, shift) in ((plain, (1.0, 0.0)), (other, (25.0, -40.0))):
        data = from_frame(_ratings(scale, shift))
        model.build(model.schema_for(data)).fit_directly(data)
    np.testing.assert_allclose(other.users * 1.0, plain.users * 25 - 40, rtol=1e-4)
    np.testing.assert_allclose(other.items * 1.0, plain.items * 25, atol=1e-3)
    assert float(plain.users.std()) == pytest.approx(0.5, rel=0.25)
    # The damping is the ratio of the variances that made the ratings.
    assert float(plain.damping) == pytest.approx(0.7**2 / 0.5**2, rel=0.35)


def test_somebody_new_is_rated_as_somebody_known() -> None:
    data = from_frame(_ratings())
    model = create("bias").fit(data, protocol="rating")
    train = model._fitted_on.train(0, joined=False)
    model.fit_directly(train)
    mine = train.users == 7
    known = model.score([(data.user_ids.decode([7])[0], item) for item in data.item_ids.decode([0, 1])])
    new = model.predict_for_user(data.item_ids.decode(train.items[mine]), train.ratings[mine])
    ratings = dict(zip(new["item_id"].to_list(), new["rating"].to_list(), strict=True))
    for item, value in zip(data.item_ids.decode([0, 1]), known, strict=True):
        assert ratings.get(item, value) == pytest.approx(value, abs=5e-3)


def test_bias_needs_ratings() -> None:
    data = from_frame(_ratings().drop("rating"))
    model = create("bias")
    with pytest.raises(ValueError, match="bias: the data must have ratings, got none"):
        model.build(model.schema_for(data)).fit_directly(data)
    with pytest.raises(ValueError, match="of must be one of global, user, item, both; got 'all'"):
        create("bias", of="all")
    constant = from_frame(_ratings().with_columns(rating=pl.lit(4.0)))
    model.build(model.schema_for(constant)).fit_directly(constant)
    assert float(model.users.min()) == float(model.users.max()) == 4.0
