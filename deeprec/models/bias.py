"""Bias: a rating is the mean of all, plus what the user and the item deviate from it; what rating models have to beat.

Paper: Koren 2010, "Factor in the neighbors: Scalable and accurate collaborative filtering" (TKDD 4), section 2.1, whose
b_ui = mu + b_u + b_i it is.
Deviations: the damping, a constant to be tuned there, is the ratio of the variances of the noise and of the deviations
(the posterior mean under normal priors), and these are estimated along with the deviations (mean-field variational
Bayes), so that it holds on any scale of ratings and any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS, TrainConfig, one_of
from deeprec.contract import NEW_USERS, RATES, RECOMMENDS, Schema
from deeprec.data import Interactions
from deeprec.kernels.sums import add_rows
from deeprec.models.base import Recommender, check_pairs
from deeprec.nn.scoring import DotScorer, owners_of

_KINDS = {"global": (), "user": ("user",), "item": ("item",), "both": ("item", "user")}
_SWEEPS = 30


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
        estimate = biases_of(train, self.config.of)
        self.mean.fill_(estimate.mean)
        self.users.copy_(torch.from_numpy(estimate.users + estimate.mean))
        self.items.copy_(torch.from_numpy(estimate.items))
        self.damping.fill_(estimate.damping)
        self.limits.copy_(torch.tensor(estimate.limits))

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
        errors = ratings.float().clamp(*self.limits) - self.mean - self.items[items.long()]
        sums = add_rows(errors.new_zeros(len(offsets) - 1), owners, errors)
        return (self.mean + sums / (offsets.diff().to(sums) + self.damping),)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """(mu + b_u, 1) times (1, b_i)."""
        (users,) = state
        return DotScorer(
            torch.stack([users, torch.ones_like(users)], 1), torch.stack([torch.ones_like(self.items), self.items], 1)
        )


class Biases(NamedTuple):
    """What ratings say of users and items one by one.

    Attributes:
        mean: of all ratings.
        users, items: [num_users] and [num_items], float64, deviations from it; 0 for who has no ratings.
        noise: standard deviation of what they leave of the ratings, as estimated.
        damping: noise^2 over the variance of the users' deviations; item_damping: over that of the items'.
        limits: smallest and largest rating.
    """

    mean: float
    users: NDArray[Any]
    items: NDArray[Any]
    noise: float
    damping: float
    item_damping: float
    limits: tuple[float, float]


def biases_of(train: Interactions, of: str = "both") -> Biases:
    """Mean, deviations and variances of the ratings; `of` as in `BiasConfig`.

    Raises:
        ValueError: the data has no ratings.
    """
    if train.ratings is None:
        raise ValueError(f"bias: the data must have ratings, got none in {train.name}; take popularity")
    ratings = train.ratings.astype(np.float64)
    sides = {"user": _Side(train.users, train.num_users), "item": _Side(train.items, train.num_items)}
    taken = [sides[each] for each in _KINDS[of]]
    mean, noise = float(ratings.mean()), float(ratings.var())
    for side in taken:
        side.spread = noise
    for _ in range(_SWEEPS if noise > 0 and taken else 0):
        for side in taken:
            side.update(ratings - mean - sum(other.of_rows() for other in taken if other is not side), noise)
        errors = ratings - mean - sum(side.of_rows() for side in taken)
        noise = float(np.square(errors).mean() + sum(side.uncertainty.mean() for side in taken))
    user, item = sides["user"], sides["item"]
    damping, item_damping = (noise / max(side.spread, 1e-30) for side in (user, item))
    limits = float(ratings.min()), float(ratings.max())
    return Biases(mean, user.deviations, item.deviations, noise**0.5, damping, item_damping, limits)


class _Side:
    """The deviations of all users, or of all items, as the posterior that the ratings leave of them.

    Attributes:
        deviations: [n], posterior means; 0 for who has no ratings.
        spread: variance of the prior, > 0.
        uncertainty: [nnz], posterior variance of the deviation that each rating has.
    """

    def __init__(self, ids: NDArray[Any], count: int) -> None:
        self.ids, self.counts = ids, np.bincount(ids, minlength=count)
        self.deviations: NDArray[Any] = np.zeros(count)
        self.spread = 0.0
        self.uncertainty: NDArray[Any] = np.zeros(len(ids))

    def of_rows(self) -> NDArray[Any]:
        """The deviation of each rating's user or item, [nnz]."""
        rows: NDArray[Any] = self.deviations[self.ids]
        return rows

    def update(self, errors: NDArray[Any], noise: float) -> None:
        """The posterior given what the rest leaves of the ratings, [nnz], and then the prior's variance given it."""
        damped: NDArray[Any] = self.counts + noise / self.spread
        sums: NDArray[Any] = np.bincount(self.ids, errors, minlength=len(self.counts)).astype(np.float64)
        self.deviations = sums / damped
        variances, met = noise / damped, self.counts > 0
        self.uncertainty = variances[self.ids]
        self.spread = max(float((np.square(self.deviations) + variances)[met].mean()), 1e-9 * noise)
