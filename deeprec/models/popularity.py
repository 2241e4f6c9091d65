"""Popularity: the same list for everyone, the floor that every model has to clear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS, TrainConfig
from deeprec.contract import Schema
from deeprec.data import Interactions
from deeprec.data.interactions.sessions import ticks_per_second
from deeprec.models.base import Recommender
from deeprec.nn.scoring import DotScorer


@dataclass(frozen=True)
class PopularityConfig(TrainConfig):
    """Attributes (of training's options it takes `refit` alone):
    days: only the interactions of so many days before the last one that is trained on count, > 0; 0: all. Needs times.
    """

    unused: ClassVar[tuple[str, ...]] = GRADIENT_OPTIONS

    days: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.days < float("inf"):
            raise ValueError(f"PopularityConfig: days must be >= 0, got {self.days}")


class Popularity(Recommender):
    """score(u, i) = number of training interactions of item i, or of those of the last days.

    The recent list: Ji, Sun, Zhang, Li 2020, "A re-visit of the popularity baseline in recommender systems" (SIGIR).
    """

    name = "popularity"
    config_class: ClassVar[type[TrainConfig]] = PopularityConfig
    trains_by_gradient: ClassVar[bool] = False
    trains_on_whole_rows: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset()
    config: PopularityConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.register_buffer("counts", torch.zeros(schema.num_items))
        self.counts: Tensor

    def fit_directly(self, train: Interactions) -> None:
        """Count the training interactions of each item.

        Raises:
            ValueError: days of data without times, or of times that are no epoch numbers.
        """
        self.counts.copy_(torch.from_numpy(self._recent(train).item_counts()))

    def _recent(self, train: Interactions) -> Interactions:
        if not self.config.days:
            return train
        if train.order is None or train.order_kind != "time":
            raise ValueError(
                f"popularity: days={self.config.days:g} needs times, got {train.name} without; leave days out"
            )
        span = self.config.days * 86400 * ticks_per_second(train, "popularity: days")
        return train.take(train.order > train.order.max() - span)

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
