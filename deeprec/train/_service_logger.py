"""What the loggers of all services share: names of figures, and that a resumed run goes on where it was."""

from __future__ import annotations

import importlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deeprec._files import read_json, write_atomically
from deeprec._install import install_command
from deeprec._visible import visible
from deeprec.train.callbacks import LOGGERS_FILE, Callback, Progress, RunInfo, Step

_LONGEST = 500  # characters of a parameter's value; the least that a service takes
_REMEDY = "remove it, and the loggers begin runs of their own"


class ServiceLogger(Callback, ABC):
    """What the loggers of all services share: the names, and that a resumed run goes on where it was.

    Args:
        every_steps: also log loss and learning rates of every N-th step, N >= 1; None: of none.
    Raises:
        ImportError: the service's package is not installed. ValueError, TypeError: `every_steps`.
    """

    package: ClassVar[str]  # what is imported
    service: ClassVar[str]  # how errors call it

    def __init__(self, every_steps: int | None = None) -> None:
        if every_steps is not None and (isinstance(every_steps, bool) or not isinstance(every_steps, int)):
            raise TypeError(f"{type(self).__name__}: every_steps must be a whole number, got {every_steps!r:.80}")
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"{type(self).__name__}: every_steps must be >= 1, got {every_steps}; None: no steps")
        self.every_steps = every_steps or 0
        self._package = _imported(self.package, self)
        self._run: RunInfo | None = None
        self._is_open = False
        self._state: dict[str, Any] = {}

    @abstractmethod
    def _place(self) -> str:
        """Where runs are kept; only there can one go on."""

    @abstractmethod
    def _open(self, run: RunInfo, known: str | None) -> str:
        """Begin a run, or go on with the one that is known; returns what it is known by."""

    @abstractmethod
    def _describe(self, parameters: dict[str, Any], tags: dict[str, str]) -> None:
        """Log what the run is, once."""

    @abstractmethod
    def _log(self, figures: dict[str, float], at: int, axis: str) -> None:
        """Log finite figures at an epoch or at a number of examples; axis: "epoch" or "examples", after the stage."""

    @abstractmethod
    def _finish(self, card: dict[str, Any], pictures: list[Path], figures: dict[str, float]) -> None:
        """Log the result: card, PNG files, test figures by name."""

    @abstractmethod
    def _close(self, error: BaseException | None) -> None:
        """End the run, as one that failed or was interrupted where there is an error."""

    def on_start(self, run: RunInfo) -> None:
        """Open the run in the service: that of before where the training is resumed."""
        self._run, self._is_open = run, False
        self._state = self._kept_state() if run.is_resumed else {}
        known = self._state.get("run")
        self._state = {"epochs": {}, **self._state, "run": self._open(run, known)}
        self._is_open = True
        if known is None:
            self._describe(flattened({**run.config, "protocol": run.protocol, "data": run.data}), tags_of(run))
        self._keep_state()

    def on_step(self, step: Step) -> None:
        """Log loss and learning rates of the step, over the examples seen."""
        prefix = self._prefix(step.stage)
        figures = {"step/loss": step.loss, **_rates("step/lr", step.rates)}
        self._log(finite(figures, prefix), step.seen, f"{prefix}examples")

    def on_epoch(self, progress: Progress) -> None:
        """Log the epoch, unless that was done before the run was interrupted."""
        epochs = self._state["epochs"]
        if progress.epoch <= epochs.get(progress.stage, 0):
            return
        prefix = self._prefix(progress.stage)
        self._log(finite(epoch_figures(progress), prefix), progress.epoch, f"{prefix}epoch")
        epochs[progress.stage] = progress.epoch
        self._keep_state()

    def on_end(self, card: Any, out: Path | None) -> None:
        """Log test figures, card and pictures, and end the run."""
        pictures = [] if out is None else sorted(out.glob("*.png"))
        values = card.as_dict()
        named = {f"test/{name}": value for name, value in values["metrics"].items()}
        named |= {"best_epoch": values.get("epoch"), "seconds": values.get("seconds")}
        self._finish(values, pictures, finite(named))
        self._end(None)

    def on_error(self, error: BaseException) -> None:
        """End the run as one that failed."""
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self._is_open:
            self._is_open = False
            try:
                self._keep_state()
            finally:
                self._close(error)

    def _prefix(self, stage: str) -> str:
        assert self._run is not None
        return "" if stage == self._run.model else re.sub(r"\W+", "-", stage).strip("-") + "/"

    def _key(self) -> str:
        return f"{type(self).__name__} {self._place()}".strip()

    def _kept_state(self) -> dict[str, Any]:
        """What `loggers.json` says of this logger's run; {} where nothing."""
        state = _kept_states(self._run).get(self._key(), {})
        if not isinstance(state, dict) or not isinstance(state.get("epochs", {}), dict):
            raise ValueError(f"resume: {LOGGERS_FILE} must hold the runs of loggers, got {state!r:.80}; {_REMEDY}")
        return state

    def _keep_state(self) -> None:
        if self._run is not None and self._run.out is not None:
            states = {**_kept_states(self._run), self._key(): self._state}
            write_atomically(self._run.out / LOGGERS_FILE, (json.dumps(states, indent=2) + "\n").encode())


