"""What the layers expect of each other: batches, models that train, models that score, and the tasks that measure them.

`deeprec.batches`, `deeprec.train`, `deeprec.evaluate` and `deeprec.serve` know models by these protocols alone; the
models stand above them and import them plainly. Anything with the methods of a protocol is one; nothing is inherited.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:  # the names of the models are read from here without torch
    import torch
    from torch import Tensor

# What a model can be asked for; a model names what it can in `capabilities`.
RECOMMENDS, RATES, PREDICTS = "recommends", "rates", "predicts"
SIMILAR_ITEMS, NEW_USERS, NEW_ITEMS = "similar_items", "new_users", "new_items"
FROM_COLUMNS, DOMAINS = "from_columns", "domains"
RETRIEVES = "retrieves"
CAPABILITIES: dict[str, str] = {
    RECOMMENDS: "recommends items to a user",
    RATES: "predicts ratings",
    PREDICTS: "predicts the probability of a click",
    SIMILAR_ITEMS: "knows similar items",
    NEW_USERS: "serves users that it never saw, from what they did",
    FROM_COLUMNS: "serves users and items that it never saw, from their columns",
    DOMAINS: "knows the domains of items, and recommends those of one alone",
    NEW_ITEMS: "rates items that it never saw, from what users gave them",
    RETRIEVES: "scores by a dot product with item vectors, which an index can hold",
}


# A model where a function needs more of it than one protocol says; what it can is looked at before it is asked.
AnyModel: TypeAlias = Any


class Batch(Protocol):
    """The examples of one step; only the model whose sampler made it looks inside."""

    def __len__(self) -> int:
        """Examples: what the mean loss of an epoch is a mean over."""

    def to(self, device: torch.device) -> Any:
        """The batch on a device, itself where it is there; does not wait for the way there."""


class Batches(Protocol):
    """The training examples of a run, in steps."""

    @property
    def num_examples(self) -> int:
        """Examples in an epoch."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, number: int, skip: int = 0) -> Iterator[Any]:
        """The batches (see `Batch`) of one epoch, the same for a number whenever they are asked for.

        Args:
            skip: batches that were trained already and are left out, >= 0.
        """


