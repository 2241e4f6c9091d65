"""Bias: a rating is the mean of all, plus what the user and the item deviate from it; what rating models have to beat.

Paper: Koren 2010, "Factor in the neighbors: Scalable and accurate collaborative filtering" (TKDD 4), section 2.1, whose
b_ui = mu + b_u + b_i it is.
Deviations: the damping, a constant to be tuned there, is the ratio of the variances of the noise and of the deviations
(the posterior mean under normal priors), and these are estimated along with the deviations (mean-field variational
Bayes), so that it holds on any scale of ratings and any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS, TrainConfig, one_of
from deeprec.contract import NEW_USERS, RATES, RECOMMENDS, Schema
from deeprec.data import Interactions
from deeprec.models._biases import deviations
from deeprec.models.base import Recommender, check_pairs
from deeprec.nn.scoring import DotScorer, owners_of

_KINDS = {"global": (), "user": ("user",), "item": ("item",), "both": ("item", "user")}


@dataclass(frozen=True)
class BiasConfig(TrainConfig):
    """Attributes (options of gradient training are refused):
    of: whose deviations count, "both", "user", "item" or "global" for none: the mean of all ratings.
    """

    unused: ClassVar[tuple[str, ...]] = GRADIENT_OPTIONS

    of: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "of", tuple(_KINDS))


class Bias(Recommender):
    """r_ui = mu + b_u + b_i."""

    name = "bias"
    config_class: ClassVar[type[TrainConfig]] = BiasConfig
    config: BiasConfig
    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, RATES, NEW_USERS})
    trains_by_gradient: ClassVar[bool] = False
    trains_on_whole_rows: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset()

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.register_buffer("users", torch.zeros(schema.num_users))  # mu + b_u
        self.register_buffer("items", torch.zeros(schema.num_items))  # b_i
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("damping", torch.zeros(()))  # of a user's deviation
        self.register_buffer("limits", torch.zeros(2))  # smallest and largest rating
        self.users: Tensor
        self.items: Tensor
        self.mean: Tensor
        self.damping: Tensor
        self.limits: Tensor

    def fit_directly(self, train: Interactions) -> None:
        """Estimate mean, deviations and variances.

        Raises:
            ValueError: the data has no ratings.
        """
        if train.ratings is None:
            raise ValueError(f"bias: the data must have ratings, got none in {train.name}; take popularity")
        ratings, sizes = train.ratings, (train.num_users, train.num_items)
        known = deviations(ratings, train.users, train.items, sizes, _KINDS[self.config.of])
        self.mean.fill_(known.mean)
        self.users.copy_(torch.from_numpy(known.users + known.mean))
        self.items.copy_(torch.from_numpy(known.items))
        self.limits.copy_(torch.tensor([ratings.min(), ratings.max()]))
        self.damping.fill_(known.user_damping)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings of `items` by `users`; shapes broadcast."""
        self.require_built()
        return self.users[users.long()] + self.items[items.long()]

    @torch.no_grad()
    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids."""
        check_pairs("predict_ratings", users, items, self.require_built())
        ratings: Tensor = self(users, items)
        return ratings

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.users[users.long()],)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        return (self.mean.expand(len(offsets) - 1),)

    def rated_rows(self, offsets: Tensor, items: Tensor, ratings: Tensor) -> tuple[Tensor, ...]:
        """The deviation of somebody new, damped as those of the others were."""
        if "user" not in _KINDS[self.config.of]:
            return self.history_rows(offsets, items)
        owners = owners_of(offsets, self.device)
        errors = ratings.float() - self.mean - self.items[items.long()]
        sums = errors.new_zeros(len(offsets) - 1).index_add_(0, owners, errors)
        return (self.mean + sums / (offsets.diff().to(sums) + self.damping),)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """(mu + b_u, 1) times (1, b_i)."""
        (users,) = state
        return DotScorer(
            torch.stack([users, torch.ones_like(users)], 1), torch.stack([torch.ones_like(self.items), self.items], 1)
        )
