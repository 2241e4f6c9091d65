"""Popularity: the same list for everyone, the floor that every model has to clear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS, TrainConfig
from deeprec.contract import Schema
from deeprec.data import Interactions
from deeprec.models.base import Recommender
from deeprec.nn.scoring import DotScorer


@dataclass(frozen=True)
class PopularityConfig(TrainConfig):
    """Popularity has no options of its own, and of training's takes `refit` alone."""

    unused: ClassVar[tuple[str, ...]] = GRADIENT_OPTIONS


class Popularity(Recommender):
    """score(u, i) = number of training interactions of item i."""

    name = "popularity"
    config_class: ClassVar[type[TrainConfig]] = PopularityConfig
    trains_by_gradient: ClassVar[bool] = False
    trains_on_whole_rows: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset()

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.register_buffer("counts", torch.zeros(schema.num_items))
        self.counts: Tensor

    def fit_directly(self, train: Interactions) -> None:
        """Count the training interactions of each item."""
        self.counts.copy_(torch.from_numpy(train.item_counts()))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Counts of `items`; shapes broadcast."""
        self.require_built()
        users, items = torch.broadcast_tensors(users, items)
        return self.counts[items.long()]

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.counts.new_ones(len(users), 1),)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        return (self.counts.new_ones(len(offsets) - 1, 1),)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """The same for everyone: a one for each user, times the counts."""
        return DotScorer(state[0], self.counts.unsqueeze(1))
