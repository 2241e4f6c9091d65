"""Loggers: callbacks that put a run's parameters, curves, figures and pictures into TensorBoard, MLflow, W&B or a CSV.

A logger imports its service's package when it is made, and costs nothing before. Figures are named alike everywhere:
"train/loss", "validation/ndcg@10", "test/ndcg@10", "lr" or "lr/GROUP", "samples_per_second", "validation_seconds",
"step/loss"; where a stage is not the model's own they begin with its name, as in "gmf-pre-training/train/loss".
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import logging
import netrc
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from deeprec._files import make_folder, read_regular, write_atomically
from deeprec._install import install_command
from deeprec._suggest import did_you_mean
from deeprec._visible import visible
from deeprec.train._service_logger import ServiceLogger, epoch_figures, flattened, short
from deeprec.train.callbacks import Callback, Progress, RunInfo

_logger = logging.getLogger("deeprec")

NAMES = ("tensorboard", "mlflow", "wandb", "csv")  # what `logger_by_name` knows
_PROJECT = "deeprec"
_MOST_PARAMETERS = 100  # in a call of MLflow


def logger_by_name(name: str, out: Path | None) -> Callback:
    """The logger of a name, for a run in the folder `out`, with its defaults.

    Raises:
        ValueError: an unknown name, or "csv" without a folder. ImportError: its package is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"logger: {name!r} is none; {did_you_mean(name, NAMES)}")
    if name == "csv":
        if out is None:
            raise ValueError("logger: csv needs the folder of the run, got none; pass out=")
        return CSVLogger(out / "metrics.csv")
    services: dict[str, Callable[[], Callback]] = {
        "tensorboard": TensorBoardLogger,
        "mlflow": MLflowLogger,
        "wandb": WandbLogger,
    }
    return services[name]()


class TensorBoardLogger(ServiceLogger):
    """Event files for TensorBoard, each run in a folder of its own.

    Args:
        directory: the folder of the runs; None: "tensorboard" in the run's `out`, or "runs" where it has none.
        every_steps: as `ServiceLogger`.
    """

    package, service = "torch.utils.tensorboard", "tensorboard"

    def __init__(self, directory: str | Path | None = None, *, every_steps: int | None = None) -> None:
        super().__init__(every_steps)
        self._directory = None if directory is None else Path(directory)
        self._writer: Any = None

    def _place(self) -> str:
        return "" if self._directory is None else str(self._directory)

    def _runs(self) -> Path:
        out = None if self._run is None else self._run.out
        return self._directory or (Path("runs") if out is None else out / "tensorboard")

    def _open(self, run: RunInfo, known: str | None) -> str:
        name = known or _unused_name(self._runs(), f"{run.model}-{time.strftime('%Y%m%d-%H%M%S')}")
        make_folder(self._runs() / name)
        self._writer = self._package.SummaryWriter(str(self._runs() / name))
        return name

    def _describe(self, parameters: dict[str, Any], tags: dict[str, str]) -> None:
        for title, values in (("parameters", parameters), ("tags", tags)):
            rows = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
            self._writer.add_text(title, "\n".join(["| name | value |", "| --- | --- |", *rows]))
        self._writer.flush()

    def _log(self, figures: dict[str, float], at: int, axis: str) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, at)
        if axis.endswith("epoch"):
            self._writer.flush()

    def _finish(self, card: dict[str, Any], pictures: list[Path], figures: dict[str, float]) -> None:
        epoch = card.get("epoch") or 0
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.add_text("card", f"```json\n{json.dumps(card, indent=2)}\n```", epoch)
        pillow = importlib.import_module("PIL.Image")  # which matplotlib brings
        for path in pictures:
            with pillow.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(path.stem, pixels, epoch, dataformats="HWC")
        # The page of hyperparameters compares runs by their figures on the test part.
        parameters = {name: str(value) if value is None else value for name, value in flattened(card["config"]).items()}
        summary = importlib.import_module("torch.utils.tensorboard.summary")
        for part in summary.hparams(parameters, figures):
            self._writer.file_writer.add_summary(part)

    def _close(self, error: BaseException | None) -> None:
        self._writer.close()


