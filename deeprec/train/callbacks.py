from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    stage: str
    epoch: int
    num_epochs: int
    done: int
    total: int
    loss: float
    samples_per_second: float
    metrics: dict[str, float] | None = None
    is_best: bool = False


@dataclass(frozen=True)
class RunInfo:
    model: Any
    config: Any
    data: Any
    protocol: Any
    seed: Any
    device: Any
    out: Any
    num_epochs: Any


@dataclass(frozen=True)
class Step:
    stage: Any
    epoch: Any
    step: Any
    examples: Any
    loss: Any
    rates: Any


class CallbackError(RuntimeError):
    pass


class Callback:
    pass


class Callbacks:
    def __init__(self, f):
        self.f = f
        self.wants_steps = False
        self.wants_progress = f is not None

    def on_start(self, *a):
        pass

    def on_step(self, *a):
        pass

    def on_progress(self, p):
        self.f(p)

    def on_epoch(self, p):
        if self.f:
            self.f(p)
        return False

    def on_checkpoint(self, p):
        pass

    def on_end(self, *a):
        pass

    def on_error(self, e):
        pass


def as_callbacks(given, on_progress=None):
    return Callbacks(on_progress)
