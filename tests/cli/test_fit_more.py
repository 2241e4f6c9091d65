"""`deeprec fit-more`: a folder goes on with later rows, and the folder that comes out remembers them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import deeprec as package
from deeprec.cli import folder
from deeprec.data import from_frame, synthetic, with_features
from deeprec.data.sets.click_datasets import synthetic_clicks
from deeprec.evaluate import read_card


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, deeprec: Any) -> Path:
    """A folder with early.csv, late.csv, a model of the early rows, and one that went on with the late ones."""
    where = tmp_path_factory.mktemp("more")
    frame = synthetic(num_users=80, num_items=60, num_interactions=1600, seed=1).to_frame().sort("timestamp")
    frame[:1300].write_csv(where / "early.csv")
    frame[1300:].write_csv(where / "late.csv")
    rule = ("--protocol", "ncf", "protocol.candidates=10")
    done = deeprec("train", "gmf", "--data", where / "early.csv", *rule, "--out", where / "early", "epochs=1")
    assert done.exit_code == 0, done.output
    done = deeprec("fit-more", where / "early", "--data", where / "late.csv", "--out", where / "late", "epochs=2")
    assert done.exit_code == 0, done.output
    assert "earlier.safetensors" in done.output
    assert re.search(r"new +[1-9]\d* users, 0 items; 1,[123]\d\d pairs were met before", done.output)
    return where


def test_the_folder_goes_on_by_the_protocol_of_its_card(runs: Path) -> None:
    early, late = read_card(runs / "early"), read_card(runs / "late")
    assert late.protocol == early.protocol
    assert late.config == {**early.config, "epochs": 2}
    assert len(late.history) == 3
    assert late.data["users"] > early.data["users"]
    assert "start_sha256" not in early.data
    assert len(late.data["start_sha256"]) == 64


def test_new_users_are_served_and_the_test_part_measured_again(runs: Path, deeprec: Any) -> None:
    model = package.load(runs / "late")
    done = deeprec("recommend", runs / "late", "--user", model.user_ids.values[-1])
    assert done.exit_code == 0, done.output
    done = deeprec("evaluate", runs / "late", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"] == read_card(runs / "late").metrics
    done = deeprec("evaluate", runs / "late", "--protocol", "full")
    assert done.exit_code == 0, done.output
    assert "Not comparable with the card" in done.output


def test_a_folder_can_go_on_again_and_become_a_fresh_one(runs: Path, deeprec: Any, tmp_path: Path) -> None:
    out = tmp_path / "again"
    done = deeprec("fit-more", runs / "late", "--data", runs / "early.csv", "--out", out, "epochs=1", "--logger", "csv")
    assert done.exit_code == 0, done.output
    assert (out / "metrics.csv").read_text().startswith("stage,epoch,")
    assert deeprec("evaluate", out).exit_code == 0
    (out / "earlier.safetensors").write_bytes(b"damaged")
    done = deeprec("evaluate", out)
    assert done.exit_code == 2
    assert "was changed after it was written" in done.output
    done = deeprec("train", "popularity", "--data", runs / "late.csv", "--out", out)
    assert done.exit_code == 0, done.output
    assert not (out / "earlier.safetensors").exists()
    assert deeprec("evaluate", out).exit_code == 0


def test_what_cannot_change_is_named(runs: Path, deeprec: Any, tmp_path: Path) -> None:
    start = ("fit-more", runs / "early", "--data", runs / "late.csv", "--out", tmp_path / "x")
    done = deeprec(*start, "factors=9")
    assert done.exit_code == 2
    assert "factors stays what" in done.output
    assert "only epochs and lr may be others" in done.output
    done = deeprec(*start, "--log", tmp_path / "log")
    assert done.exit_code == 2
    assert "gmf does not use --log" in done.output
    done = deeprec("fit-more", tmp_path, "--data", runs / "late.csv", "--out", tmp_path / "x")
    assert done.exit_code == 2
    assert "no model in" in done.output


def test_a_click_model_goes_on(deeprec: Any, tmp_path: Path) -> None:
    frame, schema = synthetic_clicks(3000, fields=3)
    frame[:2000].write_parquet(tmp_path / "early.parquet")
    frame[1500:].write_parquet(tmp_path / "late.parquet")
    (tmp_path / "schema.yaml").write_text(schema.to_yaml())
    source = ("--data", tmp_path / "early.parquet", "--schema", tmp_path / "schema.yaml")
    done = deeprec("train", "fm", *source, "--out", tmp_path / "early", "epochs=1")
    assert done.exit_code == 0, done.output
    for name, words in (("late", ()), ("logged", ("--log", tmp_path / "log"))):
        out = tmp_path / name
        done = deeprec("fit-more", tmp_path / "early", "--data", tmp_path / "late.parquet", "--out", out, *words)
        assert done.exit_code == 0, done.output
        done = deeprec("evaluate", out, "--json")
        assert done.exit_code == 0, done.output
        rows = ("--input", tmp_path / "late.parquet", "--output", tmp_path / "scores.parquet")
        assert deeprec("predict", out, *rows).exit_code == 0
    assert read_card(tmp_path / "late").metrics == read_card(tmp_path / "logged").metrics


def test_titles_of_earlier_items_are_kept(tmp_path: Path) -> None:
    data = from_frame(pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 8, 9]}))
    titles = pl.DataFrame({"item_id": [7, 8, 9], "title": [None, "new eight", "nine"]})
    known = pl.DataFrame({"item_id": [7, 8], "title": ["seven", "old eight"]})
    folder.remember(tmp_path, with_features(data, items=titles), "here", {}, titles=known)
    kept = folder.titles_of(tmp_path)
    assert kept is not None
    assert dict(kept.iter_rows()) == {7: "seven", 8: "new eight", 9: "nine"}
