"""Logistic regression: a weight for each id and each number of a row, in PyTorch's own layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.data.columns.inputs import Inputs
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel


@dataclass(frozen=True)
class LogisticConfig(ClickConfig):
    """Attributes: those of `ClickConfig`; there are no embeddings."""

    unused: ClassVar[tuple[str, ...]] = (
        *ClickConfig.unused,
        "factors",
        "embedding_l2",
        "precision",
        "step_in_backward",
    )

    lr: float = 0.01


class Logistic(ClickModel):
    """logit = b + sum_i w_i x_i."""

    name = "toy-log"
    config_class: ClassVar[type[ClickConfig]] = LogisticConfig

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        self.bias = nn.Parameter(torch.zeros(1))
        self.numbers = nn.Parameter(torch.zeros(len(inputs.numerics)))
        self.fields = nn.ParameterList(torch.zeros(field.size) for field in inputs.fields)
        self.bags = nn.ParameterList(torch.zeros(bag.size, 1) for bag in inputs.bags)

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        self.check(batch)
        logits = self.bias + batch.values @ self.numbers
        for column, weights in enumerate(self.fields):
            logits = logits + weights[batch.ids[:, column].long()]
        for bag, table in zip(self.require_built().bags, self.bags, strict=True):
            ids, offsets, weights = batch.bags[bag.name]
            sums = F.embedding_bag(ids.long(), table, offsets[:-1], mode="sum", per_sample_weights=weights)
            counts = offsets.diff().clamp(min=1) if bag.pooling == "mean" else 1
            logits = logits + sums.squeeze(1) / counts
        return logits
