"""Last items: the next item lies near the mean of the last few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.sequences import Histories, SequenceBatch, SequenceBatches
from deeprec.config import TrainConfig
from deeprec.contract import Schema
from deeprec.data import Interactions
from deeprec.models.base import Recommender
from deeprec.nn.scoring import DotScorer, owners_of


@dataclass(frozen=True)
class LastItemsConfig(TrainConfig):
    """Attributes:
    factors: width of the vectors, >= 1.
    length: items that are looked back at, >= 1.
    batch_size: users a step.
    """

    unused: ClassVar[tuple[str, ...]] = ("l2", "reduction", "precision")

    factors: int = 8
    length: int = 3
    batch_size: int = 16


class LastItems(Recommender):
    """score(i) = q_i . mean of p_j over the last items j."""

    name = "toy-sequence"
    config_class: ClassVar[type[TrainConfig]] = LastItemsConfig
    reads_history: ClassVar[bool] = True
    config: LastItemsConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.read = nn.Embedding(schema.num_items, self.config.factors)
        self.next = nn.Embedding(schema.num_items, self.config.factors)
        for table in (self.read, self.next):
            nn.init.normal_(table.weight, 0.0, 0.1, generator=generator)
        self.register_buffer("last", torch.full((schema.num_users, self.config.length), -1))
        self.last: Tensor

    def batches(self, train: Interactions, seed: int) -> SequenceBatches:
        """Windows of the histories, of which the last items of each user are kept."""
        offsets, items = Histories.of(train)
        places = offsets[1:, None] - np.arange(self.config.length, 0, -1)
        last = np.where(places >= offsets[:-1, None], items[np.maximum(places, 0)], -1)
        self.last.copy_(torch.from_numpy(last))
        config = self.config
        return SequenceBatches(
            train,
            batch_size=config.batch_size,
            length=4 * config.length,
            seed=seed,
            num_negatives=config.num_negatives,
            device=self.device,
        )

    def loss(self, batch: SequenceBatch) -> Tensor:
        """At every place of a window, the next item is to score above its negatives."""
        mask = batch.mask.unsqueeze(2)
        vectors = self.read(batch.items.clamp(min=0)) * mask
        length = self.config.length
        sums, counts = (F.pad(x, (0, 0, length, 0)).cumsum(1) for x in (vectors, mask.float()))
        states = (sums[:, length:] - sums[:, :-length]) / (counts[:, length:] - counts[:, :-length]).clamp(min=1)
        assert batch.negatives is not None
        items = torch.cat([batch.targets.unsqueeze(2), batch.negatives], 2).clamp(min=0)
        scores = torch.einsum("bld,blnd->bln", states, self.next(items))
        losses = -F.logsigmoid(scores[..., :1] - scores[..., 1:]).mean(2)
        return (losses * batch.mask).sum() / len(batch)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast."""
        self.require_built()
        users, items = torch.broadcast_tensors(users.long(), items.long())
        return (self._mean(self.last[users]) * self.next(items)).sum(-1)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self._mean(self.last[users.long()]),)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """The means of new users' last items, which come in order."""
        owners = owners_of(offsets, items.device)
        place = torch.arange(len(items), device=items.device)
        ends = offsets[1:].to(items.device)[owners]
        is_last = (place >= ends - self.config.length).float().unsqueeze(1)
        sums = torch.zeros(len(offsets) - 1, self.config.factors, device=items.device)
        sums.index_add_(0, owners, self.read(items) * is_last)
        counts = torch.zeros(len(offsets) - 1, 1, device=items.device).index_add_(0, owners, is_last)
        return (sums / counts.clamp(min=1),)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        return DotScorer(state[0], self.next.weight)

    def _mean(self, items: Tensor) -> Tensor:
        """Mean vectors [..., D] of items [..., L], -1 for none."""
        mask = (items >= 0).unsqueeze(-1)
        return (self.read(items.clamp(min=0)) * mask).sum(-2) / mask.sum(-2).clamp(min=1)
