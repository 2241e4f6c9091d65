"""Training, saving and serving of click models, end to end on small logs."""

from __future__ import annotations

import importlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec import models
from deeprec.config import taken_options
from deeprec.data.clicks.log import ClickLog
from deeprec.data.sets.click_datasets import load_clicks, synthetic_clicks
from deeprec.evaluate import ClickProtocol, read_card
from deeprec.evaluate.click_metrics import log_loss, probabilities
from deeprec.evaluate.tasks import logits_of_part, logits_of_rows
from deeprec.serve.predict import predict_file
from deeprec.train import fit, loop
from deeprec.train.optimizers import Optimizers

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 512, "factors": 4, "hidden": (16,), "patience": 0}
DATA = os.environ.get("DEEPREC_DATA")


def options(name: str) -> dict[str, Any]:
    """Small options of a model; some have no network, one no embeddings."""
    known = taken_options(models.config_class(name))
    return {key: value for key, value in SMALL.items() if key in known}


@pytest.fixture(scope="module")
def log() -> ClickLog:
    return load_clicks("synthetic", rows=6000, fields=4, values=30)


@pytest.mark.parametrize("name", [n for n in models.click_models() if models.model_class(n).trains_by_gradient])
def test_every_model_learns_and_comes_back_from_its_folder(name: str, log: ClickLog, tmp_path: Path) -> None:
    model = models.create(name, **{**options(name), "epochs": 3})
    result = fit(model, log, seed=1, out=tmp_path / "m")
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert {"auc", "log_loss", "ece", "calibration", "accuracy"} <= set(result.card.metrics)
    again = deeprec.load(tmp_path / "m")
    part = log.parts["test"]
    assert np.array_equal(logits_of_part(again, part), logits_of_part(model, part))
    assert again.evaluate(log) == pytest.approx(result.card.metrics)
    assert read_card(tmp_path / "m").metrics == pytest.approx(result.card.metrics)
    for file in ("curves.png", "reliability.png"):
        assert (tmp_path / "m" / file).read_bytes()[:4] == b"\x89PNG"
    assert not list((tmp_path / "m").glob("checkpoint*"))


def test_a_model_beats_the_base_rate(log: ClickLog) -> None:
    model = models.DeepFM(epochs=6, batch_size=256, lr=0.01, factors=4, hidden=(32,), dropout=0.0)
    figures = fit(model, log, seed=0).card.metrics
    labels = log.parts["test"].labels
    rate = log.parts["train"].labels.mean()
    constant = np.full(len(labels), math.log(rate / (1 - rate)), np.float32)
    assert figures["auc"] > 0.55
    assert figures["log_loss"] < log_loss(constant, labels)


