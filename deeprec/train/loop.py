"""The training loop: epochs of batches, the optimizers' steps, validation, and checkpoints to go on from.

It knows models by `deeprec.contract.Trainable` and data by `deeprec.contract.Task` alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeprec.contract import Batches, Turn
from deeprec.device import ahead, device_of
from deeprec.evaluate.metrics import gain
from deeprec.kernels.faults import raise_faults
from deeprec.train.averaging import WeightAverage
from deeprec.train.callbacks import Callbacks, Progress, Step, as_callbacks
from deeprec.train.checkpoint import Checkpoint, copy_state, restoring, write_checkpoint
from deeprec.train.compiling import compiled
from deeprec.train.identity import require_same_run
from deeprec.train.optimizers import Optimizers
from deeprec.train.schedules import Schedule

_logger = logging.getLogger("deeprec")

CHECKPOINT_SECONDS = 600.0  # a long epoch is kept in pieces of this length
# Dense Adam brings rows up to date before they are kept, which changes the last bits of what follows. So that no clock
# decides on a result it does so in every run after so many steps, and only there a checkpoint may lie inside an epoch.
FLUSH_STEPS = 1 << 15
_PROGRESS_SECONDS = 0.1
_STEPS_A_LOOK = 64  # on a GPU, where to read the loss is to wait for the step
_PROGRESS = ("epoch", "step", "loss_sum", "done", "seconds", "best_epoch", "best_value", "history")
ENTRY = ("epoch", "loss", "seconds", "samples_per_second", "validation_seconds")


class BestOnTest:
    """The best test figure over all epochs, which papers often print; nothing in the run depends on it."""

    def __init__(self) -> None:
        self.best: dict[str, Any] | None = None

    def update(self, model: Any, run: Run, epoch: int) -> None:
        """Measure the test part after an epoch."""
        metrics = run.task.figures(model, "test")
        if self.best is None or selected(metrics, run.select) > selected(self.best["metrics"], run.select):
            self.best = {"epoch": epoch, "metrics": metrics}


@dataclass
class Run:
    """The settings of one run, shared by its stages."""

    task: Any
    seed: int
    select: str
    callbacks: Callbacks
    device: torch.device
    best_on_test: BestOnTest | None = None
    chosen_epochs: dict[str, int] = field(default_factory=dict)  # stage -> epoch that validation chose


@dataclass
class Stage:
    """One training loop and how far it is: the model's own, a pre-training's, or either of them again in the refit.

    Attributes:
        epochs: how many there are at most.
        directory: where its checkpoint lies.
        chooses: whether validation chooses the epoch; else the last one counts.
        step: batches of the running epoch that are done; `done`: their examples, `loss_sum`: of these, `seconds`: of
            the running epoch, earlier runs included.
    """

    name: str
    epochs: int
    directory: Path | None
    chooses: bool
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    done: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_value: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)
    validation_metrics: dict[str, float] = field(default_factory=dict)
    is_stopped: bool = False  # by a callback


def selected(metrics: dict[str, float], select: str) -> float:
    """What an epoch is worth: its figure `select`, negated where less is better."""
    if select not in metrics:
        raise ValueError(f"fit: select must be a metric of the protocol, got {select!r}; one of {', '.join(metrics)}")
    if math.isnan(metrics[select]):
        raise ValueError(
            f"fit: {select} must be a number where it chooses the epoch, got NaN: no row held out counts for it; hold "
            "out more, or take another select="
        )
    return gain(select, metrics[select])


def train_stage(
    model: Any,
    run: Run,
    stage: Stage,
    train: Any,
    identity: dict[str, Any],
    checkpoint: Checkpoint | None,
    *,
    is_warm: bool = False,
    tracker: BestOnTest | None = None,
) -> None:
    """The epochs of a stage, from its beginning or from a checkpoint; leaves the chosen epoch's weights in the model.

    Args:
        model: built, where it is to be trained.
        train: what its `batches` takes.
        identity: of the stage, which a checkpoint must share.
        is_warm: its weights come from elsewhere: they are the candidate of epoch 0.
        tracker: also looks at the test part after each epoch.
    """
    loop = _Loop(model, run, stage, identity, Optimizers(model), model.batches(train, run.seed))
    if checkpoint is not None:
        loop.restore(checkpoint, tracker)
    elif is_warm:
        loop.consider_warm_weights(tracker)
    with compiled(model) if model.config.compile else nullcontext():
        loop.run_epochs(tracker)


def train_epoch(model: Any, optimizers: Optimizers, batches: Batches, number: int) -> float:
    """One pass over the batches of epoch `number`, nothing measured or kept; returns the mean loss of an example."""
    run = Run(None, 0, "", as_callbacks(()), device_of(model))
    stage = Stage(model.name, number + 1, None, chooses=False, epoch=number)
    return _Loop(model, run, stage, {}, optimizers, batches).epoch(None)["loss"]


class _Loop:
    """A stage while it is trained."""

    def __init__(
        self, model: Any, run: Run, stage: Stage, identity: dict[str, Any], optimizers: Optimizers, batches: Batches
    ) -> None:
        self.model, self.run, self.stage, self.identity = model, run, stage, identity
        self.config = model.config
        self.optimizers, self.batches = optimizers, batches
        self.turns: tuple[Turn, ...] = tuple(model.turns())
        if len(self.turns) > 1 and self.config.accumulate > 1:
            raise ValueError(
                f"fit: accumulate must be 1 where {len(self.turns)} players take turns on a batch, got "
                f"{self.config.accumulate}; leave it out, or take a larger batch_size"
            )
        self.schedule = Schedule(self.config, len(batches))
        self.epoch_average = WeightAverage(self.config.weight_averaging) if self.config.weight_averaging else None
        self.best: dict[str, Tensor] = {}

    # -- where it goes on -------------------------------------------------------------------------------------------

    def restore(self, checkpoint: Checkpoint, tracker: BestOnTest | None) -> None:
        """Go on where a checkpoint was written."""
        stage, run = self.stage, self.run
        require_same_run(checkpoint.identity, self.identity, f"{stage.directory} holds an interrupted run")
        with restoring(stage.directory):
            self.model.load_state_dict(checkpoint.model)
            self.optimizers.load_state_dict(checkpoint.optimizer)
            if self.epoch_average is not None:
                self.epoch_average.load_state_dict(checkpoint.average, run.device)
            self.best = checkpoint.best
            for key in _PROGRESS:
                setattr(stage, key, checkpoint.progress[key])
            run.chosen_epochs.update(checkpoint.progress["chosen_epochs"])
            if tracker is not None:
                tracker.best = checkpoint.progress["best_on_test"]

    def consider_warm_weights(self, tracker: BestOnTest | None) -> None:
        """Weights that come from elsewhere are the candidate of epoch 0."""
        stage, run = self.stage, self.run
        self.best = copy_state(self.model)
        if not stage.chooses:
            return
        metrics, seconds = self._choosing_figures()
        stage.best_value = selected(metrics, run.select)
        entry = {"epoch": 0.0, "loss": math.nan, "seconds": 0.0, "samples_per_second": math.nan}
        stage.history.append({**entry, "validation_seconds": seconds, **metrics})
        if tracker is not None:
            tracker.update(self.model, run, 0)

    # -- epochs -----------------------------------------------------------------------------------------------------

    def run_epochs(self, tracker: BestOnTest | None) -> None:
        """All epochs that are left; the model has the chosen one's weights then."""
        stage, patience = self.stage, self.config.patience
        while stage.epoch < stage.epochs and not stage.is_stopped:
            if patience and stage.chooses and stage.epoch - self._last_better() >= patience:
                break
            entry = self.epoch(tracker)
            stage.epoch += 1
            stage.step, stage.done, stage.loss_sum, stage.seconds = 0, 0, 0.0, 0.0
            metrics, is_best = self._validate(tracker, entry)
            stage.history.append({**entry, **metrics})
            self._keep(tracker)
            self._report(entry, metrics, is_best)
        self.model.load_state_dict(self.best)

    def _last_better(self) -> int:
        """The last epoch after which a figure that patience waits for was better than ever before."""
        stage, last = self.stage, self.stage.best_epoch
        for name in self.config.patience_figures(self.run.select):
            values = [gain(name, entry[name]) for entry in stage.history if name in entry]
            if values:
                last = max(last, int(stage.history[values.index(max(values))]["epoch"]))
        return last

    def _choosing_figures(self) -> tuple[dict[str, float], float]:
        """The figures that choose the epoch, and the seconds they took."""
        started = time.perf_counter()
        metrics = self.run.task.choosing_figures(self.model)
        return metrics, time.perf_counter() - started

    def _validate(self, tracker: BestOnTest | None, entry: dict[str, float]) -> tuple[dict[str, float], bool]:
        """Figures of the validation part after an epoch, and whether they are the best so far; their seconds go into
        `entry`."""
        model, run, stage = self.model, self.run, self.stage
        running: dict[str, Tensor] | None = None
        if self.epoch_average is not None:
            running = copy_state(model)
            model.load_state_dict(self.epoch_average.update(running))
        metrics: dict[str, float] = {}
        if stage.chooses:
            metrics, entry["validation_seconds"] = self._choosing_figures()
        value = selected(metrics, run.select) if stage.chooses else float(stage.epoch)
        is_best = value > stage.best_value
        if is_best:
            stage.best_value, stage.best_epoch = value, stage.epoch
            # After the last epoch the weights stay as they are: no copy of tables that may fill half of the memory.
            is_last = stage.epoch >= stage.epochs and running is None
            self.best = model.state_dict() if is_last else copy_state(model)
        if tracker is not None:
            tracker.update(model, run, stage.epoch)
        if running is not None:
            model.load_state_dict(running)
        return metrics, is_best

    def epoch(self, tracker: BestOnTest | None) -> dict[str, float]:
        """The rest of an epoch; returns its entry in `Stage.history`."""
        model, run, stage, config = self.model, self.run, self.stage, self.config
        started = last_kept = last_said = time.perf_counter()
        earlier, total = stage.seconds, self.batches.num_examples
        values = [selected(entry, run.select) for entry in stage.history if run.select in entry]
        is_cpu, unread = run.device.type == "cpu", torch.zeros((), dtype=torch.float64, device=run.device)
        is_mean = config.reduction == "mean"
        search, is_behind = self.optimizers.line_search, self.optimizers.puts_rows_off
        waiting = 0  # batches whose gradients are added up and not stepped yet
        model.train()
        self.optimizers.clear()
        self.optimizers.set_rates(lambda first: self.schedule.rate(first, stage.epoch, stage.step, values))
        batches = self.batches.epoch(stage.epoch, stage.step)
        for batch in ahead(batches, lambda each: each.to(run.device), run.device):
            # Dropout draws from torch's generator; a seed for each step makes a resumed run draw the same.
            _seed(hash((run.seed, stage.epoch, stage.step)), run.device)
            if self.schedule.by_step:
                self.optimizers.set_rates(lambda first: self.schedule.rate(first, stage.epoch, stage.step, values))
            examples = len(batch)
            if search is not None:
                loss = search_line(self.optimizers, self.turns[0], batch, model.penalty)
            else:
                waiting += 1
                loss = self._take_turns(batch, waiting if waiting == config.accumulate else 0)
                waiting %= config.accumulate
            stage.step += 1
            stage.done += examples
            weight = examples if is_mean else 1
            now = time.perf_counter()
            stage.seconds = earlier + now - started
            is_said = run.callbacks.wants_progress and now - last_said > _PROGRESS_SECONDS
            is_watched = run.callbacks.wants_step(stage.step)
            is_level = not is_behind
            if is_behind and stage.step % FLUSH_STEPS == 0:
                self.optimizers.flush()
                is_level = True
            is_kept = is_level and now - last_kept > CHECKPOINT_SECONDS and stage.done < total and not waiting
            if is_cpu:
                stage.loss_sum += float(loss) * weight
            else:
                unread += loss.double() * weight
                if is_said or is_kept or is_watched or stage.done >= total or stage.step % _STEPS_A_LOOK == 0:
                    stage.loss_sum += unread.item()
                    raise_faults(unread.device)  # the batches up to here are done
                    unread.zero_()
            if not math.isfinite(stage.loss_sum):
                raise ValueError(
                    f"fit: the training loss became {float(loss)} in epoch {stage.epoch + 1}, step {stage.step}; lower "
                    f"lr (now {config.lr})"
                )
            if is_watched:
                rates = self.optimizers.rates()
                run.callbacks.on_step(
                    Step(stage.name, stage.epoch + 1, stage.step, stage.done, float(loss), rates, total)
                )
            if is_said:
                last_said, rate = now, stage.done / stage.seconds
                mean = stage.loss_sum / stage.done
                run.callbacks.on_progress(
                    Progress(stage.name, stage.epoch + 1, stage.epochs, stage.done, total, mean, rate)
                )
            if is_kept:
                self._keep(tracker)
                last_kept = time.perf_counter()
        if waiting:
            self._step(self.turns[0], waiting)
        self.optimizers.flush()
        model.eval()
        stage.seconds = earlier + time.perf_counter() - started
        return {
            "epoch": float(stage.epoch + 1),
            "loss": stage.loss_sum / stage.done,
            "seconds": stage.seconds,
            "samples_per_second": stage.done / stage.seconds,
        }

    def _take_turns(self, batch: Any, due: int) -> Tensor:
        """Every player's gradients and, where `due` batches are added up and due, its step; the sum of the losses."""
        total: Tensor | None = None
        for turn in self.turns:
            loss = turn.backward(batch)
            total = loss if total is None else total + loss
            if due:
                self._step(turn, due)
        assert total is not None
        return total

    def _step(self, turn: Turn, added_up: int) -> None:
        """A player's step on the gradients of so many batches, which are forgotten then, those of others too."""
        share = 1.0 / added_up if self.config.reduction == "mean" else 1.0
        self.optimizers.step(turn.groups, share=share, largest_norm=self.config.clip_norm)
        self.optimizers.clear()

    # -- what is kept and told --------------------------------------------------------------------------------------

    def _keep(self, tracker: BestOnTest | None) -> None:
        """Replace the checkpoint."""
        stage, run = self.stage, self.run
        if stage.directory is None:
            return
        progress = {key: getattr(stage, key) for key in _PROGRESS}
        progress["chosen_epochs"] = run.chosen_epochs
        progress["best_on_test"] = tracker.best if tracker is not None else None
        average = {} if self.epoch_average is None else self.epoch_average.state_dict()
        state = Checkpoint(
            self.identity, progress, self.model.state_dict(), average, self.best, self.optimizers.state_dict()
        )
        path = write_checkpoint(stage.directory, state)
        run.callbacks.on_checkpoint(path, stage=stage.name, epoch=stage.epoch)

    def _report(self, entry: dict[str, float], metrics: dict[str, float], is_best: bool) -> None:
        stage, total, rate = self.stage, self.batches.num_examples, entry["samples_per_second"]
        progress = Progress(
            stage.name,
            stage.epoch,
            stage.epochs,
            total,
            total,
            entry["loss"],
            rate,
            metrics,
            is_best,
            self.optimizers.rates(),
            entry.get("validation_seconds"),
        )
        shown = ", ".join(f"{key} {value:.4f}" for key, value in list(metrics.items())[:2])
        _logger.info("%s epoch %d/%d: loss %.4f %s", stage.name, stage.epoch, stage.epochs, entry["loss"], shown)
        stage.is_stopped = self.run.callbacks.on_epoch(progress)


def search_line(optimizers: Optimizers, turn: Turn, batch: Any, penalty: Callable[[], Any]) -> Tensor:
    """A step of an optimizer that evaluates the objective several times; returns the loss before it.

    Args:
        penalty: what the gradients of the turn hold beside the loss that it returns.
    """
    search: Any = optimizers.line_search
    losses: list[Tensor] = []

    def objective() -> float:
        optimizers.clear()
        losses.append(turn.backward(batch))
        return float(losses[-1]) + float(penalty())

    search.step(objective)
    return losses[0]


def _seed(seed: int, device: torch.device) -> None:
    """Seed what a step draws from; `torch.manual_seed` would look at every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):  # manual_seed is for the current one
            torch.cuda.manual_seed(seed)
