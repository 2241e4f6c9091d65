"""A model folder after all kinds of damage: the same predictions, or an error that names the folder; never a hang."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import deeprec
from deeprec import models
from deeprec.cli.app import app
from deeprec.cli.folder import remember, titles_of
from deeprec.data import synthetic
from deeprec.data.sets.click_datasets import load_clicks, synthetic_clicks
from deeprec.serve.folder import _checksum
from deeprec.train import fit

SECONDS = 5  # after which a load counts as hanging
USERS, ITEMS = 40, 150
WRONG: tuple[Any, ...] = (None, -1, 10**30, True, 1e300, "../../etc/passwd", [[]], {"a": 1})
NAMES = ("gmf", "autorec", "lr")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fitted folder of a model that ranks, one that rates, one of clicks, and a second one of each."""
    where = tmp_path_factory.mktemp("models")
    made = {}
    for seed, twin in ((0, ""), (1, "-twin")):
        data = synthetic(num_users=USERS, num_items=ITEMS, num_interactions=800, seed=seed)
        made["gmf" + twin] = fit(models.GMF(epochs=1, factors=4), data, out=where / f"gmf{twin}").out
        rated = models.AutoRec(epochs=2, hidden=4)
        made["autorec" + twin] = fit(rated, data, protocol="rating", out=where / f"autorec{twin}").out
        log = load_clicks("synthetic", rows=600, fields=2, values=20, numerics=2, seed=seed)
        made["lr" + twin] = fit(models.LR(epochs=1), log, out=where / f"lr{twin}").out
    return {name: folder for name, folder in made.items() if folder is not None}


def _predictions(folder: Path) -> np.ndarray:
    model = deeprec.load(folder)
    if isinstance(model, models.ClickModel):
        frame, _ = synthetic_clicks(rows=10, fields=2, values=20, numerics=2, seed=5)
        return model.predict(frame)
    found = model.recommend(model.user_ids.values[:5].to_list(), k=5)
    return np.concatenate([found["item_id"].to_numpy(), found["score"].to_numpy()])


class _Hang(BaseException):
    """No error that anything catches."""


def _outcome(folder: Path) -> np.ndarray | None:
    """Predictions, or None after an error of the right kind that names the folder."""

    def late(*_: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    message = None
    try:
        found = _predictions(folder)
    except (ValueError, OSError) as error:
        message = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if message is None:
        return found
    assert str(folder) in message
    assert "; " in message, f"no remedy: {message}"
    return None


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*at, key)
        yield from _places(part, (*at, key))


