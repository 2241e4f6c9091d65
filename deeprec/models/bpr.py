"""BPR: matrix factorisation that ranks what a user has met above what they have not.

Paper: Rendle, Freudenthaler, Gantner, Schmidt-Thieme 2009, "BPR: Bayesian Personalized Ranking from Implicit Feedback"
(UAI, arXiv 1205.2618), section 4.3.1 (BPR-MF); the item bias as in the authors' MyMediaLite.
Deviations: steps over mini-batches, each positive with `num_negatives` negatives of its own drawn uniformly among the
items that the user has not met; AdaGrad by default, which needs a tenth of SGD's epochs.
Where not to use it: with a few interactions an item (17,632 artists of Last.fm) item-KNN, ALS and SLIM rank better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.batches.pairs import PairBatch
from deeprec.config import ByData, Only, TrainConfig, at_least
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.models._adversarial import AdversarialConfig, AdversarialRecommender
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import DotScorer


@dataclass(frozen=True)
class BPRConfig(AdversarialConfig):
    """Attributes:
    factors: size D of the vectors, >= 1.
    init_std: standard deviation of the initial vectors, > 0.
    hardest: of the negatives of a positive only the one with the highest score is learned from: dynamic negative
        sampling (Zhang, Chen, Wang, Yu 2013, SIGIR). It means something with num_negatives > 1.
    """

    unused: ClassVar[tuple[str, ...]] = ("precision",)
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("hardest",), "num_negatives > 1", lambda config: config.num_negatives > 1),
    )
    by_data: ClassVar[Mapping[str, ByData]] = {
        "batch_size": ByData(
            lambda facts, config: min(1024, max(64, facts.rows * (1 + config.num_negatives) // 100)),
            "100 steps an epoch, from 64 to 1024 examples each",
        )
    }

    factors: int = 64
    init_std: float = 0.1
    hardest: bool = False
    l2: float = 0.01
    epochs: int = 40
    lr: float = 0.05
    optimizer: str = "adagrad"
    batch_size: int = 1024
    num_negatives: int = 1
    reduction: str = "sum"
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "factors", 1)
        if not self.init_std > 0:
            raise ValueError(f"BPRConfig: init_std must be > 0, got {self.init_std}")


def with_hardest(batch: PairBatch, scores: Tensor) -> PairBatch:
    """The batch with one negative of each positive, that of the highest score; scores [b, 1 + n], ties to the first."""
    hardest = 1 + scores[:, 1:].argmax(1, keepdim=True)
    items = torch.cat([batch.items[:, :1], batch.items.gather(1, hardest)], 1)
    return PairBatch(batch.users, items, batch.labels[:, :2])


class BPR(AdversarialRecommender):
    """x_ui = b_i + p_u . q_i, trained to maximise the mean of ln sigmoid(x_ui - x_uj)."""

    name = "bpr"
    config_class: ClassVar[type[TrainConfig]] = BPRConfig
    config: BPRConfig
    capabilities: ClassVar[frozenset[str]] = AdversarialRecommender.capabilities | {RETRIEVES, SIMILAR_ITEMS}

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        factors, std = self.config.factors, self.config.init_std
        self.users = Embedding(schema.num_users, factors, name="user")
        self.items = Embedding(schema.num_items, factors, name="item")
        self.item_bias = Embedding(schema.num_items, 1, name="item")
        with torch.no_grad():
            for table in (self.users, self.items):
                table.weight.normal_(0.0, std, generator=generator)
            self.item_bias.weight.zero_()

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """x_ui of pairs of internal ids; shapes broadcast."""
        self.require_built()
        scores: Tensor = (self.users(users) * self.items(items)).sum(-1) + self.item_bias(items).squeeze(-1)
        return scores

    def terms(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        """-ln sigmoid(x_ui - x_uj) of the pairs of a positive i and each of its negatives j, and L2 of their rows."""
        if self.config.hardest:
            batch = with_hardest(batch, self(batch.users.unsqueeze(1), batch.items).detach())
        users, items, bias = self.users(batch.users), self.items(batch.items), self.item_bias(batch.items)
        scores = torch.baddbmm(bias, items, users.unsqueeze(2)).squeeze(2)
        return bpr_terms(scores, users, items, bias, self.config.l2, self.config.reduction)

    def attacked(self) -> tuple[Tensor, ...]:
        """p and q; the biases are left alone, as in the paper's model, which has none."""
        return (self.users.weight, self.items.weight)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.users.weight.detach()[users.long()],)

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        items = items.long()
        return (rows[0] * self.items.weight.detach()[items]).sum(-1) + self.item_bias.weight.detach()[items, 0]

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """p_u . q_i + b_i."""
        return DotScorer(state[0], self.items.weight.detach(), self.item_bias.weight.detach().squeeze(1))

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.items.weight.detach()


def bpr_terms(
    scores: Tensor, users: Tensor, items: Tensor, bias: Tensor, l2: float, reduction: str
) -> tuple[Tensor, Tensor | None]:
    """-ln sigmoid(x_ui - x_uj) of the pairs of a positive i and each of its negatives j, and L2 of their rows.

    Args:
        scores: [b, 1 + n], the positive's first.
        users: [b, D], items: [b, 1 + n, D], bias: [b, 1 + n, 1]: the rows.
        l2: each pair adds l2 / 2 times their squares; with 0 there is no second term.
        reduction: "mean" over the pairs, or "sum".
    """
    losses = -F.logsigmoid(scores[:, :1] - scores[:, 1:])
    share = 1 / losses.numel() if reduction == "mean" else 1.0
    if not l2:
        return share * losses.sum(), None
    # A positive and its user count once for each pair, as in the paper's step.
    pairs = losses.shape[1]
    squares = pairs * (users.square().sum() + items[:, 0].square().sum() + bias[:, 0].square().sum())
    squares = squares + items[:, 1:].square().sum() + bias[:, 1:].square().sum()
    return share * losses.sum(), share * l2 / 2 * squares
