"""Options that every trained model shares, and the way options become a frozen, validated config."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

import numpy as np

from deeprec._suggest import did_you_mean

OPTIMIZERS = ("adam", "lazy-adam", "adagrad", "sgd")
FULL_BATCH_OPTIMIZERS = ("rprop", "lbfgs")  # they need the gradient of all data in one step
LR_SCHEDULES = ("constant", "linear")
PRECISIONS = ("float32", "bfloat16")
REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; model configs extend it with the model's own sizes.

    Attributes:
        epochs: passes over the training positives, >= 1.
        batch_size: examples a step, positives and negatives together, >= 1 + num_negatives.
        lr: learning rate, > 0.
        optimizer: "adam" (equal to dense Adam, touched rows only), "lazy-adam", "adagrad" or "sgd".
        weight_decay: L2 coefficient, >= 0; on embedding tables it acts on the touched rows ("adam": on every row).
        l2: each example adds l2 / 2 times the squared norms of its embedding rows to its loss, >= 0; unlike
            `weight_decay` it grows with the number of an id's examples and leaves the network alone.
        num_negatives: negatives drawn for each positive, anew every epoch, >= 1.
        reduction: "mean" (paper) or "sum" of the examples' losses in a step; the learning rate's scale follows.
        precision: matrix products in "float32" or "bfloat16" (float32 master weights and accumulation either way).
        patience: stop after this many epochs without a better validation figure; 0 never stops early.
        weight_averaging: a in [0, 1); 0 is off. After each epoch average = a average + (1 - a) weights, and the average
            is what is validated, chosen, saved and served, while training goes on from the weights themselves.
        refit: after the epoch is chosen, train anew on train + validation for that many epochs.
        lr_schedule: "constant", or "linear": the rate falls to nothing over `epochs`.
        lr_decay: >= 0; the rate of epoch t = 0, 1, ... is divided by 1 + t lr_decay.
    """

    unused: ClassVar[tuple[str, ...]] = ()  # options that a family of models does not take
    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS
    lr_schedules: ClassVar[tuple[str, ...]] = LR_SCHEDULES

    epochs: int = 20
    batch_size: int = 256
    lr: float = 0.001
    optimizer: str = "adam"
    weight_decay: float = 0.0
    l2: float = 0.0
    num_negatives: int = 4
    reduction: str = "mean"
    precision: str = "float32"
    patience: int = 0
    weight_averaging: float = 0.0
    refit: bool = False
    lr_schedule: str = "constant"
    lr_decay: float = 0.0

    def lr_of(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        left = 1 - epoch / self.epochs if self.lr_schedule == "linear" else 1.0
        return self.lr * left / (1 + epoch * self.lr_decay)

    def __post_init__(self) -> None:
        self._check_types()
        at_least(self, "batch_size", 1 + self.num_negatives)
        self._check_shared()

    def _check_types(self) -> None:
        """Every field as its annotation says, NumPy's numbers and lists made Python's and tuples; or raise."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            label = f"{type(self).__name__}: {field.name}"
            object.__setattr__(self, field.name, _typed(label, getattr(self, field.name), hints[field.name]))

    def _check_shared(self) -> None:
        """Everything but batch_size, which models count differently."""
        at_least(self, "epochs", 1)
        at_least(self, "num_negatives", 1)
        at_least(self, "patience", 0)
        at_least(self, "weight_decay", 0)
        at_least(self, "l2", 0)
        at_least(self, "lr_decay", 0)
        if not 0 <= self.weight_averaging < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: weight_averaging must lie in [0, 1), got {self.weight_averaging}")
        if not self.lr > 0:
            raise ValueError(f"{type(self).__name__}: lr must be > 0, got {self.lr}; 0.001 is a good start for adam")
        one_of(self, "optimizer", self.optimizers)
        one_of(self, "reduction", REDUCTIONS)
        one_of(self, "lr_schedule", self.lr_schedules)
        one_of(self, "precision", PRECISIONS)


_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def _typed(label: str, value: Any, wanted: Any) -> Any:
    """`value` as int, float, bool, str, a tuple of these, or one of these or None.

    Raises:
        TypeError: it is of another type. ValueError: a number that is not finite.
    """
    if isinstance(wanted, types.UnionType):
        (inner,) = (kind for kind in typing.get_args(wanted) if kind is not type(None))
        return None if value is None else _typed(label, value, inner)
    if typing.get_origin(wanted) is tuple:
        kinds = typing.get_args(wanted)
        count = None if kinds[-1] is Ellipsis else len(kinds)
        if not isinstance(value, (tuple, list)) or count not in (None, len(value)):
            remedy = f"; take ({value!r},)" if count is None and isinstance(value, kinds[0]) else ""
            raise TypeError(f"{label} must be a tuple{f' of {count} values' if count else ''}, got {value!r}{remedy}")
        return tuple(_typed(label, part, kinds[0]) for part in value)
    is_bool = isinstance(value, (bool, np.bool_))
    is_whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    kinds_of = {int: is_whole and not is_bool, float: isinstance(value, Real) and not is_bool, bool: is_bool}
    if not kinds_of.get(wanted, isinstance(value, str)):
        raise TypeError(f"{label} must be {_WORDS[wanted]}, got {value!r}")
    if wanted is float and not math.isfinite(value):
        raise ValueError(f"{label} must be finite, got {value}")
    return wanted(value)


ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def make_config(config_class: type[ConfigT], config: ConfigT | None, options: Mapping[str, Any]) -> ConfigT:
    """`config` (or the defaults) with `options` laid over it; an unknown key raises ValueError."""
    known = [field.name for field in dataclasses.fields(config_class)]
    for key in options:
        if key not in known:
            raise ValueError(f"{config_class.__name__}: unknown option {key!r}; {did_you_mean(key, known)}")
    if config is None:
        return config_class(**options)
    if not isinstance(config, config_class):
        raise TypeError(f"{config_class.__name__} expected, got {type(config).__name__}")
    return dataclasses.replace(config, **options)


def config_from_dict(config_class: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """A config read back from JSON, where tuples became lists."""
    restored = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return make_config(config_class, None, restored)


def at_least(config: TrainConfig, name: str, least: float) -> None:
    """Raise ValueError where a field of the config is below `least`."""
    value = getattr(config, name)
    if not value >= least:
        raise ValueError(f"{type(config).__name__}: {name} must be >= {least}, got {value}")


def one_of(config: TrainConfig, name: str, options: tuple[str, ...]) -> None:
    """Raise ValueError where a field of the config is none of `options`."""
    value = getattr(config, name)
    if value not in options:
        raise ValueError(f"{type(config).__name__}: {name} must be one of {', '.join(options)}; got {value!r}")
