"""`resume` goes on with the run that it is asked for, and with no other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec import models
from deeprec.data import Interactions, synthetic, with_features
from deeprec.data.interactions.features import features_sha256
from deeprec.data.sets.click_datasets import load_clicks, synthetic_clicks
from deeprec.evaluate import read_card
from deeprec.evaluate.card import check_comparable
from deeprec.train import fit
from deeprec.train.checkpoint import FILE_NAME

SIZES = {"num_users": 50, "num_items": 120, "num_interactions": 900}
Data = Interactions


class _Stop(Exception):
    pass


def _after_first_epoch(progress: Any) -> None:
    if progress.metrics is not None:
        raise _Stop


@pytest.fixture(scope="module")
def data() -> Interactions:
    return synthetic(**SIZES, seed=0)


def _sided(data: Interactions, shift: float = 0.0) -> Interactions:
    """With a column of numbers for each item."""
    numbers = np.arange(data.num_items) / data.num_items + shift
    return with_features(data, items=pl.DataFrame({"item_id": data.item_ids.values, "number": numbers}))


def _gmf(**options: Any) -> models.GMF:
    return models.GMF(**{"epochs": 2, "factors": 4, **options})


def _cfn(**options: Any) -> Any:
    return models.create("cfn", **{"epochs": 2, "hidden": 4, "features": ("number",), "refit": False, **options})


def _interrupted(model: Any, data: Interactions, out: Path, **options: Any) -> None:
    with pytest.raises(_Stop):
        fit(model, data, out=out, on_progress=_after_first_epoch, **options)


CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"epochs": 3}, {}, "config.epochs is 2 there and 3 here"),
    ({"lr": 0.5}, {}, "config.lr is 0.005 there and 0.5 here"),
    ({}, {"seed": 9}, "seed is 0 there and 9 here"),
    ({}, {"protocol": "random"}, "protocol.holdout is 'leave_one_out' there and 'random' here"),
    ({}, {"select": "ndcg@10"}, "select is 'hr@10' there and 'ndcg@10' here"),
    ({}, {"report_best_on_test": True}, "best_on_test is False there and True here"),
]


@pytest.fixture(scope="module")
def runs(data: Interactions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished and an interrupted run."""
    where = tmp_path_factory.mktemp("runs")
    fit(_gmf(), data, out=where / "finished")
    _interrupted(_gmf(), data, where / "interrupted")
    return {name: where / name for name in ("finished", "interrupted")}


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize(("options", "settings", "message"), CHANGES, ids=[change[2] for change in CHANGES])
def test_other_settings_are_named_with_both_values(
    state: str, options: dict[str, Any], settings: dict[str, Any], message: str, runs: dict[str, Path], data: Data
) -> None:
    before = {path: path.read_bytes() for path in runs[state].iterdir()}
    with pytest.raises(ValueError, match=f"{state} run of other settings") as caught:
        fit(_gmf(**options), data, out=runs[state], resume=True, **settings)
    assert message in str(caught.value)
    assert "another out (--out)" in str(caught.value)
    assert {path: path.read_bytes() for path in runs[state].iterdir()} == before


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_other_data_and_another_model_are_named(state: str, runs: dict[str, Path], data: Data) -> None:
    with pytest.raises(ValueError, match=r"data\.sha256"):
        fit(_gmf(), synthetic(**SIZES, seed=1), out=runs[state], resume=True)
    with pytest.raises(ValueError, match="model is 'gmf' there and 'mlp' here"):
        fit(models.MLP(epochs=2, factors=4), data, out=runs[state], resume=True)


def test_a_run_that_starts_anew_meets_no_stage_of_another(data: Data, tmp_path: Path) -> None:
    def in_refit(progress: Any) -> None:
        if progress.stage.endswith("(refit)") and progress.metrics is not None:
            raise _Stop

    with pytest.raises(_Stop):
        fit(_gmf(refit=True), data, seed=0, out=tmp_path, on_progress=in_refit)
    assert (tmp_path / "refit" / FILE_NAME).exists()
    _interrupted(_gmf(refit=True), data, tmp_path, seed=1)
    resumed = fit(_gmf(refit=True), data, seed=1, out=tmp_path, resume=True)
    assert resumed.card.metrics == fit(_gmf(refit=True), data, seed=1).card.metrics


def test_a_finished_run_is_read_wherever_it_lies_now(runs: dict[str, Path], data: Data, tmp_path: Path) -> None:
    out = shutil.copytree(runs["finished"], tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in out.iterdir()}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        # Threads, names and what is shown shape no result; nor do titles that the model does not take.
        model = _gmf()
        found = fit(model, _sided(replace(data, name="other")), out=out, resume=True, on_progress=_after_first_epoch)
    finally:
        torch.set_num_threads(threads)
    assert found.was_finished
    assert found.card.as_dict() == read_card(runs["finished"]).as_dict()
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    again = fit(_gmf(), data).model
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.recommend([1], k=3).equals(again.recommend([1], k=3))
    assert model.evaluate() == again.evaluate()


def test_an_older_card_says_less_and_is_taken(runs: dict[str, Path], data: Data, tmp_path: Path) -> None:
    out = shutil.copytree(runs["finished"], tmp_path / "old")
    card = json.loads((out / "card.json").read_text())
    del card["select"], card["config"]["refit"], card["protocol"]["clamp"]
    (out / "card.json").write_text(json.dumps(card))
    assert fit(_gmf(), data, out=out, resume=True).was_finished
    check_comparable([read_card(out), read_card(runs["finished"])])


