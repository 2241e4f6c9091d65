"""`ClickModel`: what every model of clicks offers. Its inputs are the columns of a log, not a user and an item.

A model implements its mathematics (`_build`, `forward`); this class holds the inputs, the loss and the optimizers, and
passes the work on to `deeprec.train`, as `deeprec.models.base` does for recommenders.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.log import LogBatch, LogBatches
from deeprec.config import OPTIMIZERS, ByData, Only, TrainConfig, at_least, one_of
from deeprec.contract import PREDICTS, OptimizerOptions
from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.inputs import Inputs
from deeprec.device import Device
from deeprec.evaluate.tasks import ClickTask
from deeprec.models._click_defaults import FIRST_ORDER_LR, STEPS
from deeprec.models._click_inputs import LinearTerms
from deeprec.models.model import Model
from deeprec.nn import EmbeddingCollection, FactorizationMachine
from deeprec.nn._in_backward import OptimizerFactory

if TYPE_CHECKING:
    from typing_extensions import Self

ClickBatch: TypeAlias = LogBatch  # the name that users know
FIRST_ORDER = "first-order"
JUDGED_BY = ("headline", "both")
TableLayer: TypeAlias = EmbeddingCollection | FactorizationMachine


@dataclass(frozen=True)
class ClickConfig(TrainConfig):
    """How a click model is trained; models extend it with their own sizes.

    `fit` chooses what is left out by the log, as `_click_defaults` says; a whole `config` is taken as it is.

    Attributes:
        epochs: passes over the rows of the train part, >= 1.
        batch_size: rows a step, >= 1.
        optimizer: as of every model, or "ftrl", whose rate stays what it is whatever the schedule.
        l1, l2: of FTRL, for the mean loss of a batch (the paper's lambda / batch_size), >= 0; other optimizers have
            weight_decay.
        adagrad_start: first value of AdaGrad's sums of squares, >= 0.
        factors: D, width of the field embeddings, >= 1.
        embedding_l2: each step adds embedding_l2 / 2 times the squared norms of the rows it touches to the loss, >= 0.
        step_in_backward: the step of the tables is taken in the backward pass, and no gradient of theirs is stored.
        start_at_base_rate: every logit starts at the log odds of the clicks among the training rows, not at 0.
        judged_by: "headline": the protocol's first figure chooses the epoch, unless `select` names another, and
            patience waits for it; "both": log loss chooses it, and patience waits for AUC or log loss to get better.
    """

    by_data: ClassVar[Mapping[str, ByData]] = {
        "start_at_base_rate": ByData(lambda facts, options: True, "always"),
        "judged_by": ByData(lambda facts, options: "both", "both"),
        **STEPS,
    }
    optimizers: ClassVar[tuple[str, ...]] = (*OPTIMIZERS, "ftrl")
    unused: ClassVar[tuple[str, ...]] = ("num_negatives", "reduction", "weight_averaging", "refit")
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("l1", "l2"), "optimizer=ftrl; others have weight_decay or embedding_l2", lambda c: c.optimizer == "ftrl"),
        Only(
            ("weight_decay", "lr_schedule", "lr_decay"),
            "another optimizer than ftrl",
            lambda c: optimizers_of(c) != {"ftrl"},
        ),
        Only(("adagrad_start",), "optimizer=adagrad", lambda c: "adagrad" in optimizers_of(c)),
    )

    epochs: int = 10
    batch_size: int = 4096
    lr: float = 0.001
    patience: int = 2
    l1: float = 0.0
    adagrad_start: float = 0.0
    factors: int = 10
    embedding_l2: float = 0.0
    step_in_backward: bool = False
    start_at_base_rate: bool = False
    judged_by: str = "headline"

    def __post_init__(self) -> None:
        self._check_types()
        self._check_shared()
        for name, least in (
            ("batch_size", 1),
            ("l1", 0),
            ("adagrad_start", 0),
            ("factors", 1),
            ("embedding_l2", 0),
        ):
            at_least(self, name, least)
        one_of(self, "judged_by", JUDGED_BY)
        if self.step_in_backward and (self.clip_norm or self.accumulate > 1):
            raise ValueError(
                f"{type(self).__name__}: clip_norm and accumulate need gradients that are kept, got "
                "step_in_backward=True; leave it out"
            )
        self._not_in_backward("embedding_l2")

    def _not_in_backward(self, name: str) -> None:
        """Raise ValueError where an option is not 0 that steps in the backward pass leave no place for."""
        if self.step_in_backward and getattr(self, name):
            raise ValueError(
                f"{type(self).__name__}: {name} must be 0 with step_in_backward, got {getattr(self, name)}; leave one "
                "of them out"
            )

    def optimizer_options(self, group: str) -> OptimizerOptions:
        """How a group of `ClickModel.parameter_groups` is trained."""
        options = (self.optimizer, self.lr, self.l1, self.l2, self.weight_decay, self.adagrad_start)
        return OptimizerOptions(*options, self.ftrl_beta)

    def patience_figures(self, select: str) -> tuple[str, ...]:
        """By `judged_by`."""
        return (select, "auc", "log_loss") if self.judged_by == "both" else (select,)

    def default_select(self, protocol: Any) -> str:
        """By `judged_by`."""
        is_loss = self.judged_by == "both" and "log_loss" in protocol.metrics
        return "log_loss" if is_loss else super().default_select(protocol)

    @property
    def ftrl_beta(self) -> float:
        """FTRL's beta for the gradient of the mean of a batch: the paper's 1, which is for the sum, by the rows.

        Dividing gradients, beta, l1 and l2 by one number leaves FTRL's weights as they are.
        """
        return 1.0 / self.batch_size


@dataclass(frozen=True)
class FirstOrderConfig(ClickConfig):
    """Options of a model that has a first-order weight of each value beside vectors.

    Attributes:
        first_order_lr: rate of FTRL for the first-order weights, whose steps are as large as the evidence, where Adam's
            are as large for a value that was met once; 0: they are trained like the others.
    """

    groups: ClassVar[tuple[str, ...]] = ("", FIRST_ORDER)
    by_data: ClassVar[Mapping[str, ByData]] = {"first_order_lr": FIRST_ORDER_LR}

    first_order_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "first_order_lr", 0)
        self._not_in_backward("first_order_lr")

    def optimizer_options(self, group: str) -> OptimizerOptions:
        """FTRL for "first-order"."""
        if group != FIRST_ORDER:
            return super().optimizer_options(group)
        return OptimizerOptions("ftrl", self.first_order_lr, beta=self.ftrl_beta)


def optimizers_of(config: Any) -> set[str]:
    """Names of the optimizers of all groups of parameters."""
    return {config.optimizer, getattr(config, "wide_optimizer", config.optimizer)}


class ClickModel(Model):
    """Base of every click model.

    Args:
        inputs: sizes; None leaves the model unbuilt until `fit` sees the data.
        config: a full config; `options` are laid over it.
        generator: source of the initial weights.
        **options: fields of the model's config class.
    Attributes:
        inputs: what it was built for.
        encoder: what makes its inputs of a log; set by `fit` and by loading.
        negative_rate: share of the negatives that training kept, for which predictions are corrected.
    Raises:
        ValueError: an unknown option (with the nearest name) or one out of range.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({PREDICTS})
    takes: ClassVar[frozenset[str]] = frozenset({"select", "schema", "log", "on_bad"})
    reads: ClassVar[str] = "log"
    sizes: ClassVar[str] = "inputs"
    sizes_class: ClassVar[type[Any]] = Inputs
    keeps: ClassVar[tuple[str, ...]] = ("negative_rate", "encoder")
    inputs: Inputs | None

    def __init__(
        self,
        inputs: Inputs | None = None,
        config: ClickConfig | None = None,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(inputs, config, generator, options)
        self.encoder: Any = None
        self.negative_rate = 1.0

    def build(self, sizes: Inputs, generator: torch.Generator | None = None) -> Self:
        """Create the parameters for these inputs, replacing any there were."""
        super().build(sizes, generator)
        self._hold_embeddings_small()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Neither a copy nor a pickle of a parameter has its hooks."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.inputs is not None:
            self._hold_embeddings_small()

    def _hold_embeddings_small(self) -> None:
        """From now on the gradients of the tables hold that of `embedding_l2` too."""
        if self.config.embedding_l2:
            for table in self.embedding_tables():
                table.register_hook(partial(_with_l2, table=weakref.ref(table), l2=self.config.embedding_l2))

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B], float32, of the rows."""
        raise NotImplementedError

    def loss(self, batch: ClickBatch) -> Tensor:
        """Mean log loss of the rows, which must have labels."""
        assert batch.labels is not None
        return F.binary_cross_entropy_with_logits(self(batch), batch.labels)

    def batches(self, train: ClickPart, seed: int) -> LogBatches:
        """The rows of the log, shuffled anew every epoch."""
        return LogBatches(train, batch_size=self.config.batch_size, seed=seed)

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> ClickTask:
        """Predicting the clicks of a log."""
        return ClickTask.of(data, protocol, schema)

    def check(self, batch: ClickBatch) -> None:
        """Raise ValueError unless the batch has the columns that the model was built for."""
        inputs = self.require_built()
        for name, tensor, width in (
            ("ids", batch.ids, len(inputs.fields)),
            ("values", batch.values, len(inputs.numerics)),
        ):
            if tensor.dim() != 2 or tensor.shape[1] != width:
                raise ValueError(
                    f"{self.name}: {name} must be [B, {width}], got {tuple(tensor.shape)}; encode the rows with the "
                    "encoder that the model was trained with"
                )
        missing = [bag.name for bag in (*inputs.bags, *inputs.sequences) if bag.name not in batch.bags]
        if missing:
            raise ValueError(
                f"{self.name}: the batch must have all bags and sequences of the model, missing are {missing}"
            )
        for sequence in inputs.sequences:
            other = sequence.parallel_to or sequence.name
            sizes = [len(batch.bags[name][0]) for name in (sequence.name, other)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"{self.name}: {sequence.name!r} must have as many ids as {other!r}, to which it is parallel, "
                    f"{sizes[1]}, got {sizes[0]}; encode the rows with the encoder that the model was trained with"
                )

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of embeddings, [R, D] each, that `embedding_l2` holds small; first-order weights are none."""
        return []

    def output_bias(self) -> nn.Parameter | None:
        """w_0 [1], which is added to every logit; None where there is none."""
        return None

    @torch.no_grad()
    def start_at(self, log_odds: float) -> None:
        """Let every logit of the untrained model be near `log_odds`, if `start_at_base_rate` says so."""
        bias = self.output_bias()
        if self.config.start_at_base_rate and bias is not None:
            bias.fill_(log_odds)

    def group_of(self, name: str) -> str:
        """The group of a parameter by its name; all of them are of one, "", unless the model says otherwise."""
        return ""

    def first_order_weights(self) -> list[nn.Parameter]:
        """The weights w of w x, a number for each value, beside the vectors."""
        weights: list[nn.Parameter] = []
        for layer in self.modules():
            if isinstance(layer, FactorizationMachine):
                weights += layer.linear_weights()
            elif isinstance(layer, LinearTerms):
                weights += layer.parameters()
        return weights

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by how they are trained (`ClickConfig.optimizer_options`): "" and "first-order", or Wide & Deep's.

        Without those whose step is taken in the backward pass.
        """
        stepped = {id(p) for layer in self._table_layers() if layer.optimizer is not None for p in _tables(layer)}
        is_apart = getattr(self.config, "first_order_lr", 0.0) > 0
        apart = {id(p) for p in self.first_order_weights()} if is_apart else set()
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and id(parameter) not in stepped:
                group = FIRST_ORDER if id(parameter) in apart else self.group_of(name)
                groups.setdefault(group, []).append(parameter)
        return groups

    def step_in_backward(self, factories: Mapping[str, OptimizerFactory]) -> list[Any]:
        """Take the steps of the tables in the backward pass from now on.

        Args:
            factories: for each group of `parameter_groups`, what makes its optimizer from parameters.
        Returns:
            the optimizers that were made, one for each layer of tables; the other parameters are the caller's as ever.
        """
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        made = []
        for layer in self._table_layers():
            group = self.group_of(names[id(layer.weights()[0])])
            layer.step_in_backward(factories[group])
            made.append(layer.optimizer)
        return made

    def evaluate(self, data: Any = None, schema: Any = None, *, device: Device = "auto") -> dict[str, float]:
        """Figures of the test part of a log, e.g. {"auc": 0.8}; the log must be encoded as the model's was.

        With `device` the model is moved there for this call; "auto": where it is.
        """
        return self._evaluate(None, data, schema, device)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _table_layers(self) -> list[TableLayer]:
        return [layer for layer in self.modules() if isinstance(layer, TableLayer)]


def _tables(layer: TableLayer) -> list[nn.Parameter]:
    return [*layer.weights(), *(layer.linear_weights() if isinstance(layer, FactorizationMachine) else [])]


def _with_l2(gradient: Tensor, *, table: weakref.ref[nn.Parameter], l2: float) -> Tensor:
    """The gradient with l2 times the weights added: of the touched rows, or of all where the gradient is dense."""
    weight = table()
    assert weight is not None
    if not gradient.is_sparse:
        return gradient.add(weight.detach(), alpha=l2)
    gradient._values().add_(weight.detach()[gradient._indices()[0]], alpha=l2)
    return gradient
