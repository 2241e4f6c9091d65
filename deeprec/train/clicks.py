"""`fit_clicks`: from a log to a trained click model, its card and its pictures; interrupted runs go on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deeprec._files import then_resume
from deeprec.data.clicks.log import ClickLog
from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.inputs import Encoded
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.sets.click_datasets import load_clicks
from deeprec.device import Device, ahead, device_of, placed, resolve_device
from deeprec.evaluate import Card, ClickProtocol
from deeprec.evaluate.click_metrics import click_figures, correct_for_sampling, plot_reliability, reliability
from deeprec.evaluate.metrics import gain
from deeprec.models.click import ClickBatch, ClickModel, OptimizerOptions
from deeprec.serve.folder import save
from deeprec.surroundings import served, trained
from deeprec.train import optim
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
from deeprec.train.fit import FitResult, Progress, require_seed, writable_directory
from deeprec.train.identity import (
    adopt_finished,
    finished_card,
    identity_of,
    identity_of_card,
    require_out,
    require_same_run,
)

_logger = logging.getLogger("deeprec")

CHECKPOINT_SECONDS = 600.0  # a long epoch is kept in pieces of this length
_STEPS_A_LOOK = 64  # on a GPU
_PROGRESS = ("epoch", "step", "loss_sum", "seconds", "best_epoch", "best_value", "history")


@dataclass
class _Run:
    """One training run and how far it is."""

    model: ClickModel
    log: ClickLog
    train: ClickPart
    rule: ClickProtocol
    seed: int
    select: str
    directory: Path | None
    on_progress: Callable[[Progress], None] | None
    device: torch.device
    epoch: int = 0
    step: int = 0  # batches of the running epoch that are done
    loss_sum: float = 0.0  # over their rows
    seconds: float = 0.0  # of the running epoch, earlier runs included
    best_epoch: int = 0
    best_value: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)


class Optimizers:
    """The optimizers of a click model as one.

    Args:
        model: built; with `step_in_backward` its tables get their optimizers here.
    """

    def __init__(self, model: ClickModel) -> None:
        config = model.config
        options = {group: config.optimizer_options(group) for group in config.groups}
        self._options: list[OptimizerOptions] = []
        self.each: list[torch.optim.Optimizer] = []
        self.in_backward: list[torch.optim.Optimizer] = []
        if config.step_in_backward:
            factories = {group: partial(make_optimizer, some) for group, some in options.items()}
            self.in_backward = model.step_in_backward(factories)
        for group, parameters in model.parameter_groups().items():
            self._options.append(options[group])
            self.each.append(make_optimizer(options[group], parameters))
        self._parameters = [p for one in self.each for group in one.param_groups for p in group["params"]]
        self._steps = [one.update if isinstance(one, RowOptimizer) else one.step for one in self.each]

    def set_rate(self, share: float) -> None:
        """Each learning rate becomes `share` of its first; but for FTRL's, which would rescale all it has learnt."""
        for one in (*self.each, *self.in_backward):
            if isinstance(one, optim.FTRL):
                continue
            for group in one.param_groups:
                group["lr"] = group["initial_lr"] * share

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """The step of every optimizer, on the gradients there are."""
        for step in self._steps:
            step()

    def flush(self) -> None:
        """Bring every row up to date."""
        for one in (*self.each, *self.in_backward):
            if isinstance(one, RowOptimizer):
                one.flush()

    def state_dict(self) -> dict[str, Any]:
        """One state dict, as `Checkpoint` takes it: parameters are counted through all optimizers."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        shift = 0
        for one in (*self.each, *self.in_backward):
            found = one.state_dict()
            state.update({int(key) + shift: value for key, value in found["state"].items()})
            for group in found["param_groups"]:
                moved = {**group, "params": [key + shift for key in group["params"]]}
                groups.append({key: float(v) if isinstance(v, torch.Tensor) else v for key, v in moved.items()})
            shift += sum(len(group["params"]) for group in found["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        groups = list(saved["param_groups"])
        shift = 0
        for one in (*self.each, *self.in_backward):
            own, groups = groups[: len(one.param_groups)], groups[len(one.param_groups) :]
            keys = [key for group in own for key in group["params"]]
            one.load_state_dict(
                {
                    "state": {key - shift: saved["state"][key] for key in keys if key in saved["state"]},
                    "param_groups": [{**group, "params": [key - shift for key in group["params"]]} for group in own],
                }
            )
            shift += len(keys)


def make_optimizer(options: OptimizerOptions, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the options name; its groups remember their first learning rate."""
    name, lr = options.optimizer, options.lr
    made: torch.optim.Optimizer
    if name == "ftrl":
        made = optim.FTRL(parameters, lr=lr, l1=options.l1, l2=options.l2, beta=options.beta)
    elif name == "sgd":
        made = optim.SGD(parameters, lr=lr, weight_decay=options.weight_decay)
    elif name == "adagrad":
        made = optim.Adagrad(
            parameters, lr=lr, weight_decay=options.weight_decay, initial_accumulator_value=options.start
        )
    else:
        mode = "dense" if name == "adam" else "lazy"
        made = optim.Adam(parameters, lr=lr, weight_decay=options.weight_decay, mode=mode)
    for group in made.param_groups:
        group["initial_lr"] = lr
    return made


