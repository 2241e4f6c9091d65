"""MF: matrix factorisation with a tuned dot product, the baseline that NCF has to beat.

Paper: Rendle, Krichene, Zhang, Anderson 2020, "Neural Collaborative Filtering vs. Matrix Factorization Revisited"
(arXiv 2005.09683): logistic loss, user and item biases folded into two of the d dimensions, a global bias.
Code: google-research/dot_vs_learned_similarity.
Deviations: steps over mini-batches with the sum of their examples' gradients instead of single examples, which reaches
the same figures; AdaGrad by default, which needs a tenth of SGD's epochs.
Where not to use it: on few interactions an item (below about 20) item-knn and ease rank better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from deeprec.batches.pairs import PairBatch
from deeprec.config import ByData, TrainConfig
from deeprec.contract import RETRIEVES, Schema
from deeprec.models._adversarial import AdversarialConfig, AdversarialRecommender
from deeprec.models.ncf import PATIENCE, NCFRecommender
from deeprec.nn.ncf import NCFNetwork

_USER_BIAS, _ITEM_BIAS = 0, 1


@dataclass(frozen=True)
class MFConfig(AdversarialConfig):
    """Attributes:
    factors: size d of the vectors, the two bias columns included, >= 3.
    init_std: standard deviation of the initial vectors, > 0.
    """

    unused: ClassVar[tuple[str, ...]] = ("precision",)  # of the layers' products

    by_data: ClassVar[Mapping[str, ByData]] = PATIENCE

    factors: int = 192
    init_std: float = 0.1
    l2: float = 0.005
    epochs: int = 20
    lr: float = 0.05
    optimizer: str = "adagrad"
    batch_size: int = 4608
    num_negatives: int = 8
    reduction: str = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors < 3:
            raise ValueError(f"MFConfig: factors must be >= 3 (two of them carry the biases), got {self.factors}")
        if not self.init_std > 0:
            raise ValueError(f"MFConfig: init_std must be > 0, got {self.init_std}")


class MF(NCFRecommender):
    """logit = p_u . q_i + b with p_u[1] = q_i[0] = 1 throughout, so that p_u[0] and q_i[1] are the biases."""

    name = "mf"
    config_class: ClassVar[type[TrainConfig]] = MFConfig
    capabilities: ClassVar[frozenset[str]] = NCFRecommender.capabilities | {RETRIEVES}
    config: MFConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.network = NCFNetwork(schema.num_users, schema.num_items, gmf_dim=self.config.factors, generator=generator)
        users, items = self.network.gmf_user, self.network.gmf_item
        assert users is not None
        assert items is not None
        with torch.no_grad():
            for table, bias, one in ((users, _USER_BIAS, _ITEM_BIAS), (items, _ITEM_BIAS, _USER_BIAS)):
                table.weight.normal_(0.0, self.config.init_std, generator=generator)
                table.weight[:, bias] = 0.0
                table.weight[:, one] = 1.0
                table.weight.register_hook(partial(_without_column, column=one))
            self.network.output.weight.fill_(1.0)
        # The output layer is the sum over dimensions, nothing to learn there but the global bias.
        self.network.output.weight.requires_grad_(False)

    def backward(self, batch: PairBatch) -> Tensor:
        """Through autograd, whose hooks keep the columns of ones."""
        return AdversarialRecommender.backward(self, batch)


def _without_column(gradient: Tensor, *, column: int) -> Tensor:
    """The gradient with zeros for the column of ones, which stays as it is."""
    values = gradient._values() if gradient.is_sparse else gradient
    values[:, column] = 0.0
    return gradient
