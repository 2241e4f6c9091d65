"""Callbacks: what people hang onto a training run, and the list of them that the loop calls as one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeprec._files import writing
from deeprec._visible import visible

_logger = logging.getLogger("deeprec")

LOGGERS_FILE = "loggers.json"  # in the folder of a run: which run it is in the services that log it
_SHOWN = 300  # characters of an error that another message quotes


@dataclass(frozen=True)
class RunInfo:
    """A training run before its first step.

    Attributes:
        model: registered name.
        config: the model's options.
        data: as on the card: name, sizes and checksums.
        protocol: as on the card.
        seed: of the training.
        device: where the model is trained, such as "cpu" or "cuda:0".
        out: folder of the run; None where nothing is kept.
        num_epochs: most epochs of the model's own stage.
        is_resumed: whether the run goes on from a checkpoint in `out`.
    """

    model: str
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    protocol: Mapping[str, Any]
    seed: int
    device: str
    out: Path | None
    num_epochs: int
    is_resumed: bool = False


@dataclass(frozen=True)
class Step:
    """A step of the optimizers that is done.

    Attributes:
        stage: e.g. "neumf", "gmf (pre-training)", "neumf (refit)".
        epoch: the running one, from 1.
        step: in the epoch, from 1.
        examples: done in the epoch, this step's included.
        loss: training loss of this step.
        rates: learning rate of each parameter group, by its name.
        total: examples of an epoch.
    """

    stage: str
    epoch: int
    step: int
    examples: int
    loss: float
    rates: Mapping[str, float] = field(default_factory=dict)
    total: int = 0

    @property
    def seen(self) -> int:
        """Examples since the stage began."""
        return (self.epoch - 1) * self.total + self.examples


@dataclass(frozen=True)
class Progress:
    """Where a run is; handed over about ten times a second and at the end of every epoch.

    Attributes:
        stage: e.g. "neumf", "gmf (pre-training)", "neumf (refit)".
        epoch, num_epochs: running epoch, from 1.
        done, total: examples of the epoch.
        loss: mean training loss of the epoch so far.
        samples_per_second: of the epoch so far, validation excluded.
        metrics: validation metrics, once the epoch is over.
        is_best: whether the epoch is the best so far.
        rates: learning rate of each parameter group at the epoch's last step, by its name, once the epoch is over.
        validation_seconds: what the validation metrics took, once they are there.
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
    rates: Mapping[str, float] = field(default_factory=dict)
    validation_seconds: float | None = None


class Callback:
    """What is called while a model trains: subclass it and override what you need; the rest does nothing.

    An error that a method raises ends the training as a `CallbackError`; checkpoints that were written stay.

    Attributes:
        every_steps: `on_step` is called for the steps of an epoch whose number (from 1) this divides; 0: for none.
    """

    every_steps: int = 1

    def on_start(self, run: RunInfo) -> None:
        """Before the first step of a run, or of what is left of it."""

    def on_step(self, step: Step) -> None:
        """After a step. On a GPU each call waits for its step, as the loss is read."""

    def on_progress(self, progress: Progress) -> None:
        """About ten times a second."""

    def on_epoch(self, progress: Progress) -> bool | None:
        """After an epoch was validated and kept. True: train no further, as if patience had run out."""

    def on_checkpoint(self, path: Path) -> None:
        """After a checkpoint was written to the file `path`."""

    def on_end(self, card: Any, out: Path | None) -> None:
        """After the last stage: the result card, and the folder that holds the model and its pictures, if any."""

    def on_error(self, error: BaseException) -> None:
        """When the run ends by an error, its own or another callback's, or is interrupted: to close what is open.

        Called once, if `on_start` was. What it raises is logged, for it must not hide `error`.
        """


class CallbackError(RuntimeError):
    """A callback raised; its error is the `__cause__`.

    Attributes:
        callback: name of its class, or of the function.
        hook: the method that was called.
    """

    def __init__(self, callback: str, hook: str, error: Exception, kept: str) -> None:
        what = f"{type(error).__name__}: {visible(error, _SHOWN)}"
        super().__init__(f"fit: the callback {callback} failed in {hook} ({what}); {kept}")
        self.callback, self.hook = callback, hook


