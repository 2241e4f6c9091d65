"""Book-keeping of Adam's dense mode: which learning rate each step had, and how rows are brought up to date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Rule: TypeAlias = tuple[float, float, float, float]  # beta1, beta2, eps, weight_decay


class LearningRates:
    """The learning rates of consecutive steps.

    Attributes:
        values: float64, longer than what has been put in.
        sharers: how many tables read it; all of them must have taken every step together.
    """

    def __init__(self, device: torch.device, sharers: int = 1) -> None:
        self.sharers = sharers
        self._allocate(256, device)

    def _allocate(self, size: int, device: torch.device) -> None:
        self.values = torch.zeros(size, dtype=torch.float64, device=device)
        # Writing one number through NumPy costs a tenth of writing it through PyTorch.
        self._view: np.ndarray[Any, Any] | Tensor = self.values.numpy() if device.type == "cpu" else self.values

    def put(self, index: int, lr: float) -> None:
        """Set one entry, enlarging the tensor where need be."""
        if index >= self.values.numel():
            self._resize(2 * self.values.numel())
        self._view[index] = lr

    def _resize(self, size: int) -> None:
        before = self.values
        self._allocate(size, before.device)
        self.values[: before.numel()] = before

    def copy(self) -> LearningRates:
        """The same entries for one table alone, which leaves the others."""
        self.sharers -= 1
        alone = LearningRates(self.values.device)
        alone._resize(self.values.numel())
        alone.values.copy_(self.values)
        return alone


class StepReplay:
    """The steps since all rows of one parameter were last up to date.

    Attributes:
        param: the table, [R, D].
        state: the optimizer's state of it: step, exp_avg, exp_avg_sq, last_step.
        rule: (beta1, beta2, eps, weight_decay) of all these steps.
        start: every row that had a gradient has reached this step.
        rates: entry t - 1 - start is the learning rate of step t; shared by tables that step together.
    """

    def __init__(self, param: Tensor, state: dict[str, Any], rule: Rule) -> None:
        self.param = param
        self.state = state
        self.rule = rule
        self.start = int(state["step"])
        self.rates = LearningRates(param.device)

    @property
    def learning_rates(self) -> Tensor:
        """Entry t - 1 - start is the learning rate of step t, float64."""
        return self.rates.values

    def record(self, step: int, lr: float) -> None:
        """Note the learning rate of a step that this table takes alone, numbered from 1."""
        if self.rates.sharers > 1:
            self.rates = self.rates.copy()
        self.rates.put(step - 1 - self.start, lr)

    def catch_up(self, rows: Tensor | None) -> None:
        """Bring rows (any, repeated ones too; None: all) to the last step taken."""
        state = self.state
        if state["step"] == self.start:
            return
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
        self.catch_up(None)
        self.start = self.state["step"]

    def change_rule(self, rule: Rule) -> None:
        """Flush, and take the coming steps by another rule."""
        self.flush()
        # Rows without a gradient so far also count from here: weight decay may begin to move them.
        self.state["last_step"].fill_(self.state["step"])
        self.rule = rule


def are_level(replays: Sequence[StepReplay]) -> bool:
    """Whether these tables took the same steps by the same rule, so that one call can replay them for all."""
    first = replays[0]
    return all(
        replay.rates is first.rates
        and replay.start == first.start
        and replay.state["step"] == first.state["step"]
        and replay.rule == first.rule
        for replay in replays
    )


def share_rates(replays: Sequence[StepReplay]) -> bool:
    """Whether these tables, and no others with them, can record their coming steps as one.

    They can when they have done so before, or when none of them has missed steps to remember.
    """
    first = replays[0]
    if are_level(replays) and first.rates.sharers == len(replays):
        return True
    kind = (first.param.device, first.param.dtype, first.start, first.rule)
    for replay in replays:
        if (replay.param.device, replay.param.dtype, replay.start, replay.rule) != kind:
            return False
        if replay.state["step"] != replay.start:
            return False
    rates = LearningRates(first.param.device, len(replays))
    for replay in replays:
        replay.rates.sharers -= 1
        replay.rates = rates
    return True


def table_lists(replays: Sequence[StepReplay]) -> tuple[list[Tensor], ...]:
    """weights, exp_avgs, exp_avg_sqs and last_steps of several tables."""
    return (
        [replay.param.data for replay in replays],
        [replay.state["exp_avg"] for replay in replays],
        [replay.state["exp_avg_sq"] for replay in replays],
        [replay.state["last_step"] for replay in replays],
    )


def _no_hook() -> None:
    return None


class CatchUp:
    """What the optimizer leaves on a parameter as `_deeprec_catch_up`: call it with the rows about to be read."""

    def __init__(self, replay: StepReplay) -> None:
        self._replay = replay

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # rows are brought up to date outside the graph
    def __call__(self, rows: Tensor) -> None:
        self._replay.catch_up(rows)

    @staticmethod
    def together(hooks: Sequence[CatchUp], rows: Sequence[Tensor]) -> None:
        """What calling each of `hooks` with its rows does, in one pass where the tables step together.

        Args:
            rows: strictly ascending, a tensor for each hook; the same tensor where tables share them.
        """
        replays = [hook._replay for hook in hooks]
        if not are_level(replays):
            for hook, touched in zip(hooks, rows, strict=True):
                hook(touched)
            return
        first = replays[0]
        if first.state["step"] == first.start:
            return
        torch.ops.deeprec.adam_catch_up_tables_(
            *table_lists(replays), rows, first.rates.values, first.start, first.state["step"], *first.rule
        )

    def finish(self) -> None:
        """Bring all rows up to date: the table is about to be read, or written to, as a whole."""
        self._replay.flush()

    def release(self) -> None:
        """Bring all rows up to date and leave the parameter alone."""
        self._replay.flush()
        self._replay.param._deeprec_catch_up = None  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()  # a pickled module does not take the optimizer along
