"""Book-keeping of Adam's dense mode: which learning rate each step had, and how rows are brought up to date."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Rule: TypeAlias = tuple[float, float, float, float]  # beta1, beta2, eps, weight_decay


class StepHistory:
    """The steps since all rows of one parameter were last up to date.

    Attributes:
        param: the table, [R, D].
        state: the optimizer's state of it: step, exp_avg, exp_avg_sq, last_step.
        rule: (beta1, beta2, eps, weight_decay) of all these steps.
        start: every row that had a gradient has reached this step.
        learning_rates: entry t - 1 - start is the learning rate of step t, float64.
    """

    def __init__(self, param: Tensor, state: dict[str, Any], rule: Rule) -> None:
        self.param = param
        self.state = state
        self.rule = rule
        self.start = int(state["step"])
        self._allocate(256)

    def _allocate(self, size: int) -> None:
        self.learning_rates = torch.zeros(size, dtype=torch.float64, device=self.param.device)
        # Writing one number through NumPy costs a tenth of writing it through PyTorch.
        self._view: np.ndarray[Any, Any] | Tensor = (
            self.learning_rates.numpy() if self.param.device.type == "cpu" else self.learning_rates
        )

    def record(self, step: int, lr: float) -> None:
        """Note the learning rate of a step, numbered from 1."""
        index = step - 1 - self.start
        if index >= self.learning_rates.numel():
            before = self.learning_rates
            self._allocate(2 * before.numel())
            self.learning_rates[: before.numel()] = before
        self._view[index] = lr

    def catch_up(self, rows: Tensor | None) -> None:
        """Bring rows (any, repeated ones too; None: all) to the last step taken."""
        state = self.state
        torch.ops.deeprec.adam_catch_up_(
            self.param.data,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["last_step"],
            rows,
            self.learning_rates,
            self.start,
            state["step"],
            *self.rule,
        )

    def flush(self) -> None:
        """Bring all rows to the last step taken, and forget the steps before it."""
        if self.state["step"] > self.start:
            self.catch_up(None)
            self.start = self.state["step"]

    def change_rule(self, rule: Rule) -> None:
        """Flush, and take the coming steps by another rule."""
        self.flush()
        # Rows without a gradient so far also count from here: weight decay may begin to move them.
        self.state["last_step"].fill_(self.state["step"])
        self.rule = rule


def _no_hook() -> None:
    return None


class CatchUp:
    """What the optimizer leaves on a parameter as `_deeprec_catch_up`: call it with the rows about to be read."""

    def __init__(self, history: StepHistory) -> None:
        self._history = history

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # rows are brought up to date outside the graph
    def __call__(self, rows: Tensor) -> None:
        self._history.catch_up(rows)

    def release(self) -> None:
        """Bring all rows up to date and leave the parameter alone."""
        self._history.flush()
        self._history.param._deeprec_catch_up = None  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()  # a pickled module does not take the optimizer along
