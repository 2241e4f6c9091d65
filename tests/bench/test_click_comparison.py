"""The comparison of clicks: trials never see the test rows, are kept at once, and are the same for every side."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import click_comparison as comparison
from bench.click_contenders import CONTENDERS, DIMENSIONS, Contender, point_of, timed
from bench.click_logs import checksum, mind_clicks, with_train_rows, without_test_rows
from deeprec.data import ClickLog
from deeprec.data.clicks.log import in_memory
from deeprec.data.sets.click_datasets import synthetic_clicks


@pytest.fixture(scope="module")
def log() -> ClickLog:
    return in_memory(*synthetic_clicks(1500, fields=3, values=10))


def _remembering(log: ClickLog, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Figures that say what it was given: the rows of the parts, better for a larger option."""
    figures = {part: {"auc": options.get("worth", 0.5), "log_loss": len(log.parts[part])} for part in log.parts}
    return {part: figures[part] for part in ("validation", "test")} | {"epoch": len(log.parts["train"])}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    space = lambda point: {"worth": round(point["lr"], 3)}  # noqa: E731
    monkeypatch.setitem(CONTENDERS, "toy", Contender("Toy", "baseline", _remembering, space, {"worth": 0.1}))
    monkeypatch.setitem(comparison.TRIAL_ROWS, "adult", 100)
    return "toy"


def _read(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((directory / "adult" / "toy.json").read_text())
    return values


def test_the_best_trial_on_validation_is_run_with_every_seed(log: ClickLog, toy: str, tmp_path: Path) -> None:
    comparison.compare("adult", toy, log, 4, tmp_path)
    values = _read(tmp_path)
    worth = [trial["options"]["worth"] for trial in values["trials"]]
    assert worth == [0.1, *(round(point_of(n)["lr"], 3) for n in (1, 2, 3))]
    assert values["chosen"] == int(np.argmax(worth))
    assert [run["seed"] for run in values["runs"]] == [1, 2, 3]
    assert {run["test"]["auc"] for run in values["runs"]} == {max(worth)}


def test_a_trial_neither_sees_nor_keeps_the_test_rows(log: ClickLog, toy: str, tmp_path: Path) -> None:
    comparison.compare("adult", toy, log, 2, tmp_path)
    values = _read(tmp_path)
    assert all("test" not in trial and trial["epoch"] == 100 for trial in values["trials"])
    assert without_test_rows(log).parts["test"] is log.parts["validation"]
    assert values["runs"][0]["test"]["log_loss"] == len(log.parts["test"])
    assert values["runs"][0]["epoch"] == len(log.parts["train"])


def test_it_goes_on_where_it_was_stopped(log: ClickLog, toy: str, tmp_path: Path) -> None:
    comparison.compare("adult", toy, log, 2, tmp_path)
    values = _read(tmp_path)
    path = tmp_path / "adult" / "toy.json"
    marked = [trial | {"seconds": -1.0} for trial in values["trials"]]
    path.write_text(json.dumps(values | {"trials": marked, "chosen": None, "runs": []}))
    comparison.compare("adult", toy, log, 3, tmp_path)
    assert [trial["seconds"] < 0 for trial in _read(tmp_path)["trials"]] == [True, True, False]
    comparison.compare("adult", toy, log, 5, tmp_path)  # the test rows were looked at: no trial is added
    assert len(_read(tmp_path)["trials"]) == 3


def test_other_rows_do_not_join_a_record(log: ClickLog, toy: str, tmp_path: Path) -> None:
    comparison.compare("adult", toy, log, 1, tmp_path)
    with pytest.raises(ValueError, match=r"data is .* remove the file"):
        comparison.compare("adult", toy, with_train_rows(log, 500), 1, tmp_path)


def test_a_trial_that_raises_counts_and_one_that_is_killed_does_not(log: ClickLog, tmp_path: Path) -> None:
    def fails(log: ClickLog, options: dict[str, Any], seed: int) -> dict[str, Any]:
        raise ValueError("the loss is not finite")

    def dies(log: ClickLog, options: dict[str, Any], seed: int) -> dict[str, Any]:
        os._exit(9)

    who = Contender("Toy", "baseline", fails, None)
    assert comparison.in_own_process(who, log, {}, 0) == {"failed": "the loss is not finite"}
    with pytest.raises(RuntimeError, match="ended with 9"):
        comparison.in_own_process(replace(who, train=dies), log, {}, 0)


def test_every_side_gets_the_same_points() -> None:
    assert point_of(3) == point_of(3) != point_of(4)
    point = dict.fromkeys(DIMENSIONS, 0.999)
    ours, theirs = (CONTENDERS[name].space(point) for name in ("deepfm", "deepctr-deepfm"))  # type: ignore[misc]
    for name in ("lr", "batch_size", "factors", "hidden", "dropout", "batch_norm"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("name", ["lr", "fm", "deepfm", "wide-deep", "dcn-v2", "best-column", "constant"])
def test_contenders_train(log: ClickLog, name: str) -> None:
    who = CONTENDERS[name]
    for options in (who.defaults, who.space(point_of(1)) if who.space else {}):
        outcome = timed(who, with_train_rows(log, 300), options, 1)
        assert 0.4 < outcome["test"]["auc"] < 1
        assert outcome["test"]["log_loss"] < 2


def test_the_table_has_the_best_first(log: ClickLog, toy: str, tmp_path: Path) -> None:
    comparison.compare("adult", toy, log, 2, tmp_path)
    comparison.compare("adult", "constant", log, 2, tmp_path)
    lines = comparison.table(tmp_path).splitlines()
    assert len(lines) == 4
    assert "| Toy |" in lines[2 if _read(tmp_path)["runs"][0]["test"]["auc"] > 0.5 else 3]
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- click comparison -->\nold\n<!-- end of click comparison -->\nb\n")
    comparison.write_page(tmp_path, page)
    assert page.read_text().startswith("a\n<!-- click comparison -->\n| log |")
    assert "old" not in page.read_text()


def test_impressions_become_rows_cut_by_time(tmp_path: Path) -> None:
    impressions = [
        f"{n}\tU{n % 3}\t11/{n + 1}/2019 1:0{n}:00 PM\t{'N1 N2' if n % 2 else ''}\tN{n % 4}-1 N9-0" for n in range(10)
    ]
    (tmp_path / "behaviors.tsv").write_text("\n".join(impressions[::-1]) + "\n")
    (tmp_path / "news.tsv").write_text('N1\tsports\tgolf\tA "title\t\t\t\t\nN2\tnews\tworld\tB\t\t\t\t\n')
    log = mind_clicks(tmp_path / "behaviors.tsv", tmp_path / "news.tsv")
    assert log.counts == {"train": 16, "validation": 2, "test": 2}
    assert [field.name for field in log.inputs.fields] == ["user", "item", "hour", "weekday", "category", "subcategory"]
    assert log.parts["test"].labels.tolist() == [1, 0]
    assert checksum(log) == checksum(mind_clicks(tmp_path / "behaviors.tsv", tmp_path / "news.tsv"))
    assert checksum(log) != checksum(with_train_rows(log, 3))
