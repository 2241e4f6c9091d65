"""`fit`: from data to a trained model, its card and its pictures; interrupted runs go on where they stopped."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeprec._files import remove_unfinished, then_resume
from deeprec.contract import Task
from deeprec.device import Device, placed, resolve_device
from deeprec.evaluate import Card
from deeprec.evaluate.card import Figures
from deeprec.registry import create, require_taken
from deeprec.serve.folder import save
from deeprec.surroundings import served, trained
from deeprec.train.callbacks import Progress, RunInfo, as_callbacks
from deeprec.train.checkpoint import has_checkpoint, read_checkpoint, remove_checkpoint
from deeprec.train.curves import plot_curves
from deeprec.train.identity import (
    adopt_finished,
    finished_card,
    identity_of,
    identity_of_card,
    require_out,
    require_same_run,
)
from deeprec.train.loop import ENTRY, BestOnTest, Run, Stage, train_stage

_log = logging.getLogger("deeprec")
_REFIT, _PRETRAIN = "refit", "pretrain-"


@dataclass
class FitResult:
    """What `fit` returns.

    Attributes:
        model: trained, with the best epoch's weights.
        card: what was measured and how.
        history: one entry an epoch of the model's own stage and of its refit: epoch, loss, seconds,
            samples_per_second, validation_seconds (not in the refit) and the validation metrics, of the protocol's
            sample of users where it takes one.
        out: folder that holds the model, None where nothing was written.
        was_finished: whether it was all there before, and `resume` only read it.
    """

    model: Any
    card: Card
    history: list[dict[str, float]]
    out: Path | None
    was_finished: bool = False


@then_resume()
@trained
def fit(
    model: Any,
    data: Any,
    *,
    protocol: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    select: str | None = None,
    report_best_on_test: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    callbacks: Any = (),
    device: Device = "auto",
    schema: Any = None,
    baselines: bool = True,
) -> FitResult:
    """Train `model` and measure it.

    The validation part chooses the epoch (a sample of its users where all would take long, see
    `Protocol.validation_users`), the test part is used once, at the end.

    Args:
        model: any registered model; built (or rebuilt) for the data.
        data: Interactions, a log, a polars or pandas frame, the name or path of a data set, or a `Task`.
        protocol: how to split and measure; a name ("ncf", "full", "random", "cdae", "rating"; of models of clicks
            "click") or a protocol; None: "full" or "click", as the model can.
        seed: of initial weights, order, dropout and negatives (the split has the protocol's own);
            same seed, same result on this machine with as many threads, or on its GPU.
        out: folder for the model, card, curves and, while training, the checkpoint.
        resume: go on from the checkpoint in `out`; ends bit for bit where the uninterrupted run ends. A run that has
            ended there is read instead. Either must be this run, see `deeprec.train.identity`.
        select: validation figure that chooses the epoch; by default the protocol's first, of clicks log loss where
            `judged_by` is "both".
        report_best_on_test: also evaluate the test part each epoch, only to report the best figure, labelled as such.
        on_progress: called with a `Progress` about ten times a second and at the end of every epoch.
        callbacks: `deeprec.train.Callback`s, loggers among them, told of the run as it goes on.
        device: where the model is trained and stays: "cpu", "cuda", "cuda:1"; "auto": a GPU where torch sees one. The
            initial weights, the order and the negatives are the same on every device, and a run that was interrupted
            on one goes on on another. Batches are brought there while the step before is computed.
        schema: what the columns of a file or frame of clicks mean, a `deeprec.data.FeatureSchema`.
        baselines: measure the simple methods of the task beside it (popularity and item-KNN; means and biases; the base
            rate and logistic regression), for the card; where one is better, a warning says so.
    Raises:
        ValueError: unusable data or options, no such device, or `out` belongs to another run.
        CallbackError: a callback failed; the last checkpoint is whole.
    """
    target, seed = resolve_device(device, "fit"), require_seed(seed)
    told = as_callbacks(callbacks, on_progress)
    require_out(resume, out)
    given = {"select": "select"} if select is not None else {}
    given |= {"report_best_on_test": "best_on_test"} if report_best_on_test else {}
    given |= {"schema": "schema"} if schema is not None else {}
    require_taken(type(model), given, "fit")
    task: Task = model.task_for(data, protocol, schema=schema)
    task.require(model)
    model.adapt(task.facts())
    directory = None if out is None else writable_directory(Path(out))
    run = Run(task, seed, select or model.config.default_select(task.protocol), told, target)
    run.best_on_test = BestOnTest() if report_best_on_test else None
    if resume and directory is not None and (ended := finished_card(directory)) is not None:
        require_same_run(identity_of_card(ended), _identity(model, run), f"{directory} holds a finished run")
        with torch.random.fork_rng(devices=[]):
            adopt_finished(model, directory)
        model.to(target)
        task.adopt(model)
        return FitResult(model, ended, [dict(entry) for entry in ended.history], directory, was_finished=True)
    if directory is not None and not resume:
        _forget_stages(directory)
    data_there, rule = task.described(model, seed), task.protocol.as_dict()
    is_resumed = resume and directory is not None and has_checkpoint(directory)
    options, epochs = asdict(model.config), model.config.epochs
    info = RunInfo(model.name, options, data_there, rule, seed, str(target), directory, epochs, is_resumed)
    with told.running(info), torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        result = _train_and_measure(model, run, directory, resume, baselines)
        told.on_end(result.card, directory)
    return result


def _train_and_measure(model: Any, run: Run, directory: Path | None, resume: bool, baselines: bool) -> FitResult:
    task, started = run.task, time.perf_counter()
    stage = _fit_stage(model, run, directory, resume)
    entries = stage.history
    if model.config.refit:
        below = None if directory is None else writable_directory(directory / _REFIT)
        again = _fit_stage(model, run, below, resume, is_refit=True)
        entries = entries + [{**entry, "refit": 1.0} for entry in again.history]
    # A resumed run counts the epochs of its earlier parts too.
    spent = sum(entry["seconds"] + entry.get("validation_seconds", 0.0) for entry in entries)
    seconds = max(time.perf_counter() - started, spent)
    beside = baseline_figures(model.name, run) if baselines else {}
    task.adopt(model)
    card = Card(
        model=model.name,
        config=asdict(model.config),
        data=task.described(model, run.seed),
        protocol=task.protocol.as_dict(),
        metrics=task.figures(model, "test"),
        seed=run.seed,
        seconds=seconds,
        validation_metrics=stage.validation_metrics or _validation_metrics(stage),
        chosen=model.chosen,
        baselines=beside,
        best_on_test=run.best_on_test.best if run.best_on_test is not None else None,
        samples_per_second=float(np.nanmedian([e["samples_per_second"] for e in entries])) if entries else None,
        epoch=stage.best_epoch if entries else None,
        select=run.select,
        history=entries,
        device=str(run.device),
    )
    for line in card.beaten_by():
        _log.warning("fit: %s on %s: %s; serve that, or give options (see `deeprec models %s`)",
                     model.name, task.name, line, model.name)  # fmt: skip
    if directory is not None:
        save(model, directory, card=card)
        plot_curves(
            entries,
            directory / "curves.png",
            title=f"{model.name} on {task.name}",
            chosen=card.epoch,
            sample=task.validation_sample(),
        )
        task.draw(model, directory)
        _clean_up(directory)
    return FitResult(model, card, entries, directory)


@trained
def validated(
    model: Any, task: Task, *, seed: int, select: str, device: Device = "auto", callback: Any = None
) -> tuple[dict[str, float], int | None]:
    """Train a model for a task and say what its chosen epoch reaches on the validation part; nothing else is measured.

    Args:
        model: with its options by the data (`adapt`).
        callback: a `Callback`, which may end the training.
    Returns:
        the validation figures, and the epoch that `select` chooses, None of a model that is fitted in closed form.
    """
    target = resolve_device(device, "fit")
    run = Run(task, require_seed(seed), select, as_callbacks(() if callback is None else (callback,), None), target)
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        stage = _fit_stage(model, run, None, resume=False)
    return stage.validation_metrics or _validation_metrics(stage), stage.best_epoch if stage.history else None


def baseline_figures(name: str, run: Run) -> dict[str, Figures]:
    """Test figures of the simple methods of a run's task, by label, but for the model `name` itself.

    One that cannot be had, such as item-KNN over more items than memory holds, is left out with a line in the log.
    """
    figures: dict[str, Figures] = {}
    for label, (baseline, options) in run.task.baselines().items():
        if baseline == name:
            continue
        try:
            simple, task = create(baseline, **options), run.task.for_baselines(run.seed)
            figures[label] = fit(simple, task, seed=run.seed, device=str(run.device), baselines=False).card.metrics
        except (ValueError, MemoryError) as error:
            _log.warning("fit: the baseline %s is left out: %s", label, error)
    return figures


def require_seed(seed: Any) -> int:
    """A seed as an int; TypeError or ValueError unless it is a whole number in [0, 2^63)."""
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer):
        raise TypeError(f"fit: seed must be a whole number >= 0, got {seed!r}; pass an int, seed=0")
    if not 0 <= seed < 2**63:
        raise ValueError(f"fit: seed must be in [0, 2^63), got {seed}; pass seed=0")
    return int(seed)


@served
def evaluate_model(
    model: Any, protocol: Any = None, data: Any = None, *, device: Device = "auto", schema: Any = None
) -> dict[str, float]:
    """Test metrics of a trained model; by default with the data and protocol it was fitted with.

    Args:
        device: where the model is moved for this call; "auto": where it is.
        schema: as in `fit`.
    Raises:
        ValueError: nothing says which data to use, it is not what the model was trained on, or no such device.
    """
    with placed(model, device, "evaluate"):
        fitted: Task | None = model._fitted_on
        if data is None and fitted is None:
            raise ValueError(f"{model.name}: evaluate needs data; pass data=, e.g. data='ml-1m'")
        if data is None and protocol is None:
            assert fitted is not None
            return fitted.figures(model, "test")
        task = model.task_for(fitted if data is None else data, protocol, schema=schema)
        task.require_fitted(model)
        return dict(task.figures(model, "test"))


def _fit_stage(
    model: Any, run: Run, directory: Path | None, resume: bool, *, is_refit: bool = False, is_main: bool = True
) -> Stage:
    """Build and train one model, its pre-training included; leaves the chosen epoch's weights in it."""
    # Drawn on the CPU, so that the weights begin as the same numbers on every device.
    is_warm = run.task.build(model, torch.Generator().manual_seed(run.seed))
    model.to(run.device)
    part = model.name + ("" if is_main else " (pre-training)")
    name = part + (" (refit)" if is_refit else "")
    train = run.task.train(run.seed, joined=is_refit)
    epochs = run.chosen_epochs.get(part, 0) if is_refit else model.config.epochs
    stage = Stage(name, epochs, directory, chooses=not is_refit)
    if not model.trains_by_gradient:
        model.fit_directly(train)
        if is_main and not is_refit and run.task.validates():
            stage.validation_metrics = run.task.figures(model, "validation")
        return stage
    checkpoint = read_checkpoint(directory) if resume and directory is not None else None
    if checkpoint is None and not is_warm:

        def train_part(other: Any) -> Any:
            other.adapt(run.task.facts())
            below = None if directory is None else writable_directory(directory / f"{_PRETRAIN}{other.name}")
            _fit_stage(other, run, below, resume, is_refit=is_refit, is_main=False)
            return other

        is_warm = model.warm_start(train_part)
    tracker = run.best_on_test if is_main and not is_refit else None
    train_stage(model, run, stage, train, _identity(model, run, name), checkpoint, is_warm=is_warm, tracker=tracker)
    if not is_refit:
        run.chosen_epochs[part] = stage.best_epoch
        if is_main and run.task.validation_sample():
            stage.validation_metrics = run.task.figures(model, "validation")
    return stage


def _clean_up(directory: Path) -> None:
    """Forget the checkpoints of a finished run."""
    remove_checkpoint(directory)
    _forget_stages(directory)


def _forget_stages(directory: Path) -> None:
    """Remove the checkpoints of pre-training and refit; a run that starts anew would meet those of another later."""
    for below in (directory / _REFIT, *directory.glob(f"{_PRETRAIN}*")):
        shutil.rmtree(below, ignore_errors=True)


def _validation_metrics(stage: Stage) -> dict[str, float]:
    """Validation figures of the chosen epoch."""
    for entry in stage.history:
        if entry["epoch"] == stage.best_epoch:
            return {key: value for key, value in entry.items() if key not in ENTRY}
    return {}


def _identity(model: Any, run: Run, stage: str = "") -> dict[str, Any]:
    return identity_of(
        model.name,
        asdict(model.config),
        run.task.protocol.as_dict(),
        run.task.checksums(model),
        seed=run.seed,
        select=run.select,
        best_on_test=run.best_on_test is not None,
        stage=stage,
    )


def writable_directory(directory: Path) -> Path:
    """The directory, made if need be; ValueError where nothing can be written into it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            remove_unfinished(directory)  # of a run that was killed while it wrote
    except OSError as error:
        raise ValueError(f"fit: out must be a writable directory, got {directory} ({error}); choose another") from error
    return directory
