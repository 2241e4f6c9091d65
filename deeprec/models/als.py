"""ALS: matrix factorisation of implicit feedback by alternating least squares, all unseen items included.

Paper: Hu, Koren, Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets" (ICDM). Conjugate gradient:
Takacs, Pilaszy, Tikk 2011, "Applications of the Conjugate Gradient Method for Implicit Feedback Collaborative
Filtering" (RecSys). Regulariser that grows with a row's confidences, and first values: Rendle, Krichene, Zhang, Koren
2022, "Revisiting the Performance of iALS on Item Recommendation Benchmarks" (RecSys, arXiv 2110.14037).
Code: benfred/implicit; google-research/ials.
Deviations: by default every interaction has the same confidence (`confidence` takes the ratings). The regulariser of a
row is l2 times the sum of its confidences over all items to the power `l2_exponent`: 0, the default, is the first
paper's; 1 is eq. 5 of Rendle et al. with lambda = l2 and an unobserved weight of 1 / alpha, times alpha.
Defaults: chosen on the validation parts of ml-100k, lastfm, AMusic, citeulike-a, HetRec's Last.fm, Amazon Grocery and
TikTok. NDCG@10 there is above item-KNN and popularity on all but TikTok, where popularity beats item-KNN fifteenfold
and ALS too: take popularity where it wins so clearly. A larger alpha helps where items are many and rare (citeulike-a),
a smaller one, such as 10 or 3, where data are dense (ml-100k).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeprec.batches.sides import SideBatch, Sides
from deeprec.config import GRADIENT_OPTIONS, Only, TrainConfig, at_least, one_of
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.als_solve import als_solve
from deeprec.models.base import Recommender
from deeprec.nn.scoring import DotScorer

CONFIDENCES, SOLVERS = ("constant", "rating", "log-rating"), ("cg", "cholesky")


@dataclass(frozen=True)
class ALSConfig(TrainConfig):
    """Attributes (options of gradient training are refused):
    factors: width of the vectors, >= 1.
    alpha: an interaction has the confidence 1 + alpha r, everything unseen 1; > 0.
    confidence: r is 1 ("constant"), the rating ("rating", such as a number of plays; several of one pair are added
        up) or log(1 + rating) ("log-rating").
    l2, l2_exponent: the regulariser of a row is l2 (sum of its confidences)^l2_exponent; > 0, and in [0, 1].
    epochs: sweeps over users and items, >= 1; the validation part chooses how many.
    solver: "cg", conjugate gradient from the rows of the last sweep, or "cholesky", exact.
    cg_steps: of each row in each sweep, in [1, 1000].
    init_std: standard deviation of the length of an item's first vector, > 0.
    """

    unused: ClassVar[tuple[str, ...]] = tuple(
        name for name in GRADIENT_OPTIONS if name not in ("epochs", "l2", "patience")
    )
    optimizers: ClassVar[tuple[str, ...]] = ("adam",)  # the name that is there; nothing steps
    conditions: ClassVar[tuple[Only, ...]] = (Only(("cg_steps",), "solver='cg'", lambda config: config.solver == "cg"),)

    factors: int = 256
    alpha: float = 20.0
    confidence: str = "constant"
    l2: float = 40.0
    l2_exponent: float = 0.0
    epochs: int = 12
    patience: int = 4
    solver: str = "cg"
    cg_steps: int = 3
    init_std: float = 0.1
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "confidence", CONFIDENCES)
        one_of(self, "solver", SOLVERS)
        at_least(self, "factors", 1)
        for name in ("alpha", "l2", "init_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ALSConfig: {name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.l2_exponent <= 1:
            raise ValueError(f"ALSConfig: l2_exponent must be in [0, 1], got {self.l2_exponent}")
        if not 1 <= self.cg_steps <= 1000:
            raise ValueError(f"ALSConfig: cg_steps must be in [1, 1000], got {self.cg_steps}")


class ALS(Recommender):
    """score(u, i) = x_u . y_i, each side the exact or nearly exact best for the other."""

    name = "als"
    config_class: ClassVar[type[TrainConfig]] = ALSConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {RETRIEVES, SIMILAR_ITEMS}
    trains_on_whole_rows: ClassVar[bool] = True
    config: ALSConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        factors = self.config.factors
        items = torch.empty(schema.num_items, factors)
        items.normal_(0.0, self.config.init_std / factors**0.5, generator=generator)
        self.register_buffer("user_factors", torch.zeros(schema.num_users, factors))
        self.register_buffer("item_factors", items)
        self.register_buffer("item_gram", items.T @ items)
        self.register_buffer("usual_value", torch.ones(()))  # of a new user's items
        self.user_factors: Tensor
        self.item_factors: Tensor
        self.item_gram: Tensor
        self.usual_value: Tensor
        self._user_gram: Tensor | None = None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """None: no optimizer steps on what is solved for."""
        return {}

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """Take over the vectors that there are, beside first ones for new users and items."""
        super().begin_from(weights, data)
        self.item_gram.copy_(self.item_factors.T @ self.item_factors)

    def batches(self, train: Interactions, seed: int) -> Sides:
        """Whole rows of users, then of items."""
        sides = Sides(train, self._values(train), device=self.device)
        self.usual_value.fill_(sides.mean_value)
        return sides

    def _values(self, train: Interactions) -> NDArray[np.float32] | None:
        """r of each interaction; None: 1."""
        if self.config.confidence == "constant":
            return None
        if train.ratings is None:
            raise ValueError(
                f"als: confidence={self.config.confidence!r} needs ratings, got {train.name} without; pass rating= "
                "when reading it, or take confidence='constant'"
            )
        if len(train) and train.ratings.min() < 0:
            raise ValueError(
                f"als: ratings that become confidences must be >= 0, got {train.ratings.min()}; take "
                "confidence='constant', or leave such rows out"
            )
        return train.ratings if self.config.confidence == "rating" else np.log1p(train.ratings)

    @torch.no_grad()
    def backward(self, batch: SideBatch) -> Tensor:
        """Solve the rows of the batch; there are no gradients. Returns their mean loss an entry."""
        mine, others, gram = self.user_factors, self.item_factors, self.item_gram
        if not batch.of_users:
            if batch.is_first or self._user_gram is None:
                self._user_gram = self.user_factors.T @ self.user_factors
            mine, others, gram = others, mine, self._user_gram
        rows = mine[batch.begin : batch.end]
        is_exact = self.config.solver == "cholesky"
        solved = als_solve(
            batch.offsets,
            batch.indices,
            self.config.alpha * batch.values,
            others,
            ridge=self._ridge(len(others), batch.sums),
            gram=gram,
            start=None if is_exact else rows,
            cg_steps=0 if is_exact else self.config.cg_steps,
        )
        rows.copy_(solved.rows)
        if batch.is_last and not batch.of_users:
            self.item_gram.copy_(self.item_factors.T @ self.item_factors)
            self._user_gram = None
        return solved.losses.sum() / len(batch)

    def _ridge(self, num_columns: int, sums: Tensor) -> Tensor:
        """[b], for rows whose values add up to `sums`."""
        return self.config.l2 * (num_columns + self.config.alpha * sums) ** self.config.l2_exponent

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast."""
        self.require_built()
        return (self.user_factors[users.long()] * self.item_factors[items.long()]).sum(-1)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.user_factors[users.long()],)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """The exact solution for new users; each of their items counts as the usual one of the training rows."""
        counts = offsets.diff()
        value = self.usual_value.to(items.device)
        solved = als_solve(
            to_device(offsets, items.device),
            items,
            (self.config.alpha * value).expand(len(items)),
            self.item_factors,
            ridge=self._ridge(len(self.item_factors), value * to_device(counts, items.device)),
            gram=self.item_gram,
        )
        return (solved.rows,)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        return DotScorer(state[0], self.item_factors)

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.item_factors
