"""A model costs its file and its registry line: four that CONTRIBUTING's recipe makes, one a kind, used like any other.

Each is written against what CONTRIBUTING says and nothing else; nothing in the package or the tests knows of it.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import deeprec
from deeprec import models, registry
from deeprec.cli.app import app
from deeprec.contract import CAPABILITIES, NEW_ITEMS, NEW_USERS, PREDICTS, RATES, RECOMMENDS, SIMILAR_ITEMS
from deeprec.data import Interactions, from_frame
from deeprec.data.sets.click_datasets import load_clicks, synthetic_clicks
from deeprec.train import fit
from deeprec.train.optimizers import Optimizers

TOYS = Path(__file__).with_name("toys")


class Toy(NamedTuple):
    """One registry line, and what the model is tried on.

    Attributes:
        line: the line: name, and place of the class.
        options: of the model.
        protocol: what it is measured by.
        figure: of the test part.
    """

    line: tuple[str, str]
    options: dict[str, Any]
    protocol: str
    figure: str


ALL = {
    toy.line[0]: toy
    for toy in (
        Toy(("toy-pairs", "toys.pairs:ToyBPR"), {"epochs": 20, "lr": 0.05}, "full", "ndcg@10"),
        Toy(("toy-ratings", "toys.ratings:Biases"), {"epochs": 30, "lr": 0.1}, "rating", "rmse"),
        Toy(("toy-log", "toys.log:Logistic"), {"epochs": 4, "batch_size": 256}, "click", "auc"),
        Toy(("toy-sequence", "toys.sequence:LastItems"), {"epochs": 20, "lr": 0.05}, "next-item", "ndcg@10"),
    )
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four lines, in a registry of this test's own."""
    monkeypatch.syspath_prepend(str(TOYS.parent))
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    for toy in ALL.values():
        registry.register(*toy.line)


@pytest.fixture(scope="module")
def chains() -> Interactions:
    """80 users who walk around rings of ten items, from an item of their own, and rate one ring above another."""
    rows, draw = [], np.random.default_rng(0)
    for user in range(80):
        ring, start = user % 4, draw.integers(10)
        for step in range(8):
            rating = float(np.clip(2 + ring % 2 + draw.integers(0, 2) + (user % 3 == 0), 1, 5))
            rows.append((f"user-{user}", 1000 + 10 * ring + (start + step) % 10, step, rating))
    columns = dict(zip(("user_id", "item_id", "timestamp", "rating"), zip(*rows, strict=True), strict=True))
    return from_frame(pl.DataFrame(columns), timestamp="timestamp", rating="rating")


@pytest.fixture(scope="module")
def data_of(chains: Interactions) -> Callable[[Toy], Any]:
    log = load_clicks("synthetic", rows=6000, fields=3, values=20)
    return lambda toy: log if toy.protocol == "click" else chains


@pytest.fixture(params=ALL)
def toy(request: pytest.FixtureRequest) -> Toy:
    return ALL[request.param]


@pytest.fixture
def trained(toy: Toy, data_of: Callable[[Toy], Any], tmp_path: Path) -> Any:
    """What `fit` returns."""
    model = models.create(toy.line[0], **toy.options)
    return fit(model, data_of(toy), protocol=toy.protocol, seed=1, out=tmp_path / "run")


def asked(model: Any, data: Any) -> dict[str, tuple[set[str], Callable[[], Any]]]:
    """Every question to a model: what it needs for it, and the question."""
    users, items = ["user-3", "user-4"], [1001, 1002]
    rows = pl.DataFrame() if isinstance(data, Interactions) else _rows()
    return {
        "recommend": ({RECOMMENDS}, lambda: model.recommend(users, 5)),
        "score": ({RECOMMENDS}, lambda: model.score([("user-3", 1001)])),
        "recommend_for_history": ({NEW_USERS}, lambda: model.recommend_for_history(items, 5)),
        "similar_items": ({SIMILAR_ITEMS}, lambda: model.similar_items(items, 3)),
        "predict_for_user": ({RATES, NEW_USERS}, lambda: model.predict_for_user(items, [5, 1])),
        "predict_for_item": ({RATES, NEW_ITEMS}, lambda: model.predict_for_item(users, [5, 1])),
        "predict": ({PREDICTS}, lambda: model.predict(rows)),
    }


def _rows() -> pl.DataFrame:
    return synthetic_clicks(50, fields=3, values=20)[0].drop("click")


def answers(model: Any, data: Any) -> dict[str, Any]:
    """What the model says to what its capabilities name, as plain values."""
    given = {}
    for call, (needed, ask) in asked(model, data).items():
        if needed <= model.capabilities:
            answer = ask()
            given[call] = answer.to_dict(as_series=False) if isinstance(answer, pl.DataFrame) else answer.tolist()
    assert given
    return given


def test_a_model_is_a_file_and_a_line() -> None:
    files = sorted(path.stem for path in TOYS.glob("*.py"))
    assert files == sorted(place.partition(".")[2].partition(":")[0] for _, place in (toy.line for toy in ALL.values()))
    root = Path(__file__).resolve().parents[2]
    named = [
        str(path)
        for folder in ("deeprec", "tests")
        for path in (root / folder).rglob("*.py")
        if path != Path(__file__).resolve()
        and path.parent != TOYS.resolve()
        and any(name in path.read_text(encoding="utf-8") for name in ALL)
    ]
    assert not named


