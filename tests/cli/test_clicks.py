"""The commands around click models, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from deeprec.data.sets.click_datasets import synthetic_clicks

SMALL = ("epochs=2", "batch_size=512", "factors=4", "hidden=16", "data.rows=3000", "data.fields=3")


@pytest.fixture(scope="module")
def trained(deeprec, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("clicks") / "run"
    done = deeprec("train", "deepfm", "--data", "synthetic", "--protocol", "click", "--out", out, *SMALL)
    assert done.exit_code == 0, done.output
    assert "3 fields, 3 numerics, 1 bags" in done.output
    assert "predict" in done.output
    return out


def test_train_is_repeatable_and_evaluate_agrees(trained: Path, deeprec) -> None:
    done = deeprec("evaluate", trained, "--json")
    assert done.exit_code == 0, done.output
    card = json.loads((trained / "card.json").read_text())
    assert json.loads(done.output)["metrics"] == pytest.approx(card["metrics"])
    again = deeprec("train", "deepfm", "--data", "synthetic", "--out", trained, "--resume", *SMALL)
    assert "already finished" in again.output


def test_predict_writes_what_was_asked_for(trained: Path, deeprec, tmp_path: Path) -> None:
    frame, _ = synthetic_clicks(200, fields=3)
    frame.with_row_index("id").drop("click").write_parquet(tmp_path / "new.parquet")
    scores = tmp_path / "scores.parquet"
    done = deeprec("predict", trained, "--input", tmp_path / "new.parquet", "--output", scores, "--keep", "id")
    assert done.exit_code == 0, done.output
    assert "200 probabilities" in done.output
    found = pl.read_parquet(scores)
    assert found.columns == ["id", "probability"]
    assert found["probability"].is_between(0, 1).all()


def test_a_file_with_a_drafted_schema_trains(deeprec, tmp_path: Path) -> None:
    frame, _ = synthetic_clicks(2000, fields=3)
    frame.write_csv(tmp_path / "log.csv")
    drafted = deeprec("schema", tmp_path / "log.csv", "--label", "click", "--output", tmp_path / "schema.yaml")
    assert drafted.exit_code == 0, drafted.output
    assert "categorical: c1" in (tmp_path / "schema.yaml").read_text()
    words = ("--data", tmp_path / "log.csv", "--schema", tmp_path / "schema.yaml", "--log", tmp_path / "converted")
    done = deeprec("train", "lr", *words, "--out", tmp_path / "run", "epochs=1")
    assert done.exit_code == 0, done.output
    assert "converted to" in done.output
    second = deeprec("train", "fm", "--data", tmp_path / "converted", "--out", tmp_path / "other", "epochs=1")
    assert second.exit_code == 0, second.output
    compared = deeprec("compare", tmp_path / "run", tmp_path / "other")
    assert compared.exit_code == 0, compared.output


def test_bad_rows_are_refused_or_skipped(deeprec, tmp_path: Path) -> None:
    frame, schema = synthetic_clicks(2000, fields=3)
    lines = frame.write_csv().splitlines()
    lines[7] = lines[7].rpartition(",")[0]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "schema.yaml").write_text(schema.to_yaml())
    words = ("train", "lr", "--data", tmp_path / "log.csv", "--schema", tmp_path / "schema.yaml", "epochs=1")
    refused = deeprec(*words, "--out", tmp_path / "run")
    assert refused.exit_code == 2
    assert "line 8" in refused.stderr
    skipped = deeprec(*words, "--out", tmp_path / "run", "--on-bad", "skip")
    assert skipped.exit_code == 0, skipped.output
    assert "skipped 1 bad rows" in skipped.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "deepfm", "--protocol", "ncf"), "--protocol must be click"),
        (("train", "gmf", "--protocol", "click"), "--protocol must be another than click"),
        (("train", "gmf", "--schema", "x.yaml"), "gmf does not use --schema; leave it out (it goes with "),
        (("train", "deepfm", "--data", "synthetik"), "did you mean"),
        (("train", "deepfm", "protocol.candidates=99"), "unknown key 'candidates' for ClickProtocol"),
        (("train", "deepfm", "num_negatives=2"), "num_negatives has no effect here, got 2; leave it out ("),
        (("train", "deepfm", "--data", "README.md"), "or hold rows of fields; pass format= one of csv"),
    ],
)
def test_mistakes_end_in_one_line(deeprec, words: tuple[str, ...], message: str) -> None:
    done = deeprec(*words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_commands_know_which_models_they_are_for(trained: Path, deeprec, tmp_path: Path) -> None:
    done = deeprec("recommend", trained, "--user", "1")
    assert done.exit_code == 2
    assert "predicts clicks of rows" in done.stderr
    done = deeprec("evaluate", trained, "protocol.seed=3")
    assert done.exit_code == 2
    assert "leave options out" in done.stderr
    assert "click log" in deeprec("data", "list").output
