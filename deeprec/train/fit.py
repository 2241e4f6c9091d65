"""`fit`: from interactions to a trained model, its card and its curves; interrupted runs go on where they stopped."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeprec._files import remove_unfinished, then_resume
from deeprec.config import TrainConfig
from deeprec.contract import Batches, Seen
from deeprec.data import Interactions, Split, from_frame
from deeprec.data import load as load_data
from deeprec.data.interactions.features import features_sha256
from deeprec.device import Device, placed, resolve_device, to_device
from deeprec.evaluate import Card, Protocol, evaluate
from deeprec.evaluate import protocol as protocol_by_name
from deeprec.evaluate.evaluator import require_ratings
from deeprec.evaluate.metrics import gain
from deeprec.models.base import Recommender
from deeprec.registry import require_taken
from deeprec.serve.folder import save
from deeprec.surroundings import served, trained
from deeprec.train import optim
from deeprec.train._lbfgs import LBFGS
from deeprec.train._row_optimizer import RowOptimizer
from deeprec.train.checkpoint import (
    Checkpoint,
    copy_state,
    read_checkpoint,
    remove_checkpoint,
    restoring,
    write_checkpoint,
)
from deeprec.train.curves import plot_curves
from deeprec.train.identity import (
    adopt_finished,
    finished_card,
    identity_of,
    identity_of_card,
    require_out,
    require_same_run,
)

_logger = logging.getLogger("deeprec")

_REFIT, _PRETRAIN = "refit", "pretrain-"
_PROGRESS = ("epoch", "best_epoch", "best_value", "history")
_ENTRY = ("epoch", "loss", "seconds", "samples_per_second")


@dataclass(frozen=True)
class Progress:
    """Where a run is; handed to `on_progress` about ten times a second and at the end of every epoch.

    Attributes:
        stage: e.g. "neumf", "gmf (pre-training)", "neumf (refit)".
        epoch, num_epochs: running epoch, from 1.
        done, total: examples of the epoch.
        loss: mean training loss of the epoch so far.
        samples_per_second: of the epoch so far, validation excluded.
        metrics: validation metrics, once the epoch is over.
        is_best: whether the epoch is the best so far.
    """

    stage: str
    epoch: int
    num_epochs: int
    done: int
    total: int
    loss: float
    samples_per_second: float
    metrics: dict[str, float] | None = None
    is_best: bool = False


@dataclass
class FitResult:
    """What `fit` returns.

    Attributes:
        model: trained, with the best epoch's weights.
        card: what was measured and how.
        history: one entry an epoch of the model's own stage and of its refit: epoch, loss, seconds,
            samples_per_second, validation metrics.
        out: folder that holds the model, None where nothing was written.
        was_finished: whether it was all there before, and `resume` only read it.
    """

    model: Any
    card: Card
    history: list[dict[str, float]]
    out: Path | None
    was_finished: bool = False


@dataclass
class _Run:
    """The settings of one run, shared by its stages."""

    protocol: Protocol
    split: Split
    data: Interactions
    seed: int
    select: str
    on_progress: Callable[[Progress], None] | None
    checksums: dict[str, str]
    device: torch.device
    best_on_test: _BestOnTest | None = None
    chosen_epochs: dict[str, int] = field(default_factory=dict)  # model name -> epoch that validation chose


@dataclass
class _Stage:
    """One training loop: the model's own, that of a part in pre-training, or either of them again in the refit."""

    name: str
    train: Interactions
    epochs: int
    directory: Path | None
    is_refit: bool
    is_main: bool
    epoch: int = 0
    best_epoch: int = 0
    best_value: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)
    validation_metrics: dict[str, float] = field(default_factory=dict)  # of a model without epochs


