"""AFM: a factorisation machine whose pairs are weighted by attention.

Paper: Xiao, Ye, He, Zhang, Wu, Chua 2017, "Attentional Factorization Machines" (IJCAI, arXiv 1708.04617), eq. 2 to 6.
Official code: github.com/hexiangnan/attentional_factorization_machine (AFM.py); the defaults are its own: D 16,
attention factor 16, dropout 0.5 on the pooled pairs, AdaGrad with rate 0.1, p starts as ones. The paper has D 256.
Deviations: log loss instead of the squared loss. No pre-training by FM, which the authors' commands begin with. The L2
on the attention's W, whose constants 2 and 100 belong to the code's sum of squared errors, is off by default. A bag is
one input, pooled first; crosses have first-order weights only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.config import ByData, at_least
from deeprec.data.columns.inputs import Inputs
from deeprec.models._click_defaults import VECTORS
from deeprec.models._click_inputs import FieldEmbeddings, LinearTerms, everything, require_width, without_crosses
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel, FirstOrderConfig
from deeprec.nn.attention import PairAttention
from deeprec.nn.dropout import Dropout


@dataclass(frozen=True)
class AFMConfig(FirstOrderConfig):
    """Attributes: those of `FirstOrderConfig`, and
    attention_factor: A, width of the attention's hidden layer, >= 1.
    attention_l2: adds attention_l2 / 2 times the squared norm of the attention's W to the loss, >= 0.
    dropout: share of the pooled pairs that is dropped, in [0, 1).
    """

    unused: ClassVar[tuple[str, ...]] = (*FirstOrderConfig.unused, "precision")
    by_data: ClassVar[Mapping[str, ByData]] = VECTORS

    factors: int = 16
    attention_factor: int = 16
    attention_l2: float = 0.0
    dropout: float = 0.5
    optimizer: str = "adagrad"
    lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "attention_factor", 1)
        at_least(self, "attention_l2", 0)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"AFMConfig: dropout must lie in [0, 1), got {self.dropout}")


class AFM(ClickModel):
    """logit = w_0 + sum_i w_i x_i + p . sum_{i<j} a_ij (x_i v_i * x_j v_j), Xiao et al. 2017, eq. 6."""

    name = "afm"
    config_class: ClassVar[type[ClickConfig]] = AFMConfig
    config: AFMConfig

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        part = without_crosses(inputs)
        require_width(self.name, part, 2, "the pairs")
        factors = self.config.factors
        self.linear = LinearTerms(everything(inputs), bias=True)
        self.embeddings = FieldEmbeddings(part, factors, generator)
        self.attention = PairAttention(factors, self.config.attention_factor, generator=generator)
        self.dropout = Dropout(self.config.dropout)
        self.p = nn.Parameter(torch.ones(factors))

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of v."""
        return self.embeddings.embedding_tables()

    def output_bias(self) -> nn.Parameter | None:
        """w_0."""
        return self.linear.bias

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        self.check(batch)
        pooled: Tensor = self.dropout(self.attention(self.embeddings(batch)))
        logit: Tensor = self.linear(batch)
        return logit + pooled @ self.p

    def loss(self, batch: ClickBatch) -> Tensor:
        """Mean log loss, and the L2 of the attention."""
        loss = super().loss(batch)
        if not self.config.attention_l2:
            return loss
        return loss + 0.5 * self.config.attention_l2 * self.attention.weight.square().sum()