@then_resume()
@trained
def fit_clicks(
    model: ClickModel,
    log: ClickLog,
    *,
    protocol: ClickProtocol | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    select: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    device: Device = "auto",
) -> FitResult:
    """Train `model` on the train part of `log` and measure it.

    The validation part chooses the epoch, the test part is used once, at the end.

    Args:
        model: any click model; built (or rebuilt) for the log's inputs.
        log: with parts "train", "validation" and "test".
        protocol: which figures are measured, and the share of the negatives that training keeps; how the parts were
            cut is the log's, and the protocol's record of it.
        seed: of initial weights, order of the rows, dropout and the negatives that are kept.
        out: folder for the model, card, curves, reliability diagram and, while training, the checkpoint.
        resume: go on from the checkpoint in `out`; ends bit for bit where the uninterrupted run ends. A run that has
            ended there is read instead. Either must be this run, see `deeprec.train.identity`.
        select: validation figure that chooses the epoch; the protocol's first by default.
        on_progress: called with a `Progress`.
        device: as in `deeprec.train.fit`; batches are brought there while the step before is computed.
    Raises:
        ValueError: a part without rows or with one kind of label only, no such device, or `out` belongs to another run.
    """
    target, seed, rule = resolve_device(device, "fit"), require_seed(seed), _rule(protocol)
    require_out(resume, out)
    _require_parts(log)
    _require_split(log, rule)
    directory = None if out is None else writable_directory(Path(out))
    train = log.parts["train"]
    if rule.negative_rate < 1.0:
        train = train.downsampled(rule.negative_rate, seed)
    with torch.random.fork_rng(devices=[]):  # layers of torch draw before their weights are set
        model.build(log.inputs, torch.Generator().manual_seed(seed))
    model.to(target)
    model.encoder, model.negative_rate = log.encoder, rule.negative_rate
    run = _Run(model, log, train, rule, seed, select or rule.headline, directory, on_progress, target)
    if resume and directory is not None and (ended := finished_card(directory)) is not None:
        require_same_run(identity_of_card(ended), _identity(run), f"{directory} holds a finished run")
        with torch.random.fork_rng(devices=[]):
            adopt_finished(model, directory)
            model.to(target)
        return FitResult(model.eval(), ended, [dict(entry) for entry in ended.history], directory, was_finished=True)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        best = _train(run, read_checkpoint(directory) if resume and directory is not None else None)
    model.load_state_dict(best)
    seconds = max(time.perf_counter() - started, sum(entry["seconds"] for entry in run.history))
    test = predict_part(model, log.parts["test"])
    card = _card(run, seconds, _figures(run, "test", test))
    if directory is not None:
        save(model, directory, card=card)
        plot_curves(run.history, directory / "curves.png", title=f"{model.name} on {log.name}")
        bins = {part: reliability(scores, log.parts[part].labels) for part, scores in (("test", test),)}
        plot_reliability(bins, directory / "reliability.png", title=f"{model.name} on {log.name}")
        remove_checkpoint(directory)
    return FitResult(model, card, run.history, directory)


def as_click_log(data: Any, schema: FeatureSchema | None, protocol: ClickProtocol | None) -> ClickLog:
    """A log from whatever `ClickModel.fit` accepts, cut by the protocol."""
    if isinstance(data, ClickLog):
        return data
    rule = _rule(protocol)
    shares = (rule.validation_share, rule.test_share)
    return load_clicks(data, schema, holdout=rule.holdout, shares=shares, seed=rule.seed)


def predict_part(model: ClickModel, part: ClickPart, batch_size: int = 1 << 14) -> NDArray[np.float32]:
    """Logits [n] of all rows of a part in their order, corrected for the negatives that training left out."""
    return _logits(model, part.batches(batch_size))


def predict_rows(model: ClickModel, rows: Encoded) -> NDArray[np.float32]:
    """Logits [n] of encoded rows; dropout and the like are off."""
    return _logits(model, [rows])


@torch.no_grad()
def _logits(model: ClickModel, blocks: Iterable[Encoded]) -> NDArray[np.float32]:
    """Logits of the rows of all blocks, computed where the model is; they come from there in one piece."""
    was_training, device = model.training, device_of(model)
    model.eval()
    try:
        found = [model(batch).float() for batch in _there(blocks, device)]
    finally:
        model.train(was_training)
    logits: NDArray[np.float32] = torch.cat(found).cpu().numpy() if found else np.zeros(0, dtype=np.float32)
    return correct_for_sampling(logits, model.negative_rate)


