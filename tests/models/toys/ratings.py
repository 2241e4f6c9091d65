"""Biases: how much above the mean a user rates, and an item is rated.

Paper: Koren, Bell, Volinsky 2009, "Matrix Factorization Techniques for Recommender Systems" (IEEE Computer 42), eq. 3.
Deviation: the mean is learned as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.batches.ratings import RatingRows, RowBatch
from deeprec.config import TrainConfig
from deeprec.contract import RATES, RECOMMENDS, Schema
from deeprec.data import Interactions
from deeprec.models.base import Recommender, check_pairs
from deeprec.nn.scoring import DotScorer


@dataclass(frozen=True)
class BiasesConfig(TrainConfig):
    """Attributes:
    batch_size: users a step.
    """

    unused: ClassVar[tuple[str, ...]] = ("l2", "num_negatives", "reduction", "precision")

    lr: float = 0.05
    batch_size: int = 16


class Biases(Recommender):
    """rating(u, i) = mu + b_u + b_i."""

    name = "toy-ratings"
    config_class: ClassVar[type[TrainConfig]] = BiasesConfig
    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, RATES})

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.mean = nn.Parameter(torch.zeros(1))
        self.users = nn.Parameter(torch.zeros(schema.num_users, 1))
        self.items = nn.Parameter(torch.zeros(schema.num_items, 1))

    def batches(self, train: Interactions, seed: int) -> RatingRows:
        """The ratings, users in shuffled batches."""
        return RatingRows(train, side="user", batch_size=self.config.batch_size, seed=seed, device=self.device)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings of pairs of internal ids; shapes broadcast."""
        self.require_built()
        return self.mean + (self.users[users.long()] + self.items[items.long()]).squeeze(-1)

    def loss(self, batch: RowBatch) -> Tensor:
        """Mean squared error."""
        owners = batch.rows.repeat_interleave(batch.offsets.diff(), output_size=len(batch))
        return (self(owners, batch.indices) - batch.labels).square().mean()

    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids, each [n]."""
        check_pairs("predict_ratings", users, items, self.require_built())
        with torch.no_grad():
            return self(users, items)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        level = self.mean + self.users[users.long()]
        return (torch.cat([level, torch.ones_like(level)], 1),)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """(mu + b_u, 1) . (1, b_i)."""
        return DotScorer(state[0], torch.cat([torch.ones_like(self.items), self.items], 1))
