"""GMF: generalised matrix factorisation.

Paper: He et al. 2017, "Neural Collaborative Filtering" (arXiv 1708.05031), section 3.2, eq. 9.
Official code: github.com/hexiangnan/neural_collaborative_filtering (GMF.py). No deviation.
Where not to use it: on few interactions an item (below about 20) item-knn and ease rank better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from deeprec.config import ByData, TrainConfig
from deeprec.contract import RETRIEVES, Facts, Schema
from deeprec.models._adversarial import AdversarialConfig
from deeprec.models.ncf import PATIENCE, NCFRecommender
from deeprec.nn.ncf import NCFNetwork


def _lr(facts: Facts, options: Any) -> float:
    if options.optimizer not in ("adam", "lazy-adam"):
        return float(options.lr)
    return round(0.001 * min(5.0, max(1.0, math.sqrt(1e6 / max(1, facts.rows)))), 5)


@dataclass(frozen=True)
class GMFConfig(AdversarialConfig):
    """Attributes:
    factors: embedding size D, >= 1 ("predictive factors").
    """

    unused: ClassVar[tuple[str, ...]] = ("precision",)  # of the layers' products

    by_data: ClassVar[Mapping[str, ByData]] = {
        # The paper's rate is that of a million interactions, whose epochs have as many steps as it needs.
        "lr": ByData(_lr, "0.001 sqrt(1,000,000 / interactions) with adam, from 0.001 to 0.005"),
        **PATIENCE,
    }

    factors: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors < 1:
            raise ValueError(f"GMFConfig: factors must be >= 1, got {self.factors}")


class GMF(NCFRecommender):
    """logit = h . (p_u * q_i) + b, He et al. 2017, eq. 9."""

    name = "gmf"
    config_class: ClassVar[type[TrainConfig]] = GMFConfig
    capabilities: ClassVar[frozenset[str]] = NCFRecommender.capabilities | {RETRIEVES}
    config: GMFConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.network = NCFNetwork(schema.num_users, schema.num_items, gmf_dim=self.config.factors, generator=generator)
