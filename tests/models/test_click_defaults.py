"""What the log chooses of a click model's options, and that it holds on a small log which nobody tuned it for."""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.config import defaults_by_data
from deeprec.contract import Facts
from deeprec.data.clicks.log import ClickLog
from deeprec.data.columns.schema import Categorical, FeatureSchema
from deeprec.data.sets.click_datasets import load_clicks
from deeprec.evaluate.tasks import ClickTask, logits_of_part
from deeprec.models import DeepFM, click_models, config_class, create
from deeprec.models.click import FirstOrderConfig
from deeprec.train import fit, fit_more

DATA = os.environ.get("DEEPREC_DATA")
TRAINED = [name for name in click_models() if name != "base-rate"]
ROWS = (1, 60, 1000, 7000, 30_000, 200_000, 10**6, 10**9)


def facts(rows: int, columns: int = 20) -> Facts:
    return Facts(rows, columns=columns, values=rows // 2, positives=rows // 5)


def chosen(name: str, rows: int, columns: int = 20, **given: Any) -> Any:
    """The config that a log of so many rows gets, where only `given` was given."""
    return config_class(name)(**given).for_data(facts(rows, columns), given)[0]


@pytest.fixture(scope="module")
def log() -> ClickLog:
    return load_clicks("synthetic", rows=3000, fields=4, values=30)


@pytest.mark.parametrize("name", TRAINED)
def test_steps_follow_the_rows(name: str) -> None:
    configs = [chosen(name, rows) for rows in ROWS]
    sizes = [config.batch_size for config in configs]
    assert sizes == sorted(sizes)
    assert (min(sizes), max(sizes)) == (64, 4096)
    for rows, config in zip(ROWS, configs, strict=True):
        steps = math.ceil(rows / config.batch_size)
        assert steps >= min(50, rows // 64)
        assert 20 <= config.epochs <= 50
        assert config.patience * steps >= 150
        assert config.patience >= 2
    patience = [config.patience for config in configs]
    assert patience == sorted(patience, reverse=True)


@pytest.mark.parametrize("name", [name for name in TRAINED if "hidden" in defaults_by_data(config_class(name))])
def test_networks_grow_with_the_rows(name: str) -> None:
    configs = [chosen(name, rows) for rows in ROWS]
    widths = [config.hidden[0] for config in configs]
    assert widths == sorted(widths)
    assert (min(widths), max(widths)) == (64, 256)
    dropped = [config.dropout for config in configs]
    assert dropped == sorted(dropped, reverse=True)


def test_the_rate_of_first_order_weights_falls_with_the_columns() -> None:
    columns = (0, 1, 2, 10, 16, 39, 500)
    rates = [chosen("lr", 7000, number).lr for number in columns]
    assert rates == sorted(rates, reverse=True)
    assert (min(rates), max(rates)) == (0.03, 0.3)
    assert rates == [chosen("deepfm", 7000, number).first_order_lr for number in columns]
    assert rates == [chosen("wide-deep", 7000, number).wide_lr for number in columns]


@pytest.mark.parametrize("name", ["fm", "afm"])
def test_vectors_are_held_small_until_there_are_clicks_enough(name: str) -> None:
    held = [chosen(name, rows).embedding_l2 for rows in ROWS]
    assert held == sorted(held, reverse=True)
    assert (held[0], held[-1]) == (pytest.approx(0.1 / 64), 0.0)
    assert chosen(name, 7000, batch_size=500).embedding_l2 == pytest.approx(0.1 / 500)
    by_columns = [chosen(name, 7000, columns) for columns in (2, 10, 39, 500)]
    assert [each.lr for each in by_columns] == [0.01, 0.01, pytest.approx(0.1 / 39), 0.002]


def test_rare_clicks_count_not_rows() -> None:
    rare = Facts(10**6, columns=20, values=1000, positives=500)
    config, _ = config_class("deepfm")().for_data(rare, ())
    assert (config.hidden, config.dropout, config.batch_size) == ((64, 64), 0.5, 4096)


def test_what_is_given_keeps_its_value_and_its_effect() -> None:
    config = chosen("deepfm", 7000, batch_size=512, hidden=(32,), judged_by="headline")
    assert (config.batch_size, config.hidden, config.judged_by) == (512, (32,), "headline")
    assert config.patience == 11  # 150 steps of 14 an epoch
    assert chosen("fm", 7000, optimizer="adagrad", lr=0.1).lr == 0.1
    assert chosen("fm", 7000, optimizer="sgd").lr == config_class("fm")().lr
    assert chosen("wide-deep", 7000, adagrad_start=0.2).optimizer == "adagrad"  # which Adam would take no notice of
    assert chosen("wide-deep", 7000).optimizer == "adam"
    stepped = chosen("deepfm", 7000, step_in_backward=True)
    assert (stepped.embedding_l2, stepped.first_order_lr) == (0.0, 0.0)
    assert not chosen("dnn", 7000, hidden=()).batch_norm


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("rate", [0.02, 0.7])
def test_untrained_logits_are_the_log_odds_of_the_base_rate(name: str, rate: float, log: ClickLog) -> None:
    task = ClickTask.of(log, None)
    rows = task.facts().rows
    task.facts = lambda: Facts(rows, columns=7, values=100, positives=round(rate * rows))  # type: ignore[method-assign]
    model = create(name)
    model.adapt(task.facts())
    task.build(model, torch.Generator().manual_seed(0))
    logits = logits_of_part(model, log.parts["validation"])
    assert np.abs(logits - math.log(rate / (1 - rate))).max() < 0.3
    plain = create(name, config=model.config_class())
    task.build(plain, torch.Generator().manual_seed(0))
    assert np.abs(logits_of_part(plain, log.parts["validation"])).max() < 0.3


@pytest.mark.parametrize("name", [name for name in TRAINED if issubclass(config_class(name), FirstOrderConfig)])
def test_first_order_weights_are_a_group_of_their_own(name: str, log: ClickLog) -> None:
    model = create(name, first_order_lr=0.1, factors=4)
    model.build(log.inputs)
    groups = model.parameter_groups()
    assert {id(p) for p in groups["first-order"]} == {id(p) for p in model.first_order_weights()}
    assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))
    assert model.config.optimizer_options("first-order").optimizer == "ftrl"
    assert model.config.optimizer_options("").optimizer == model.config.optimizer
    assert "first-order" not in create(name, factors=4).build(log.inputs).parameter_groups()
    with pytest.raises(ValueError, match="first_order_lr must be 0 with step_in_backward"):
        create(name, first_order_lr=0.1, step_in_backward=True)


