"""`tune`: what validation prefers comes out, the test part is not looked at, searches go on and are not mixed up."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deeprec.data import synthetic
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models import create
from deeprec.train import Range, fit, tune, usual_ranges

LR = {"lr": Range(low=0.005, high=0.5)}
SHORT = {"epochs": 3, "factors": 8}


@pytest.fixture(scope="module")
def data() -> Any:
    return synthetic(80, 50, 1200)


def test_the_best_is_what_fit_reaches_and_the_test_part_is_left_alone(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    figures = InteractionTask.figures

    def noted(self: Any, model: Any, part: str) -> dict[str, float]:
        asked.append(part)
        return figures(self, model, part)

    monkeypatch.setattr(InteractionTask, "figures", noted)
    told: list[Any] = []
    found = tune("bpr", data, out=tmp_path, ranges=LR, options=SHORT, protocol="full", trials=5, prunes=False,
                 on_trial=lambda *trial: told.append(trial))  # fmt: skip
    assert "test" not in asked
    assert [number for number, _, _ in told] == [0, 1, 2, 3, 4]
    assert found.value == max(value for _, _, value in told)
    assert found.options == {**SHORT, **max(told, key=lambda trial: trial[2])[1]}
    assert all(0.005 <= options["lr"] <= 0.5 for _, options, _ in told)
    result = fit(create("bpr", **found.options), data, protocol="full", seed=0, baselines=False)
    assert result.card.validation_metrics[found.select] == found.value
    assert result.card.epoch == found.epoch
    assert json.loads((tmp_path / "best.json").read_text()) == found.options
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["complete"] * 5
    assert [float(row["lr"]) for row in rows] == [options["lr"] for _, options, _ in told]


def test_a_search_goes_on_and_another_one_is_refused(data: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {"out": tmp_path, "options": SHORT, "protocol": "full"}
    assert tune("bpr", data, ranges=LR, trials=2, **given).trials == 2
    told: list[int] = []
    again = tune("bpr", data, ranges=LR, trials=4, on_trial=lambda number, *_: told.append(number), **given)
    assert (again.trials, told) == (4, [2, 3])
    assert tune("bpr", data, ranges=LR, trials=4, **given) == again
    for other in ({"ranges": {"lr": Range(low=0.1, high=0.2)}}, {"ranges": LR, "seed": 3}):
        with pytest.raises(ValueError, match=r"holds trials of another search: (ranges|seed) differ; take another out"):
            tune("bpr", data, trials=4, **given, **other)


def test_errors_are_better_where_they_are_smaller(data: Any, tmp_path: Path) -> None:
    found = tune("bias", data, out=tmp_path, protocol="rating", trials=3,
                 ranges={"of": Range(("global", "user", "item", "both"))})  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert found.select == "rmse"
    assert found.value == min(float(row["rmse"]) for row in rows)
    assert found.epoch is None


def test_options_that_do_not_go_together_are_passed_over(data: Any, tmp_path: Path) -> None:
    options = {"epochs": 1, "pretrain": False, "channels": 2}
    given: dict[str, Any] = {"options": options, "protocol": "full", "trials": 4}
    found = tune("convncf", data, out=tmp_path / "some", ranges={"factors": Range((4, 6))}, seed=1, **given)
    assert found.options["factors"] == 4
    assert 0 < found.failed < 4
    with pytest.raises(ValueError, match="power of 2"):
        tune("convncf", data, out=tmp_path / "none", ranges={"factors": Range((5, 6))}, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ranges": {}}, "ranges must name an option of bpr, got none"),
        ({"ranges": {"rate": Range(low=0, high=1)}}, "rate"),
        ({"ranges": LR, "options": {"lr": 0.1}}, "lr must be fixed or searched, got both"),
        ({"ranges": {"epochs": Range((1, 2))}}, "validation chooses the epoch of each trial"),
        ({"ranges": LR, "trials": 0}, "trials must be >= 1, got 0"),
        ({"ranges": {"lr": Range(low=-1.0, high=-0.5)}}, "lr must be > 0"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    data: Any, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        tune("bpr", data, out=tmp_path / "new", protocol="full", **given)
    assert not (tmp_path / "new").exists()


def test_ranges_are_checked() -> None:
    for wrong in ({"low": 1.0, "high": 1.0}, {"low": 0.0, "high": float("inf")}, {"choices": (1,)},
                  {"choices": (1, 1)}, {"low": 0.5, "high": 3.0, "is_whole": True}):  # fmt: skip
        with pytest.raises(ValueError, match="Range: "):
            Range(**wrong)
    assert usual_ranges("bpr")["factors"].choices == (16, 32, 64, 128, 256)
    assert usual_ranges("popularity") == {}


def test_processes_share_the_trials_of_a_folder(tmp_path: Path) -> None:
    words = ["tune", "bpr", "lr=0.005..0.5", "factors=4|8", "epochs=2", "data.num_users=60", "data.num_items=40",
             "data.num_interactions=800", "--protocol", "full", "--trials", "6", "--jobs", "2"]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "deeprec", *words, "--out", str(tmp_path / "t")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr + run.stdout
    rows = list(csv.DictReader((tmp_path / "t" / "trials.csv").open()))
    assert len({row["trial"] for row in rows}) == len(rows)
    assert 6 <= len(rows) <= 7  # the last one of each process may be beyond
    assert "search    lr: 0.005 to 0.5" in run.stdout
    assert "deeprec train bpr --data synthetic --config" in run.stdout
    best = json.loads((tmp_path / "t" / "best.json").read_text())
    assert best["epochs"] == 2
    assert best["factors"] in (4, 8)