class MLflowLogger(ServiceLogger):
    """A run of MLflow, through a client of its own: the run that is active elsewhere in the process is left alone.

    "@" in the names of figures, which MLflow does not take, becomes "_at_".

    Args:
        experiment: its name; None: $MLFLOW_EXPERIMENT_NAME, or "deeprec". Made if need be.
        tracking_uri: a server's address, or "sqlite:///FILE"; None: as MLflow is set up ($MLFLOW_TRACKING_URI).
        run_name: None: the model and the data set.
        every_steps: as `ServiceLogger`.
    Raises:
        ValueError: MLflow cannot write to `tracking_uri`.
    """

    package, service = "mlflow", "MLflow"

    def __init__(
        self,
        experiment: str | None = None,
        tracking_uri: str | None = None,
        run_name: str | None = None,
        *,
        every_steps: int | None = None,
    ) -> None:
        super().__init__(every_steps)
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        self._uri = tracking_uri or self._package.get_tracking_uri()
        self._run_name, self._id = run_name, ""
        try:
            self._client = self._package.MlflowClient(self._uri)
        except self._package.exceptions.MlflowException as error:
            raise ValueError(
                f"MLflowLogger: tracking_uri must be a place that MLflow can write, got {self._uri!r} "
                f"({visible(error, 200)}); pass a server's address, or sqlite:///mlflow.db after "
                f"{install_command('loggers')}"
            ) from error

    def _place(self) -> str:
        return f"{self._uri} {self._experiment}"

    def _open(self, run: RunInfo, known: str | None) -> str:
        if known is not None:
            self._client.update_run(known, "RUNNING")
            self._id = known
            return known
        experiment = self._client.get_experiment_by_name(self._experiment)
        where = self._client.create_experiment(self._experiment) if experiment is None else experiment.experiment_id
        name = self._run_name or f"{run.model} on {run.data.get('name', 'data')}"
        self._id = str(self._client.create_run(where, run_name=name).info.run_id)
        return self._id

    def _describe(self, parameters: dict[str, Any], tags: dict[str, str]) -> None:
        entities = self._package.entities
        pairs = [entities.Param(_plain_name(name), short(value)) for name, value in parameters.items()]
        for start in range(0, len(pairs), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=pairs[start : start + _MOST_PARAMETERS])
        self._client.log_batch(self._id, tags=[entities.RunTag(name, value) for name, value in tags.items()])

    def _log(self, figures: dict[str, float], at: int, axis: str) -> None:
        now = int(time.time() * 1000)
        metrics = [self._package.entities.Metric(_plain_name(k), v, now, at) for k, v in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def _finish(self, card: dict[str, Any], pictures: list[Path], figures: dict[str, float]) -> None:
        self._log(figures, card.get("epoch") or 0, "epoch")
        self._client.log_dict(self._id, card, "card.json")
        for path in pictures:
            self._client.log_artifact(self._id, str(path))

    def _close(self, error: BaseException | None) -> None:
        status = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
        self._client.set_terminated(self._id, status)


class WandbLogger(ServiceLogger):
    """A run of Weights & Biases, which leaves `wandb.run` alone and prints nothing; its address goes to the log.

    Without a key (`wandb login`, $WANDB_API_KEY) it is kept in files that `wandb sync` sends later; one that was
    resumed lies in several folders with one id, to be sent in their order.

    Args:
        project: None: $WANDB_PROJECT, or "deeprec".
        mode: "online", "offline" or "disabled"; None: $WANDB_MODE, or online where there is a key.
        name: of the run; None: the model and the data set.
        entity, group: as of `wandb.init`.
        every_steps: as `ServiceLogger`.
    Raises:
        ValueError: `mode` is none of these.
    """

    package, service = "wandb", "Weights & Biases"

    def __init__(
        self,
        project: str | None = None,
        mode: str | None = None,
        name: str | None = None,
        *,
        entity: str | None = None,
        group: str | None = None,
        every_steps: int | None = None,
    ) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"WandbLogger: mode must be online, offline, disabled or None, got {mode!r:.80}")
        super().__init__(every_steps)
        self._project = project or os.environ.get("WANDB_PROJECT") or _PROJECT
        self._mode = mode or os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        self._options = {"name": name, "entity": entity, "group": group}
        self._service_run: Any = None

    def _place(self) -> str:
        return f"{self._options['entity'] or ''}/{self._project}"

    def _open(self, run: RunInfo, known: str | None) -> str:
        folder = None if run.out is None or "WANDB_DIR" in os.environ else str(run.out)
        self._service_run = self._package.init(
            **{**self._options, "name": self._options["name"] or f"{run.model} on {run.data.get('name', 'data')}"},
            project=self._project,
            mode=self._mode,
            dir=folder,
            id=known,
            resume="allow",
            reinit="create_new",
            settings=self._package.Settings(silent=True, console="off"),
        )
        self._axes: set[str] = set()
        if self._mode == "online":
            _logger.info("fit: Weights & Biases shows the run at %s", self._service_run.url)
        return str(self._service_run.id)

    def _describe(self, parameters: dict[str, Any], tags: dict[str, str]) -> None:
        self._service_run.config.update(parameters)
        self._service_run.tags = tuple(f"{name}={value}"[:64] for name, value in tags.items())

    def _log(self, figures: dict[str, float], at: int, axis: str) -> None:
        for name in figures.keys() - self._axes:
            self._service_run.define_metric(name, step_metric=axis)
            self._axes.add(name)
        self._add_row({**figures, axis: at})

    def _add_row(self, values: dict[str, Any]) -> None:
        # Rows are counted through: those of a resumed run must follow those that were there.
        self._state["rows"] = self._state.get("rows", 0) + 1
        self._service_run.log(values, step=self._state["rows"])

    def _finish(self, card: dict[str, Any], pictures: list[Path], figures: dict[str, float]) -> None:
        self._service_run.summary.update(figures)
        if pictures:
            self._add_row({path.stem: self._package.Image(str(path)) for path in pictures})
        artifact = self._package.Artifact(f"card-{self._service_run.id}", type="card")
        with artifact.new_file("card.json") as file:
            json.dump(card, file, indent=2)
        self._service_run.log_artifact(artifact)

    def _close(self, error: BaseException | None) -> None:
        self._service_run.finish(exit_code=0 if error is None else 1)


