"""What the mean of all ratings, the users and the items say of a rating: mu + b_u + b_i.

The damping of Koren 2010 (TKDD 4, section 2.1), a constant to be tuned there, is the ratio of the variances of the
noise and of the deviations (the posterior mean under normal priors), and these are estimated along with the deviations
(mean-field variational Bayes), so that it holds on any scale of ratings and any number of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SWEEPS = 30


class Deviations(NamedTuple):
    """The deviations of users and of items from the mean of all ratings.

    Attributes:
        mean: mu.
        users: [num_users], b_u; items: [num_items], b_i; float64, 0 for who has no ratings.
        user_damping, item_damping: a deviation is the sum of n errors over n + damping, > 0.
        spread: standard deviation of what they leave of the ratings, >= 0.
    """

    mean: float
    users: NDArray[Any]
    items: NDArray[Any]
    user_damping: float
    item_damping: float
    spread: float


def deviations(
    ratings: NDArray[Any],
    users: NDArray[Any],
    items: NDArray[Any],
    sizes: tuple[int, int],
    sides: Collection[str] = ("item", "user"),
) -> Deviations:
    """The deviations that ratings [nnz] leave of `users` [nnz] and `items` [nnz], internal ids below `sizes`.

    Args:
        sides: whose deviations count; those of the others are 0.
    """
    ratings = ratings.astype(np.float64)
    both = {"user": _Side(users, sizes[0]), "item": _Side(items, sizes[1])}
    taken = [both[each] for each in sides]
    mean = float(ratings.mean())
    noise = float(ratings.var())
    for side in taken:
        side.spread = noise
    for _ in range(_SWEEPS if noise > 0 else 0):
        for side in taken:
            side.update(ratings - mean - sum(other.of_rows() for other in taken if other is not side), noise)
        errors = ratings - mean - sum(side.of_rows() for side in taken)
        noise = float(np.square(errors).mean() + sum(side.uncertainty.mean() for side in taken)) if taken else noise
    spread = float((ratings - mean - sum(side.of_rows() for side in taken)).std())
    user, item = both["user"], both["item"]
    user_damping, item_damping = (noise / max(side.spread, 1e-30) for side in (user, item))
    return Deviations(mean, user.deviations, item.deviations, user_damping, item_damping, spread)


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
        of_rows: NDArray[Any] = self.deviations[self.ids]
        return of_rows

    def update(self, errors: NDArray[Any], noise: float) -> None:
        """The posterior given what the rest leaves of the ratings, [nnz], and then the prior's variance given it."""
        damped: NDArray[Any] = self.counts + noise / self.spread
        sums: NDArray[Any] = np.bincount(self.ids, errors, minlength=len(self.counts)).astype(np.float64)
        self.deviations = sums / damped
        variances, met = noise / damped, self.counts > 0
        self.uncertainty = variances[self.ids]
        self.spread = max(float((np.square(self.deviations) + variances)[met].mean()), 1e-9 * noise)
