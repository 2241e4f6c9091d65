"""DeepFM: a factorisation machine and a deep network over the same embeddings.

Paper: Guo, Tang, Ye, Li, He 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction" (arXiv
1703.04247), eq. 1 to 4; section 3.1 for the defaults: D 10, 400-400-400, relu, dropout 0.5, Adam.
Official code: none; the usual ones are DeepCTR-Torch and FuxiCTR.
Deviations: the deep part's output is linear, as in every implementation (the paper writes one sigmoid around it and
another around the sum); its bias is the model's w_0, which the paper's eq. 2 leaves out of the factorisation machine. A
bag of ids is one field, pooled first. Crosses, which the paper does not know, have first-order weights. The paper gives
no learning rate, batch size and initial weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.data.columns.inputs import Inputs
from deeprec.models._click_attention import attention_of
from deeprec.models._click_inputs import FMTerms
from deeprec.models._deep import DeepConfig, deep_input, deep_part, network, output_bias_of
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel, FirstOrderConfig


@dataclass(frozen=True)
class DeepFMConfig(DeepConfig, FirstOrderConfig):
    """Attributes: those of `DeepConfig` and `FirstOrderConfig`; with numerics "input" a numeric has a first-order
    weight but no pairs.
    """

    dropout: float = 0.5


class DeepFM(ClickModel):
    """logit = y_FM + y_DNN, Guo et al. 2017, eq. 1."""

    name = "deepfm"
    config_class: ClassVar[type[ClickConfig]] = DeepFMConfig
    config: DeepFMConfig

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        part, width = deep_part(self.name, inputs, self.config)
        attend = attention_of(self.name, self.config, inputs, generator)
        self.terms = FMTerms(inputs, self.config.factors, generator, bias=False, numerics=part.numerics, attend=attend)
        self.mlp = network(self.config, width, 1, generator)

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of V."""
        return self.terms.embedding_tables()

    def output_bias(self) -> nn.Parameter | None:
        """w_0."""
        return output_bias_of(self.mlp)

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        self.check(batch)
        logit: Tensor
        logit, embeddings = self.terms(batch)
        deep: Tensor = self.mlp(deep_input(embeddings, batch, self.config))
        return logit + deep.squeeze(1)
