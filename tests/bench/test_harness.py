"""The rule of the bench harness: no figure without parity, and a rival that is wrong or missing is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def harness() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import bench.harness

    yield bench.harness
    sys.path.pop(0)


def _case(harness: ModuleType, ours: float, theirs: float) -> object:
    def build() -> object:
        trial = harness.Trial([torch.tensor([1.0, 2.0], dtype=torch.float64)], tolerance=1e-6)
        trial.add("deeprec", lambda: torch.tensor([1.0, 2.0]) * ours)
        trial.add("rival", lambda: torch.tensor([1.0, 2.0]) * theirs)
        trial.add_rival("absent", _not_installed)
        return trial

    return harness.Case("work", "group", build, bytes=16.0)


def _not_installed() -> object:
    raise ModuleNotFoundError("No module named 'absent' in /somewhere/on/this/machine")


def _run(harness: ModuleType, ours: float = 1.0, theirs: float = 1.0) -> dict[str, object]:
    class NoLimits:
        def of(self, pattern: object) -> tuple[None, None]:
            return None, None

    return harness.run_case(_case(harness, ours, theirs), NoLimits(), seconds=0.01, rounds=2)


def test_red_parity_gives_no_time(harness: ModuleType) -> None:
    with pytest.raises(harness.ParityError, match="deeprec: result 0 is off by"):
        _run(harness, ours=1.001)


def test_a_case_that_cannot_be_set_up_is_no_end_of_the_others(harness: ModuleType) -> None:
    case = harness.Case("work", "group", _not_installed, bytes=16.0)
    with pytest.raises(harness.ParityError, match="work could not be set up: ModuleNotFoundError: No module named"):
        harness.run_case(case, None, seconds=0.01, rounds=2)


def test_nan_is_red(harness: ModuleType) -> None:
    with pytest.raises(harness.ParityError):
        _run(harness, ours=float("nan"))


def test_wrong_rival_is_left_out_and_named(harness: ModuleType) -> None:
    result = _run(harness, theirs=1.5)
    assert [row["name"] for row in result["rows"]] == ["deeprec"]
    assert "off by" in result["missing"]["rival"]


def test_missing_rival_is_named_without_paths(harness: ModuleType) -> None:
    result = _run(harness)
    assert result["missing"]["absent"] == "ModuleNotFoundError: No module named 'absent' in machine"
    assert [row["name"] for row in result["rows"]] == ["deeprec", "rival"]


def test_quartiles_enclose_the_median(harness: ModuleType) -> None:
    for row in _run(harness)["rows"]:
        assert 0 < row["low"] <= row["median"] <= row["high"]


@pytest.mark.parametrize(("over", "got"), [("min", 2.0), ("median", 4.0)])
def test_target_takes_the_worst_or_the_middle_case(harness: ModuleType, over: str, got: float) -> None:
    cases = [
        {"group": "g", "rows": [{"name": "deeprec", "median": 1.0}, {"name": "rival", "median": slow}]}
        for slow in (8.0, 2.0, 4.0)
    ]
    target = harness.Target("work", "g", "rival", 3.0, over=over)
    assert harness.reached(target, cases) == {
        "work": "work",
        "group": "g",
        "rival": "rival",
        "reach": 3.0,
        "over": over,
        "ours": "deeprec",
        "device": "cpu",
        "got": pytest.approx(got),
        "reached": got >= 3.0,
    }


def test_target_without_rival_is_not_measured(harness: ModuleType) -> None:
    cases = [{"group": "g", "rows": [{"name": "deeprec", "median": 1.0}]}]
    assert harness.reached(harness.Target("work", "g", "rival", 3.0), cases)["reached"] is None
