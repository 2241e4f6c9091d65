"""NFM: a network over the pooled products of all pairs of inputs.

Paper: He, Chua 2017, "Neural Factorization Machines for Sparse Predictive Analytics" (SIGIR, arXiv 1708.05027), eq. 2
and following: bi-interaction pooling, batch normalisation and dropout on it and on the hidden layers.
Official code: github.com/hexiangnan/neural_factorization_machine (NeuralFM.py); the defaults are its example on Frappe:
D 64, one layer of 64, dropout 0.2 in it and 0.5 on the pooled products, AdaGrad with rate 0.05.
Deviations: log loss instead of the squared loss on -1 and 1. Initial weights are those of `MLP` (the code: Glorot
normal; ones without hidden layers). A bag is one input, pooled first; crosses have first-order weights only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.data.columns.inputs import Inputs
from deeprec.kernels.fm_interaction import bi_interaction
from deeprec.models._click_attention import attention_of
from deeprec.models._click_inputs import FieldEmbeddings, LinearTerms, everything, require_width, without_crosses
from deeprec.models._deep import NetworkConfig, network, output_bias_of
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel, FirstOrderConfig
from deeprec.nn.dropout import Dropout
from deeprec.nn.mlp import BatchNorm


@dataclass(frozen=True)
class NFMConfig(NetworkConfig, FirstOrderConfig):
    """Attributes: those of `NetworkConfig` and `FirstOrderConfig`, `batch_norm` also for the pooled products, and
    interaction_dropout: share of the pooled products that is dropped, in [0, 1).
    """

    factors: int = 64
    hidden: tuple[int, ...] = (64,)
    dropout: float = 0.2
    batch_norm: bool = True
    interaction_dropout: float = 0.5
    optimizer: str = "adagrad"
    lr: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.interaction_dropout < 1:
            raise ValueError(f"NFMConfig: interaction_dropout must lie in [0, 1), got {self.interaction_dropout}")


class NFM(ClickModel):
    """logit = w_0 + sum_i w_i x_i + h . MLP(sum_{i<j} x_i v_i * x_j v_j), He, Chua 2017."""

    name = "nfm"
    config_class: ClassVar[type[ClickConfig]] = NFMConfig
    config: NFMConfig

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        part = without_crosses(inputs)
        require_width(self.name, part, 1, "the network")
        factors = self.config.factors
        attend = attention_of(self.name, self.config, inputs, generator)
        self.linear = LinearTerms(everything(inputs), bias=False)  # w_0 is the bias of the network's output
        self.embeddings = FieldEmbeddings(part, factors, generator, attend=attend)
        self.norm = BatchNorm(factors) if self.config.batch_norm else None
        self.dropout = Dropout(self.config.interaction_dropout)
        self.mlp = network(self.config, factors, 1, generator)

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of v."""
        return self.embeddings.embedding_tables()

    def output_bias(self) -> nn.Parameter | None:
        """w_0."""
        return output_bias_of(self.mlp)

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        self.check(batch)
        pooled = bi_interaction(self.embeddings(batch))
        if self.norm is not None:
            pooled = self.norm(pooled)
        deep: Tensor = self.mlp(self.dropout(pooled))
        logit: Tensor = self.linear(batch)
        return logit + deep.squeeze(1)
