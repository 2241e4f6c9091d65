"""Popularity: the same list for everyone, the floor that every model has to clear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS, TrainConfig
from deeprec.contract import Schema, Seen
from deeprec.data import Interactions
from deeprec.kernels.score_topk import DotScorer, score_topk
from deeprec.models.base import Recommender


@dataclass(frozen=True)
class PopularityConfig(TrainConfig):
    """Popularity has no options of its own, and of training's takes `refit` alone."""

    unused: ClassVar[tuple[str, ...]] = GRADIENT_OPTIONS


class Popularity(Recommender):
    """score(u, i) = number of training interactions of item i."""

    name = "popularity"
    config_class: ClassVar[type[TrainConfig]] = PopularityConfig
    trains_by_gradient: ClassVar[bool] = False
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
        self.require_built()
        return (self.counts.new_zeros(len(users), 0),)

    def forward_rows(self, user_rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        return self.counts[items.long()]

    def score_items_from_rows(self, user_rows: tuple[Tensor, ...]) -> Tensor:
        return self.counts.expand(len(user_rows[0]), -1)

    def topk_from_rows(
        self, user_rows: tuple[Tensor, ...], k: int, seen: Seen | None, seen_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        ones = self.counts.new_ones(len(user_rows[0]), 1)
        if seen is None:
            return score_topk(DotScorer(ones, self.counts.unsqueeze(1)), k)
        offsets, items = self.seen_tensors(seen)
        return score_topk(
            DotScorer(ones, self.counts.unsqueeze(1)), k, seen_indptr=offsets, seen_indices=items, seen_rows=seen_rows
        )
