"""The options of the optimizers: which there are, their ranges, and errors that name the wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypedDict

from torch import Tensor

from deeprec._suggest import did_you_mean

Group: TypeAlias = dict[str, Any]  # one of Optimizer.param_groups


class Shared(TypedDict, total=False):
    """Options that every optimizer of `deeprec.train.optim` has, keyword-only, also by group.

    Attributes:
        maximize: go up instead of down: the gradient is negated before anything else, as in torch.
        max_grad_norm, stochastic_rounding, seed: see `deeprec.train.optim`.
        foreach, fused: torch's, about its speed alone: taken, kept for torch, and not used.
        capturable: keep learning rate and count of steps of the tables that are updated in the backward pass on their
            device, for CUDA graphs (kernels/README.md says of what); set the rate by `group["lr"].fill_(...)`.
        differentiable: torch's; False.
    """

    maximize: bool
    max_grad_norm: float | None
    stochastic_rounding: bool
    seed: int
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


SHARED: dict[str, Any] = {
    "maximize": False,
    "max_grad_norm": None,
    "stochastic_rounding": False,
    "seed": 0,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}
# What schedulers of torch, and people, note in a group; no optimizer reads it.
NOTES = frozenset(
    {"params", "param_names", "name", "initial_lr", "min_lr", "max_lr", "lr_scale", "swa_lr"}
    | {"base_momentum", "max_momentum"}
)


def require(condition: bool, owner: str, requirement: str, value: object) -> None:
    """Raise ValueError(owner: requirement, got value) unless the condition holds."""
    if not condition:
        raise ValueError(f"{owner}: {requirement}, got {value}")


def is_at_least(value: object, low: float) -> bool:
    """Whether value is a finite number (or a tensor of one) of at least `low`."""
    if isinstance(value, Tensor):
        value = float(value) if value.numel() == 1 else None
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= low


def check_names(owner: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for an option that is neither known nor a note of a scheduler's."""
    known = [*known]
    for key in options:
        if key not in known and key not in NOTES:
            raise ValueError(f"{owner}: {key} is not an option of it; {did_you_mean(key, known)}")


def _is_positive(value: Any) -> bool:
    return is_at_least(value, 0) and bool(value > 0)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _are_betas(value: Any) -> bool:
    return len(value) == 2 and all(is_at_least(beta, 0) and beta < 1 for beta in value)


class Option(NamedTuple):
    """What an option must be, whichever optimizer has it.

    Attributes:
        requirement: in the words of the error.
        holds: whether a value is like that.
        is_word: the error shows the value as it is written in Python.
        absent: what a state means that was saved without the option: by torch.optim, whose optimizers lack several of
            them, or before it existed. None: it is taken from the optimizer that loads the state.
    """

    requirement: str
    holds: Callable[[Any], bool]
    is_word: bool = False
    absent: Any = None


_AT_LEAST_ZERO = Option("a finite number >= 0", lambda value: is_at_least(value, 0))
_SWITCH = Option("True or False", _is_bool, is_word=True)
_UNSUPPORTED = Option("False, it is not supported", lambda value: value is None or value is False, is_word=True)
# In the order in which they are checked; what holds between options is checked by the optimizers.
OPTIONS: dict[str, Option] = {
    "lr": _AT_LEAST_ZERO,
    "weight_decay": _AT_LEAST_ZERO._replace(absent=0.0),
    "momentum": _AT_LEAST_ZERO,
    "lr_decay": _AT_LEAST_ZERO,
    "initial_accumulator_value": _AT_LEAST_ZERO,
    "maximize": _SWITCH._replace(absent=False),
    "nesterov": _SWITCH._replace(absent=False),
    "amsgrad": _SWITCH._replace(absent=False),
    "decoupled_weight_decay": _SWITCH._replace(absent=False),
    "stochastic_rounding": _SWITCH,
    "eps": Option("a finite number > 0", _is_positive),
    "max_grad_norm": Option("None or a finite number > 0", lambda value: value is None or _is_positive(value)),
    "seed": Option("an integer in [0, 2^63)", lambda value: isinstance(value, int) and 0 <= value < 2**63),
    "capturable": _SWITCH,
    "differentiable": _UNSUPPORTED,
    "dampening": Option("a finite number", lambda value: is_at_least(value, -math.inf), absent=0.0),
    "betas": Option("two numbers in [0, 1)", _are_betas),
    "mode": Option('"lazy" or "dense"', lambda value: value in ("lazy", "dense"), is_word=True),
    "l1": _AT_LEAST_ZERO,
    "l2": _AT_LEAST_ZERO,
    "beta": _AT_LEAST_ZERO,
}
ABSENT: dict[str, Any] = {key: option.absent for key, option in OPTIONS.items() if option.absent is not None}


def check_options(owner: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that is out of its range."""
    for key, option in OPTIONS.items():
        if key in options:
            value = options[key]
            shown = repr(value) if option.is_word else value
            require(option.holds(value), owner, f"{key} must be {option.requirement}", shown)