def _kept_states(run: RunInfo | None) -> dict[str, Any]:
    """The whole of `loggers.json`; {} where there is none."""
    if run is None or run.out is None or not (run.out / LOGGERS_FILE).exists():
        return {}
    return read_json(run.out / LOGGERS_FILE, "resume", _REMEDY)


def epoch_figures(progress: Progress) -> dict[str, float]:
    """The figures of an epoch by the names that all loggers use."""
    validation = progress.validation_seconds
    return {
        "train/loss": float(progress.loss),
        "samples_per_second": float(progress.samples_per_second),
        **({} if validation is None else {"validation_seconds": float(validation)}),
        **_rates("lr", progress.rates),
        **{f"validation/{name}": float(value) for name, value in (progress.metrics or {}).items()},
    }


def _rates(name: str, rates: Mapping[str, float]) -> dict[str, float]:
    """Learning rates by figure; the group of a model that has only one is called ""."""
    return {f"{name}/{group}" if group else name: float(rate) for group, rate in rates.items()}


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool | None]:
    """Nested options as one level of names with dots; lists and what else is no number or text as short text.

    >>> flattened({"lr": 0.1, "hidden": (8, 4), "data": {"name": "ml-1m"}})
    {'lr': 0.1, 'hidden': '[8, 4]', 'data.name': 'ml-1m'}
    """
    flat: dict[str, str | int | float | bool | None] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{name}.")
        elif value is None or isinstance(value, bool | int | float):
            flat[name] = value
        elif isinstance(value, list | tuple):
            flat[name] = short(json.dumps(value, default=str))
        else:
            flat[name] = short(value)
    return flat


def tags_of(run: RunInfo) -> dict[str, str]:
    """What runs are found by: model, data, protocol, seed and device."""
    protocol = run.protocol.get("name") or run.protocol.get("task") or ""
    named = {"model": run.model, "data": run.data.get("name"), "protocol": protocol}
    tags = {**named, "seed": run.seed, "device": run.device}
    return {name: visible(value, _LONGEST) for name, value in tags.items() if value not in (None, "")}


def _imported(package: str, owner: ServiceLogger) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{type(owner).__name__}: {owner.service} must be installed ({error}); {install_command('loggers')}"
        ) from error


def finite(figures: Mapping[str, float | None], prefix: str = "") -> dict[str, float]:
    """The figures that a curve can show."""
    return {f"{prefix}{k}": float(v) for k, v in figures.items() if v is not None and math.isfinite(v)}


def short(value: object) -> str:
    """The text of a value, cut to what every service takes."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
