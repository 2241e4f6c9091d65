"""Loggers, with the real packages: what a service holds after a run, a resumed run and one that failed."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from deeprec.data import synthetic
from deeprec.evaluate import Card
from deeprec.evaluate import protocol as protocol_by_name
from deeprec.models import create
from deeprec.train import fit
from deeprec.train.callbacks import LOGGERS_FILE, CallbackError, Progress, RunInfo, Step, as_callbacks
from deeprec.train.loggers import NAMES, CSVLogger, MLflowLogger, TensorBoardLogger, WandbLogger, logger_by_name

CONFIG = {"lr": 0.1, "hidden": (8, 4), "optimizer": "adam", "l1": None, "refit": False}
DATA = {"name": "toy", "sha256": "ab", "users": 3}
PROTOCOL = protocol_by_name("full").as_dict()


def run_info(out: Path | None, *, is_resumed: bool = False) -> RunInfo:
    return RunInfo("neumf", CONFIG, DATA, PROTOCOL, 7, "cpu", out, 3, is_resumed)


def progress(epoch: int, stage: str = "neumf") -> Progress:
    figures = {} if "refit" in stage else {"ndcg@10": epoch / 10, "hr@10": float("nan")}
    return Progress(stage, epoch, 3, 100, 100, 1 / epoch, 50.0, figures, epoch == 2, {"": 0.1 / epoch, "wide": 0.5})


def card() -> Card:
    return Card("neumf", CONFIG, DATA, PROTOCOL, {"ndcg@10": 0.25, "auc": None}, seed=7, seconds=2.5, epoch=2)


class Cut(BaseException):
    """The process ends here."""


def drive(logger, out: Path | None, epochs=(1, 2, 3), *, resumed: bool = False, cut: BaseException | None = None):
    """A run of these epochs, two steps each; `cut` ends it before the test."""
    callbacks = as_callbacks([logger])
    try:
        with callbacks.running(run_info(out, is_resumed=resumed)):
            for epoch in epochs:
                for step in (1, 2):
                    if callbacks.wants_step(step):
                        callbacks.on_step(
                            Step("neumf", epoch, step, 50 * step, 0.5 / step, {"": 0.1, "wide": 0.5}, 100)
                        )
                callbacks.on_epoch(progress(epoch))
            if cut is not None:
                raise cut
            callbacks.on_epoch(progress(1, "neumf (refit)"))
            if out is not None:
                Image.new("RGB", (30, 20), (255, 0, 0)).save(out / "curves.png")
            callbacks.on_end(card(), out)
    except (Cut, KeyError):
        pass


EPOCHS = {
    "train/loss": [(1, 1.0), (2, 0.5), (3, 1 / 3)],
    "samples_per_second": [(1, 50.0), (2, 50.0), (3, 50.0)],
    "lr": [(1, 0.1), (2, 0.05), (3, 0.1 / 3)],
    "lr/wide": [(1, 0.5), (2, 0.5), (3, 0.5)],
    "validation/ndcg@10": [(1, 0.1), (2, 0.2), (3, 0.3)],
    "neumf-refit/train/loss": [(1, 1.0)],
    "neumf-refit/samples_per_second": [(1, 50.0)],
    "neumf-refit/lr": [(1, 0.1)],
    "neumf-refit/lr/wide": [(1, 0.5)],
}
STEPS = {
    "step/loss": [(100, 0.25), (200, 0.25), (300, 0.25)],
    "step/lr": [(100, 0.1), (200, 0.1), (300, 0.1)],
    "step/lr/wide": [(100, 0.5), (200, 0.5), (300, 0.5)],
}
END = {"test/ndcg@10": [(2, 0.25)], "best_epoch": [(2, 2.0)], "seconds": [(2, 2.5)]}


def same_curves(found: dict[str, list[tuple[int, float]]], *expected: dict[str, list[tuple[int, float]]]) -> None:
    curves = {name: points for each in expected for name, points in each.items()}
    assert found.keys() == curves.keys()
    for name, points in curves.items():
        assert [at for at, _ in found[name]] == [at for at, _ in points], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


# -- TensorBoard ------------------------------------------------------------------------------------------------------


def events(folder: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0})
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(folder)
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def the_folder(folder: Path) -> Path:
    (only,) = folder.iterdir()
    return only


def test_tensorboard_shows_the_run(tmp_path):
    drive(TensorBoardLogger(every_steps=2), tmp_path)
    folder = the_folder(tmp_path / "tensorboard")
    assert folder.name.startswith("neumf-")
    same_curves(scalars(folder), EPOCHS, STEPS, END)
    found = events(folder)
    assert found.Tags()["images"] == ["curves"]
    assert (found.Images("curves")[0].width, found.Images("curves")[0].height) == (30, 20)
    texts = {
        tag: found.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode() for tag in ("tags", "card")
    }
    assert "| data | toy |" in texts["tags"]
    assert json.loads(texts["card"].removeprefix("```json\n").removesuffix("\n```"))["metrics"]["ndcg@10"] == 0.25
    parameters = found.Tensors("parameters/text_summary")[0].tensor_proto.string_val[0].decode()
    for row in (
        "| lr | 0.1 |",
        "| hidden | [8, 4] |",
        "| l1 | None |",
        "| data.name | toy |",
        "| protocol.name | full |",
    ):
        assert row in parameters
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_tensorboard_goes_on_in_the_same_folder(tmp_path):
    drive(TensorBoardLogger(), tmp_path, (1, 2), cut=Cut())
    drive(TensorBoardLogger(), tmp_path, (2, 3), resumed=True)
    same_curves(scalars(the_folder(tmp_path / "tensorboard")), EPOCHS, END)
    drive(TensorBoardLogger(), tmp_path, (1,), cut=Cut())
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2, "a run that starts anew has a folder of its own"


def test_tensorboard_writes_where_it_is_told(tmp_path, monkeypatch):
    drive(TensorBoardLogger(tmp_path / "mine"), None)
    same_curves(scalars(the_folder(tmp_path / "mine")), EPOCHS, END)
    monkeypatch.chdir(tmp_path)
    drive(TensorBoardLogger(), None, (1,), cut=Cut())
    assert the_folder(tmp_path / "runs").name.startswith("neumf-")


# -- MLflow -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory):
    """A database of MLflow; it takes seconds to make, so that all tests share one."""
    pytest.importorskip("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        folder = tmp_path_factory.mktemp("mlflow")
        patch.chdir(folder)
        yield f"sqlite:///{folder}/mlflow.db"


def mlflow_runs(uri: str, experiment: str):
    client = MLflowLogger(experiment, uri)._client
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def mlflow_curves(client, run) -> dict[str, list[tuple[int, float]]]:
    each = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name.replace("_at_", "@"): [(m.step, m.value) for m in history] for name, history in each.items()}


def test_mlflow_holds_the_run(tmp_path, mlflow_uri):
    drive(MLflowLogger("whole", mlflow_uri, every_steps=2), tmp_path)
    client, (run,) = mlflow_runs(mlflow_uri, "whole")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "neumf on toy"
    same_curves(mlflow_curves(client, run), EPOCHS, STEPS, END)
    assert {"lr": "0.1", "hidden": "[8, 4]", "l1": "None", "data.sha256": "ab", "protocol.name": "full"}.items() <= (
        run.data.params.items()
    )
    tags = {"model": "neumf", "data": "toy", "protocol": "full", "seed": "7", "device": "cpu"}
    assert tags.items() <= run.data.tags.items()
    assert sorted(each.path for each in client.list_artifacts(run.info.run_id)) == ["card.json", "curves.png"]
    (tmp_path / "fetched").mkdir()
    fetched = client.download_artifacts(run.info.run_id, "card.json", str(tmp_path / "fetched"))
    assert json.loads(Path(fetched).read_text()) == card().as_dict()


def test_mlflow_goes_on_with_the_same_run(tmp_path, mlflow_uri):
    drive(MLflowLogger("cut", mlflow_uri), tmp_path, (1, 2), cut=Cut())
    _, (run,) = mlflow_runs(mlflow_uri, "cut")
    assert run.info.status == "KILLED"
    drive(MLflowLogger("cut", mlflow_uri), tmp_path, (2, 3), resumed=True)
    client, (again,) = mlflow_runs(mlflow_uri, "cut")
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    same_curves(mlflow_curves(client, again), EPOCHS, END)


def test_a_run_that_fails_is_marked_so_and_one_that_starts_anew_is_another(tmp_path, mlflow_uri):
    drive(MLflowLogger("anew", mlflow_uri, run_name="mine"), tmp_path, (1,), cut=KeyError("column"))
    drive(MLflowLogger("anew", mlflow_uri), tmp_path, (1,), cut=KeyError("column"))
    _, runs = mlflow_runs(mlflow_uri, "anew")
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]
    assert {run.info.run_name for run in runs} == {"mine", "neumf on toy"}


def test_more_options_than_a_call_of_mlflow_takes_and_long_ones_are_logged(tmp_path, mlflow_uri):
    many = {f"option{at}": at for at in range(250)} | {"long": "x" * 9000, "at @ (odd)": 1}
    run = dataclasses.replace(run_info(tmp_path), config=many)
    with as_callbacks(MLflowLogger("many", mlflow_uri)).running(run):
        pass
    _, (found,) = mlflow_runs(mlflow_uri, "many")
    assert found.data.params["option249"] == "249"
    assert found.data.params["long"].endswith("x...")
    assert found.data.params["at _at_ _odd_"] == "1"


def test_mlflow_says_where_it_cannot_write(mlflow_uri):
    with pytest.raises(
        ValueError, match=r"MLflowLogger: tracking_uri must be a place .*got 'nowhere://x' .*\[loggers\]"
    ):
        MLflowLogger(tracking_uri="nowhere://x")


def test_mlflow_takes_its_settings_from_the_environment(monkeypatch, mlflow_uri, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by environment")
    drive(logger_by_name("mlflow", tmp_path), tmp_path, (1,), cut=Cut())
    assert len(mlflow_runs(mlflow_uri, "by environment")[1]) == 1


# -- Weights & Biases -------------------------------------------------------------------------------------------------


@pytest.fixture
def no_wandb_key(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def wandb_records(path: Path):
    """What an offline run wrote: protocol buffers in blocks of 32 KiB, as in the log of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def values_of(items) -> dict:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def wandb_parts(out: Path) -> list[list]:
    """The records of each part of a run, in their order."""
    importlib.import_module("wandb").teardown()  # waits until all is written
    paths = sorted(out.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [list(wandb_records(path)) for path in paths]


def wandb_rows(parts: list[list]) -> list[dict]:
    return [values_of(record.history.item) for part in parts for record in part if record.HasField("history")]


def wandb_curves(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        (axis,) = [name for name in row if name.rpartition("/")[2] in ("epoch", "examples")]
        for name, value in row.items():
            if name != axis and not name.startswith("_"):
                curves.setdefault(name, []).append((row[axis], value))
    return curves


def test_wandb_holds_the_run_without_a_key_in_files(tmp_path, no_wandb_key, capfd):
    drive(WandbLogger("mine", every_steps=2), tmp_path)
    assert importlib.import_module("wandb").run is None
    assert "".join(capfd.readouterr()) == ""
    (part,) = wandb_parts(tmp_path)
    rows = wandb_rows([part])
    assert [row["_step"] for row in rows] == list(range(1, len(rows) + 1))
    same_curves(wandb_curves(rows[:-1]), EPOCHS, STEPS)
    assert rows[-1]["curves.width"] == 30
    (run,) = [record.run for record in part if record.HasField("run")][:1]
    assert (run.project, run.display_name) == ("mine", "neumf on toy")
    options = [item for r in part for kind in ("run", "config") if r.HasField(kind)
               for item in (r.run.config.update if kind == "run" else r.config.update)]  # fmt: skip
    assert {"lr": 0.1, "hidden": "[8, 4]", "l1": None, "data.name": "toy"}.items() <= values_of(options).items()
    tags = {tag for record in part if record.HasField("run") for tag in record.run.tags}
    assert tags == {"model=neumf", "data=toy", "protocol=full", "seed=7", "device=cpu"}
    axes = {record.metric.name: record.metric.step_metric for record in part if record.HasField("metric")}
    assert axes["validation/ndcg@10"] == "epoch"
    assert axes["neumf-refit/train/loss"] == "neumf-refit/epoch"
    assert axes["step/loss"] == "examples"
    summary = values_of(item for record in part if record.HasField("summary") for item in record.summary.update)
    assert (summary["test/ndcg@10"], summary["best_epoch"]) == (0.25, 2)
    assert any(record.HasField("artifact") or record.request.HasField("log_artifact") for record in part)
    assert [record.exit.exit_code for record in part if record.HasField("exit")] == [0]


def test_wandb_goes_on_with_the_same_run(tmp_path, no_wandb_key):
    drive(WandbLogger(), tmp_path, (1, 2), cut=Cut())
    drive(WandbLogger(), tmp_path, (2, 3), resumed=True)
    first, second = wandb_parts(tmp_path)
    ids = {record.run.run_id for part in (first, second) for record in part if record.HasField("run")}
    assert len(ids) == 1
    rows = wandb_rows([first, second])
    assert [row["_step"] for row in rows] == list(range(1, len(rows) + 1))
    same_curves(wandb_curves(rows[:-1]), EPOCHS)
    assert [[r.exit.exit_code for r in part if r.HasField("exit")] for part in (first, second)] == [[1], [0]]


def test_wandb_is_online_where_there_is_a_key_and_obeys_its_mode(tmp_path, no_wandb_key, monkeypatch):
    def mode(**options) -> str:
        return WandbLogger(**options)._mode

    assert mode() == "offline"
    home = tmp_path / "home"
    (home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123\n")
    assert mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert mode() == "offline"
    (home / ".netrc").write_text("machine\n")  # damaged
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() == "disabled"
    assert mode(mode="offline") == "offline"
    drive(WandbLogger(), tmp_path)
    assert not (tmp_path / "wandb").exists()
    with pytest.raises(ValueError, match="mode must be online, offline, disabled or None, got 'dryrun'"):
        WandbLogger(mode="dryrun")


# -- CSV --------------------------------------------------------------------------------------------------------------


def test_csv_has_a_row_for_each_epoch_at_every_moment(tmp_path):
    path, lengths = tmp_path / "below" / "metrics.csv", []

    def count(given: Progress) -> None:
        if given.metrics is not None:
            lengths.append(len(path.read_text().splitlines()))

    with as_callbacks(CSVLogger(path), count).running(run_info(None)):
        pass
    callbacks = as_callbacks(CSVLogger(path), count)
    with callbacks.running(run_info(None)):
        for epoch in (1, 2, 3):
            callbacks.on_epoch(progress(epoch))
        callbacks.on_epoch(progress(1, "neumf (refit)"))
    assert lengths == [2, 3, 4, 5]
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert rows[1] == {
        "stage": "neumf", "epoch": "2", "train/loss": "0.5", "samples_per_second": "50.0",
        "lr": "0.05", "lr/wide": "0.5",
        "validation/ndcg@10": "0.2", "validation/hr@10": "nan", "is_best": "True",
    }  # fmt: skip
    assert (rows[3]["stage"], rows[3]["validation/ndcg@10"]) == ("neumf (refit)", "")


def test_csv_of_a_resumed_run_has_each_epoch_once(tmp_path):
    drive(CSVLogger(tmp_path / "a.csv"), tmp_path, (1, 2), cut=Cut())
    drive(CSVLogger(tmp_path / "a.csv"), tmp_path, (2, 3), resumed=True)
    drive(CSVLogger(tmp_path / "b.csv"), tmp_path)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    drive(CSVLogger(tmp_path / "a.csv"), tmp_path, (1,), cut=Cut())
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 2, "a run that starts anew replaces it"


@pytest.mark.parametrize("content", [b"", b"user_id,item_id\n1,2\n", b"\xff\xfe\x00", b"stage"])
def test_csv_spares_the_file_of_another(tmp_path, content):
    path = tmp_path / "ratings.csv"
    path.write_bytes(content)
    with pytest.raises(
        CallbackError, match=r"ratings.csv must be a file of a CSVLogger, it is another; choose another"
    ):
        drive(CSVLogger(path), tmp_path)
    assert path.read_bytes() == content


# -- all --------------------------------------------------------------------------------------------------------------


def test_loggers_are_made_by_name(tmp_path, mlflow_uri, monkeypatch, no_wandb_key):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    made = [type(logger_by_name(name, tmp_path)) for name in NAMES]
    assert made == [TensorBoardLogger, MLflowLogger, WandbLogger, CSVLogger]
    with pytest.raises(ValueError, match="logger: 'tensorbord' is none; did you mean 'tensorboard'"):
        logger_by_name("tensorbord", tmp_path)
    with pytest.raises(ValueError, match="csv needs the folder of the run, got none; pass out="):
        logger_by_name("csv", None)


def test_a_package_that_is_missing_is_named_with_the_command():
    code = """
import sys
from deeprec.train.loggers import logger_by_name
for name in ("tensorboard", "mlflow", "wandb"):
    sys.modules[name] = None
    try:
        logger_by_name(name, None)
    except ImportError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    for line, service in zip(lines, ("TensorBoard", "MLflow", "Wandb"), strict=True):
        assert line.startswith(f"{service}Logger: ")
        assert " must be installed (" in line
        assert "pip install" in line
        assert "[loggers]" in line


def test_steps_are_logged_only_where_they_are_asked_for():
    assert not as_callbacks(TensorBoardLogger()).wants_steps
    callbacks = as_callbacks(TensorBoardLogger(every_steps=10))
    assert [step for step in range(1, 25) if callbacks.wants_step(step)] == [10, 20]
    with pytest.raises(ValueError, match="TensorBoardLogger: every_steps must be >= 1, got 0; None: no steps"):
        TensorBoardLogger(every_steps=0)
    for wrong in (2.0, True, "3"):
        with pytest.raises(TypeError, match="TensorBoardLogger: every_steps must be a whole number"):
            TensorBoardLogger(every_steps=wrong)


@pytest.mark.parametrize("content", ["{", '{"TensorBoardLogger": 3}', '{"TensorBoardLogger": {"epochs": 3}}', "[]"])
def test_a_damaged_note_of_the_runs_is_named(tmp_path, content):
    (tmp_path / LOGGERS_FILE).write_text(content)
    with pytest.raises(CallbackError, match=r"loggers.json .*remove it, and the loggers begin runs of their own"):
        drive(TensorBoardLogger(), tmp_path, resumed=True)
    (tmp_path / "checkpoint.safetensors").touch()
    drive(TensorBoardLogger(), tmp_path)
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_a_logger_that_comes_to_a_resumed_run_begins_a_run_of_its_own(tmp_path):
    drive(TensorBoardLogger(tmp_path / "one"), tmp_path, (1, 2), cut=Cut())
    drive(TensorBoardLogger(tmp_path / "two"), tmp_path, (3,), resumed=True, cut=Cut())
    assert scalars(the_folder(tmp_path / "two"))["train/loss"] == [(3, pytest.approx(1 / 3))]
    assert sorted(json.loads((tmp_path / LOGGERS_FILE).read_text())) == [
        f"TensorBoardLogger {tmp_path / 'one'}",
        f"TensorBoardLogger {tmp_path / 'two'}",
    ]


TIMED = ("seconds", "samples_per_second", "validation_seconds")


def test_a_run_that_was_cut_is_logged_as_one_that_was_not(tmp_path):
    data = synthetic(num_users=60, num_items=80, num_interactions=900, seed=1)

    def train(out: Path, on_progress=None, *, resume: bool = False):
        model = create("neumf", epochs=2, factors=4, batch_size=200, pretrain=True, pretrain_epochs=2, refit=True)
        callbacks = [TensorBoardLogger(every_steps=5), CSVLogger(out / "metrics.csv")]
        return fit(model, data, out=out, resume=resume, callbacks=callbacks, on_progress=on_progress)

    def cut(given: Progress) -> None:
        if given.metrics is not None and given.stage == "neumf" and given.epoch == 1:
            raise Cut

    def rows(out: Path) -> list[dict[str, str]]:
        each = list(csv.DictReader(io.StringIO((out / "metrics.csv").read_text())))
        return [{name: value for name, value in row.items() if name not in TIMED} for row in each]

    def curves(out: Path) -> dict[str, list[tuple[int, float]]]:
        each = scalars(the_folder(out / "tensorboard"))
        return {name: points for name, points in each.items() if name.rpartition("/")[2] not in TIMED}

    result = train(tmp_path / "whole")
    with pytest.raises(Cut):
        train(tmp_path / "cut", cut)
    train(tmp_path / "cut", resume=True)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert [row["stage"] for row in rows(tmp_path / "cut")[:6]] == [
        name for name in ("gmf (pre-training)", "mlp (pre-training)", "neumf") for _ in range(2)
    ]
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")
    assert curves(tmp_path / "whole")["test/ndcg@10"][0][1] == pytest.approx(result.card.metrics["ndcg@10"])
    assert "step/lr" in curves(tmp_path / "whole")
    assert "gmf-pre-training/train/loss" in curves(tmp_path / "whole")
