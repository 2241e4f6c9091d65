"""`device=` and `--device`: what they name, what they refuse, and when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import deeprec
from deeprec import models
from deeprec.cli.app import app
from deeprec.data import synthetic
from deeprec.device import ahead, device_of, placed, resolve_device, to_device
from deeprec.evaluate import compare, read_card
from deeprec.train import fit
from deeprec.train.identity import identity_of_card

WRONG = ["GPU", "cuda:x", "cpu:cuda", "mps", "meta", ""]


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """(model, folder) of a short training."""
    out = tmp_path_factory.mktemp("runs") / "gmf"
    data = synthetic(num_users=60, num_items=120, num_interactions=1500, seed=1)
    return fit(models.create("gmf", factors=4, epochs=1), data, seed=1, out=out, device="cpu").model, out


@pytest.mark.usefixtures("two_gpus")
def test_names_of_devices() -> None:
    assert resolve_device("cpu", "fit") == resolve_device(torch.device("cpu", 0), "fit") == torch.device("cpu")
    assert resolve_device("cuda:0", "fit") == torch.device("cuda", 0)
    assert resolve_device("cuda", "fit") == resolve_device("auto", "fit") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"fit: device must be one of the 2 GPUs .* got 'cuda:2'; pass 'cuda:0' to"):
        resolve_device("cuda:2", "fit")


@pytest.mark.usefixtures("without_gpu")
def test_auto_is_the_cpu_without_a_gpu_and_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    assert resolve_device("auto", "fit") == torch.device("cpu")
    assert not recwarn.list
    with pytest.raises(ValueError, match=r"load: device 'cuda' needs a GPU, torch .* sees none; pass 'cpu' or 'auto'"):
        resolve_device("cuda", "load")


@pytest.mark.parametrize("device", WRONG)
def test_unknown_device_is_named_with_the_remedy(device: str) -> None:
    with pytest.raises(ValueError, match=f"fit: device must be the CPU or a CUDA GPU, got '{device}'; pass 'auto'"):
        resolve_device(device, "fit")
    with pytest.raises(TypeError, match=r"device must be a text or a torch\.device, got 0; pass 'auto'"):
        resolve_device(0, "fit")  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("device", ["GPU", "cuda"])
def test_python_refuses_before_anything_is_read_or_written(run: tuple[Any, Path], tmp_path: Path, device: str) -> None:
    model, nowhere = run[0], tmp_path / "nowhere"
    calls = (
        lambda: models.create("gmf").fit(str(nowhere), out=nowhere, device=device),
        lambda: models.create("fm").fit(str(nowhere), out=nowhere, device=device),
        lambda: model.evaluate(data=str(nowhere), device=device),
        lambda: models.create("fm").evaluate(str(nowhere), device=device),
        lambda: deeprec.load(nowhere, device=device),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"device.*'{device}'.*pass"):
            call()
    assert not nowhere.exists()
    assert model.device.type == "cpu"


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("device", ["GPU", "cuda"])
@pytest.mark.parametrize("command", ["train", "train clicks", "evaluate", "recommend", "predict"])
def test_command_line_refuses_before_anything_is_read_or_written(
    run: tuple[Any, Path], tmp_path: Path, command: str, device: str
) -> None:
    new, source, folder = tmp_path / "new", tmp_path / "missing.csv", str(run[1])
    words = {
        "train": ["train", "gmf", "--data", str(source), "--out", str(new)],
        "train clicks": ["train", "fm", "--data", str(source), "--out", str(new)],
        "evaluate": ["evaluate", folder],
        "recommend": ["recommend", folder, "--user", "1"],
        "predict": ["predict", folder, "--input", str(source), "--output", str(new)],
    }[command]
    result = CliRunner().invoke(app, [*words, "--device", device], env={"COLUMNS": "240", "TERM": "dumb"})
    assert result.exit_code == 2 or result.exit_code == 1, result.output
    assert "device" in result.output
    assert repr(device) in result.output
    assert "pass 'auto'" in result.output or "pass 'cpu'" in result.output
    assert not new.exists()


def test_device_is_on_the_card_and_compares_nothing(run: tuple[Any, Path], tmp_path: Path) -> None:
    card = read_card(run[1])
    assert card.device == "cpu"
    values = json.loads((run[1] / "card.json").read_text())
    del values["device"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    (tmp_path / "other.json").write_text(json.dumps({**values, "device": "cuda:1"}))
    old, other = read_card(tmp_path / "old.json"), read_card(tmp_path / "other.json")
    assert (old.device, other.device) == (None, "cuda:1")
    assert len(compare([card, old, other])) == 3
    assert identity_of_card(card) == identity_of_card(old) == identity_of_card(other)


def test_finished_run_of_another_device_is_adopted(tmp_path: Path) -> None:
    data = synthetic(num_users=60, num_items=120, num_interactions=1500, seed=1)
    first = fit(models.create("gmf", factors=4, epochs=1), data, out=tmp_path)
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "device": "cuda:3"}))
    again = fit(models.create("gmf", factors=4, epochs=1), data, out=tmp_path, resume=True, device="cpu")
    assert again.was_finished
    assert again.card.device == "cuda:3"
    for mine, theirs in zip(again.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_evaluation_on_a_device_is_that_of_the_model(run: tuple[Any, Path]) -> None:
    model, folder = run
    assert model.evaluate(device="cpu") == model.evaluate()
    assert device_of(deeprec.load(folder, device=torch.device("cpu"))) == torch.device("cpu")


def test_placed_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(2, 2, dtype=torch.float32)
    moves: list[torch.device] = []
    monkeypatch.setattr(layer, "to", moves.append)
    monkeypatch.setattr("deeprec.device.resolve_device", lambda *_: torch.device("meta"))
    with pytest.raises(KeyError), placed(layer, "meta", "evaluate"):
        raise KeyError
    assert moves == [torch.device("meta"), torch.device("cpu")]
    message = r"evaluate: device goes with an nn\.Module, got object; leave it out"
    with pytest.raises(ValueError, match=message), placed(object(), "meta", "evaluate"):
        pass


def test_batches_come_in_order_and_one_is_on_its_way() -> None:
    made: list[int] = []

    def batches() -> Any:
        for number in range(4):
            made.append(number)
            yield torch.full((2,), number)

    meta = torch.device("meta")
    for place, batch in enumerate(ahead(batches(), lambda batch: to_device(batch, meta), meta)):
        assert batch.device == meta
        assert len(made) == min(place + 2, 4)
    assert [int(batch[0]) for batch in ahead(batches(), lambda batch: batch, torch.device("cpu"))] == [0, 1, 2, 3]


def test_side_of_a_batch_of_clicks_is_where_its_ids_are() -> None:
    bags = {"tags": (torch.zeros(3, dtype=torch.int32), torch.tensor([0, 1, 3]), torch.ones(3))}
    batch = models.ClickBatch(torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2, 1), bags, torch.ones(2))
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    tensors = [moved.ids, moved.values, moved.labels, *moved.bags["tags"]]
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
