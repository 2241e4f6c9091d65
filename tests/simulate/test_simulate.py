"""The simulator: probabilities and states by hand, values against drawn sessions, the optimum against all policies."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from deeprec.data import synthetic
from deeprec.evaluate import off_policy_value
from deeprec.simulate import (
    Sessions,
    World,
    best_policy,
    optimum,
    simulate,
    softmax_policy,
    uniform_policy,
    value,
)
from deeprec.simulate.environment import RecommenderEnv


def small(num_items: int = 4, *, drift: float = 0.5, num_users: int = 3, **options: object) -> World:
    rng = np.random.default_rng(num_items)
    users, items = rng.normal(size=(num_users, 2)), rng.normal(size=(num_items, 2)) * 2
    return World(users, items, rng.normal(size=num_items) - 1, drift=drift, **options)  # type: ignore[arg-type]


def by_history(world: World, seed: int = 0):  # type: ignore[no-untyped-def]
    """A policy that depends on what was shown and clicked."""
    rng = np.random.default_rng(seed)
    base, shift = rng.random(world.num_items) + 0.1, rng.random((world.num_items, world.num_items))

    def policy(sessions: Sessions) -> np.ndarray:
        scores = np.tile(base, (len(sessions.users), 1))
        for step in range(sessions.items.shape[1]):
            for place in range(sessions.items.shape[2]):
                scores = scores * 0.7 + shift[sessions.items[:, step, place]] * (
                    0.3 + sessions.clicks[:, step, place, None]
                )
        return scores / scores.sum(axis=1, keepdims=True)

    return policy


def test_clicks_and_states_by_hand() -> None:
    world = World(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [2.0, 0.0]]), np.array([0.5, -1.0]), drift=0.25)
    assert world.chances(world.users)[0] == pytest.approx([1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(-1.0))])
    one = world.moved(world.users, np.array([[0, 1]]), np.array([[True, False]]))
    assert one[0] == pytest.approx([0.75, 0.25])
    both = world.moved(world.users, np.array([[0, 1]]), np.array([[True, True]]))
    assert both[0] == pytest.approx([0.75 * 0.75 + 0.25 * 2, 0.25 * 0.75])
    none = world.moved(world.users, np.array([[0, 1]]), np.array([[False, False]]))
    assert none[0] == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(("slates", "size", "steps"), [("sampled", 1, 3), ("sampled", 2, 2), ("best", 2, 3)])
def test_values_are_those_of_many_drawn_sessions(slates: str, size: int, steps: int) -> None:
    world = small(examination=(1.0, 0.6), rewards=np.array([1.0, 2.0, 0.5, 3.0]))
    policy = by_history(world)
    exact = value(world, policy, steps=steps, slate_size=size, discount=0.8, slates=slates)
    for user in range(3):
        log = simulate(
            world, policy, np.full(40_000, user), steps=steps, slate_size=size, slates=slates, seed=user
        ).returns(0.8)
        assert abs(log.mean() - exact[user]) < 3.5 * log.std() / 200


def test_the_optimum_is_the_best_of_all_deterministic_policies() -> None:
    # Two items, two steps: a policy says what comes first, and second after a click and after none.
    world = small(2, drift=0.9, rewards=np.array([1.0, 1.3]))
    best = optimum(world, steps=2)
    values = []
    for first, clicked, missed in itertools.product(range(2), repeat=3):

        def policy(sessions: Sessions, first: int = first, clicked: int = clicked, missed: int = missed) -> np.ndarray:
            then = [first] * len(sessions.users)
            if sessions.items.shape[1]:
                then = np.where(sessions.clicks[:, 0, 0], clicked, missed).tolist()
            return np.eye(2)[then]

        values.append(value(world, policy, steps=2))
    assert best.values == pytest.approx(np.max(values, axis=0))
    assert (best.slates[:, 0] == np.argmax(values, axis=0) // 4).all()


def test_nothing_beats_the_optimum_and_slates_are_sorted() -> None:
    world = small(5, examination=(1.0, 0.5, 0.25))
    for size in (1, 2):
        best = optimum(world, steps=2, slate_size=size, discount=0.9)
        for policy in (by_history(world, 1), by_history(world, 2), best_policy(world), uniform_policy(world)):
            values = value(world, policy, steps=2, slate_size=size, discount=0.9)
            assert (values <= best.values + 1e-12).all()
    one = optimum(world, slate_size=3)
    gains = world.gains(world.users)
    by_all = [max(gains[user, list(slate)] @ [1, 0.5, 0.25] for slate in itertools.permutations(range(5), 3))
              for user in range(3)]  # fmt: skip
    assert one.values == pytest.approx(by_all)


def test_planning_pays_where_clicks_move_tastes() -> None:
    # Item 0 is clicked a little more often now; item 1 moves the user to where item 2 is clicked for sure.
    world = World(np.array([[1.0, 0.0]]), np.array([[0.5, 0.0], [0.2, 6.0], [-9.0, 6.0]]), drift=1.0)
    greedy = value(world, best_policy(world), steps=3)
    best = optimum(world, steps=3)
    assert best.slates[0, 0] == 1
    assert best.values[0] > greedy[0] + 0.3
    assert optimum(world, steps=3, discount=0.0).slates[0, 0] == 0


def test_without_drift_the_best_item_is_optimal() -> None:
    world = small(drift=0.0)
    assert optimum(world, steps=3, discount=0.5).values == pytest.approx(
        value(world, best_policy(world), steps=3, discount=0.5)
    )


def test_propensities_are_frequencies() -> None:
    world = small(5)
    policy = by_history(world)
    log = simulate(world, policy, np.zeros(60_000, dtype=np.int64), slate_size=2, seed=1)
    items, chances = log.sessions.items[:, 0], log.propensities[:, 0]
    for pair in ((0, 1), (3, 2), (4, 0)):
        rows = (items == pair).all(axis=1)
        expected = chances[rows][0].prod()
        assert rows.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / 60_000))
    assert (items[:, 0] != items[:, 1]).all()


def test_a_log_estimates_the_exact_value() -> None:
    world = small(5, drift=0.0)
    target = softmax_policy(world, 4.0)
    log = simulate(world, uniform_policy(world), np.tile(np.arange(3), 3000), seed=4)
    shown = target(Sessions(*log.sessions[:3], world.users[log.sessions.users]))
    estimate = off_policy_value(log.bandit_log(), shown, "ips", groups=log.sessions_of_rows())
    assert estimate.value == pytest.approx(value(world, target).mean(), abs=3 * estimate.standard_error)


def test_the_same_seed_draws_the_same() -> None:
    world = small()
    one, same, other = (
        simulate(world, by_history(world), [0, 1, 2], steps=4, slate_size=2, seed=seed) for seed in (5, 5, 6)
    )
    assert (one.sessions.items == same.sessions.items).all()
    assert (one.rewards == same.rewards).all()
    assert (one.sessions.items != other.sessions.items).any()


def test_interactions_of_a_log() -> None:
    world = small(rewards=np.array([1.0, 2.0, 3.0, 4.0]))
    log = simulate(world, uniform_policy(world), [2, 0], steps=3, slate_size=2, seed=0)
    data = log.interactions()
    assert (len(data), data.num_users, data.num_items) == (12, 2, 4)
    assert data.ratings is not None
    assert data.ratings.reshape(2, 3, 2) == pytest.approx(log.rewards)
    assert set(data.ratings[data.ratings > 0] - data.items[data.ratings > 0]) <= {1.0}
    assert data.propensities.reshape(2, 3, 2) == pytest.approx(np.broadcast_to([1 / 4, 1 / 3], (2, 3, 2)))


def test_the_truth_of_synthetic_data_is_a_world() -> None:
    data = synthetic(50, 20, 400, seed=2)
    assert data.truth is not None
    world = World.of_truth(data.truth, click_rate=0.2, drift=0.1)
    assert world.chances(world.users).mean() == pytest.approx(0.2)
    assert (world.num_users, world.num_items) == (50, 20)
    # What users met in the data is what they click on here.
    met = world.chances(world.users)[data.users, data.items].mean()
    assert met > 1.3 * 0.2


def test_the_environment_passes_the_checks_of_gymnasium() -> None:
    for size, shows in ((1, True), (2, False)):
        check_env(RecommenderEnv(small(), steps=5, slate_size=size, shows_state=shows), skip_render_check=True)


def test_the_environment_earns_what_the_world_says() -> None:
    world = small(3, drift=0.5, num_users=1)
    env = RecommenderEnv(world, steps=2, history=3)
    total, count = 0.0, 20_000
    env.reset(seed=3)
    for _ in range(count):
        env.reset(options={"user": 0})
        done = False
        while not done:
            _, reward, done, _, info = env.step(np.int64(1))
            total += reward
            assert info["clicks"].shape == (1,)
    always = value(world, lambda sessions: np.eye(3)[np.ones(len(sessions.users), dtype=int)], steps=2)
    assert total / count == pytest.approx(always[0], abs=0.02)


def test_the_environment_shows_what_was_clicked() -> None:
    world = World(np.array([[1.0]]), np.array([[1.0], [2.0], [-90.0]]), np.array([50.0, 50.0, -50.0]))
    env = RecommenderEnv(world, steps=3, slate_size=2, history=3)
    seen, _ = env.reset(seed=0)
    assert seen["clicked"].tolist() == [-1, -1, -1]
    seen, reward, *_ = env.step(np.array([1, 2]))
    assert (seen["clicked"].tolist(), reward) == ([-1, -1, 1], 1.0)
    seen, reward, *_ = env.step(np.array([0, 0]))  # the second place shows nothing new
    assert (seen["clicked"].tolist(), reward) == ([-1, 1, 0], 1.0)
    *_, done, _, _ = env.step(np.array([0, 1]))
    assert done
    with pytest.raises(ValueError, match="step needs a session that goes on"):
        env.step(np.array([0, 1]))
    env.reset()
    with pytest.raises(ValueError, match="action must be in MultiDiscrete"):
        env.step(np.array([0, 9]))


def test_the_rest_needs_no_gymnasium() -> None:
    code = (
        "import sys; sys.modules['gymnasium'] = None; import deeprec, deeprec.simulate, deeprec.evaluate\n"
        "try:\n    import deeprec.simulate.environment\nexcept ImportError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "needs gymnasium" in told
    assert "simulate" in told.split("install it:")[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drift": 1.5}, "drift must be in"),
        ({"examination": (0.5, 1.0)}, "examination must be in .* not ascend"),
        ({"examination": ()}, "examination must be in"),
        ({"rewards": np.ones(3)}, r"got \[3, 2\], \[4, 2\], \[4\], \[3\]"),
        ({"rewards": np.array([1.0, np.nan, 1, 1])}, "rewards must be finite, got nan"),
    ],
)
def test_a_wrong_world_is_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**{"drift": 0.5, **options})  # type: ignore[arg-type]


def test_wrong_arguments_are_named() -> None:
    world = small()
    with pytest.raises(ValueError, match=r"slate_size must be in \[1, 4\]"):
        value(world, uniform_policy(world), slate_size=5)
    with pytest.raises(ValueError, match="steps must be >= 1"):
        optimum(world, steps=0)
    with pytest.raises(ValueError, match="discount must be in"):
        value(world, uniform_policy(world), discount=1.1)
    with pytest.raises(ValueError, match="slates must be one of"):
        simulate(world, uniform_policy(world), [0], slates="top")
    with pytest.raises(ValueError, match=r"users must be in \[0, 3\), got 0 to 3"):
        simulate(world, uniform_policy(world), [0, 3])
    with pytest.raises(ValueError, match=r"with the sum 4 in row 0"):
        value(world, lambda sessions: np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"probabilities must be \[3, 4\]"):
        value(world, lambda sessions: np.ones((3, 5)) / 5)
    with pytest.raises(ValueError, match="policy must give 2 items a probability above 0"):
        simulate(world, best_policy(world), [0], slate_size=2)
    large = small(30, drift=0.5, num_users=20)
    with pytest.raises(ValueError, match="too many to go through"):
        value(large, uniform_policy(large), steps=6)
    with pytest.raises(ValueError, match="slates of 9 of 30 items are too many"):
        value(large, uniform_policy(large), slate_size=9)
