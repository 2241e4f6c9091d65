"""`ClickModel`: what every model of clicks offers. Its inputs are the columns of a log, not a user and an item.

A model implements its mathematics (`_build`, `forward`); this class holds the inputs, the loss and the optimizers, and
passes the work on to `deeprec.train`, as `deeprec.models.base` does for recommenders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.data.inputs import Inputs
from deeprec.models.config import TrainConfig, make_config

if TYPE_CHECKING:
    from typing_extensions import Self


class ClickBatch(NamedTuple):
    """Rows of a log as tensors.

    Attributes:
        ids: [B, F], int32 or int64, a column for each of `Inputs.fields`.
        values: [B, P], float32, a column for each of `Inputs.numerics`.
        bags: name to (ids [nnz], offsets [B + 1], weights [nnz] or None).
        labels: [B], float32, 0 or 1; None when serving.
    """

    ids: Tensor
    values: Tensor
    bags: dict[str, tuple[Tensor, Tensor, Tensor | None]]
    labels: Tensor | None = None


@dataclass(frozen=True)
class ClickConfig(TrainConfig):
    """How a click model is trained; models extend it with their own sizes.

    Attributes:
        factors: D, width of the field embeddings, >= 1.
        embedding_l2: each step adds embedding_l2 / 2 times the squared norms of the rows it touches to the loss, >= 0.
    """

    epochs: int = 10
    batch_size: int = 4096
    lr: float = 0.001
    patience: int = 2
    factors: int = 10
    embedding_l2: float = 0.0


class ClickModel(nn.Module):
    """Base of every click model.

    Args:
        inputs: sizes; None leaves the model unbuilt until `fit` sees the data.
        config: a full config; `options` are laid over it.
        generator: source of the initial weights.
        **options: fields of the model's config class.
    Raises:
        ValueError: an unknown option (with the nearest name) or one out of range.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[ClickConfig]]

    def __init__(
        self,
        inputs: Inputs | None = None,
        config: ClickConfig | None = None,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.config: Any = make_config(self.config_class, config, options)
        self.inputs: Inputs | None = None
        self.encoder: Any = None
        if inputs is not None:
            self.build(inputs, generator)

    def build(self, inputs: Inputs, generator: torch.Generator | None = None) -> Self:
        """Create the parameters for `inputs`, replacing any there were."""
        self._build(inputs, generator)
        self.inputs = inputs
        return self

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        raise NotImplementedError

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B], float32, of the rows."""
        raise NotImplementedError

    def loss(self, batch: ClickBatch) -> Tensor:
        """Mean log loss of the rows, which must have labels."""
        assert batch.labels is not None
        return F.binary_cross_entropy_with_logits(self(batch), batch.labels)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the optimizer that trains them: "" is the config's; Wide & Deep has others."""
        return {"": [p for p in self.parameters() if p.requires_grad]}
