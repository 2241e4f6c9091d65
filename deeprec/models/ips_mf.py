"""IPS-MF: matrix factorisation of ratings, each weighted by one over the probability that it was given.

Paper: Schnabel, Swaminathan, Singh, Chandak, Joachims 2016, "Recommendations as Treatments: Debiasing Learning and
Evaluation" (ICML, arXiv 1602.05352), eq. 8: users rate what they expect to like, and a model of these ratings alone is
too high for all else. With weights 1 / P the error on what was rated is in expectation that on all items.
`propensity="none"` is the plain, naive factorisation. Weights are divided by their mean, which l2 alone notices.
Deviations: steps over mini-batches of users with Adam instead of L-BFGS.
Defaults: l2 by folds of the training ratings of Coat, at width 8.
Where not to use it: the probabilities must be known or estimated well, best with a few ratings of items drawn at random
(`deeprec.data.naive_bayes_propensities`); those of "popularity" are a guess, and where test ratings are chosen by users
as the training ratings are, plain factorisation and SVD++ have the smaller error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.batches.ratings import RatingRows, RowBatch
from deeprec.config import Only, TrainConfig, at_least, one_of
from deeprec.contract import RATES, RECOMMENDS, RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.embedding import embedding
from deeprec.models.base import Recommender, check_pairs
from deeprec.nn.scoring import DotScorer

_PAIRS_A_BLOCK = 1 << 16


@dataclass(frozen=True)
class IPSMFConfig(TrainConfig):
    """Attributes:
    factors: size D of the vectors, >= 1.
    propensity: where P comes from: "data", the column of `with_propensities`; "popularity", the share of users who
        rated the item; "auto", the column where there is one, else popularity; or "none", no weights.
    floor: smaller P count as this, in [0, 1).
    init_std: standard deviation of the initial vectors, > 0.
    l2: of the squares of all vectors and biases, beside the weighted squared errors of all ratings, >= 0.
    batch_size: users a step, >= 1.
    """

    unused: ClassVar[tuple[str, ...]] = ("num_negatives", "reduction", "precision")
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("floor",), "a propensity other than 'none'", lambda config: config.propensity != "none"),
    )

    factors: int = 8
    propensity: str = "auto"
    floor: float = 0.0
    init_std: float = 0.1
    l2: float = 10.0
    epochs: int = 200
    batch_size: int = 64
    lr: float = 0.01
    num_negatives: int = 1
    patience: int = 10
    refit: bool = True

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("factors", "batch_size"):
            at_least(self, name, 1)
        one_of(self, "propensity", ("auto", "data", "popularity", "none"))
        if not 0 <= self.floor < 1:
            raise ValueError(f"IPSMFConfig: floor must lie in [0, 1), got {self.floor}; 0.01 caps weights at 100")
        if not self.init_std > 0:
            raise ValueError(f"IPSMFConfig: init_std must be > 0, got {self.init_std}")
        self._check_shared()


class IPSMF(Recommender):
    """r_ui = mu + b_u + b_i + p_u . q_i, mu the weighted mean of the ratings."""

    name = "ips-mf"
    config_class: ClassVar[type[TrainConfig]] = IPSMFConfig
    config: IPSMFConfig
    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, RATES, RETRIEVES, SIMILAR_ITEMS})
    trains_on_whole_rows: ClassVar[bool] = True
    mean: Tensor

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        factors, std = self.config.factors, self.config.init_std

        def normal(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, factors).normal_(0.0, std, generator=generator))

        self.users, self.items = normal(schema.num_users), normal(schema.num_items)
        self.user_bias = nn.Parameter(torch.zeros(schema.num_users, 1))
        self.item_bias = nn.Parameter(torch.zeros(schema.num_items, 1))
        self.register_buffer("mean", torch.zeros(()))

    def propensities(self, train: Interactions) -> np.ndarray | None:
        """P of each row of `train`, [n]; None without weights.

        Raises:
            ValueError: those of the data are asked for, and it has none.
        """
        given, kind = getattr(train, "propensities", None), self.config.propensity
        if kind == "data" and given is None:
            raise ValueError(
                f"{self.name}: propensity 'data' needs the propensities of the ratings, {train.name} has none; add "
                "them by deeprec.data.with_propensities, or take 'popularity'"
            )
        if kind == "none":
            return None
        if kind == "popularity" or given is None:
            given = (train.item_counts() / train.num_users).clip(max=1.0)[train.items]
        return np.asarray(np.maximum(given, self.config.floor), dtype=np.float64)

    def batches(self, train: Interactions, seed: int) -> RatingRows:
        """Users in shuffled batches, each with all their ratings and the weights of these."""
        rows = RatingRows(train, side="user", batch_size=self.config.batch_size, seed=seed, device=self.device)
        chances = self.propensities(train)
        mean = float(train.ratings.mean(dtype=np.float64))  # type: ignore[union-attr]
        if chances is not None:
            weights = (1 / chances) / (1 / chances).mean()
            mean = float((weights * train.ratings).mean())
            rows.weights = to_device(torch.from_numpy(weights.astype(np.float32))[rows.order], self.device)
        self.mean.fill_(mean)
        with torch.no_grad():  # without a rating they never learn, and zeros say so
            self.users[rows.counts == 0] = 0.0
            self.items[rows.column_counts == 0] = 0.0
        return rows

    def loss(self, batch: RowBatch) -> Tensor:
        """(sum of weighted squared errors + l2 (squares of the users, and their share of those of the items)) / n."""
        self.require_built()
        counts = batch.offsets.diff()
        owners = torch.repeat_interleave(batch.rows, counts, output_size=len(batch))
        users, items = (
            embedding(self.users, owners, sparse_grad=False),
            embedding(self.items, batch.indices, sparse_grad=False),
        )
        levels = embedding(self.user_bias, owners, sparse_grad=False) + embedding(
            self.item_bias, batch.indices, sparse_grad=False
        )
        errors = (self.mean + levels[:, 0] + (users * items).sum(1) - batch.labels).square()
        loss = (errors if batch.weights is None else errors * batch.weights).sum()
        if self.config.l2:
            own = embedding(self.users, batch.rows, sparse_grad=False).square().sum()
            own = own + embedding(self.user_bias, batch.rows, sparse_grad=False).square().sum()
            shared = self.items.square().sum() + self.item_bias.square().sum()
            loss = loss + self.config.l2 * (own + batch.share * shared)
        return loss / len(batch)

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings of pairs of internal ids; shapes broadcast. Trained by `loss`, not by this."""
        self.require_built()
        users, items = torch.broadcast_tensors(users.long(), items.long())
        ratings: Tensor = self.mean + self.user_bias[users, 0] + self.item_bias[items, 0]
        return ratings + (self.users[users] * self.items[items]).sum(-1)

    @torch.no_grad()
    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids, each [n], in the units of the data."""
        check_pairs("predict_ratings", users, items, self.require_built())
        blocks = zip(users.split(_PAIRS_A_BLOCK), items.split(_PAIRS_A_BLOCK), strict=True)
        return torch.cat([torch.empty(0, device=users.device), *(self(*block) for block in blocks)])

    @torch.no_grad()
    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        """[p_u, mu + b_u], whose product with [q_i, 1] is the rating but for b_i."""
        users = users.long()
        return (torch.cat([self.users[users], self.mean + self.user_bias[users]], 1),)

    @torch.no_grad()
    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        items = torch.cat([self.items, torch.ones_like(self.item_bias)], 1)
        return DotScorer(state[0], items, self.item_bias.squeeze(1).detach())

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.items.detach()