class _BestOnTest:
    """The best test figure over all epochs, which papers often print; nothing in the run depends on it."""

    def __init__(self) -> None:
        self.best: dict[str, Any] | None = None

    def look(self, model: Recommender, run: _Run, epoch: int) -> None:
        """Evaluate the test part after an epoch."""
        metrics = evaluate(model, run.split, run.protocol, part="test")
        if self.best is None or _selected(metrics, run.select) > _selected(self.best["metrics"], run.select):
            self.best = {"epoch": epoch, "metrics": metrics}


@then_resume()
@trained
def fit(
    model: Recommender,
    data: Any,
    *,
    protocol: Protocol | str = "full",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    select: str | None = None,
    report_best_on_test: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    device: Device = "auto",
) -> FitResult:
    """Train `model` and measure it.

    The validation part chooses the epoch, the test part is used once, at the end.

    Args:
        model: any registered model; built (or rebuilt) for the data.
        data: Interactions, a polars or pandas frame, or the name or path of a data set.
        protocol: how to split and measure; a name ("ncf", "full", "random", "cdae", "rating") or a Protocol.
        seed: of initialisation, shuffling and negatives (the split has the protocol's own);
            same seed, same result on this machine.
        out: folder for the model, card, curves and, while training, the checkpoint.
        resume: go on from the checkpoint in `out`; ends bit for bit where the uninterrupted run ends. A run that has
            ended there is read instead. Either must be this run, see `deeprec.train.identity`.
        select: validation metric that chooses the epoch; the protocol's first by default.
        report_best_on_test: also evaluate the test part each epoch, only to report the best figure, labelled as such.
        on_progress: called with a `Progress`.
        device: where the model is trained and stays: "cpu", "cuda", "cuda:1"; "auto": a GPU where torch sees one. The
            initial weights, the order and the negatives are the same on every device, and a run that was interrupted
            on one goes on on another.
    Raises:
        ValueError: unusable data or options, no such device, or `out` belongs to another run.
    """
    target, seed = resolve_device(device, "fit"), require_seed(seed)
    interactions = as_interactions(data)
    chosen = as_protocol(protocol).resolve(interactions)
    require_ratings(model, chosen)
    require_out(resume, out)
    given = {"select": "select"} if select is not None else {}
    given |= {"report_best_on_test": "best_on_test"} if report_best_on_test else {}
    require_taken(type(model), given, "fit")
    directory = None if out is None else writable_directory(Path(out))
    split = chosen.split(interactions)
    checksums = {
        "sha256": interactions.sha256,
        "split_sha256": split.sha256,
        **_features_checksums(model, interactions),
    }
    run = _Run(chosen, split, interactions, seed, select or chosen.headline, on_progress, checksums, target)
    _require_parts(model, run)
    run.best_on_test = _BestOnTest() if report_best_on_test else None
    if resume and directory is not None and (ended := finished_card(directory)) is not None:
        require_same_run(identity_of_card(ended), _identity(model, run), f"{directory} holds a finished run")
        adopt_finished(model, directory)
        model.to(target)
        _adopt(model, run)
        return FitResult(model, ended, [dict(entry) for entry in ended.history], directory, was_finished=True)
    if directory is not None and not resume:
        _forget_stages(directory)
    started = time.perf_counter()
    stage = _fit_stage(model, run, directory, resume)
    history = stage.history
    if model.config.refit:
        below = None if directory is None else writable_directory(directory / _REFIT)
        again = _fit_stage(model, run, below, resume, is_refit=True)
        history = history + [{**entry, "refit": 1.0} for entry in again.history]
    # A resumed run counts the epochs of its earlier parts too.
    seconds = max(time.perf_counter() - started, sum(entry["seconds"] for entry in history))
    _adopt(model, run)
    card = Card(
        model=model.name,
        config=asdict(model.config),
        data={
            "name": interactions.name,
            "users": interactions.num_users,
            "items": interactions.num_items,
            "interactions": len(interactions),
            **run.checksums,
        },
        protocol=chosen.as_dict(),
        metrics=evaluate(model, run.split, chosen, part="test"),
        seed=seed,
        seconds=seconds,
        validation_metrics=stage.validation_metrics or _validation_metrics(stage),
        best_on_test=run.best_on_test.best if run.best_on_test is not None else None,
        samples_per_second=float(np.nanmedian([e["samples_per_second"] for e in history])) if history else None,
        epoch=stage.best_epoch if history else None,
        select=run.select,
        history=history,
        device=str(target),
    )
    if directory is not None:
        save(model, directory, card=card)
        plot_curves(history, directory / "curves.png", title=f"{model.name} on {interactions.name}")
        _clean_up(directory)
    return FitResult(model, card, history, directory)