def _with(values: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place; Ellipsis removes it."""
    changed = copy.deepcopy(values)
    owner = changed
    for key in place[:-1]:
        owner = owner[key]
    if value is ...:
        del owner[place[-1]]
    else:
        owner[place[-1]] = value
    return changed


def _sealed(folder: Path, config: dict[str, Any]) -> None:
    """Write a config.json whose checksums are right, so that what it says is looked at."""
    for name in config["sha256"] if isinstance(config.get("sha256"), dict) else ():
        if (folder / name).is_file():
            config["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps({**config, "checksum": _checksum(config)}))


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_config_json(name: str, is_sealed: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[name], tmp_path / name)
    expected, config = _predictions(folder), json.loads((folder / "config.json").read_text())
    for place in [*_places(config), ("unknown",)]:
        for value in (..., *WRONG) if place != ("unknown",) else WRONG:
            changed = _with(config, place, value)
            if is_sealed:
                _sealed(folder, changed)
            else:
                (folder / "config.json").write_text(json.dumps(changed))
            found = _outcome(folder)
            # With its checksums made to fit, another option is another model.
            assert found is None or is_sealed or np.array_equal(found, expected), (place, value)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_every_value_of_encoder_json(is_sealed: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["lr"], tmp_path / "lr")
    path, config = folder / "encoder" / "encoder.json", json.loads((folder / "config.json").read_text())
    state, expected = json.loads(path.read_text()), _predictions(folder)
    for place in [*_places(state), ("unknown",)]:
        for value in (..., *WRONG[::2]) if place != ("unknown",) else WRONG:
            path.write_text(json.dumps(_with(state, place, value)))
            if is_sealed:
                _sealed(folder, config)
            found = _outcome(folder)
            assert found is None or is_sealed or np.array_equal(found, expected), (place, value)


@pytest.mark.parametrize("name", NAMES)
def test_config_json_that_is_no_json_of_ours(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[name], tmp_path / name)
    path = folder / "config.json"
    good = path.read_text()
    for content in (
        b"",
        good[: len(good) // 2].encode(),
        good.encode("utf-16"),
        b"\xff" + good.encode(),
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": ' + b"[" * 400 + b"]" * 400 + b"}",
        good.replace("{", '{"format": 1,', 1).encode(),
        good.replace('"format": 2', '"format": NaN').encode(),
        good.replace('"format": 2', '"format": Infinity').encode(),
        good.replace('"format": 2', '"format": ' + "9" * 5000).encode(),
        good.replace('"format": 2', '"format": 1e999').encode(),
        good.encode() + b"x",
    ):
        path.write_bytes(content)
        assert _outcome(folder) is None, content[:60]


@pytest.mark.parametrize("version", [-1, 0, "2", 2.0, True, None, 10**30, 99])
def test_only_formats_there_are(version: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["gmf"], tmp_path / "gmf")
    _sealed(folder, {**json.loads((folder / "config.json").read_text()), "format": version})
    with pytest.raises(ValueError, match=r"config\.json"):
        deeprec.load(folder)


def _flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 0xFF
    path.write_bytes(content)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


FILE_DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "deleted": lambda path, twin: path.unlink(),
    "empty": lambda path, twin: path.write_bytes(b""),
    "half": lambda path, twin: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a byte short": lambda path, twin: path.write_bytes(path.read_bytes()[:-1]),
    "a byte long": lambda path, twin: path.write_bytes(path.read_bytes() + b"\0"),
    **{f"flipped at {share}": lambda path, twin, share=share: _flip(path, share) for share in np.linspace(0, 1, 9)},
    "of another model": lambda path, twin: path.write_bytes(twin.read_bytes()),
    "a folder": lambda path, twin: _replace(path, Path.mkdir),
    "a pipe": lambda path, twin: _replace(path, os.mkfifo),
    "a device": lambda path, twin: _replace(path, lambda p: p.symlink_to("/dev/zero")),
    "a loop": lambda path, twin: _replace(path, lambda p: p.symlink_to(p)),
    "a link to nothing": lambda path, twin: _replace(path, lambda p: p.symlink_to("nothing")),
}


def _files(folder: Path) -> list[str]:
    return ["config.json", *json.loads((folder / "config.json").read_text())["sha256"]]


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_file(name: str, is_sealed: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    expected = _predictions(folders[name])
    for file in _files(folders[name]):
        for what, damage in FILE_DAMAGES.items():
            folder = shutil.copytree(folders[name], tmp_path / name)
            damage(folder / file, folders[f"{name}-twin"] / file)
            if is_sealed and file != "config.json":
                _sealed(folder, json.loads((folder / "config.json").read_text()))
            found = _outcome(folder)
            assert found is None or is_sealed or np.array_equal(found, expected), (file, what)
            shutil.rmtree(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_listed(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[name], tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    for file in config["sha256"]:
        listed = {key: value for key, value in config["sha256"].items() if key != file}
        _sealed(folder, {**config, "sha256": listed})
        with pytest.raises(ValueError, match=f"must list {file}"):
            deeprec.load(folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(
    name: str, value: float, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / name)
    weights = load_file(folder / "model.safetensors")
    key = next(key for key, tensor in weights.items() if tensor.is_floating_point() and tensor.numel())
    weights[key].view(-1)[0] = value
    save_file(weights, folder / "model.safetensors")
    _sealed(folder, json.loads((folder / "config.json").read_text()))
    with pytest.raises(ValueError, match=rf"model\.safetensors must be finite.* in {key}; "):
        deeprec.load(folder)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_shape_or_type_are_refused(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    good = load_file(folders[name] / "model.safetensors")
    key = next(key for key, tensor in good.items() if tensor.is_floating_point() and tensor.dim() > 1)
    for changed in (
        {k: v for k, v in good.items() if k != key},
        {**good, "more": torch.zeros(1)},
        {**good, key: good[key].flatten()[:1].clone()},
        {**good, key: good[key].long()},
        {},
    ):
        folder = shutil.copytree(folders[name], tmp_path / name)
        save_file(changed, folder / "model.safetensors")
        _sealed(folder, json.loads((folder / "config.json").read_text()))
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            deeprec.load(folder)
        shutil.rmtree(folder)


def test_a_model_that_is_no_number_is_not_saved(tmp_path: Path, folders: dict[str, Path]) -> None:
    model = deeprec.load(folders["gmf"])
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match="save: the weights of gmf must be finite"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_format_1_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in NAMES:
        folder = shutil.copytree(folders[name], tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        del config["checksum"]
        config["sha256"] = {key: value for key, value in config["sha256"].items() if "/" not in key}
        config["format"] = 1
        (folder / "config.json").write_text(json.dumps(config))
        assert np.array_equal(_predictions(folder), _predictions(folders[name]))


def test_another_kind_of_model_leaves_nothing_behind(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["gmf"], tmp_path / "folder")
    deeprec.load(folders["lr"]).save(folder)
    assert np.array_equal(_predictions(folder), _predictions(folders["lr"]))
    deeprec.load(folders["gmf"]).save(folder)
    assert np.array_equal(_predictions(folder), _predictions(folders["gmf"]))


COMMANDS = {
    "gmf": [("recommend", "{}", "--user", "1"), ("evaluate", "{}"), ("compare", "{}")],
    "autorec": [("recommend", "{}", "--user", "1"), ("evaluate", "{}")],
    "lr": [("predict", "{}", "--input", "rows.csv", "--output", "{}/scores.csv"), ("evaluate", "{}")],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["half", "deleted", "a pipe", "a folder", "a loop", "flipped at 0.5"])
def test_commands_end_in_one_line(name: str, damage: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for words in COMMANDS[name]:
        folder = shutil.copytree(folders[name], tmp_path / name)
        for file in ("card.json",) if words[0] == "compare" else ("config.json", "model.safetensors"):
            FILE_DAMAGES[damage](folder / file, folders[f"{name}-twin"] / file)
        done = CliRunner().invoke(app, [word.format(folder) for word in words], env={"COLUMNS": "400", "TERM": "dumb"})
        assert done.exit_code == 2, done.output
        assert "Traceback" not in done.output
        assert len(done.stderr.strip().splitlines()) == 1
        shutil.rmtree(folder)


@pytest.mark.parametrize("file", ["card.json", "run.json"])
def test_evaluate_reads_its_other_files_as_carefully(file: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for damage in FILE_DAMAGES.values():
        folder = shutil.copytree(folders["gmf"], tmp_path / "gmf")
        (folder / "run.json").write_text('{"data": "nowhere", "data_options": {}}')
        damage(folder / file, folders["autorec"] / "card.json")
        done = CliRunner().invoke(app, ["evaluate", str(folder)], env={"COLUMNS": "400", "TERM": "dumb"})
        assert done.exit_code == 2, done.output
        assert "Traceback" not in done.output
        shutil.rmtree(folder)


def test_damaged_titles_leave_the_ids(tmp_path: Path) -> None:
    data = synthetic(num_users=5, num_items=60, num_interactions=100)
    remember(tmp_path, data, "synthetic", {})
    whole, path = titles_of(tmp_path), tmp_path / "titles.parquet"
    assert whole is not None
    assert whole.columns == ["item_id", "title"]
    good = path.read_bytes()
    for at in range(0, len(good), 5):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        assert titles_of(tmp_path) is None
    path.write_bytes(good)
    (tmp_path / "run.json").write_text("{")
    assert titles_of(tmp_path) is None
    (tmp_path / "run.json").write_text('{"data": "synthetic", "data_options": {}}')  # as it was before
    assert whole.equals(titles_of(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_a_card(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    card = json.loads((folders[name] / "card.json").read_text())
    for place in _places({key: value for key, value in card.items() if key != "history"}):
        for value in (..., *WRONG):
            path.write_text(json.dumps(_with(card, place, value)))
            message = str(path)
            try:
                deeprec.evaluate.read_card(path)
            except ValueError as error:
                message = str(error)
            assert str(path) in message
