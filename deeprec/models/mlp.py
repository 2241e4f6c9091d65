"""MLP: a tower of ReLU layers over the concatenated user and item embeddings.

Paper: He et al. 2017, "Neural Collaborative Filtering" (arXiv 1708.05031), section 3.3, eq. 10.
Official code: github.com/hexiangnan/neural_collaborative_filtering (MLP.py). No deviation.
Where not to use it: on few interactions an item (below about 20) item-knn and ease rank better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from deeprec.config import ByData, Only, TrainConfig
from deeprec.contract import Schema
from deeprec.models._adversarial import AdversarialConfig
from deeprec.models.ncf import PATIENCE, NCFRecommender, mlp_layers
from deeprec.nn.ncf import NCFNetwork


@dataclass(frozen=True)
class MLPConfig(AdversarialConfig):
    """Attributes:
    factors: width of the last hidden layer, >= 1 ("predictive factors").
    num_layers: hidden layers, >= 0.
    layout: "code" (embeddings twice as wide, as the authors' code) or "paper".
    layers: explicit widths as the authors' `--layers`, e.g. (64, 32, 16, 8), instead of the three above.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("factors", "num_layers", "layout"), "layers=()", lambda config: not config.layers),
    )

    by_data: ClassVar[Mapping[str, ByData]] = PATIENCE

    factors: int = 8
    num_layers: int = 3
    layout: str = "code"
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.widths()

    def widths(self) -> tuple[int, ...]:
        """(2E, H_1, ..., H_L)."""
        return mlp_layers(self.factors, self.num_layers, self.layout, self.layers, owner="MLPConfig")


class MLP(NCFRecommender):
    """logit = h . relu(W_L ... relu(W_1 [p_u; q_i] + b_1) ...) + b, He et al. 2017, eq. 10."""

    name = "mlp"
    config_class: ClassVar[type[TrainConfig]] = MLPConfig
    config: MLPConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.network = NCFNetwork(
            schema.num_users, schema.num_items, mlp_layers=self.config.widths(), generator=generator
        )
