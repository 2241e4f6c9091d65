"""BPR: matrix factorisation that learns to order pairs.

Paper: Rendle, Freudenthaler, Gantner, Schmidt-Thieme 2009, "BPR: Bayesian Personalized Ranking from Implicit Feedback"
(arXiv 1205.2618), section 4.3.1. Deviation: no regulariser but `weight_decay`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.pairs import PairBatch
from deeprec.config import TrainConfig
from deeprec.contract import SIMILAR_ITEMS, Schema
from deeprec.models.base import Recommender
from deeprec.nn.scoring import DotScorer


@dataclass(frozen=True)
class BPRConfig(TrainConfig):
    """Attributes:
    factors: width of the vectors, >= 1.
    """

    unused: ClassVar[tuple[str, ...]] = ("l2", "reduction", "precision")

    factors: int = 8


class ToyBPR(Recommender):
    """score(u, i) = p_u . q_i."""

    name = "toy-pairs"
    config_class: ClassVar[type[TrainConfig]] = BPRConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {SIMILAR_ITEMS}
    config: BPRConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.users = nn.Embedding(schema.num_users, self.config.factors)
        self.items = nn.Embedding(schema.num_items, self.config.factors)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, 0.0, 0.1, generator=generator)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast."""
        self.require_built()
        return (self.users(users.long()) * self.items(items.long())).sum(-1)

    def loss(self, batch: PairBatch) -> Tensor:
        """Each positive is to score above its negatives."""
        scores = self(batch.users.unsqueeze(1), batch.items)
        return -F.logsigmoid(scores[:, :1] - scores[:, 1:]).mean()

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.users(users.long()),)

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        return (rows[0] * self.items(items.long())).sum(-1)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        return DotScorer(state[0], self.items.weight)

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.items.weight