@dataclass(frozen=True)
class Schema:
    """The sizes that a model of users and items is built for.

    Attributes:
        num_users, num_items: number of distinct users and items, >= 1.
        num_features: columns of the side information that the model takes, 0 for none.
    """

    num_users: int
    num_items: int
    num_features: int = 0

    def __post_init__(self) -> None:
        for name in ("num_users", "num_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"Schema: {name} must be >= 1, got {getattr(self, name)}")
        if self.num_features < 0:
            raise ValueError(f"Schema: num_features must be >= 0, got {self.num_features}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


class Seen(NamedTuple):
    """The items each user has met as CSR: row u is items[offsets[u]:offsets[u + 1]], sorted.

    Attributes:
        offsets: [num_users + 1], int64.
        items: [nnz], int32.
    """

    offsets: np.ndarray
    items: np.ndarray


def check_rows(offsets: np.ndarray, items: np.ndarray, num_rows: int, num_items: int) -> None:
    """Raise ValueError unless offsets [num_rows + 1] and items [nnz] are compressed rows of item indices."""
    if offsets.shape != (num_rows + 1,) or offsets.dtype != np.int64 or items.ndim != 1 or items.dtype != np.int32:
        raise ValueError(
            f"offsets int64 [{num_rows + 1}] and items int32 [n] are needed, got {offsets.dtype} "
            f"{list(offsets.shape)} and {items.dtype} {list(items.shape)}"
        )
    if offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must ascend from 0 to {len(items)}, the number of items")
    if len(items) and not 0 <= items.min() <= items.max() < num_items:
        raise ValueError(f"items must lie in [0, {num_items}), got {items.min()} to {items.max()}")


def pair_keys(seen: Seen, num_items: int) -> np.ndarray:
    """user * num_items + item of each entry, int64, ascending: one number for each pair."""
    owners = np.repeat(np.arange(len(seen.offsets) - 1), np.diff(seen.offsets))
    keys: np.ndarray = owners * max(num_items, 1) + seen.items
    return keys


def merged(first: Seen, second: Seen, num_users: int, num_items: int) -> Seen:
    """The items of both, each once, for `num_users` users; users whom either has no row for have none there."""
    keys = np.union1d(pair_keys(first, num_items), pair_keys(second, num_items))
    users, items = np.divmod(keys, max(num_items, 1))
    offsets = np.zeros(num_users + 1, dtype=np.int64)
    np.cumsum(np.bincount(users, minlength=num_users), out=offsets[1:])
    return Seen(offsets, items.astype(np.int32))


class Queries(NamedTuple):
    """Who is asked for: known users, people with a history of their own, or both.

    Attributes:
        users: [b] internal ids, int64; None for people without one.
        history: (offsets [b + 1], items [nnz]), int64, on the CPU: the items of each in the order they were met; None:
            as trained.
        ratings: [nnz], float32, on the CPU: what they gave these items; None where they gave none.
        context: columns of the request, for models that take any; None without.
    """

    users: Tensor | None = None
    history: tuple[Tensor, Tensor] | None = None
    ratings: Tensor | None = None
    context: Mapping[str, Tensor] | None = None


class OptimizerOptions(NamedTuple):
    """How the parameters of a group are trained.

    Attributes:
        optimizer: a name of `deeprec.train.optimizers`.
        lr: learning rate of the first epoch, > 0.
        l1, l2: of FTRL, >= 0.
        weight_decay: of the others, >= 0.
        start: first value of AdaGrad's sums of squares, >= 0.
        beta: of FTRL, > 0.
        momentum: of the steps of AdaGrad and SGD, in [0, 1).
    """

    optimizer: str
    lr: float
    l1: float = 0.0
    l2: float = 0.0
    weight_decay: float = 0.0
    start: float = 0.0
    beta: float = 1.0
    momentum: float = 0.0


class Facts(NamedTuple):
    """What the training rows are like, as far as the default of an option may depend on it.

    Attributes:
        rows: interactions, ratings or rows of a log that are trained on.
        users, items: how many of them have any; 0 for a log.
        rating_range: smallest and largest rating; None without ratings.
        rating_spread: standard deviation of the ratings; 0 without.
        levels: the distinct ratings, ascending, those of the other parts too, as a scale has them all; () without
            ratings, and where there are more than 32.
        columns: of a log: fields, numerics and bags.
        values: of a log: distinct values of its fields and bags, rows of the embedding tables.
        positives: of a log: rows with label 1.
    """

    rows: int
    users: int = 0
    items: int = 0
    rating_range: tuple[float, float] | None = None
    rating_spread: float = 0.0
    levels: tuple[float, ...] = ()
    columns: int = 0
    values: int = 0
    positives: int = 0


class Turn(NamedTuple):
    """What a player does with a batch: the loss whose gradients it takes, and the parameters that it steps.

    Most models have one player. Where several learn against each other, their turns are taken one after the other on
    the same batch; each sees what the turns before it changed.

    Attributes:
        name: of the player; "" where there is only one.
        groups: names of the parameter groups that are stepped.
        backward: adds the gradients of a batch's loss to the parameters; returns the loss, detached.
    """

    name: str
    groups: Sequence[str]
    backward: Callable[[Any], Tensor]


class Trainable(Protocol):
    """What the training loop asks of a model, which is an nn.Module beside it.

    Attributes:
        name: registered name.
        config: its options, a `deeprec.config.TrainConfig`.
        trains_by_gradient: False for a model that `fit_directly` fits.
        chosen: names of the options that `adapt` chose by the data.
        takes: inputs of a run that it uses beside data and options; see `deeprec.registry.require_taken`.
    """

    name: str
    config: Any
    trains_by_gradient: bool
    takes: frozenset[str]
    chosen: tuple[str, ...]

    def adapt(self, facts: Facts) -> None:
        """Choose the options that nobody gave by what the training rows are like; before the model is built."""

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> Task:
        """The task of learning from `data`: Interactions, a log, a frame, a name, or a task that is there.

        Args:
            protocol: a protocol, its name, or None for the usual one.
            schema: what the columns of a file or frame mean, for models that take one.
        """

    def batches(self, train: Any, seed: int) -> Batches:
        """What it trains on."""

    def turns(self) -> Sequence[Turn]:
        """Who steps on a batch, in order."""

    def parameter_groups(self) -> Mapping[str, list[Any]]:
        """Parameters by group; `config.optimizer_options(group)` says how each is trained."""

    def warm_start(self, train_stage: Callable[[Any], Any]) -> bool:
        """Called before the training with a function that trains another model on the same data, for pre-training.

        Returns:
            whether the weights now come from somewhere else; then they are a candidate of their own, epoch 0.
        """

    def fit_directly(self, train: Any) -> None:
        """Fit without gradient steps."""


class Task(Protocol):
    """What a model learns from and is measured by: data, cut by a protocol.

    Attributes:
        name: of the data.
        protocol: how it was cut and is measured: `as_dict`, `headline`, and `task`, the kind of the figures.
    """

    name: str
    protocol: Any

    def require(self, model: Any) -> None:
        """Raise ValueError unless the model can do the task, and every part that is needed holds rows."""

    def facts(self) -> Facts:
        """What the training rows are like; options that nobody gave may depend on it."""

    def baselines(self) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        """The simple methods that every result stands beside: label to the name of a model and its options."""

    def for_baselines(self, seed: int) -> Task:
        """The same task with as many training rows as a simple method needs; the test part is the same."""

    def build(self, model: Any, generator: torch.Generator) -> bool:
        """Make the model's parameters for the data, and give it what it keeps of it.

        Returns:
            whether the weights now come from somewhere else: then there is no pre-training, and they are a candidate
            of their own, epoch 0.
        """

    def train(self, seed: int, *, joined: bool = False) -> Any:
        """The rows to train on; `joined`: those that chose the epoch too."""

    def require_fitted(self, model: Any) -> None:
        """Raise ValueError unless the model was trained on this data."""

    def validates(self) -> bool:
        """Whether there are rows that can choose the epoch."""

    def figures(self, model: Any, part: str) -> dict[str, float]:
        """The figures of a part, "validation" or "test", by name."""

    def choosing_figures(self, model: Any) -> dict[str, float]:
        """The figures that choose the epoch: of the validation part, or of a sample of it, always the same one."""

    def validation_sample(self) -> str:
        """What the sample is, such as "1,720 of 10,000 users"; "" where the whole part chooses."""

    def checksums(self, model: Any) -> dict[str, str]:
        """SHA-256 of all data that shapes the result, as on the card."""

    def described(self, model: Any, seed: int) -> dict[str, Any]:
        """The data, for the card: name, sizes and checksums."""

    def adopt(self, model: Any) -> None:
        """Give the trained model what it needs to be asked."""

    def draw(self, model: Any, directory: Path) -> None:
        """Write the pictures of the test part, if the task has any."""


class Stored(Protocol):
    """What the model folder asks of a model.

    Attributes:
        sizes: name of the attribute that it is built for, a dataclass with `as_dict`: "schema" or "inputs".
        sizes_class: its class.
        keeps: what is saved beside the weights, names of attributes: "user_ids", "item_ids", "seen" (may be None),
            "encoder", "negative_rate".
    """

    name: str
    config: Any
    sizes: str
    sizes_class: type[Any]
    keeps: Sequence[str]


class Continuable(Protocol):
    """What going on with later rows asks of a model beside `Trainable` and `Stored`.

    Attributes:
        trains_on_whole_rows: of a model of users and items: that it learns from whole rows of these, and so is given
            what was met before too.
        earlier: of a model of users and items, meanwhile: what each user met before, which is no negative.
    """

    trains_on_whole_rows: bool
    earlier: Seen | None

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """Take over the weights of the same model for fewer users, items or values."""


class Scorable(Protocol):
    """What recommending asks of a model: who asks is made a state, and the state a scorer of `deeprec.nn.scoring`."""

    def encode(self, queries: Queries) -> Any:
        """What the model knows of those who ask, where the model is."""

    def scorer(self, state: Any) -> Any:
        """What scores every item for them."""