def _require_parts(model: Recommender, run: _Run) -> None:
    """What is measured must not be empty; said before the training, not after its first epoch."""
    is_rating = run.protocol.task == "rating"
    chooses = is_rating or model.trains_by_gradient
    for name in ("train", "validation", "test") if chooses else ("train", "test"):
        if not len(getattr(run.split, name)):
            what = "a rating" if is_rating else "an interaction"
            raise ValueError(
                f"fit: the {name} part must hold {what}, got none of the {len(run.data)} of {run.data.name}; take "
                "another protocol or more data"
            )


def _features_checksums(model: Recommender, data: Interactions) -> dict[str, str]:
    """Checksums of the side information that the model takes."""
    tables = {name: getattr(data, name) for name in model.features_taken()}
    return {f"{name}_sha256": features_sha256(table) for name, table in tables.items() if table is not None}


def require_seed(seed: Any) -> int:
    """A seed as an int; TypeError or ValueError unless it is a whole number in [0, 2^63)."""
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer):
        raise TypeError(f"fit: seed must be a whole number >= 0, got {seed!r}; pass an int, seed=0")
    if not 0 <= seed < 2**63:
        raise ValueError(f"fit: seed must be in [0, 2^63), got {seed}; pass seed=0")
    return int(seed)


def as_protocol(protocol: Any) -> Protocol:
    """A protocol for models that rank or rate, from its name or itself.

    Raises:
        TypeError: something else, that of click models too. ValueError: an unknown name.
    """
    chosen = protocol_by_name(protocol) if isinstance(protocol, str) else protocol
    if not isinstance(chosen, Protocol):
        raise TypeError(
            f"fit: protocol must be a name or a Protocol of models that rank or rate, got {protocol!r}; pass 'full'"
        )
    return chosen


def as_interactions(data: Any) -> Interactions:
    """Interactions from whatever `fit` accepts."""
    if isinstance(data, Interactions):
        return data
    if isinstance(data, str | Path):
        return load_data(str(data))
    return from_frame(data)


@served
def evaluate_model(
    model: Recommender, protocol: Protocol | str | None = None, data: Any = None, *, device: Device = "auto"
) -> dict[str, float]:
    """Test metrics of a trained model; by default with the protocol, data and seed it was fitted with.

    Args:
        device: where the model is moved for this call; "auto": where it is.
    Raises:
        ValueError: nothing says which data to use, or there is no such device.
    """
    with placed(model, device, "evaluate"):
        return _evaluate_model(model, protocol, data)


def _evaluate_model(model: Recommender, protocol: Protocol | str | None, data: Any) -> dict[str, float]:
    fitted: _Run | None = model._fitted_on
    if protocol is None and data is None and fitted is not None:
        return evaluate(model, fitted.split, fitted.protocol, part="test")
    if data is None and fitted is None:
        raise ValueError(f"{model.name}: evaluate needs data; pass data=, e.g. data='ml-1m'")
    source = as_interactions(data) if data is not None else fitted.data  # type: ignore[union-attr]
    chosen = as_protocol("full" if protocol is None else protocol).resolve(source)
    _same_ids(model, source)
    return evaluate(model, chosen.split(source), chosen, part="test")


