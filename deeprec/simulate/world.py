"""Who clicks on what, and how tastes move."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprec.data import SyntheticTruth

Array = NDArray[np.float64]
Int = NDArray[np.int64]


class Sessions(NamedTuple):
    """What has happened in sessions so far.

    Attributes:
        users: [b], int64, whose taste they began with.
        items: [b, t, K], int64, the slates of t steps.
        clicks: [b, t, K], bool.
        states: [b, k], float64: the tastes now. No policy of the real world knows them.
    """

    users: Int
    items: Int
    clicks: NDArray[np.bool_]
    states: Array


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


@dataclass(frozen=True, eq=False)
class World:
    """A user in state s who examines item i clicks with probability sigmoid(s . v_i + b_i), each item by itself.

    Place k of a slate is examined with probability examination[k]. A click on item i earns rewards[i] and moves the
    state: s <- s + drift (v_i - s), item by item in the order of the slate.

    Args:
        users: [U, k], the state of each user before a session.
        items: [N, k], v.
        bias: [N], b; empty: zeros.
        rewards: [N], of a click, finite; empty: ones.
        drift: in [0, 1].
        examination: of the places, in (0, 1], not ascending; a slate has no more places than these.
    Raises:
        ValueError: shapes that do not fit, numbers out of range or not finite.
    """

    users: Array
    items: Array
    bias: Array = field(default_factory=lambda: np.zeros(0))
    rewards: Array = field(default_factory=lambda: np.zeros(0))
    drift: float = 0.0
    examination: tuple[float, ...] = (1.0,) * 20

    def __post_init__(self) -> None:
        given = {"users": self.users, "items": self.items}
        num = len(self.items)
        given["bias"] = self.bias if len(self.bias) else np.zeros(num)
        given["rewards"] = self.rewards if len(self.rewards) else np.ones(num)
        for name, values in given.items():
            array = np.asarray(values, dtype=np.float64)
            object.__setattr__(self, name, array)
            if array.ndim != (2 if name in ("users", "items") else 1) or not array.size:
                raise ValueError(f"World: {name} must be {'[., k]' if array.ndim != 2 else 'a vector'}, got "
                                 f"{list(array.shape)}")  # fmt: skip
            if not np.isfinite(array).all():
                raise ValueError(f"World: {name} must be finite, got {array[~np.isfinite(array)][0]}")
        if self.users.shape[1] != self.items.shape[1] or self.bias.shape != (num,) or self.rewards.shape != (num,):
            raise ValueError(
                "World: users must be [U, k] and items [N, k], with bias and rewards [N], got "
                + ", ".join(str(list(getattr(self, name).shape)) for name in given)
            )
        if not 0 <= self.drift <= 1:
            raise ValueError(f"World: drift must be in [0, 1], got {self.drift}")
        object.__setattr__(self, "examination", tuple(self.examination))
        places = np.asarray(self.examination, dtype=np.float64)
        if not len(places) or not ((places > 0) & (places <= 1)).all() or (np.diff(places) > 0).any():
            raise ValueError(f"World: examination must be in (0, 1] and not ascend, got {self.examination}")

    @classmethod
    def of_truth(
        cls, truth: SyntheticTruth, *, click_rate: float = 0.1, strength: float = 3.0, **options: Any
    ) -> World:
        """The users and items that `deeprec.data.synthetic` drew its data from.

        Args:
            truth: `synthetic(...).truth`.
            click_rate: mean probability of a click over all users and items, in (0, 1).
            strength: of taste, as a multiple of the truth's own, > 0; popularity stays as it is.
            **options: rewards, drift and examination.
        """
        if not 0 < click_rate < 1:
            raise ValueError(f"World.of_truth: click_rate must be in (0, 1), got {click_rate}")
        if not strength > 0:
            raise ValueError(f"World.of_truth: strength must be > 0, got {strength}")
        users = truth.user_factors.astype(np.float64)
        items = truth.item_factors.astype(np.float64)
        scale = np.sqrt(truth.strength * strength)  # of both, so that states and items stay of one size
        users, items, bias = users * scale, items * scale, truth.item_bias.astype(np.float64)
        scores, (low, high) = users @ items.T + bias, (-200.0, 200.0)
        for _ in range(100):  # by halves: the mean ascends with what is added
            middle = (low + high) / 2
            low, high = (low, middle) if sigmoid(scores + middle).mean() > click_rate else (middle, high)
        return cls(users, items, bias + low, **options)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.items)

    def begin(self, users: Any, slate_size: int = 1) -> Sessions:
        """New sessions of these users [b], with slates of so many places."""
        self.require_slate(slate_size)
        chosen = np.asarray(users)
        if chosen.dtype.kind not in "iu" or chosen.ndim != 1:
            raise ValueError(f"World: users must be [b] whole numbers, got {chosen.dtype} {list(chosen.shape)}")
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < self.num_users:
            raise ValueError(f"World: users must be in [0, {self.num_users}), got {chosen.min()} to {chosen.max()}")
        empty = np.zeros((len(chosen), 0, slate_size), dtype=np.int64)
        return Sessions(chosen.astype(np.int64), empty, empty.astype(np.bool_), self.users[chosen])

    def require_slate(self, slate_size: int) -> None:
        """Raise ValueError for more places than items, or than are examined."""
        most = min(self.num_items, len(self.examination))
        if not 1 <= slate_size <= most:
            raise ValueError(f"World: slate_size must be in [1, {most}], the items and the places of examination, got "
                             f"{slate_size}")  # fmt: skip

    def chances(self, states: Array) -> Array:
        """Probability [b, N] of a click on each item, if it is examined."""
        return sigmoid(states @ self.items.T + self.bias)

    def gains(self, states: Array) -> Array:
        """Expected reward [b, N] of each item, if it is examined."""
        return np.asarray(self.chances(states) * self.rewards)

    def moved(self, states: Array, slates: Int, clicks: NDArray[np.bool_]) -> Array:
        """States [b, k] after these clicks [b, K] on slates [b, K]."""
        after = states.copy()
        for place in range(slates.shape[1]):
            step = self.drift * (self.items[slates[:, place]] - after)
            after += np.where(clicks[:, place, None], step, 0.0)
        return after

    def after(self, sessions: Sessions, slates: Int, clicks: NDArray[np.bool_]) -> Sessions:
        """The sessions with one more step."""
        return Sessions(
            sessions.users,
            np.concatenate([sessions.items, slates[:, None]], axis=1),
            np.concatenate([sessions.clicks, clicks[:, None]], axis=1),
            self.moved(sessions.states, slates, clicks),
        )