def test_the_models_of_the_package_are_a_file_and_a_line_each() -> None:
    for name in models.names():
        if name not in ALL:
            module, _, kind = registry._MODELS[name].partition(":")
            assert getattr(models, kind) is models.model_class(name)
            assert module.startswith("deeprec.models.")
    source = Path(models.__file__).read_text(encoding="utf-8")
    imported = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    places = {place.partition(":")[0] for place in registry._MODELS.values()}
    assert not imported & places


def test_it_is_known_by_name(toy: Toy) -> None:
    name, place = toy.line
    kind = models.model_class(name)
    assert kind.name == name
    assert getattr(models, place.partition(":")[2]) is kind
    assert place.partition(":")[2] in dir(models)
    assert (name in models.click_models()) == (toy.protocol == "click")


def test_it_learns_and_is_measured(toy: Toy, trained: Any, data_of: Callable[[Toy], Any]) -> None:
    data, model = data_of(toy), trained.model
    figure = trained.card.metrics[toy.figure]
    if toy.protocol in ("full", "next-item"):
        floor = fit(models.create("popularity"), data, protocol=toy.protocol).card.metrics[toy.figure]
        assert figure > 1.5 * floor
    elif toy.protocol == "rating":
        split = model.task_for(data, "rating").split
        spread = float(np.sqrt(np.mean((split.test.ratings - split.train.ratings.mean()) ** 2)))
        assert figure < 0.9 * spread
    else:
        assert figure > 0.55
    again = model.evaluate(data=data) if toy.protocol == "click" else model.evaluate()
    assert again == pytest.approx(trained.card.metrics)
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def test_it_answers_what_it_can_and_refuses_the_rest(toy: Toy, trained: Any, data_of: Callable[[Toy], Any]) -> None:
    model = trained.model
    answers(model, data_of(toy))
    for needed, ask in asked(model, data_of(toy)).values():
        if missing := needed - model.capabilities:
            with pytest.raises(ValueError, match=rf"a model is needed that .*got {toy.line[0]}; such are") as error:
                ask()
            assert any(CAPABILITIES[each] in str(error.value) for each in missing)


def test_it_comes_back_from_its_folder_a_copy_and_a_pickle(
    toy: Toy, trained: Any, data_of: Callable[[Toy], Any]
) -> None:
    expected = answers(trained.model, data_of(toy))
    assert answers(deeprec.load(trained.out), data_of(toy)) == expected
    assert answers(pickle.loads(pickle.dumps(trained.model)), data_of(toy)) == expected  # noqa: S301  # our own
    assert not list(trained.out.glob("checkpoint*"))


def test_it_goes_on_where_it_was_interrupted(
    toy: Toy, trained: Any, data_of: Callable[[Toy], Any], tmp_path: Path
) -> None:
    def stop(progress: Any) -> None:
        if progress.epoch == 2 and progress.metrics is not None:
            raise KeyboardInterrupt

    name, options = toy.line[0], toy.options
    settings: dict[str, Any] = {"protocol": toy.protocol, "seed": 1, "out": tmp_path / "cut"}
    with pytest.raises(KeyboardInterrupt):
        fit(models.create(name, **options), data_of(toy), on_progress=stop, **settings)
    again = fit(models.create(name, **options), data_of(toy), resume=True, **settings)
    for key, value in trained.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


def test_every_optimizer_option_and_device_of_its_kind(toy: Toy, data_of: Callable[[Toy], Any]) -> None:
    name, options = toy.line[0], {**toy.options, "epochs": 1}
    for optimizer in models.config_class(name).optimizers:
        rate = {"lr": 0.01, "optimizer": optimizer}
        model = models.create(name, **{**options, **rate})
        fit(model, data_of(toy), protocol=toy.protocol, device="cpu")
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
        assert set(Optimizers(model).by_group) == {""}
    several = {"accumulate": 2, "clip_norm": 1.0, "warmup_steps": 3, "lr_schedule": "cosine"}
    fit(models.create(name, **{**options, **several}), data_of(toy), protocol=toy.protocol)
    with pytest.raises(ValueError, match="compile has no effect here"):
        models.create(name, compile=True)
    with pytest.raises(ValueError, match="unknown option 'facters'"):
        models.create(name, facters=4)


def test_all_of_them_stay_on_the_device_that_they_are_put_on() -> None:
    worker = TOYS.parents[1] / "proofs" / "shadow_worker.py"
    lines = ["=".join(toy.line) for toy in ALL.values()]
    paths = [str(TOYS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, str(worker), *lines],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    measured = json.loads(run.stdout)
    for name in ALL:
        for optimizer, work in measured[name]["steps"].items():
            assert "error" not in work, f"{name} with {optimizer}: {work}"
            assert not work["reads"], f"{name} with {optimizer} waits for the device"
        for what, work in measured[name]["serving"].items():
            assert "error" not in work, f"{name}, {what}: {work}"
        assert measured[name]["checkpoint"]["model"] == "shadow"


def test_the_command_line_takes_it(toy: Toy, tmp_path: Path) -> None:
    name, out = toy.line[0], tmp_path / "run"

    def call(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})
        assert done.exit_code == 0, done.output
        return done.output

    assert name in call("models")
    assert "epochs" in call("models", name)
    small = ["data.num_users=60", "data.num_items=80", "data.num_interactions=900"] if toy.protocol != "click" else []
    call("train", name, "--protocol", toy.protocol, "--out", out, "epochs=1", *small)
    assert toy.figure in call("evaluate", out)
    if RECOMMENDS in models.model_class(name).capabilities:
        assert "rank" in call("recommend", out, "--user", 1, "-k", 3)