def _fit_stage(
    model: Recommender,
    run: _Run,
    directory: Path | None,
    resume: bool,
    *,
    is_refit: bool = False,
    is_main: bool = True,
) -> _Stage:
    """Build and train one model, its pre-training included; leaves the chosen epoch's weights in it."""
    # Drawn on the CPU, so that the weights begin as the same numbers on every device.
    model.build(model.schema_for(run.data), torch.Generator().manual_seed(run.seed))
    model.to(run.device)
    name = model.name + ("" if is_main else " (pre-training)") + (" (refit)" if is_refit else "")
    train = _joined(run.split.train, run.split.validation) if is_refit else run.split.train
    epochs = run.chosen_epochs.get(model.name, 0) if is_refit else model.config.epochs
    stage = _Stage(name, train, epochs, directory, is_refit, is_main)
    if not model.trains_by_gradient:
        model.fit_directly(train)
        if is_main and not is_refit and len(run.split.validation):
            stage.validation_metrics = evaluate(model, run.split, run.protocol, part="validation")
        return stage
    checkpoint = read_checkpoint(directory) if resume and directory is not None else None
    is_warm = False
    if checkpoint is None:

        def train_part(part: Recommender) -> Recommender:
            below = None if directory is None else writable_directory(directory / f"{_PRETRAIN}{part.name}")
            _fit_stage(part, run, below, resume, is_refit=is_refit, is_main=False)
            return part

        is_warm = model.warm_start(train_part)
    _train(model, run, stage, checkpoint, is_warm)
    if not is_refit:
        run.chosen_epochs[model.name] = stage.best_epoch
    return stage


def _train(model: Recommender, run: _Run, stage: _Stage, checkpoint: Checkpoint | None, is_warm: bool) -> None:
    """The epochs of a stage, from its beginning or from `checkpoint`; warm weights are the candidate of epoch 0."""
    optimizer = make_optimizer(model, model.config)
    identity = _identity(model, run, stage.name)
    average: dict[str, torch.Tensor] = {}
    best: dict[str, torch.Tensor] = {}
    tracker = run.best_on_test if stage.is_main and not stage.is_refit else None
    if checkpoint is not None:
        require_same_run(checkpoint.identity, identity, f"{stage.directory} holds an interrupted run")
        with restoring(stage.directory):
            model.load_state_dict(checkpoint.model)
            optimizer.load_state_dict(checkpoint.optimizer)
            average = {key: to_device(value, run.device) for key, value in checkpoint.average.items()}
            best = checkpoint.best
            for key in _PROGRESS:
                setattr(stage, key, checkpoint.progress[key])
            run.chosen_epochs.update(checkpoint.progress["chosen_epochs"])
            if tracker is not None:
                tracker.best = checkpoint.progress["best_on_test"]
    elif is_warm:
        best = copy_state(model)
        if not stage.is_refit:
            metrics = evaluate(model, run.split, run.protocol, part="validation")
            stage.best_value = _selected(metrics, run.select)
            stage.history.append(
                {"epoch": 0.0, "loss": math.nan, "seconds": 0.0, "samples_per_second": math.nan, **metrics}
            )
            if tracker is not None:
                tracker.look(model, run, 0)
    batches = model.batches(stage.train, run.seed)
    while stage.epoch < stage.epochs and not _out_of_patience(stage, model.config.patience):
        entry = _epoch(model, optimizer, batches, run, stage)
        stage.epoch += 1
        running = copy_state(model)
        if model.config.weight_averaging:
            average = _averaged(average, running, model.config.weight_averaging)
            model.load_state_dict(average)
        metrics = {} if stage.is_refit else evaluate(model, run.split, run.protocol, part="validation")
        value = float(stage.epoch) if stage.is_refit else _selected(metrics, run.select)
        is_best = value > stage.best_value
        if is_best:
            stage.best_value, stage.best_epoch, best = value, stage.epoch, copy_state(model)
        if tracker is not None:
            tracker.look(model, run, stage.epoch)
        model.load_state_dict(running)
        stage.history.append({**entry, **metrics})
        if stage.directory is not None:
            progress = {key: getattr(stage, key) for key in _PROGRESS}
            progress["chosen_epochs"] = run.chosen_epochs
            progress["best_on_test"] = tracker.best if tracker is not None else None
            state = Checkpoint(identity, progress, running, average, best, optimizer.state_dict())
            write_checkpoint(stage.directory, state)
        _report(run, stage, batches.num_examples, entry, metrics, is_best)
    model.load_state_dict(best)


