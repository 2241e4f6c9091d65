"""Learning rates over a run, as pure functions of where it is: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

SCHEDULES = ("constant", "linear", "plateau", "cosine")
_PLATEAU_FACTOR = 0.1


class ScheduledConfig(Protocol):
    """The options that a schedule follows."""

    @property
    def epochs(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def lr_schedule(self) -> str: ...

    @property
    def lr_decay(self) -> float: ...

    @property
    def warmup_steps(self) -> int: ...


class Schedule:
    """The learning rate of every step.

    With t = epoch * steps_an_epoch + step, both counted from 0, the first rate is multiplied by

        decay(t) / (1 + epoch lr_decay) * min(1, (t + 1) / W)

    where W is `warmup_steps` (no factor for W = 0) and decay is, by `lr_schedule`,

        constant   1
        linear     1 - epoch / epochs
        plateau    0.1 for each epoch before this one without a better value than all before it
        cosine     (1 + cos(pi (t - W) / (T - W))) / 2 from step W on, of T steps in all; 1 before

    Args:
        config: of the model, a `TrainConfig`.
        steps_an_epoch: >= 1.
    Raises:
        ValueError: an unknown schedule, or a warm-up that leaves no step at the full rate.
    Reference: Loshchilov and Hutter 2017 (arXiv 1608.03983), eq. 5, for one period.
    """

    def __init__(self, config: ScheduledConfig, steps_an_epoch: int) -> None:
        self.kind, self._lr, self._decay = config.lr_schedule, float(config.lr), config.lr_decay
        self._epochs, self._steps = config.epochs, steps_an_epoch
        if self.kind not in SCHEDULES:
            raise ValueError(f"Schedule: lr_schedule must be one of {', '.join(SCHEDULES)}; got {self.kind!r:.80}")
        if steps_an_epoch < 1:
            raise ValueError(f"Schedule: steps_an_epoch must be >= 1, got {steps_an_epoch}")
        self._total = config.epochs * steps_an_epoch
        self._warmup = config.warmup_steps
        if self._warmup and self._warmup >= self._total:
            raise ValueError(
                f"Schedule: the warm-up must be shorter than the training, got warmup_steps={self._warmup:,} of "
                f"{self._total:,} steps ({self._epochs} epochs of {steps_an_epoch:,}); lower it"
            )

    @property
    def by_step(self) -> bool:
        """Whether the rate changes within an epoch; where not, it needs to be set once an epoch."""
        return self.kind == "cosine" or self._warmup > 0

    def share(self, epoch: int, step: int = 0, values: Sequence[float] = ()) -> float:
        """What the first rate is multiplied by.

        Args:
            epoch, step: that is about to be trained, from 0; the step is counted in the epoch.
            values: of the validation figure that chooses the epoch, one for each epoch that is done, such that higher
                is better (see `deeprec.evaluate.metrics.gain`); only "plateau" looks at them.
        """
        return self.rate(1.0, epoch, step, values)

    def rate(self, first: float, epoch: int, step: int = 0, values: Sequence[float] = ()) -> float:
        """The rate whose first value is `first`, for the arguments of `share`."""
        t = epoch * self._steps + step
        if self.kind == "plateau":
            # Multiplied and divided in the order in which the published results were.
            rate = first * (_plateau(values) * (self._lr / (1 + epoch * self._decay)) / self._lr)
        else:
            left = 1 - epoch / self._epochs if self.kind == "linear" else 1.0
            rate = first * left / (1 + epoch * self._decay)
        if self.kind == "cosine":
            done = max(t - self._warmup, 0) / (self._total - self._warmup)
            rate *= 0.5 * (1 + math.cos(math.pi * done))
        return rate * min(1.0, (t + 1) / self._warmup) if self._warmup else rate


def _plateau(values: Sequence[float]) -> float:
    """0.1 to the power of how many of the values are no better than all before them."""
    share, best = 1.0, -math.inf
    for value in values:
        share *= 1.0 if value > best else _PLATEAU_FACTOR
        best = max(best, value)
    return share