def test_other_side_information_is_another_run(data: Data, tmp_path: Path) -> None:
    _interrupted(_cfn(), _sided(data), tmp_path / "cut", protocol="rating")
    with pytest.raises(ValueError, match=r"interrupted run of other settings: data\.item_features_sha256"):
        fit(_cfn(), _sided(data, 0.5), protocol="rating", out=tmp_path / "cut", resume=True)
    resumed = fit(_cfn(), _sided(data), protocol="rating", out=tmp_path / "cut", resume=True)
    whole = fit(_cfn(), _sided(data), protocol="rating", out=tmp_path / "whole")
    assert resumed.card.metrics == whole.card.metrics
    with pytest.raises(ValueError, match=r"finished run of other settings: data\.item_features_sha256"):
        fit(_cfn(), _sided(data, 0.5), protocol="rating", out=tmp_path / "whole", resume=True)


def test_cards_of_other_side_information_do_not_compare(data: Data) -> None:
    first = fit(_cfn(), _sided(data), protocol="rating").card
    second = fit(_cfn(), _sided(data, 0.5), protocol="rating").card
    without = fit(_cfn(features=()), _sided(data), protocol="rating").card
    assert "item_features_sha256" not in without.data
    check_comparable([first, without])
    with pytest.raises(ValueError, match="data item_features_sha256"):
        check_comparable([first, second])


def test_checksums_of_side_information_see_values_and_not_widths() -> None:
    base = pl.DataFrame({"a": [1, 2, None], "b": ["x", "", None], "c": [["p"], [], None], "d": [0.5, None, 2.0]})
    same = base.with_columns(pl.col("a").cast(pl.Int16), pl.col("d").cast(pl.Float32), pl.col("b").cast(pl.Categorical))
    assert features_sha256(base) == features_sha256(same) == features_sha256(base.select("d", "c", "b", "a"))
    others = [
        base.with_columns(a=pl.Series([1, 3, None])),
        base.with_columns(a=pl.Series([1, 2, 0])),
        base.with_columns(a=pl.Series([1.0, 2.0, None])),
        base.with_columns(b=pl.Series(["", "x", None])),
        base.with_columns(b=pl.Series(["x", None, ""])),
        base.with_columns(c=pl.Series([["p"], None, []])),
        base.with_columns(c=pl.Series([[], ["p"], None])),
        base.rename({"a": "e"}),
        base.drop("a"),
        base.with_columns(d=pl.Series([None, 0.5, 2.0])),
    ]
    assert len({features_sha256(frame) for frame in (base, *others)}) == 1 + len(others)


def _flipped(share: float) -> Callable[[Path], object]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return flip


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace_file(path: Path) -> None:
        path.unlink()
        make(path)

    return replace_file


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{f"flipped at {share:.2f}": _flipped(share) for share in np.linspace(0, 1, 30)},
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x" * 32),
    "a pipe": _replaced(os.mkfifo),
    "a folder": _replaced(Path.mkdir),
    "a device": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "a loop": _replaced(lambda path: path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(damage: str, runs: dict[str, Path], data: Data, tmp_path: Path) -> None:
    out = shutil.copytree(runs["interrupted"], tmp_path / "out")
    DAMAGES[damage](out / FILE_NAME)
    with pytest.raises(ValueError, match=rf"resume: .*{FILE_NAME}.*; remove it to start the run anew"):
        fit(_gmf(), data, out=out, resume=True)


def test_click_models_read_finished_runs_too(tmp_path: Path) -> None:
    log = load_clicks("synthetic", rows=600, fields=2, numerics=2)
    first = fit(models.LR(epochs=1), log, out=tmp_path)
    model = models.LR(epochs=1)
    again = fit(model, log, out=tmp_path, resume=True)
    assert again.was_finished
    frame, _ = synthetic_clicks(rows=20, fields=2, numerics=2)
    assert np.array_equal(model.predict(frame), first.model.predict(frame))
    with pytest.raises(ValueError, match=r"finished run of other settings: config\.lr is 0.3 there and 0.2 here"):
        fit(models.LR(epochs=1, lr=0.2), log, out=tmp_path, resume=True)
    other = load_clicks("synthetic", rows=601, fields=2, numerics=2)
    with pytest.raises(ValueError, match=r"data\.sha256"):
        fit(models.LR(epochs=1), other, out=tmp_path, resume=True)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_converted_log_is_that_of_all_its_sources(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeprec.data.sets import click_datasets

    frames = {name: synthetic_clicks(rows=200, fields=2, numerics=1, seed=seed)[0] for seed, name in
              enumerate(("train", "validation", "test"))}  # fmt: skip
    _, schema = synthetic_clicks(rows=10, fields=2, numerics=1)

    def clicks(source: Any, *_: Any, **__: Any) -> Any:
        return click_datasets.Clicks(frames["train"], schema, frames["validation"], frames["test"])

    monkeypatch.setattr(click_datasets, "click_source", clicks)
    first = load_clicks("some", directory=tmp_path / "log")
    assert load_clicks("some", directory=tmp_path / "log", on_bad="skip").sha256 == first.sha256
    frames[part] = synthetic_clicks(rows=200, fields=2, numerics=1, seed=9)[0]
    with pytest.raises(ValueError, match="log of other rows"):
        load_clicks("some", directory=tmp_path / "log")
