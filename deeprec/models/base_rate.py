"""Base rate: the share of clicks in the training rows for every row; what click models have to beat.

A model whose log loss is higher than this constant's would be better off without its columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS
from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.inputs import Inputs
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel


@dataclass(frozen=True)
class BaseRateConfig(ClickConfig):
    """The base rate has no options."""

    unused: ClassVar[tuple[str, ...]] = (
        *ClickConfig.unused, *GRADIENT_OPTIONS, "l1", "adagrad_start", "factors", "embedding_l2", "step_in_backward",
        "start_at_base_rate", "judged_by",
    )  # fmt: skip


class BaseRate(ClickModel):
    """logit = log(clicks / rows without one), with half a row of either beside them."""

    name = "base-rate"
    config_class: ClassVar[type[ClickConfig]] = BaseRateConfig
    config: BaseRateConfig
    trains_by_gradient: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = ClickModel.takes - {"select"}

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        self.register_buffer("logit", torch.zeros(()))
        self.logit: Tensor

    def fit_directly(self, train: ClickPart) -> None:
        """Count the clicks."""
        self.logit.fill_(math.log((train.positives + 0.5) / (len(train) - train.positives + 0.5)))

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        self.check(batch)
        return self.logit.expand(len(batch))
