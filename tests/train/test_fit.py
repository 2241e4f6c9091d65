"""Runs: reproducible, resumable at any moment, and never half-written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch

import deeprec
from deeprec.data import from_frame, synthetic
from deeprec.models import create
from deeprec.train import checkpoint as checkpoint_module
from deeprec.train import fit

OPTIONS = {"factors": 4, "epochs": 4, "batch_size": 200, "lr": 0.005}


@pytest.fixture(scope="module")
def data():
    return synthetic(num_users=120, num_items=300, num_interactions=3000, seed=1)


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


class Stop(Exception):
    pass


def stop_in_epoch(number):
    def on_progress(progress):
        if progress.epoch == number and progress.metrics is not None:
            raise Stop

    return on_progress


@pytest.mark.parametrize("optimizer", ["adam", "lazy-adam", "adagrad", "sgd"])
def test_resumed_run_ends_bit_for_bit_where_the_whole_run_ends(data, tmp_path, optimizer):
    options = {**OPTIONS, "optimizer": optimizer}
    whole = fit(create("neumf", **options), data, protocol="ncf", seed=5, out=tmp_path / "whole")
    with pytest.raises(Stop):
        fit(
            create("neumf", **options), data, protocol="ncf", seed=5, out=tmp_path / "cut", on_progress=stop_in_epoch(2)
        )
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    resumed = fit(create("neumf", **options), data, protocol="ncf", seed=5, out=tmp_path / "cut", resume=True)
    assert_same_weights(weights(whole.model), weights(resumed.model))
    assert whole.card.metrics == resumed.card.metrics
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()


def test_resumed_pretraining_ends_bit_for_bit(data, tmp_path):
    options = {**OPTIONS, "epochs": 2, "pretrain": True, "pretrain_epochs": 2, "optimizer": "sgd"}
    whole = fit(create("neumf", **options), data, protocol="ncf", seed=5, out=tmp_path / "whole")

    def stop_in_mlp(progress):
        if progress.stage.startswith("mlp") and progress.metrics is not None:
            raise Stop

    with pytest.raises(Stop):
        fit(create("neumf", **options), data, protocol="ncf", seed=5, out=tmp_path / "cut", on_progress=stop_in_mlp)
    resumed = fit(create("neumf", **options), data, protocol="ncf", seed=5, out=tmp_path / "cut", resume=True)
    assert_same_weights(weights(whole.model), weights(resumed.model))


def test_refit_trains_on_validation_too_and_resumes(data, tmp_path):
    options = {**OPTIONS, "refit": True}
    whole = fit(create("gmf", **options), data, protocol="ncf", seed=5, out=tmp_path / "whole")
    plain = fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5)
    assert not torch.equal(whole.model.network.output.weight, plain.model.network.output.weight)

    def stop_in_refit(progress):
        if "refit" in progress.stage:
            raise Stop

    with pytest.raises(Stop):
        fit(create("gmf", **options), data, protocol="ncf", seed=5, out=tmp_path / "cut", on_progress=stop_in_refit)
    resumed = fit(create("gmf", **options), data, protocol="ncf", seed=5, out=tmp_path / "cut", resume=True)
    assert_same_weights(weights(whole.model), weights(resumed.model))


def test_kill_9_loses_at_most_the_running_epoch(data, tmp_path):
    script = (
        "import sys\nfrom deeprec.data import synthetic\n"
        "from deeprec.models import create\nfrom deeprec.train import fit\n"
        "data = synthetic(num_users=120, num_items=300, num_interactions=3000, seed=1)\n"
        "model = create('gmf', factors=4, epochs=100000, batch_size=200)\n"
        "fit(model, data, protocol='ncf', seed=5, out=sys.argv[1])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2])
    checkpoint = tmp_path / "checkpoint.safetensors"
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = checkpoint_module.read_checkpoint(tmp_path)
    assert found is not None
    done = found.progress["epoch"]
    assert done >= 1
    reference = fit(create("gmf", factors=4, epochs=done, batch_size=200), data, protocol="ncf", seed=5)
    assert [e["loss"] for e in reference.history] == [e["loss"] for e in found.progress["history"]]


def test_full_disk_leaves_the_last_checkpoint_usable(data, tmp_path, monkeypatch):
    written = []
    real = os.fsync

    def fail_later(descriptor):
        written.append(1)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail_later)
    with pytest.raises(OSError, match="No space left"):
        fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5, out=tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    resumed = fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5, out=tmp_path, resume=True)
    whole = fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5)
    assert_same_weights(weights(resumed.model), weights(whole.model))


def test_same_seed_same_weights_whatever_the_threads(data):
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(weights(fit(create("neumf", **OPTIONS), data, protocol="ncf", seed=2).model))
    finally:
        torch.set_num_threads(threads)
    assert_same_weights(*results)


def test_resume_of_another_run_is_refused(data, tmp_path):
    with pytest.raises(Stop):
        fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5, out=tmp_path, on_progress=stop_in_epoch(1))
    with pytest.raises(ValueError, match="seed"):
        fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=6, out=tmp_path, resume=True)


def test_damaged_checkpoint_is_named(data, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged"):
        fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5, out=tmp_path, resume=True)


def test_diverging_training_says_to_lower_the_rate(data):
    with pytest.raises(ValueError, match="lower lr"):
        fit(create("mf", factors=8, epochs=3, lr=1e30, optimizer="sgd"), data, protocol="ncf", seed=5)


def test_unknown_select_metric_is_refused(data):
    with pytest.raises(ValueError, match="select"):
        fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5, select="hr@11")


def test_out_that_is_a_file_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out must be a writable directory"):
        fit(create("gmf", **OPTIONS), data, out=tmp_path / "file")


def test_folder_holds_model_card_and_picture(data, tmp_path):
    fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5, out=tmp_path)
    weights, ids = {"model.safetensors", "seen.safetensors"}, {"users.parquet", "items.parquet"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*weights, *ids, "config.json", "card.json", "curves.png"}
    card = json.loads((tmp_path / "card.json").read_text())
    for key in ("model", "config", "data", "protocol", "metrics", "seed", "seconds", "versions", "hardware"):
        assert key in card
    assert 0 <= card["metrics"]["hr@10"] <= 1


def test_tampered_weights_are_refused(data, tmp_path):
    fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5, out=tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="changed after it was written"):
        deeprec.load(tmp_path)


def test_folder_of_a_newer_version_is_refused(data, tmp_path):
    fit(create("gmf", **OPTIONS), data, protocol="ncf", seed=5, out=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["format"] = 99
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="upgrade"):
        deeprec.load(tmp_path)


def test_empty_folder_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model"):
        deeprec.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [("neumf", OPTIONS, "full"), ("cdae", {"epochs": 2}, "cdae"), ("popularity", {}, "full")],
)
def test_a_part_without_rows_is_refused_before_training(name, options, rule):
    single = from_frame(pl.DataFrame({"user_id": range(30), "item_id": [user % 7 for user in range(30)]}))
    reports = []
    with pytest.raises(ValueError, match="part must hold an interaction, got none of the 30 of frame"):
        fit(create(name, **options), single, protocol=rule, on_progress=reports.append)
    assert not reports