class CSVLogger(Callback):
    """A CSV file with a row for each epoch of each stage, whole after every epoch; needs no package.

    A resumed run keeps the rows that are there, each epoch once; a run that starts anew replaces the file.

    Args:
        path: of the file; its folder is made if need be.
    Raises:
        ValueError: on the start of a run: a file is there that no CSVLogger wrote.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._rows: dict[tuple[str, str], dict[str, str]] = {}

    def on_start(self, run: RunInfo) -> None:
        """Read the rows of a resumed run."""
        rows = self._rows_there()
        self._rows = rows if run.is_resumed else {}
        make_folder(self._path.parent)

    def on_epoch(self, progress: Progress) -> None:
        """Write the row of the epoch."""
        figures = {name: repr(value) for name, value in epoch_figures(progress).items()}
        key = {"stage": progress.stage, "epoch": str(progress.epoch)}
        self._rows[progress.stage, key["epoch"]] = {**key, **figures, "is_best": str(progress.is_best)}
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        write_atomically(self._path, text.getvalue().encode())

    def _rows_there(self) -> dict[tuple[str, str], dict[str, str]]:
        """The rows of the file by stage and epoch; {} where there is none."""
        if not self._path.exists() and not self._path.is_symlink():
            return {}
        remedy = "choose another path for CSVLogger"
        text = read_regular(self._path, "CSVLogger", remedy).decode("utf-8", "replace")
        reader = csv.DictReader(io.StringIO(text))
        if list(reader.fieldnames or ())[:2] != ["stage", "epoch"]:
            raise ValueError(f"CSVLogger: {self._path} must be a file of a CSVLogger, it is another; {remedy}")
        return {(row["stage"], row["epoch"]): {k: v for k, v in row.items() if k and v} for row in reader}


def _plain_name(name: str) -> str:
    """A name of MLflow's characters."""
    return re.sub(r"[^\w/.\- ]", "_", name.replace("@", "_at_"))


def _cell(value: object) -> str:
    return visible(value).replace("|", "\\|")


def _unused_name(folder: Path, name: str) -> str:
    """`name`, or with a number behind where the folder has one of it."""
    number = 1
    while (folder / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return name if number == 1 else f"{name}-{number}"


def _has_wandb_key() -> bool:
    """Whether `wandb login` was done or the environment holds a key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeError, RuntimeError):
            if path and netrc.netrc(Path(path).expanduser()).authenticators(host):
                return True
    return False