class _Called(Callback):
    """A plain function as a callback: it gets every `Progress`."""

    def __init__(self, function: Callable[[Progress], Any]) -> None:
        self.function = function

    def on_progress(self, progress: Progress) -> None:
        self.function(progress)

    def on_epoch(self, progress: Progress) -> None:
        self.function(progress)


class _OnProgress(_Called):
    """The function given as `on_progress=`: what it raises, often to stop the run, comes out as it is."""


class Callbacks:
    """All callbacks of a run as one; what the loop calls.

    Every callback is called in the order given, also after one of them raised. Then `on_error` of all is called, and
    the first error raised as a `CallbackError` (that of an `on_progress` function as itself). KeyboardInterrupt and the
    like pass at once.

    Args:
        callbacks: as `as_callbacks` returns them.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._all = tuple(callbacks)
        self._of_steps = [one for one in self._all if _overrides(one, "on_step") and one.every_steps]
        self._of_progress = [one for one in self._all if _overrides(one, "on_progress")]
        self._started: list[Callback] = []
        self._run: RunInfo | None = None
        self._kept = ""  # up to where the last checkpoint goes
        self._is_finished = False

    def __len__(self) -> int:
        return len(self._all)

    @property
    def wants_steps(self) -> bool:
        """Whether `on_step` does anything; where not, no loss needs to be read for it."""
        return bool(self._of_steps)

    @property
    def wants_progress(self) -> bool:
        """Whether `on_progress` does anything."""
        return bool(self._of_progress)

    def wants_step(self, step: int) -> bool:
        """Whether `on_step` does anything for this step of an epoch, counted from 1."""
        return any(step % one.every_steps == 0 for one in self._of_steps)

    @contextlib.contextmanager
    def running(self, run: RunInfo) -> Iterator[None]:
        """Around a run: `on_start` first, `on_error` for whatever is raised."""
        try:
            self.on_start(run)
            yield
        except BaseException as error:
            self.on_error(error)
            raise

    def on_start(self, run: RunInfo) -> None:
        """Begin; the first error ends it, and the callbacks after it are not begun."""
        self._run, self._started, self._kept, self._is_finished = run, [], "", False
        if run.out is not None and not run.is_resumed:
            with writing(run.out / LOGGERS_FILE):  # what an earlier run left there is not to be gone on with
                (run.out / LOGGERS_FILE).unlink(missing_ok=True)
        for one in self._all:
            self._started.append(one)
            self._call([one], "on_start", run)

    def on_step(self, step: Step) -> None:
        """To those that take steps of this number."""
        self._call([one for one in self._of_steps if step.step % one.every_steps == 0], "on_step", step)

    def on_progress(self, progress: Progress) -> None:
        """To those that watch it."""
        self._call(self._of_progress, "on_progress", progress)

    def on_epoch(self, progress: Progress) -> bool:
        """Whether the training is to stop here."""
        answers = self._call(self._all, "on_epoch", progress)
        return any(answers)

    def on_checkpoint(self, path: Path, *, stage: str = "", epoch: int = 0) -> None:
        """A checkpoint was written.

        Args:
            stage: of the training, such as "neumf (refit)".
            epoch: the last that it holds whole, from 1; 0: none.
        """
        of_stage = f" of {stage}" if stage and self._run is not None and stage != self._run.model else ""
        self._kept = f"epoch {epoch}{of_stage}" if epoch else "its last checkpoint"
        self._call(self._all, "on_checkpoint", path)

    def on_end(self, card: Any, out: Path | None) -> None:
        """The run is finished, and saved where it has a folder."""
        self._is_finished = True
        self._call(self._all, "on_end", card, out)

    def on_error(self, error: BaseException) -> None:
        """The run ends by `error`: told once to each callback that was begun; what they raise is logged."""
        started, self._started = self._started, []
        for one in started:
            try:
                one.on_error(error)
            except Exception as another:
                _warn(one, "on_error", another)

    def _call(self, callbacks: Sequence[Callback], hook: str, *arguments: Any) -> list[bool]:
        """Call a method of each; returns what they answered, and raises the first error after all were called."""
        answers: list[bool] = []
        first: tuple[Callback, Exception] | None = None
        for one in callbacks:
            try:
                answer = getattr(one, hook)(*arguments)
                answers.append(hook == "on_epoch" and _as_answer(answer))
            except Exception as error:
                if first is None:
                    first = one, error
                else:
                    _warn(one, hook, error)
        if first is not None:
            failed, cause = first
            raised = cause
            if not isinstance(failed, _OnProgress):
                raised = CallbackError(_name(failed), hook, cause, self._what_is_kept())
                raised.__cause__ = cause
            self.on_error(raised)
            raise raised
        return answers

    def _what_is_kept(self) -> str:
        """What is left of the run, and what to do; the end of a message."""
        out = None if self._run is None else self._run.out
        if out is None:
            return "nothing of the run is kept: pass out= to keep checkpoints and the model"
        if self._is_finished:
            return f"the trained model is kept in {out}"
        if self._kept:
            return f"the run is kept up to {self._kept} in {out}: go on with resume=True"
        if self._run is not None and self._run.is_resumed:
            return f"the checkpoint in {out} is as it was: go on with resume=True"
        return f"no checkpoint was written to {out} yet: start again"


def as_callbacks(given: Any, on_progress: Callable[[Progress], Any] | None = None) -> Callbacks:
    """Callbacks as one, from what people pass.

    Args:
        given: None, a `Callback`, a function of a `Progress`, a list or tuple of these, or `Callbacks`.
        on_progress: a function of a `Progress` beside them; unlike theirs its errors come out as they are.
    Raises:
        TypeError: something else. ValueError: a callback stands there twice.
    """
    if isinstance(given, Callbacks):
        given = given._all
    listed = given if isinstance(given, list | tuple) else () if given is None else (given,)
    callbacks = [_as_callback(one) for one in listed]
    for at, one in enumerate(listed):
        if any(one is other for other in listed[:at]):
            name = _name(callbacks[at])
            raise ValueError(f"fit: each callback must be given once, got {name} twice; leave one out")
    if on_progress is not None:
        if not callable(on_progress) or isinstance(on_progress, type):
            raise TypeError(f"fit: on_progress must be a function of a Progress, got {on_progress!r:.80}")
        callbacks.append(_OnProgress(on_progress))
    return Callbacks(callbacks)


def _as_callback(given: Any) -> Callback:
    """A `Callback`, or TypeError with what was given and the remedy."""
    if isinstance(given, Callback):
        every = given.every_steps
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise TypeError(f"fit: every_steps of {_name(given)} must be a whole number >= 0, got {every!r:.80}")
        return given
    if isinstance(given, type):
        remedy = f"make one: {given.__name__}(...)" if issubclass(given, Callback) else "pass an object"
    elif callable(given):
        return _Called(given)
    elif isinstance(given, str):
        remedy = f"deeprec.train.loggers.logger_by_name({given!r:.40}, out) makes a logger from its name"
    else:
        remedy = "subclass deeprec.train.callbacks.Callback"
    raise TypeError(f"fit: callbacks must be Callback objects or functions of a Progress, got {given!r:.80}; {remedy}")


def _overrides(callback: Callback, hook: str) -> bool:
    return getattr(type(callback), hook) is not getattr(Callback, hook) or hook in vars(callback)


def _as_answer(value: Any) -> bool:
    """What on_epoch returned: a mistaken `return loss` must not stop a run."""
    if value is not None and not isinstance(value, bool | np.bool_):
        raise TypeError(f"on_epoch must return True, False or None, got {value!r:.80}")
    return bool(value)


def _name(callback: Callback) -> str:
    if isinstance(callback, _Called):
        return str(getattr(callback.function, "__name__", type(callback.function).__name__))
    return type(callback).__name__


def _warn(callback: Callback, hook: str, error: Exception) -> None:
    """Tell of an error that follows another, which is the one to be raised."""
    what = f"{type(error).__name__}: {visible(error, _SHOWN)}"
    _logger.warning("fit: the callback %s failed in %s too (%s)", _name(callback), hook, what)
