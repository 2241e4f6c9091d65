"""Wide & Deep: a linear model with crosses and a deep network, trained together.

Paper: Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems" (arXiv 1606.07792), eq. 1 to 3; section 4 for
the defaults: D 32, ReLU layers 1024-512-256, FTRL with L1 for the wide part, AdaGrad for the deep one.
Official code: TensorFlow's DNNLinearCombinedClassifier; from it come AdaGrad's rate 0.05 and its first sums 0.1, which
the paper does not give.
Deviations: none in the model; the wide part takes every input beside the crosses, the x of the paper's [x, phi(x)]. The
bias is that of the network's output, trained with the deep part and so free of L1. A bag is pooled in both parts, of
which the paper says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.config import ByData, Only, at_least, one_of
from deeprec.contract import OptimizerOptions
from deeprec.data.columns.inputs import Inputs
from deeprec.models._click_attention import attention_of
from deeprec.models._click_defaults import WIDE_LR
from deeprec.models._click_inputs import FieldEmbeddings, LinearTerms, everything
from deeprec.models._deep import DeepConfig, deep_input, deep_part, network, output_bias_of
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel


@dataclass(frozen=True)
class WideDeepConfig(DeepConfig):
    """Attributes: those of `DeepConfig`, whose optimizer trains the deep part, and for the wide part
    wide_optimizer: how the wide part is trained.
    wide_lr: learning rate of the wide part, > 0.
    wide_l1, wide_l2: `l1` and `l2` of the wide part, of FTRL, >= 0.
    """

    groups: ClassVar[tuple[str, ...]] = ("wide", "deep")
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("wide_l1", "wide_l2"), "wide_optimizer=ftrl", lambda config: config.wide_optimizer == "ftrl"),
    )
    by_data: ClassVar[Mapping[str, ByData]] = {"wide_lr": WIDE_LR}

    factors: int = 32
    hidden: tuple[int, ...] = (1024, 512, 256)
    numerics: str = "input"
    optimizer: str = "adagrad"
    lr: float = 0.05
    adagrad_start: float = 0.1
    wide_optimizer: str = "ftrl"
    wide_lr: float = 0.1
    wide_l1: float = 0.0
    wide_l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "wide_optimizer", self.optimizers)
        at_least(self, "wide_l1", 0)
        at_least(self, "wide_l2", 0)
        if not self.wide_lr > 0:
            raise ValueError(f"WideDeepConfig: wide_lr must be > 0, got {self.wide_lr}")

    def optimizer_options(self, group: str) -> OptimizerOptions:
        """FTRL for "wide", AdaGrad for "deep", by default."""
        if group != "wide":
            return super().optimizer_options(group)
        options = (self.wide_optimizer, self.wide_lr, self.wide_l1, self.wide_l2)
        return OptimizerOptions(*options, self.weight_decay, self.adagrad_start, self.ftrl_beta)


class WideDeep(ClickModel):
    """logit = w_wide . [x, phi(x)] + w_deep . a + b, Cheng et al. 2016, eq. 3."""

    name = "wide-deep"
    config_class: ClassVar[type[ClickConfig]] = WideDeepConfig
    config: WideDeepConfig

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        part, width = deep_part(self.name, inputs, self.config)
        attend = attention_of(self.name, self.config, inputs, generator)
        self.wide = LinearTerms(everything(inputs), bias=False)
        self.embeddings = FieldEmbeddings(part, self.config.factors, generator, attend=attend) if part.width else None
        self.mlp = network(self.config, width, 1, generator)

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of the deep part."""
        return [] if self.embeddings is None else self.embeddings.embedding_tables()

    def group_of(self, name: str) -> str:
        """ "wide" or "deep"."""
        return "wide" if name.startswith("wide.") else "deep"

    def output_bias(self) -> nn.Parameter | None:
        """w_0."""
        return output_bias_of(self.mlp)

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        self.check(batch)
        embeddings = None if self.embeddings is None else self.embeddings(batch)
        deep: Tensor = self.mlp(deep_input(embeddings, batch, self.config))
        logit: Tensor = self.wide(batch)
        return logit + deep.squeeze(1)