FIGURES = [(0.6, 0.50), (0.5, 0.40), (0.7, 0.45), (0.6, 0.44), (0.6, 0.43), (0.6, 0.42)]  # AUC, log loss


@pytest.mark.parametrize(
    ("judged_by", "select", "epochs", "best"),
    [
        ("headline", None, 5, 3),  # AUC alone, as ever
        ("headline", "log_loss", 4, 2),
        ("both", None, 5, 2),  # the loss chooses, and patience goes on for the AUC of epoch 3
        ("both", "auc", 5, 3),
    ],
)
def test_patience_waits_for_both_figures(
    judged_by: str, select: str | None, epochs: int, best: int, log: ClickLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter(FIGURES)

    def figures(self: ClickTask, model: Any, part: str) -> dict[str, float]:
        return dict(zip(("auc", "log_loss"), next(measured) if part == "validation" else (0.5, 0.7), strict=True))

    monkeypatch.setattr(ClickTask, "figures", figures)
    model = create("lr", epochs=6, patience=2, judged_by=judged_by)
    card = fit(model, log, select=select, baselines=False).card
    assert len(card.history) == epochs
    assert card.epoch == best
    assert card.select == (select or ("log_loss" if judged_by == "both" else "auc"))


def test_a_run_with_chosen_options_is_resumed(log: ClickLog, tmp_path: Path) -> None:
    def run(out: Path, **options: Any) -> Any:
        return fit(DeepFM(epochs=3), log, seed=1, out=out, baselines=False, **options)

    class Stop(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.metrics is not None and progress.epoch == 2:
            raise Stop

    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "parts", on_progress=stop)
    again = run(tmp_path / "parts", resume=True)
    assert "first_order_lr" in again.card.chosen
    assert again.card.metrics == whole.card.metrics
    options = again.model.config
    assert fit_more(again.model, log, epochs=1).card.config == {**asdict(options), "epochs": 1}


def coat() -> tuple[pl.DataFrame, FeatureSchema]:
    """A row a rating with what is known of user and coat: 6,960 rows, 28 % of them liked."""

    def lines(name: str) -> list[str]:
        with gzip.open(Path(str(DATA)) / "coat" / f"{name}.gz", "rt") as file:
            return file.read().splitlines()

    def table(name: str) -> np.ndarray:
        return np.loadtxt(lines(f"{name}.ascii"), dtype=np.int64)

    ratings = table("train")
    users, items = ratings.nonzero()
    columns: dict[str, Any] = {"user": users, "item": items}
    for kind, rows in (("user", users), ("item", items)):
        features, names = table(f"{kind}_features"), [line.split(":")[0] for line in lines(f"{kind}_features_map.txt")]
        for name in dict.fromkeys(names):  # one-hot, a few columns a feature
            columns[f"{kind} {name}"] = features[rows][:, [each == name for each in names]].argmax(1)
    frame = pl.DataFrame(columns).cast(pl.String).with_columns(label=(ratings[users, items] >= 4).astype(np.int8))
    return frame, FeatureSchema(tuple(Categorical(name) for name in columns))


@pytest.mark.skipif(DATA is None, reason="coat needs DEEPREC_DATA")
def test_defaults_hold_on_a_small_log_of_many_categories() -> None:
    log = load_clicks(*coat())
    with_baselines = fit(DeepFM(), log, seed=0).card
    constant, lr = with_baselines.baselines["base rate"], with_baselines.baselines["lr"]
    for card in (with_baselines, fit(create("fm"), log, seed=0, baselines=False).card):
        assert card.metrics["log_loss"] < 0.95 * constant["log_loss"], card.model
        assert card.metrics["auc"] > 0.98 * lr["auc"], card.model
        assert card.metrics["log_loss"] < 1.03 * lr["log_loss"], card.model
    assert lr["auc"] > 0.7
