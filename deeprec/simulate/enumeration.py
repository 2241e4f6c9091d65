"""Exact values of policies, and the optimum, by going through all that can happen."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprec.simulate.policies import Policy, best_places, probabilities_of, require_slates
from deeprec.simulate.world import Array, Int, Sessions, World

_MOST_ROWS = 1 << 21  # sessions at a time; more need simulation


class Optimum(NamedTuple):
    """The best that can be done by who knows the states.

    Attributes:
        values: [U], expected discounted reward of a session.
        slates: [U, K], int64, what to show first.
    """

    values: Array
    slates: Int


class _Outcomes(NamedTuple):
    """All slates, and all clicks on one.

    Attributes:
        slates: [S, K], int64, every choice of K different items in order.
        clicks: [C, K], bool, every combination.
    """

    slates: Int
    clicks: NDArray[np.bool_]

    @classmethod
    def of(cls, num_items: int, slate_size: int) -> _Outcomes:
        count = int(np.prod(num_items - np.arange(slate_size, dtype=np.float64)))
        if count > _MOST_ROWS:
            raise ValueError(
                f"{count:,} slates of {slate_size} of {num_items} items are too many to go through; take fewer, "
                "slates='best', or simulate()"
            )
        slates = np.array(list(itertools.permutations(range(num_items), slate_size)), dtype=np.int64)
        clicks = np.array(list(itertools.product((False, True), repeat=slate_size)), dtype=np.bool_)
        return cls(slates, clicks)


def value(
    world: World, policy: Policy, *, steps: int = 1, slate_size: int = 1, discount: float = 1.0, slates: str = "sampled"
) -> Array:
    """Expected discounted reward [U] of a session of each user under a policy, exactly.

    Args:
        steps: of a session, >= 1.
        slate_size: K, >= 1.
        discount: of the reward of each later step, in [0, 1].
        slates: "sampled", drawn from the policy place by place without replacement; "best", its K most probable items.
    Raises:
        ValueError: an argument out of range, or more sessions than can be gone through: simulate() then.
    """
    _check(world, steps, slate_size, discount)
    require_slates(slates)
    everyone = world.begin(np.arange(world.num_users), slate_size)
    return _value(world, policy, everyone, steps, discount, slates)


def _value(world: World, policy: Policy, sessions: Sessions, steps: int, discount: float, slates: str) -> Array:
    size = sessions.items.shape[2]
    shown = probabilities_of(policy, sessions, world.num_items)
    gains, seen = world.gains(sessions.states), np.asarray(world.examination[:size])
    if slates == "best":
        lists, chosen = best_places(shown, size)[:, None], np.ones((len(shown), 1))
    elif size == 1:
        lists, chosen = np.broadcast_to(np.arange(world.num_items)[:, None], (len(shown), world.num_items, 1)), shown
    else:
        every = _Outcomes.of(world.num_items, size).slates
        lists = np.broadcast_to(every, (len(shown), *every.shape))
        chosen = _chance_of(every, shown)
    rows = np.arange(len(shown))[:, None, None]
    now = np.asarray((chosen * (gains[rows, lists] @ seen)).sum(axis=1))
    if steps == 1 or not discount:
        return now
    clicks = _Outcomes.of(size, size).clicks
    is_clicked = world.chances(sessions.states)[rows, lists] * seen  # [b, S, K]
    happens = np.where(clicks, is_clicked[:, :, None], 1 - is_clicked[:, :, None]).prod(axis=3) * chosen[:, :, None]
    owners, which, how = np.nonzero(happens > 0)
    _require_few(len(owners))
    before = Sessions(sessions.users[owners], sessions.items[owners], sessions.clicks[owners], sessions.states[owners])
    after = world.after(before, lists[owners, which], clicks[how])
    later = happens[owners, which, how] * _value(world, policy, after, steps - 1, discount, slates)
    return np.asarray(now + discount * np.bincount(owners, later, len(now)))


def _chance_of(slates: Int, shown: Array) -> Array:
    """Probability [b, S] of drawing each slate, place by place without replacement."""
    taken, chance = np.zeros((len(shown), len(slates))), np.ones((len(shown), len(slates)))
    for place in range(slates.shape[1]):
        drawn = shown[:, slates[:, place]]
        left = 1 - taken
        chance *= np.divide(drawn, left, out=np.zeros_like(drawn), where=left > 1e-12)
        taken += drawn
    return chance


def optimum(world: World, *, steps: int = 1, slate_size: int = 1, discount: float = 1.0) -> Optimum:
    """The largest expected discounted reward of a session of each user, and the first slate that has it.

    Args:
        steps, slate_size, discount: as of `value`.
    Raises:
        ValueError: as of `value`.
    """
    _check(world, steps, slate_size, discount)
    return _optimum(world, world.users, steps, slate_size, discount)


def _optimum(world: World, states: Array, steps: int, size: int, discount: float) -> Optimum:
    gains, seen = world.gains(states), np.asarray(world.examination[:size])
    if steps == 1 or not discount or not world.drift:
        # What is shown now changes nothing later.
        slates = best_places(gains, size)
        ahead = 1.0 if not discount else float((discount ** np.arange(steps)).sum())
        return Optimum(ahead * (np.take_along_axis(gains, slates, 1) @ seen), slates)
    every, clicks = _Outcomes.of(world.num_items, size)
    # What was clicked, in order, is all that the next state depends on: each such sequence once.
    marks = np.where(clicks, every[:, None] + 1, 0).reshape(-1, size)  # [S C, K]
    moved = np.zeros_like(marks)
    for row in range(len(marks)):
        clicked = marks[row][marks[row] > 0]
        moved[row, : len(clicked)] = clicked
    kinds, kind_of = np.unique(moved, axis=0, return_inverse=True)
    count = len(kinds)
    _require_few(len(states) * count)
    shown, was_clicked = (np.tile(each, (len(states), 1)) for each in (np.maximum(kinds - 1, 0), kinds > 0))
    after = world.moved(np.repeat(states, count, axis=0), shown, was_clicked)
    later = _optimum(world, after, steps - 1, size, discount).values.reshape(len(states), count)
    best, choice = np.full(len(states), -np.inf), np.zeros(len(states), dtype=np.int64)
    of_slate = kind_of.reshape(len(every), len(clicks))
    chances = world.chances(states)
    for number, slate in enumerate(every):
        each = chances[:, slate] * seen  # [b, K]
        happens = np.where(clicks, each[:, None], 1 - each[:, None]).prod(axis=2)
        total = gains[:, slate] @ seen + discount * (happens * later[:, of_slate[number]]).sum(axis=1)
        is_better = total > best
        best[is_better], choice[is_better] = total[is_better], number
    return Optimum(best, every[choice])


def _check(world: World, steps: int, slate_size: int, discount: float) -> None:
    world.require_slate(slate_size)
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if not 0 <= discount <= 1:
        raise ValueError(f"discount must be in [0, 1], got {discount}")


def _require_few(rows: int) -> None:
    if rows > _MOST_ROWS:
        raise ValueError(
            f"{rows:,} sessions are too many to go through, {_MOST_ROWS:,} at most; take fewer users, items or "
            "steps, or simulate()"
        )
