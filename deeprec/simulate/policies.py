"""Policies: what is shown with which probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from deeprec.simulate.world import Array, Int, Sessions, World

# Probabilities [b, N] of the items, for sessions. A slate is drawn from them place by place, without replacement.
Policy: TypeAlias = Callable[[Sessions], Array]

SLATES = ("sampled", "best")
_SUM_TOLERANCE = 1e-4


def probabilities_of(policy: Policy, sessions: Sessions, num_items: int) -> Array:
    """What a policy says, [b, N], summing to 1.

    Raises:
        ValueError: another shape, or rows that are no probabilities.
    """
    given = np.asarray(policy(sessions), dtype=np.float64)
    if given.shape != (len(sessions.users), num_items):
        raise ValueError(f"policy: probabilities must be [{len(sessions.users)}, {num_items}], got {list(given.shape)}")
    sums = given.sum(axis=1)
    wrong = ~((given >= 0).all(axis=1) & (abs(sums - 1) < _SUM_TOLERANCE))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"policy: rows must be probabilities that sum to 1, got {given[row].min():g} to {given[row].max():g} with "
            f"the sum {sums[row]:g} in row {row}; take a softmax"
        )
    return np.asarray(given / sums[:, None])


def require_slates(slates: str) -> None:
    """Raise ValueError for another word."""
    if slates not in SLATES:
        raise ValueError(f"slates must be one of {', '.join(SLATES)}, got {slates!r}")


def best_places(scores: Array, size: int) -> Int:
    """The `size` items with the largest scores [b, N], largest first; of equal ones the lower number: [b, size]."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :size].astype(np.int64)


def uniform_policy(world: World) -> Policy:
    """Every item alike."""

    def policy(sessions: Sessions) -> Array:
        return np.full((len(sessions.users), world.num_items), 1 / world.num_items)

    return policy


def softmax_policy(world: World, scale: float = 1.0, *, knows_states: bool = True) -> Policy:
    """softmax(scale * expected reward), of each state, or of the mean of all users.

    Args:
        scale: 0 is uniform; a negative one shows most what earns least.
        knows_states: False for a policy that is the same for everybody.
    """

    def policy(sessions: Sessions) -> Array:
        gains = world.gains(sessions.states) if knows_states else world.gains(world.users).mean(axis=0, keepdims=True)
        scores = scale * np.broadcast_to(gains, (len(sessions.users), world.num_items))
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    return policy


def best_policy(world: World) -> Policy:
    """The item that earns most now: the optimum of one step, and of all steps without drift."""

    def policy(sessions: Sessions) -> Array:
        shown = np.zeros((len(sessions.users), world.num_items))
        shown[np.arange(len(shown)), world.gains(sessions.states).argmax(axis=1)] = 1.0
        return shown

    return policy
