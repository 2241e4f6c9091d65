"""LR: logistic regression over the columns of a log, crosses too.

Paper: McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches" (KDD), algorithm 1 (FTRL-Proximal), for the
way it is trained; alpha is `lr`, lambda_1 and lambda_2 are `l1` and `l2` times the batch size, beta is 1.
Deviations: the gradients of a batch are one step of FTRL-Proximal, where the paper takes one example at a time. The
bias is a weight like the others, under L1 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.config import ByData
from deeprec.data.columns.inputs import Inputs
from deeprec.models._click_defaults import LINEAR_LR
from deeprec.models._click_inputs import LinearTerms, everything
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel


@dataclass(frozen=True)
class LRConfig(ClickConfig):
    """Attributes: those of `ClickConfig`; there are no embeddings and no matrix products."""

    unused: ClassVar[tuple[str, ...]] = (*ClickConfig.unused, "factors", "embedding_l2", "precision")
    by_data: ClassVar[Mapping[str, ByData]] = {"lr": LINEAR_LR}

    optimizer: str = "ftrl"
    lr: float = 0.1


class LR(ClickModel):
    """logit = b + sum_i w_i x_i."""

    name = "lr"
    config_class: ClassVar[type[ClickConfig]] = LRConfig
    config: LRConfig

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        self.linear = LinearTerms(everything(inputs), bias=True)

    def output_bias(self) -> nn.Parameter | None:
        """w_0."""
        return self.linear.bias

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        self.check(batch)
        logit: Tensor = self.linear(batch)
        return logit