@pytest.mark.parametrize("name", ["deepfm", "wide-deep"])
@pytest.mark.parametrize("in_middle", [False, True])
def test_resumed_run_ends_where_the_whole_one_does(
    name: str, in_middle: bool, log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {**options(name), "epochs": 3, "dropout": 0.3}
    monkeypatch.setattr(loop, "FLUSH_STEPS", 2)  # where rows of dense Adam may be kept, by no clock
    whole = fit(models.create(name, **chosen), log, seed=3, out=tmp_path / "whole")

    class Stop(Exception):
        pass

    written = loop.write_checkpoint
    seen = []

    def write(directory: Path, checkpoint: Any) -> Path:
        path: Path = written(directory, checkpoint)
        seen.append(checkpoint.progress)
        if len(seen) == 2:
            raise Stop
        return path

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0 if in_middle else 1e9)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_checkpoint", write)
        with pytest.raises(Stop):
            fit(models.create(name, **chosen), log, seed=3, out=tmp_path / "cut")
    assert (seen[-1]["step"] > 0) == in_middle
    resumed = fit(models.create(name, **chosen), log, seed=3, out=tmp_path / "cut", resume=True)
    assert resumed.card.metrics == whole.card.metrics
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in whole.history]
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_last_epoch_s_weights_are_not_copied(log: ClickLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of tables that fill half of the memory would end the run."""
    copies: list[int] = []
    copy_state = loop.copy_state
    monkeypatch.setattr(loop, "copy_state", lambda model: copies.append(1) or copy_state(model))
    model = models.create("fm", epochs=1, batch_size=512)
    result = fit(model, log, seed=1, baselines=False)
    assert not copies
    assert result.card.epoch == 1
    assert model.evaluate(log) == pytest.approx(result.card.metrics)


def test_checkpoint_of_another_run_is_refused(log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("deeprec.train.fitting"), "remove_checkpoint", lambda directory: None)
    fit(models.LR(epochs=1, batch_size=512), log, out=tmp_path)
    with pytest.raises(ValueError, match=r"interrupted run of other settings: config\.batch_size is 512"):
        fit(models.LR(epochs=1, batch_size=256), log, out=tmp_path, resume=True)


def test_same_seed_same_model_and_the_global_generator_is_left_alone(log: ClickLog) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    runs = [fit(models.DeepFM(**options("deepfm")), log, seed=s) for s in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), before)
    weights = [run.model.state_dict() for run in runs]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_steps_in_the_backward_pass_train_the_same_model(log: ClickLog) -> None:
    given = {"optimizer": "lazy-adam", "embedding_l2": 0.0, "first_order_lr": 0.0}  # what goes with either
    figures = [
        fit(models.FM(**options("fm"), **given, step_in_backward=inside), log).card.metrics for inside in (False, True)
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)


def test_plateau_divides_the_rate_after_each_miss_but_ftrls(log: ClickLog, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[tuple[float, ...]] = []
    set_rates = Optimizers.set_rates

    def noted(self: Optimizers, rate: Any) -> None:
        set_rates(self, rate)
        rates.append(tuple(group["lr"] for one in self.each for group in one.param_groups))

    monkeypatch.setattr(Optimizers, "set_rates", noted)
    model = models.WideDeep(
        epochs=10, patience=0, batch_size=256, lr=0.5, wide_lr=0.1, factors=4, hidden=(16,), lr_schedule="plateau"
    )
    history = fit(model, log, seed=0, select="auc", baselines=False).history
    values, share, expected = [entry["auc"] for entry in history], 1.0, []
    for epoch in range(10):
        if epoch > 1 and values[epoch - 1] <= max(values[: epoch - 1]):
            share *= 0.1
        expected.append((0.1, pytest.approx(0.5 * share)))
    assert rates == expected
    assert share < 1


def test_fewer_negatives_leave_predictions_calibrated(log: ClickLog) -> None:
    chosen = {"epochs": 8, "batch_size": 256, "lr": 0.01}
    kept = ClickProtocol(negative_rate=0.25)
    result = fit(models.LR(**chosen), log, protocol=kept)
    assert result.card.data["train_rows_used"] < 0.6 * len(log.parts["train"])
    assert result.card.metrics["calibration"] == pytest.approx(1.0, abs=0.2)
    result.model.negative_rate = 1.0
    assert result.model.evaluate(log)["calibration"] > 1.5


def test_predictions_of_a_file_are_those_of_training(tmp_path: Path) -> None:
    frame, schema = synthetic_clicks(3000, fields=3, values=20)
    model = models.DeepFM(**options("deepfm")).fit(frame, schema, out=tmp_path / "m")
    whole = load_clicks(frame, schema)
    assert model.encoder.inputs == whole.inputs
    served = frame.drop("click").select(pl.all().reverse())  # columns in another order, no label
    encoded = next(iter(model.encoder.stream(frame)))
    want = probabilities(logits_of_rows(model, encoded)).astype(np.float32)
    again = deeprec.load(tmp_path / "m")
    shuffled = served.select(reversed(served.columns))
    assert np.array_equal(again.predict(frame.drop("click").select(reversed(frame.drop("click").columns))), want)
    assert shuffled.shape == served.shape
    for name in ("rows.parquet", "rows.csv"):
        write = frame.with_row_index("id").drop("click")
        (write.write_parquet if name.endswith("parquet") else write.write_csv)(tmp_path / name)
        assert predict_file(again, tmp_path / name, tmp_path / "scores.parquet", keep=["id"]) == len(frame)
        scores = pl.read_parquet(tmp_path / "scores.parquet")
        assert scores.columns == ["id", "probability"]
        assert np.array_equal(scores["probability"].to_numpy(), want)
        assert scores["id"].cast(pl.Int64).to_list() == list(range(len(frame)))


def test_serving_refuses_what_does_not_fit_and_takes_the_unseen(log: ClickLog, tmp_path: Path) -> None:
    model = fit(models.LR(**options("lr")), log).model
    frame, _ = synthetic_clicks(50, fields=4, values=30)
    with pytest.raises(ValueError, match="c2"):
        model.predict(frame.drop("c2"))
    with pytest.raises(ValueError, match=r"c2.*C2|C2.*c2"):
        model.predict(frame.rename({"c2": "C2"}))
    with pytest.raises((TypeError, ValueError), match="n1"):
        model.predict(frame.with_columns(n1=pl.lit("three")))
    with pytest.raises(ValueError, match="n1"):
        model.predict(frame.with_columns(n1=pl.lit(math.inf)))
    unseen = frame.with_columns(c1=pl.lit("never seen"), tags=pl.lit(""))
    assert np.isfinite(model.predict(unseen)).all()
    frame.write_csv(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match=r"output must end in \.parquet, \.csv, \.tsv"):
        predict_file(model, tmp_path / "rows.csv", tmp_path / "scores.json")
    with pytest.raises(ValueError, match=r"keep must name columns of rows\.csv, got 'clik'"):
        predict_file(model, tmp_path / "rows.csv", tmp_path / "scores.csv", keep=["clik"])
    with pytest.raises(ValueError, match="no encoder"):
        models.LR(log.inputs).predict(frame)
    assert not list(tmp_path.glob("*scores*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"click": 0}, "must hold rows of both labels"),
        ({"click": 1}, "must hold rows of both labels"),
        ({"click": 2}, "label"),
    ],
)
def test_useless_labels_are_refused(change: dict[str, int], words: str) -> None:
    frame, schema = synthetic_clicks(200)
    with pytest.raises(ValueError, match=words):
        models.LR(epochs=1).fit(frame.with_columns(**{k: pl.lit(v) for k, v in change.items()}), schema)


def test_options_of_rankers_are_refused() -> None:
    for option in ({"num_negatives": 2}, {"refit": True}, {"reduction": "sum"}, {"weight_averaging": 0.5}):
        with pytest.raises(ValueError, match=next(iter(option))):
            models.DeepFM(**option)


def test_a_loss_that_is_not_finite_stops_the_run(log: ClickLog) -> None:
    with pytest.raises(ValueError, match="training loss became"):
        fit(models.FM(optimizer="sgd", lr=1e30, epochs=3, batch_size=512), log)


def test_a_folder_with_another_encoder_is_refused(log: ClickLog, tmp_path: Path) -> None:
    fit(models.LR(epochs=1), log, out=tmp_path / "a")
    other = load_clicks("synthetic", rows=2000, fields=2)
    fit(models.LR(epochs=1), other, out=tmp_path / "b")
    other.encoder.save(tmp_path / "a" / "encoder")
    with pytest.raises(ValueError, match="encoder"):
        deeprec.load(tmp_path / "a")


def test_sources_are_named_in_errors(tmp_path: Path) -> None:
    frame, schema = synthetic_clicks(100)
    frame.write_csv(tmp_path / "a.csv")
    frame.rename({"click": "y"}).write_csv(tmp_path / "b.csv")
    with pytest.raises(ValueError, match="label"):
        load_clicks(tmp_path / "b.csv")
    with pytest.raises(FileNotFoundError, match="no click log of that name"):
        load_clicks("criteo-10")
    with pytest.raises(ValueError, match="carries no official parts"):
        load_clicks(tmp_path / "a.csv", schema, holdout="official")
    load_clicks(tmp_path / "a.csv", schema, directory=tmp_path / "log")
    assert (
        load_clicks(tmp_path / "a.csv", schema, directory=tmp_path / "log").counts
        == load_clicks(tmp_path / "log").counts
    )
    with pytest.raises(ValueError, match="converted with another schema"):
        load_clicks(tmp_path / "log", synthetic_clicks(10, fields=2)[1])
    with pytest.raises(ValueError, match="another split"):
        load_clicks(tmp_path / "a.csv", schema, directory=tmp_path / "log", seed=9)


@pytest.mark.skipif(DATA is None, reason="set DEEPREC_DATA to the folder with real data sets")
@pytest.mark.parametrize(("name", "least"), [("adult", 0.88), ("criteo-10k", 0.65), ("criteo-mini", 0.65)])
def test_real_logs_train(name: str, least: float) -> None:
    """A logistic regression orders the clicks of each better than chance by far."""
    result = fit(models.LR(epochs=4, lr=0.05, batch_size=512), load_clicks(name))
    assert result.card.metrics["auc"] > least
    assert result.card.metrics["calibration"] == pytest.approx(1.0, abs=0.15)


@pytest.mark.skipif(DATA is None, reason="set DEEPREC_DATA to the folder with real data sets")
def test_a_named_log_refuses_options_it_would_ignore() -> None:
    with pytest.raises(TypeError, match="adult is read without options, got"):
        load_clicks("adult", rows=5)


@pytest.mark.skipif(DATA is None, reason="set DEEPREC_DATA to the folder with real data sets")
def test_frappe_s_train_part_is_made_as_published() -> None:
    log = load_clicks("frappe")
    train, test = log.parts["train"], log.parts["test"]
    assert {name: (len(part), part.positives) for name, part in log.parts.items()} == {
        "train": (202_812, 67_604),
        "validation": (57_722, 19_063),
        "test": (28_860, 9_536),
    }
    pairs = [
        {tuple(row) for row in part.ids[part.labels == label][:, :2].tolist()}
        for part in (train, test)
        for label in (1, 0)
    ]
    assert not pairs[0] & pairs[1]  # a pair of user and app is either used or not
    assert not pairs[0] & pairs[3]
    assert sum(field.size for field in log.inputs.fields) - len(log.inputs.fields) <= 5382
