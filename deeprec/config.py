"""Options that every trained model shares, and the way options become a frozen, validated config."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from deeprec._suggest import did_you_mean
from deeprec.contract import Facts, OptimizerOptions
from deeprec.registry import TAKEN, config_class, may_take, model_class, names

if TYPE_CHECKING:
    from typing_extensions import Self

OPTIMIZERS = ("adam", "lazy-adam", "adagrad", "sgd")
FULL_BATCH_OPTIMIZERS = ("rprop", "lbfgs")  # they need the gradient of all data in one step
LR_SCHEDULES = ("constant", "linear", "cosine", "plateau")
PRECISIONS = ("float32", "bfloat16")
REDUCTIONS = ("mean", "sum")
# What only training by gradients uses, all but `refit`.
GRADIENT_OPTIONS = (
    "epochs", "batch_size", "lr", "optimizer", "weight_decay", "l2", "num_negatives", "reduction", "precision",
    "patience", "weight_averaging", "lr_schedule", "lr_decay", "warmup_steps", "clip_norm", "accumulate", "compile",
)  # fmt: skip


class Only(NamedTuple):
    """Options that shape nothing unless others have certain values.

    Attributes:
        options: their names.
        needs: what gives them a meaning, in words, such as "pretrain=True".
        holds: whether a config has that.
    """

    options: tuple[str, ...]
    needs: str
    holds: Callable[[Any], bool]


class ByData(NamedTuple):
    """The default of an option that depends on the data, for a training that was not given the option.

    Attributes:
        choose: its value, from the facts of the training rows and an object with all options as attributes: those
            given, those chosen before it, and the defaults of the class.
        how: the rule in words, such as "such that an epoch has 50 steps, from 64 to 4096".
    """

    choose: Callable[[Facts, Any], Any]
    how: str


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
        lr_schedule: "constant"; "linear" or "cosine": the rate falls to nothing over `epochs`; "plateau": it is divided
            by 10 after each epoch without a better validation figure (BARS trains its models so).
        lr_decay: >= 0; the rate of epoch t = 0, 1, ... is divided by 1 + t lr_decay.
        warmup_steps: steps over which the rate rises from nothing, >= 0.
        clip_norm: largest joint L2 norm of the gradients of a step, which are scaled down to it; 0: any.
        accumulate: batches whose gradients are added up for a step (their mean, with reduction "mean"), >= 1.
        compile: the dense part of the model runs through torch.compile while it is trained.
    """

    # What a model does not use is declared, and refused where it is set to anything but its default: options that it
    # never takes, and options that mean something beside others only. The latter add up over the base classes.
    unused: ClassVar[tuple[str, ...]] = ()
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(
            ("warmup_steps", "clip_norm", "accumulate"),
            "an optimizer that steps on every batch, such as adam",
            lambda config: config.optimizer not in FULL_BATCH_OPTIMIZERS,
        ),
    )
    # Options whose default depends on the data where `fit` trains; they add up over the base classes, in this order.
    by_data: ClassVar[Mapping[str, ByData]] = {}
    compiles: ClassVar[bool] = False  # whether there is a dense part beside the kernels
    groups: ClassVar[tuple[str, ...]] = ("",)  # of parameters, see `optimizer_options`
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
    warmup_steps: int = 0
    clip_norm: float = 0.0
    accumulate: int = 1
    compile: bool = False

    def optimizer_options(self, group: str) -> OptimizerOptions:
        """How a group of the model's `parameter_groups` is trained."""
        start = getattr(self, "adagrad_start", 0.0)
        return OptimizerOptions(self.optimizer, self.lr, weight_decay=self.weight_decay, start=start)

    def patience_figures(self, select: str) -> tuple[str, ...]:
        """The validation figures for which `patience` waits, `select` being the one that chooses the epoch."""
        return (select,)

    def default_select(self, protocol: Any) -> str:
        """The validation figure that chooses the epoch where the caller names none."""
        headline: str = protocol.headline
        return headline

    def for_data(self, facts: Facts, given: Collection[str]) -> tuple[Self, tuple[str, ...]]:
        """This config with the options that are not `given` chosen by the data, and the names of those chosen."""
        values = SimpleNamespace(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        chosen = {}
        for name, rule in defaults_by_data(type(self)).items():
            # A choice may give others their meaning or take it: what has no effect now keeps its default, and what was
            # given keeps its effect.
            without_effect = dict(ineffective(type(self), values)).keys()
            if name in given or name in without_effect:
                continue
            default, choice = getattr(values, name), rule.choose(facts, values)
            setattr(values, name, choice)
            if set(given) & (dict(ineffective(type(self), values)).keys() - without_effect):
                setattr(values, name, default)
            else:
                chosen[name] = choice
        return dataclasses.replace(self, **chosen), tuple(chosen)

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
        at_least(self, "warmup_steps", 0)
        at_least(self, "clip_norm", 0)
        at_least(self, "accumulate", 1)
        if not 0 <= self.weight_averaging < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: weight_averaging must lie in [0, 1), got {self.weight_averaging}")
        if not self.lr > 0:
            raise ValueError(f"{type(self).__name__}: lr must be > 0, got {self.lr}; 0.001 is a good start for adam")
        if self.refit and self.lr_schedule == "plateau":
            raise ValueError(
                f"{type(self).__name__}: lr_schedule 'plateau' does not go with refit, which watches no validation "
                "figures; take 'linear'"
            )
        one_of(self, "reduction", REDUCTIONS)
        one_of(self, "lr_schedule", self.lr_schedules)
        one_of(self, "precision", PRECISIONS)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, needs in ineffective(type(self), self):
            value = getattr(self, name)
            if value != defaults[name]:
                remedy = f"leave it out, or take {needs}" if needs else _users_of(name)
                raise ValueError(f"{type(self).__name__}: {name} has no effect here, got {value!r}; {remedy}")
        one_of(self, "optimizer", self.optimizers)  # of a model without any, the word above says more


def defaults_by_data(config_class: type[TrainConfig]) -> dict[str, ByData]:
    """The rules for options whose default depends on the data, by option; a class's own win over its base's."""
    rules: dict[str, ByData] = {}
    for owner in reversed(config_class.__mro__):
        rules |= vars(owner).get("by_data", {})
    unused = unused_options(config_class)
    return {name: rule for name, rule in rules.items() if name not in unused}


def ineffective(config_class: type[TrainConfig], values: Any) -> Iterator[tuple[str, str]]:
    """Options without an effect on a model with `values` (a config, or any object with its options as attributes).

    Yields:
        name, and what would give it an effect; "" where nothing does.
    """
    yield from ((name, "") for name in unused_options(config_class))
    for owner in config_class.__mro__:
        for rule in vars(owner).get("conditions", ()):
            if not rule.holds(values):
                for name in rule.options:
                    yield name, rule.needs


def unused_options(config_class: type[Any]) -> tuple[str, ...]:
    """Names of the options that a model never uses."""
    return (*getattr(config_class, "unused", ()), *(() if getattr(config_class, "compiles", True) else ("compile",)))


def _users_of(option: str) -> str:
    """The remedy for an option that other models have; "" where none has it."""
    classes = {name: config_class(name) for name in names()}
    users = [name for name, kind in classes.items() if option in taken_options(kind)]
    return f"leave it out ({', '.join(users)} {'takes' if len(users) == 1 else 'take'} it)" if users else ""


def taken_options(config_class: type[Any]) -> list[str]:
    """Names of the options of a model that it uses, in some combination at least."""
    names = (field.name for field in dataclasses.fields(config_class))
    return [name for name in names if name not in unused_options(config_class)]


def unknown_option(config_class: type[Any], key: str) -> str:
    """The remedy for an option that a config class does not have: the models that have it, or the nearest name."""
    users = _users_of(key) if issubclass(config_class, TrainConfig) else ""
    return users or did_you_mean(key, taken_options(config_class))


_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def _typed(label: str, value: Any, kind: Any) -> Any:
    """`value` as int, float, bool, str, a tuple of these, or one of these or None.

    Raises:
        TypeError: it is of another type. ValueError: a number that is not finite.
    """
    if isinstance(kind, types.UnionType):
        (inner,) = (part for part in typing.get_args(kind) if part is not type(None))
        return None if value is None else _typed(label, value, inner)
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        count = None if kinds[-1] is Ellipsis else len(kinds)
        if not isinstance(value, (tuple, list)) or count not in (None, len(value)):
            remedy = f"; take ({value!r},)" if count is None and isinstance(value, kinds[0]) else ""
            raise TypeError(f"{label} must be a tuple{f' of {count} values' if count else ''}, got {value!r}{remedy}")
        return tuple(_typed(label, part, kinds[0]) for part in value)
    is_bool = isinstance(value, (bool, np.bool_))
    is_whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    kinds_of = {int: is_whole and not is_bool, float: isinstance(value, Real) and not is_bool, bool: is_bool}
    if not kinds_of.get(kind, isinstance(value, str)):
        raise TypeError(f"{label} must be {_WORDS[kind]}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{label} must be finite, got {value}")
    return kind(value)


def require_keywords(function: Callable[..., Any], given: Mapping[str, Any], model: Any) -> None:
    """Raise TypeError, with a remedy, for a keyword of a model's method that the function behind it does not have."""
    keywords = inspect.signature(function).parameters.items()
    known = [name for name, each in keywords if each.kind is each.KEYWORD_ONLY and may_take(type(model), name)]
    for name in given:
        if name in known:
            continue
        if name in taken_options(type(model.config)):
            remedy = f"it is an option of the model: models.create({model.name!r}, {name}={given[name]!r})"
        elif name in TAKEN:
            users = [other for other in names() if may_take(model_class(other), name)]
            remedy = f"leave it out: it goes with {', '.join(users)}"
        else:
            remedy = did_you_mean(name, known)
        raise TypeError(f"{model.name}.{function.__name__}: unknown option {name!r}; {remedy}")


ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def make_config(config_class: type[ConfigT], config: ConfigT | None, options: Mapping[str, Any]) -> ConfigT:
    """`config` (or the defaults) with `options` laid over it; an unknown key raises ValueError."""
    known = [field.name for field in dataclasses.fields(config_class)]
    for key in options:
        if key not in known:
            raise ValueError(f"{config_class.__name__}: unknown option {key!r}; {unknown_option(config_class, key)}")
    if config is None:
        return config_class(**options)
    if not isinstance(config, config_class):
        raise TypeError(f"{config_class.__name__} expected, got {type(config).__name__}")
    return dataclasses.replace(config, **options)


def config_from_dict(config_class: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """A config read back from JSON, where tuples became lists; an option that had no effect is left out."""
    restored = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    for name, _ in list(ineffective(config_class, SimpleNamespace(**{**defaults, **restored}))):
        restored.pop(name, None)
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


def chosen_of(config: TrainConfig, name: str, known: tuple[str, ...]) -> None:
    """Raise ValueError where a field of the config is not one or more of `known`, each once."""
    given = getattr(config, name)
    if not given or len(set(given)) < len(given) or not set(given) <= set(known):
        owner = type(config).__name__
        raise ValueError(f"{owner}: {name} must be one or more of {', '.join(known)}, each once, got {given}")