def _averaged(
    average: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], keep: float
) -> dict[str, torch.Tensor]:
    """keep * average + (1 - keep) * weights; the weights themselves at first."""
    return {key: torch.lerp(value, average.get(key, value), keep) for key, value in weights.items()}


def _selected(metrics: dict[str, float], select: str) -> float:
    if select not in metrics:
        raise ValueError(f"fit: select must be a metric of the protocol, got {select!r}; one of {', '.join(metrics)}")
    if math.isnan(metrics[select]):
        raise ValueError(
            f"fit: {select} must be a number where it chooses the epoch, got NaN: no row held out counts for it; hold "
            "out more, or take another select="
        )
    return gain(select, metrics[select])


def _epoch(
    model: Recommender, optimizer: torch.optim.Optimizer, batches: Batches, run: _Run, stage: _Stage
) -> dict[str, float]:
    """One pass over the training positives; returns the epoch's entry in the history."""
    started = time.perf_counter()

    def say(done: int, loss: float) -> None:
        assert run.on_progress is not None
        rate, total = done / (time.perf_counter() - started), batches.num_examples
        run.on_progress(Progress(stage.name, stage.epoch + 1, stage.epochs, done, total, loss, rate))

    for group in optimizer.param_groups if not isinstance(optimizer, LBFGS) else ():  # which tries a whole step first
        group["lr"] = model.config.lr_of(stage.epoch)
    loss = train_epoch(model, optimizer, batches, stage.epoch, say if run.on_progress is not None else None)
    seconds = time.perf_counter() - started
    if not math.isfinite(loss):
        raise ValueError(
            f"fit: the training loss became {loss} in epoch {stage.epoch + 1}; lower lr (now {model.config.lr})"
        )
    rate = batches.num_examples / seconds
    return {"epoch": float(stage.epoch + 1), "loss": loss, "seconds": seconds, "samples_per_second": rate}


def train_epoch(
    model: Recommender,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    number: int,
    on_progress: Callable[[int, float], None] | None = None,
) -> float:
    """One pass over the training positives with the negatives of epoch `number`.

    Args:
        on_progress: called about ten times a second with the examples done and their mean loss.
    Returns:
        mean loss an example.
    """
    model.train()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    is_mean = model.config.reduction == "mean"
    step = optimizer.update if isinstance(optimizer, RowOptimizer) else optimizer.step
    searches_line = isinstance(optimizer, LBFGS)
    total: float | torch.Tensor = 0.0
    done, last_report = 0, time.perf_counter()
    for batch in batches.epoch(number):
        for parameter in parameters:
            parameter.grad = None  # what zero_grad does, without its bookkeeping
        if searches_line:
            loss = _search_line(model, optimizer, batch)
        else:
            loss = model.backward(batch)
            step()
        examples = batch.labels.numel()
        # Reading one number is free on the CPU and would be a synchronisation elsewhere.
        value = float(loss) if loss.device.type == "cpu" else loss.double()
        total = total + (examples * value if is_mean else value)
        done += examples
        if on_progress is not None and time.perf_counter() - last_report > 0.1:
            last_report = time.perf_counter()
            on_progress(done, float(total) / done)
    if isinstance(optimizer, RowOptimizer):
        optimizer.flush()
    model.eval()
    return float(total) / done


def _search_line(model: Recommender, optimizer: torch.optim.Optimizer, batch: Any) -> torch.Tensor:
    """A step of an optimizer that evaluates the objective several times; returns the loss before it."""
    losses: list[torch.Tensor] = []

    def objective() -> float:
        optimizer.zero_grad()
        losses.append(model.backward(batch))
        return float(losses[-1]) + model.penalty()

    optimizer.step(objective)
    return losses[0]