def _there(blocks: Iterable[Encoded], device: torch.device) -> Iterator[ClickBatch]:
    """Encoded rows as batches on a device."""
    return ahead(map(ClickBatch.of, blocks), lambda batch: batch.to(device), device)


@served
def evaluate_clicks(
    model: ClickModel, part: ClickPart, metrics: tuple[str, ...] | None = None, *, device: Device = "auto"
) -> dict[str, float]:
    """The figures of a part, by name; `device`: where the model is moved for this call, "auto": where it is."""
    chosen = ClickProtocol().metrics if metrics is None else metrics
    with placed(model, device, "evaluate"):
        logits = predict_part(model, part)
    return click_figures(logits, part.labels, part.groups, chosen)


def _rule(protocol: Any) -> ClickProtocol:
    """The protocol, or the default one; TypeError for something else."""
    if protocol is not None and not isinstance(protocol, ClickProtocol):
        raise TypeError(
            f"fit: protocol must be a ClickProtocol, got {protocol!r}; pass deeprec.evaluate.protocol('click')"
        )
    return ClickProtocol() if protocol is None else protocol


def _require_parts(log: ClickLog) -> None:
    for name in ("train", "validation", "test"):
        part = log.parts.get(name)
        rows = 0 if part is None else len(part)
        clicks = 0 if part is None else part.positives
        if not 0 < clicks < rows:
            raise ValueError(
                f"fit: the {name} part must hold rows of both labels, got {rows:,} rows with {clicks:,} clicks of "
                f"{log.name}; take another split, or positive_from in the schema"
            )


def _require_split(log: ClickLog, rule: ClickProtocol) -> None:
    """The log is cut already: what the protocol says of the cut, but for its defaults, must be what was done."""
    kind, (_, validation, test), seed = log.split["kind"], log.split["shares"], log.split["seed"]
    is_drawn = kind == "random" or (kind == "files" and validation > 0)
    done = {
        "holdout": "official" if kind == "files" else kind,
        "test_share": test,
        "validation_share": validation,
        "seed": seed if is_drawn else 0,
    }
    default = ClickProtocol()
    for name, value in done.items():
        asked = getattr(rule, name)
        if asked != getattr(default, name) and asked != value:
            raise ValueError(
                f"fit: {name}={asked!r} has no effect on {log.name}, whose parts are made already ({log.split}); leave "
                "it out, or cut the rows anew"
            )


def _train(run: _Run, checkpoint: Checkpoint | None) -> dict[str, torch.Tensor]:
    """The epochs, from the beginning or from `checkpoint`; returns the weights of the best."""
    model = run.model
    optimizers = Optimizers(model)
    identity = _identity(run, model.name)
    best: dict[str, torch.Tensor] = {}
    if checkpoint is not None:
        require_same_run(checkpoint.identity, identity, f"{run.directory} holds an interrupted run")
        with restoring(run.directory):
            model.load_state_dict(checkpoint.model)
            optimizers.load_state_dict(checkpoint.optimizer)
            best = checkpoint.best
            for key in _PROGRESS:
                setattr(run, key, checkpoint.progress[key])

    def keep() -> None:
        if run.directory is not None:
            progress = {key: getattr(run, key) for key in _PROGRESS}
            write_checkpoint(
                run.directory, Checkpoint(identity, progress, model.state_dict(), {}, best, optimizers.state_dict())
            )

    patience = model.config.patience
    while run.epoch < model.config.epochs and not (patience and run.epoch - run.best_epoch >= patience):
        optimizers.set_rate(_rate_of(run))
        entry = _epoch(run, optimizers, keep)
        run.epoch, run.step, run.loss_sum, run.seconds = run.epoch + 1, 0, 0.0, 0.0
        metrics = _figures(run, "validation", predict_part(model, run.log.parts["validation"]))
        if run.select not in metrics:
            raise ValueError(f"fit: select must be a figure of the protocol, got {run.select!r}; {', '.join(metrics)}")
        value = gain(run.select, metrics[run.select])
        is_best = value > run.best_value
        if is_best:
            run.best_value, run.best_epoch = value, run.epoch
            # After the last epoch the weights stay as they are: no copy of tables that may fill half of the memory.
            best = copy_state(model) if run.epoch < model.config.epochs else model.state_dict()
        run.history.append({**entry, **metrics})
        keep()
        _report(run, entry, metrics, is_best)
    return best


def _rate_of(run: _Run) -> float:
    """Share of its first value that the learning rate has in the running epoch."""
    config, best, share = run.model.config, -math.inf, 1.0
    if config.lr_schedule == "plateau":
        for entry in run.history:
            value = gain(run.select, entry[run.select])
            share *= 1.0 if value > best else 0.1
            best = max(best, value)
    return share * float(config.lr_of(run.epoch)) / float(config.lr)


