"""Options of the autoencoders of ratings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deeprec.batches.ratings import SIDES
from deeprec.config import FULL_BATCH_OPTIMIZERS, OPTIMIZERS, ByData, Only, TrainConfig

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class AutoencoderConfig(TrainConfig):
    """Options of every autoencoder of ratings; the models' own configs describe them.

    Attributes:
        side: "item" reconstructs item columns, "user" user rows.
        hidden: width of the first and the last hidden layer, >= 1.
        inner: widths of the layers between them down to the middle, (250,) for hidden-250-hidden; () for one layer.
        from_biases: reconstruct what mu + b_user + b_item (the model `bias`) leave of the ratings, in units of its
            standard deviation, and start as these: on validation rows the model is never worse than they are, and it
            does not depend on the scale of the ratings.
        pretrain: with `inner`: train the model without them first, then each inner layer as an autoencoder of the codes
            below it, and start from there.
        pretrain_epochs: of the model without inner layers, >= 1.
        pretrain_lr: its learning rate; 0: the same.
        layer_epochs: of each inner layer's own autoencoder, >= 1.
        rating_range: smallest and largest rating there can be; None: those of the training ratings.
        epochs: passes over the ratings; with the full batch, iterations ("lbfgs": ten iterations).
        batch_size: item columns or user rows a step, >= 1; 0: all of them.
    """

    optimizers: ClassVar[tuple[str, ...]] = (*FULL_BATCH_OPTIMIZERS, *OPTIMIZERS)
    unused: ClassVar[tuple[str, ...]] = ("num_negatives", "reduction", "precision")  # the paper's loss is a sum
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("pretrain_epochs", "pretrain_lr", "layer_epochs"), "pretrain=True", lambda config: config.pretrain),
        Only(
            ("lr_schedule", "lr_decay"),
            "an optimizer whose rate changes, such as adam",
            lambda config: config.optimizer not in FULL_BATCH_OPTIMIZERS,
        ),
        Only(("lr",), "an optimizer with a rate, such as rprop", lambda config: config.optimizer != "lbfgs"),
    )

    by_data: ClassVar[Mapping[str, ByData]] = {"from_biases": ByData(lambda facts, options: True, "True")}

    side: str = "item"
    hidden: int = 500
    inner: tuple[int, ...] = ()
    from_biases: bool = False
    pretrain: bool = False
    pretrain_epochs: int = 100
    pretrain_lr: float = 0.0
    layer_epochs: int = 100
    rating_range: tuple[float, float] | None = None
    num_negatives: int = 1
    reduction: str = "sum"

    def __post_init__(self) -> None:
        self._check_types()
        owner = type(self).__name__
        if self.batch_size < 0:
            raise ValueError(f"{owner}: batch_size must be >= 0 (0: everything in one step), got {self.batch_size}")
        if self.batch_size and self.optimizer in FULL_BATCH_OPTIMIZERS:
            raise ValueError(
                f"{owner}: optimizer {self.optimizer!r} needs the full batch, got batch_size={self.batch_size}; take "
                "batch_size=0, or optimizer='adam'"
            )
        if self.weight_decay and self.optimizer in FULL_BATCH_OPTIMIZERS:
            raise ValueError(f"{owner}: weight_decay must be 0 with {self.optimizer}, got {self.weight_decay}; take l2")
        if self.side not in SIDES:
            raise ValueError(f"{owner}: side must be {' or '.join(SIDES)}, got {self.side!r}")
        if min(self.hidden, *self.inner, self.pretrain_epochs, self.layer_epochs) < 1:
            raise ValueError(
                f"{owner}: hidden, inner, pretrain_epochs and layer_epochs must be >= 1, got {self.hidden}, "
                f"{self.inner}, {self.pretrain_epochs} and {self.layer_epochs}"
            )
        if self.pretrain_lr < 0:
            raise ValueError(f"{owner}: pretrain_lr must be >= 0 (0: lr), got {self.pretrain_lr}")
        if self.pretrain and not self.inner:
            raise ValueError(f"{owner}: pretrain needs inner layers, got inner=(); take e.g. inner=(250,)")
        if self.rating_range is not None and not self.rating_range[0] < self.rating_range[1]:
            raise ValueError(f"{owner}: rating_range must ascend, got {self.rating_range}; for five stars take (1, 5)")
        self._check_shared()

    def shallow(self) -> Self:
        """The config of the model without inner layers that the deep one starts from."""
        lr = self.pretrain_lr or self.lr
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        unused = {name: defaults[name] for name in ("pretrain_epochs", "pretrain_lr", "layer_epochs")}
        options: dict[str, Any] = {"inner": (), "pretrain": False, "epochs": self.pretrain_epochs, "lr": lr, **unused}
        return dataclasses.replace(self, **options)
