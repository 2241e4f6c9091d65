"""Users' own files through the commands: files for testing, options of the reader, clicks without a schema."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.evaluate import read_card


def write(path: Path, rows: list[tuple[object, ...]], separator: str = " ", header: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "".join(separator.join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.txt, valid.txt and test.txt of user, item and rating; some only the test knows."""
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    rows = [(user, item, 1 + (user + item) % 5) for user in range(40) for item in rng.choice(60, 9, replace=False)]
    write(folder / "train.txt", [row for at, row in enumerate(rows) if at % 9 < 7])
    write(folder / "valid.txt", [row for at, row in enumerate(rows) if at % 9 == 7])
    write(folder / "test.txt", [*(row for at, row in enumerate(rows) if at % 9 == 8), (99, 3, 4), (5, 77, 2)])
    return folder


@pytest.mark.parametrize("way", ["folder", "flags", "options"])
def test_files_for_choosing_and_testing_are_used(
    deeprec, parts: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts)
    words = {
        "folder": ("--data", parts),
        "flags": ("--data", "train.txt", "--validation-data", "valid.txt", "--test-data", "test.txt"),
        "options": ("--data", "train.txt", "data.validation=valid.txt", "data.test=test.txt"),
    }[way]
    done = deeprec("train", "popularity", *words, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "official" in done.output
    card = read_card(tmp_path / "run")
    assert card.protocol["holdout"] == "official"
    monkeypatch.chdir(tmp_path)  # the folder remembers whole paths
    again = deeprec("evaluate", tmp_path / "run", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout[again.stdout.index("{") :])["metrics"] == pytest.approx(card.metrics)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("item-knn", ()),
        ("ease", ()),
        ("gmf", ("epochs=1",)),
        ("cdae", ("epochs=1", "hidden=4")),
        ("autorec", ("--protocol", "rating", "epochs=2", "hidden=4")),
        ("cfn", ("--protocol", "rating", "epochs=2", "hidden=4")),
    ],
)
def test_users_and_items_of_the_test_file_alone_are_measured(
    deeprec, parts: Path, tmp_path: Path, model: str, options: tuple[str, ...]
) -> None:
    done = deeprec("train", model, "--data", parts, "--out", tmp_path / "run", *options)
    assert done.exit_code == 0, done.output
    assert all(np.isfinite(value) for value in read_card(tmp_path / "run").metrics.values())


def test_the_same_file_named_twice_is_refused(deeprec, parts: Path) -> None:
    words = ("--data", parts / "train.txt", "--test-data", parts / "test.txt", f"data.test={parts / 'test.txt'}")
    done = deeprec("train", "popularity", *words)
    assert done.exit_code == 2
    assert "--test-data and data.test are the same, got both; leave one out" in done.output


def test_later_rows_may_be_written_another_way(deeprec, parts: Path, tmp_path: Path) -> None:
    done = deeprec("train", "gmf", "--data", parts / "train.txt", "--out", tmp_path / "run", "epochs=1", "factors=4")
    assert done.exit_code == 0, done.output
    later = write(tmp_path / "later.csv", [("x", 41 + at % 2, at, 4) for at in range(5, 25)], "|")
    words = ("--data", later, "--out", tmp_path / "more", "epochs=1", "data.user=1", "data.item=2")
    more = deeprec("fit-more", tmp_path / "run", *words)
    assert more.exit_code == 0, more.output


CLICKS = [(at % 2, f"s{at % 3}", "NA" if at % 7 == 0 else at, at) for at in range(400)]


@pytest.fixture(scope="module")
def clicks(deeprec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(log, folder of a model) of clicks whose schema was drafted."""
    folder = tmp_path_factory.mktemp("clicks")
    log = write(folder / "log.csv", CLICKS, ";", "won;site;price;row\n")
    test = write(folder / "test.csv", CLICKS[:50], ";", "won;site;price;row\n")
    words = ("--data", log, "--test-data", test, "data.label=won", "data.missing=NA", "epochs=1")
    done = deeprec("train", "lr", *words, "--out", folder / "run")
    assert done.exit_code == 0, done.output
    assert "test 50" in done.output
    return log, folder / "run"


def test_clicks_without_a_schema_train_and_are_measured_again(deeprec, clicks: tuple[Path, Path]) -> None:
    again = deeprec("evaluate", clicks[1], "--json")
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout[again.stdout.index("{") :])["metrics"]
    assert found == pytest.approx(read_card(clicks[1]).metrics)


def test_predict_and_keep_read_a_file_as_train_does(deeprec, clicks: tuple[Path, Path], tmp_path: Path) -> None:
    new = write(
        tmp_path / "new.csv", [(site, price, row) for _, site, price, row in CLICKS], "~~", "site~~price~~row\n"
    )
    words = ("--input", new, "--output", tmp_path / "scores.csv", "--keep", "row")
    done = deeprec("predict", clicks[1], *words, "data.separator=~~", "data.missing=NA")
    assert done.exit_code == 0, done.output
    scores = pl.read_csv(tmp_path / "scores.csv")
    assert scores.columns == ["row", "probability"]
    assert scores["row"].to_list() == list(range(400))
    wrong = deeprec("predict", clicks[1], *words, "epochs=3")
    assert "predict: options here say how a file is read, such as data.separator=';', got 'epochs'" in wrong.output


def test_schema_takes_the_options_of_a_file(deeprec, clicks: tuple[Path, Path]) -> None:
    done = deeprec("schema", clicks[0], "--label", "won", "data.missing=NA")
    assert done.exit_code == 0, done.output
    assert "label: won" in done.output
    assert "numeric: price" in done.output


def test_without_a_label_the_columns_are_named(deeprec, clicks: tuple[Path, Path]) -> None:
    done = deeprec("train", "lr", "--data", clicks[0])
    assert done.exit_code == 2
    assert "or the column of labels (label=, its name or place from 0), got columns ['won', 'site'" in done.output


def test_formats_are_shown(deeprec) -> None:
    shown = deeprec("data", "formats")
    for words in ("--test-data test.txt", "data.format=matrix", "data.label=14", "data.skip_lines=1"):
        assert words in shown.output
    assert "--data ratings.csv" in deeprec("data", "--help").output


def test_info_takes_the_options_of_a_file(deeprec, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", [(0, 5, 0), (1, 0, 2)])
    done = deeprec("data", "info", path, "data.format=matrix", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["interactions"] == 3
