"""GMF: generalised matrix factorisation.

Paper: He et al. 2017, "Neural Collaborative Filtering" (arXiv 1708.05031), section 3.2, eq. 9.
Official code: github.com/hexiangnan/neural_collaborative_filtering (GMF.py). No deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from deeprec.config import ByData, TrainConfig
from deeprec.contract import Schema
from deeprec.models.ncf import NETWORKS, NCFRecommender
from deeprec.nn.ncf import NCFNetwork


@dataclass(frozen=True)
class GMFConfig(TrainConfig):
    """Attributes:
    factors: embedding size D, >= 1 ("predictive factors").
    """

    unused: ClassVar[tuple[str, ...]] = ("precision",)  # of the layers' products

    by_data: ClassVar[Mapping[str, ByData]] = NETWORKS

    factors: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors < 1:
            raise ValueError(f"GMFConfig: factors must be >= 1, got {self.factors}")


class GMF(NCFRecommender):
    """logit = h . (p_u * q_i) + b, He et al. 2017, eq. 9."""

    name = "gmf"
    config_class: ClassVar[type[TrainConfig]] = GMFConfig
    config: GMFConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.network = NCFNetwork(schema.num_users, schema.num_items, gmf_dim=self.config.factors, generator=generator)