def _epoch(run: _Run, optimizers: Optimizers, keep: Callable[[], None]) -> dict[str, float]:
    """The rest of an epoch; returns its entry in the history."""
    model, config = run.model, run.model.config
    started = last_kept = last_said = time.perf_counter()
    earlier, total = run.seconds, len(run.train)
    done = min(run.step * config.batch_size, total)
    model.train()
    # On a GPU the losses are added up there and read now and then: to read one is to wait for its step.
    is_cpu, unread = run.device.type == "cpu", torch.zeros((), dtype=torch.float64, device=run.device)
    blocks = run.train.batches(config.batch_size, seed=run.seed, epoch=run.epoch, skip=run.step)
    for batch in _there(blocks, run.device):
        # Dropout draws from torch's generator; a seed for each step makes a resumed run draw the same.
        torch.manual_seed(hash((run.seed, run.epoch, run.step)))
        optimizers.clear()
        loss, rows = model.loss(batch), len(batch.ids)
        loss.backward()
        optimizers.step()
        run.step += 1
        done += rows
        now = time.perf_counter()
        run.seconds = earlier + now - started
        is_said = run.on_progress is not None and now - last_said > 0.1
        is_kept = now - last_kept > CHECKPOINT_SECONDS and done < total
        if is_cpu:
            run.loss_sum += loss.item() * rows
        else:
            unread += loss.detach() * rows
            if is_said or is_kept or done >= total or run.step % _STEPS_A_LOOK == 0:
                run.loss_sum += unread.item()
                unread.zero_()
        if not math.isfinite(run.loss_sum):
            raise ValueError(
                f"fit: the training loss became {loss.item()} in epoch {run.epoch + 1}, step {run.step}; lower lr "
                f"(now {config.lr})"
            )
        if run.on_progress is not None and is_said:
            last_said = now
            loss_so_far = run.loss_sum / done
            rate = done / run.seconds
            run.on_progress(Progress(model.name, run.epoch + 1, config.epochs, done, total, loss_so_far, rate))
        if is_kept:
            optimizers.flush()
            keep()
            last_kept = time.perf_counter()
    optimizers.flush()
    model.eval()
    run.seconds = earlier + time.perf_counter() - started
    return {
        "epoch": float(run.epoch + 1),
        "loss": run.loss_sum / done,
        "seconds": run.seconds,
        "samples_per_second": done / run.seconds,
    }


def _figures(run: _Run, name: str, logits: NDArray[np.float32]) -> dict[str, float]:
    part = run.log.parts[name]
    return click_figures(logits, part.labels, part.groups, run.rule.metrics)


def _card(run: _Run, seconds: float, metrics: dict[str, float]) -> Card:
    known = ("epoch", "loss", "seconds", "samples_per_second")
    chosen = next((entry for entry in run.history if entry["epoch"] == run.best_epoch), {})
    return Card(
        model=run.model.name,
        config=asdict(run.model.config),
        data={
            "name": run.log.name,
            "sha256": run.log.sha256,
            "rows": {name: len(part) for name, part in run.log.parts.items()},
            "clicks": {name: part.positives for name, part in run.log.parts.items()},
            "train_rows_used": len(run.train),
            "schema": run.log.schema.as_dict(),
            "split": run.log.split,
        },
        protocol=run.rule.as_dict(),
        metrics=metrics,
        seed=run.seed,
        seconds=seconds,
        validation_metrics={key: value for key, value in chosen.items() if key not in known},
        samples_per_second=float(np.median([e["samples_per_second"] for e in run.history])) if run.history else None,
        epoch=run.best_epoch if run.history else None,
        select=run.select,
        history=run.history,
        device=str(run.device),
    )


def _report(run: _Run, entry: dict[str, float], metrics: dict[str, float], is_best: bool) -> None:
    total, name = len(run.train), run.model.name
    if run.on_progress is not None:
        rate = entry["samples_per_second"]
        run.on_progress(
            Progress(name, run.epoch, run.model.config.epochs, total, total, entry["loss"], rate, metrics, is_best)
        )
    shown = ", ".join(f"{key} {value:.4f}" for key, value in list(metrics.items())[:2])
    _logger.info("%s epoch %d/%d: loss %.4f %s", name, run.epoch, run.model.config.epochs, entry["loss"], shown)


def _identity(run: _Run, stage: str = "") -> dict[str, Any]:
    model, data = run.model, {"sha256": run.log.sha256}
    return identity_of(
        model.name,
        asdict(model.config),
        run.rule.as_dict(),
        data,
        seed=run.seed,
        select=run.select,
        best_on_test=False,
        stage=stage,
    )