def make_optimizer(model: Recommender, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that `config.optimizer` names, over the parameters that need gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "rprop":
        # The largest step as in the NumPy reproduction of AutoRec on the reference sheet.
        return torch.optim.Rprop(parameters, lr=config.lr, step_sizes=(1e-6, 1.0))
    if config.optimizer == "lbfgs":
        return LBFGS(parameters)
    if config.optimizer == "sgd":
        return optim.SGD(parameters, lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer == "adagrad":
        start = getattr(config, "adagrad_start", 0.0)
        return optim.Adagrad(
            parameters, lr=config.lr, weight_decay=config.weight_decay, initial_accumulator_value=start
        )
    mode = "dense" if config.optimizer == "adam" else "lazy"
    return optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay, mode=mode)


def _joined(first: Interactions, second: Interactions) -> Interactions:
    """The rows of two parts of one split."""

    def both(column: str) -> Any:
        left, right = getattr(first, column), getattr(second, column)
        return None if left is None else np.concatenate([left, right])

    return replace(first, **{column: both(column) for column in ("users", "items", "ratings", "order")})


def _clean_up(directory: Path) -> None:
    """Forget the checkpoints of a finished run."""
    remove_checkpoint(directory)
    _forget_stages(directory)


def _forget_stages(directory: Path) -> None:
    """Remove the checkpoints of pre-training and refit; a run that starts anew would meet those of another later."""
    for below in (directory / _REFIT, *directory.glob(f"{_PRETRAIN}*")):
        shutil.rmtree(below, ignore_errors=True)


def _adopt(model: Recommender, run: _Run) -> None:
    """Give the model its id maps and every item each user has met, held-out ones too, so that it can recommend."""
    model.user_ids, model.item_ids = run.data.user_ids, run.data.item_ids
    model.seen = Seen(*run.data.csr())
    model._fitted_on = replace(run, on_progress=None)  # a callback need not be one that can be pickled
    model.eval()


def _out_of_patience(stage: _Stage, patience: int) -> bool:
    return bool(patience) and not stage.is_refit and stage.epoch - stage.best_epoch >= patience


def _validation_metrics(stage: _Stage) -> dict[str, float]:
    """Validation figures of the chosen epoch."""
    for entry in stage.history:
        if entry["epoch"] == stage.best_epoch:
            return {key: value for key, value in entry.items() if key not in _ENTRY}
    return {}


def _report(
    run: _Run, stage: _Stage, total: int, entry: dict[str, float], metrics: dict[str, float], is_best: bool
) -> None:
    if run.on_progress is not None:
        rate = entry["samples_per_second"]
        run.on_progress(
            Progress(stage.name, stage.epoch, stage.epochs, total, total, entry["loss"], rate, metrics, is_best)
        )
    shown = ", ".join(f"{key} {value:.4f}" for key, value in list(metrics.items())[:2])
    _logger.info("%s epoch %d/%d: loss %.4f %s", stage.name, stage.epoch, stage.epochs, entry["loss"], shown)


def _identity(model: Recommender, run: _Run, stage: str = "") -> dict[str, Any]:
    return identity_of(
        model.name,
        asdict(model.config),
        run.protocol.as_dict(),
        run.checksums,
        seed=run.seed,
        select=run.select,
        best_on_test=run.best_on_test is not None,
        stage=stage,
    )


def _same_ids(model: Recommender, data: Interactions) -> None:
    if model.user_ids is None or model.item_ids is None:
        raise ValueError(f"{model.name}: the model has no id maps; call fit(data) or load one with deeprec.load(dir)")
    if model.user_ids.sha256() != data.user_ids.sha256() or model.item_ids.sha256() != data.item_ids.sha256():
        raise ValueError(
            f"{model.name}: evaluate needs the data the model was trained on, got other users or items in "
            f"{data.name!r}; train on it first"
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
