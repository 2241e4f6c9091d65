"""Sessions drawn in a world: data to learn from, and logs to estimate from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data import BanditLog, IdMap, LoggedInteractions
from deeprec.simulate.policies import Policy, best_places, probabilities_of, require_slates
from deeprec.simulate.world import Array, Int, Sessions, World


@dataclass(frozen=True, eq=False)
class SimulatedLog:
    """What a policy showed in n sessions of T steps, and what came of it.

    Attributes:
        sessions: all of it; `states` are those after the last step.
        rewards: [n, T, K].
        propensities: [n, T, K]: the probability of each item at its place, after those before it on the slate.
        num_items: N.
    """

    sessions: Sessions
    rewards: Array
    propensities: Array
    num_items: int

    def returns(self, discount: float = 1.0) -> Array:
        """Discounted reward [n] of each session; their mean is the value of the policy, but for chance."""
        steps = self.rewards.shape[1]
        return np.asarray(self.rewards.sum(axis=2) @ discount ** np.arange(steps))

    def interactions(self, name: str = "simulated") -> LoggedInteractions:
        """The events as rows: each session a user, numbered from 0, rewards as ratings, with their propensities."""
        count, steps, size = self.sessions.items.shape
        return LoggedInteractions(
            users=np.repeat(np.arange(count, dtype=np.int32), steps * size),
            items=self.sessions.items.ravel().astype(np.int32),
            user_ids=IdMap(pl.Series("user_id", np.arange(count)), "user"),
            item_ids=IdMap(pl.Series("item_id", np.arange(self.num_items)), "item"),
            ratings=self.rewards.ravel().astype(np.float32),
            order=np.tile(np.arange(steps * size, dtype=np.int64), count),
            order_kind="time",
            propensities=self.propensities.ravel().astype(np.float32),
            name=name,
        )

    def bandit_log(self, name: str = "simulated") -> BanditLog:
        """The events one by one; rows of a session stand together, see `sessions_of_rows`."""
        size = self.sessions.items.shape[2]
        return BanditLog(
            self.sessions.items.ravel(),
            self.rewards.ravel(),
            self.propensities.ravel(),
            self.num_items,
            positions=None if size == 1 else np.tile(np.arange(size), self.rewards[..., 0].size),
            name=name,
        )

    def sessions_of_rows(self) -> Int:
        """The session [rows] of each row of `bandit_log`: its `groups`."""
        count, steps, size = self.sessions.items.shape
        return np.repeat(np.arange(count), steps * size)


def simulate(
    world: World,
    policy: Policy,
    users: Any,
    *,
    steps: int = 1,
    slate_size: int = 1,
    slates: str = "sampled",
    seed: int = 0,
) -> SimulatedLog:
    """Draw a session of each of these users [n], who may come more than once.

    Args:
        steps: T, >= 1.
        slate_size: K, >= 1.
        slates: "sampled" or "best", as of `value`.
        seed: of all draws, >= 0.
    Raises:
        ValueError: an argument out of range, or a policy that gives no probabilities, or fewer items than places.
    """
    if steps < 1:
        raise ValueError(f"simulate: steps must be >= 1, got {steps}")
    require_slates(slates)
    rng = np.random.Generator(np.random.Philox(seed))
    sessions = world.begin(users, slate_size)
    count, seen = len(sessions.users), np.asarray(world.examination[:slate_size])
    rows, chances = np.arange(count)[:, None], []
    for _ in range(steps):
        shown = probabilities_of(policy, sessions, world.num_items)
        slate, chance = _drawn(rng, shown, slate_size) if slates == "sampled" else _best(shown, slate_size)
        clicks: NDArray[np.bool_] = rng.random((count, slate_size)) < world.chances(sessions.states)[rows, slate] * seen
        sessions = world.after(sessions, slate, clicks)
        chances.append(chance)
    rewards = sessions.clicks * world.rewards[sessions.items]
    return SimulatedLog(sessions, rewards, np.stack(chances, axis=1), world.num_items)


def _best(shown: Array, size: int) -> tuple[Int, Array]:
    return best_places(shown, size), np.ones((len(shown), size))


def _drawn(rng: np.random.Generator, shown: Array, size: int) -> tuple[Int, Array]:
    """Slates [n, K] drawn place by place without replacement, and the probability of each item at its place."""
    left, rows = shown.copy(), np.arange(len(shown))
    slates, chances = np.zeros((len(shown), size), dtype=np.int64), np.zeros((len(shown), size))
    for place in range(size):
        totals = left.sum(axis=1)
        if not (totals > 0).all():
            raise ValueError(f"simulate: policy must give {size} items a probability above 0, got fewer in row "
                             f"{int((totals <= 0).argmax())}")  # fmt: skip
        bounds = left.cumsum(axis=1)
        # The first item whose bound is above the draw, and which has a probability at all.
        drawn = (bounds > rng.random(len(shown))[:, None] * bounds[:, -1:]).argmax(axis=1)
        slates[:, place], chances[:, place] = drawn, left[rows, drawn] / totals
        left[rows, drawn] = 0.0
    return slates, chances
