"""The numbers of the row updates' rules, and their domains; the C++ wrappers check the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class AdamRule(NamedTuple):
    """Adam's numbers that all steps share, as the operators take them: decay rates in [0, 1), eps > 0, decay >= 0."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class Replay(NamedTuple):
    """The steps that rows catch up on, as the operators take them.

    Attributes:
        lr_history: learning rate of step t at [t - 1 - history_start], float64.
        history_start: the step before the first one in lr_history.
        step: the last step, or that of the gradient.
    """

    lr_history: Tensor
    history_start: int
    step: int


def check_number(op: str, name: str, value: float, holds: bool, requirement: str) -> None:
    """Raise RuntimeError where a number of a rule is not finite or not in its domain."""
    if not (holds and math.isfinite(value)):
        raise RuntimeError(f"{op}: {name} must be {requirement}, got {value}")


def check_rates(op: str, lr: float, weight_decay: float) -> None:
    """The domains of what all rules but FTRL have."""
    check_number(op, "lr", lr, True, "a finite number")
    check_number(op, "weight_decay", weight_decay, weight_decay >= 0, "a finite number >= 0")


def check_momentum(op: str, momentum: float) -> None:
    """The domain of SGD's momentum."""
    check_number(op, "momentum", momentum, momentum >= 0, "a finite number >= 0")


def check_eps(op: str, eps: float) -> None:
    """The domain of what Adagrad and Adam add to a divisor that may be 0."""
    check_number(op, "eps", eps, eps > 0, "a finite number > 0")


def check_betas(op: str, beta1: float, beta2: float) -> None:
    """The domain of Adam's decay rates."""
    check_number(op, "beta1", beta1, 0 <= beta1 < 1, "in [0, 1)")
    check_number(op, "beta2", beta2, 0 <= beta2 < 1, "in [0, 1)")


def check_step(op: str, step: int) -> None:
    """The number of a step, which Adam divides by a function of: from 1."""
    if not 1 <= step < 2**31:
        raise RuntimeError(f"{op}: step must be in [1, 2^31), got {step}")


def check_adam(op: str, step: int, lr: float, rule: AdamRule) -> None:
    """All numbers of one step of Adam."""
    check_step(op, step)
    check_rates(op, lr, rule.weight_decay)
    check_betas(op, rule.beta1, rule.beta2)
    check_eps(op, rule.eps)


def check_replay(op: str, replay: Replay, rule: AdamRule) -> None:
    """All numbers of a replay but the learning rates, which may be on a GPU."""
    check_number(op, "weight_decay", rule.weight_decay, rule.weight_decay >= 0, "a finite number >= 0")
    check_betas(op, rule.beta1, rule.beta2)
    check_eps(op, rule.eps)
    lr_history, history_start, step = replay
    if not 0 <= history_start <= step or lr_history.numel() < step - history_start:
        raise RuntimeError(
            f"{op}: lr_history must be float64 with the learning rate of each step from {history_start + 1} to {step}, "
            f"got {lr_history.numel()}"
        )


def check_replayed_step(op: str, replay: Replay, rule: AdamRule) -> None:
    """All numbers of a step after a replay up to the step before."""
    check_step(op, replay.step)
    check_replay(op, replay, rule)
    if replay.step == replay.history_start:
        raise RuntimeError(f"{op}: step must be after history_start, got {replay.step}")


def check_ftrl(op: str, lr: float, l1: float, l2: float, beta: float) -> None:
    """What the rule needs of its numbers; it divides by lr."""
    if not (lr > 0 and l1 >= 0 and l2 >= 0 and beta >= 0 and all(map(math.isfinite, (lr, l1, l2, beta)))):
        raise RuntimeError(
            f"{op}: FTRL needs lr > 0 and l1, l2, beta >= 0, all finite; a schedule of lr must not reach 0, got lr "
            f"{lr}, l1 {l1}, l2 {l2}, beta {beta}"
        )


def check_options(op: str, rule: int, lr: float, step: int, options: Sequence[float]) -> None:
    """The numbers of step `step` of an update in the backward pass, see `deeprec.kernels.embedding_bag.RowUpdate`."""
    eps, decay, beta1, beta2 = options
    if rule == 4:
        check_ftrl(op, lr, beta1, beta2, eps)
        if decay:
            raise RuntimeError(f"{op}: FTRL takes no weight_decay but l2, got {decay}")
    elif rule == 3:
        check_adam(op, step, lr, AdamRule(beta1, beta2, eps, decay))
    else:
        check_rates(op, lr, decay)
        check_momentum(op, beta1) if rule == 0 else check_eps(op, eps)
