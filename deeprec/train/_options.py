"""The options of the optimizers: which there are, their ranges, and errors that name the wrong one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from torch import Tensor

from deeprec._suggest import did_you_mean


class Shared(TypedDict, total=False):
    """Options that every optimizer of `deeprec.train.optim` has, keyword-only, also by group.

    Attributes:
        maximize: go up instead of down: the gradient is negated before anything else, as in torch.
        max_grad_norm, stochastic_rounding, seed: see `deeprec.train.optim`.
        foreach, fused: torch's, about its speed alone: taken, kept for torch, and not used.
        capturable, differentiable: torch's; False.
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
# What a state means that was saved without the option: by torch.optim, whose optimizers lack some, or before there
# was one. All others are taken from the optimizer that loads it.
ABSENT: dict[str, Any] = {
    "maximize": False,
    "dampening": 0.0,
    "nesterov": False,
    "amsgrad": False,
    "decoupled_weight_decay": False,
    "weight_decay": 0.0,
}
# What schedulers of torch, and people, note in a group; no optimizer reads it.
NOTES = frozenset(
    {"params", "param_names", "name", "initial_lr", "min_lr", "max_lr", "lr_scale", "swa_lr"}
    | {"base_momentum", "max_momentum"}
)
_AT_LEAST_ZERO = ("lr", "weight_decay", "momentum", "lr_decay", "initial_accumulator_value")
_SWITCHES = ("maximize", "nesterov", "amsgrad", "decoupled_weight_decay", "stochastic_rounding")


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


def check_options(owner: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option, of those that several optimizers have, that is out of its range."""
    for key in _AT_LEAST_ZERO:
        if key in options:
            require(is_at_least(options[key], 0), owner, f"{key} must be a finite number >= 0", options[key])
    for key in _SWITCHES:
        if key in options:
            require(isinstance(options[key], bool), owner, f"{key} must be True or False", repr(options[key]))
    if "eps" in options:
        positive = is_at_least(options["eps"], 0) and options["eps"] > 0
        require(positive, owner, "eps must be a finite number > 0", options["eps"])
    norm, seed = options["max_grad_norm"], options["seed"]
    positive = norm is None or (is_at_least(norm, 0) and norm > 0)
    require(positive, owner, "max_grad_norm must be None or a finite number > 0", norm)
    require(isinstance(seed, int) and 0 <= seed < 2**63, owner, "seed must be an integer in [0, 2^63)", seed)
    for key in ("capturable", "differentiable"):
        value = options[key]
        require(value is None or value is False, owner, f"{key} must be False, it is not supported", repr(value))
