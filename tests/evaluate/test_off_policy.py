"""Estimators of a policy's value from another's log, against enumeration and against the truth of made-up logs."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from deeprec.data import BanditLog, load_bandit
from deeprec.evaluate import ESTIMATORS, Interval, mean_rewards, off_policy_value

N = 4
BEHAVIOUR = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
POLICY = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
CHANCES = np.array([[0.1, 0.5, 0.3, 0.8], [0.6, 0.2, 0.9, 0.4]])  # of a reward, by context and action
TRUTH = float((0.5 * POLICY * CHANCES).sum())


def draw(rows: int, seed: int, *, offset: float = 0.0) -> tuple[BanditLog, np.ndarray]:
    """A log of two contexts, and the context of each row."""
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, 2, rows)
    actions = (rng.random((rows, 1)) > BEHAVIOUR[contexts].cumsum(1)).sum(1)
    rewards = (rng.random(rows) < CHANCES[contexts, actions]) + offset
    return BanditLog(actions, rewards, BEHAVIOUR[contexts, actions], N), contexts


def test_expectations_by_enumeration() -> None:
    # Every log of two rows, with its probability: ips and dr are unbiased, dm is what its model says.
    wrong_model = np.array([[0.3, 0.3, 0.3, 0.3], [0.1, 0.9, 0.2, 0.5]])
    expected = dict.fromkeys(("ips", "dr", "dm"), 0.0)
    cells = list(itertools.product(range(2), range(N), range(2)))  # context, action, reward
    total = 0.0
    for pair in itertools.product(cells, repeat=2):
        c, a, r = (np.array(part) for part in zip(*pair, strict=True))
        chance = np.prod(0.5 * BEHAVIOUR[c, a] * np.where(r == 1, CHANCES[c, a], 1 - CHANCES[c, a]))
        log = BanditLog(a, r.astype(float), BEHAVIOUR[c, a], N)
        total += chance
        for name in expected:
            rewards = None if name == "ips" else wrong_model[c]
            value = off_policy_value(log, POLICY[c], name, rewards=rewards, unsupported="ignore").value
            expected[name] += chance * value
    assert total == pytest.approx(1.0)
    assert expected["ips"] == pytest.approx(TRUTH, abs=1e-12)
    assert expected["dr"] == pytest.approx(TRUTH, abs=1e-12)
    assert expected["dm"] == pytest.approx(float((0.5 * POLICY * wrong_model).sum()), abs=1e-12)


def test_a_right_model_makes_dr_right_with_wrong_propensities() -> None:
    log, contexts = draw(20_000, 1)
    wrong = BanditLog(log.actions, log.rewards, np.full(len(log), 0.5), N)
    value = off_policy_value(wrong, POLICY[contexts], "dr", rewards=CHANCES[contexts])
    assert value.value == pytest.approx(TRUTH, abs=4 * value.standard_error)
    off = off_policy_value(wrong, POLICY[contexts], "ips")
    assert abs(off.value - TRUTH) > 10 * off.standard_error


def test_the_logged_policy_has_the_mean_reward() -> None:
    log, contexts = draw(1000, 2)
    own = BEHAVIOUR[contexts]
    for name in ("ips", "snips", "clipped-ips"):
        estimate = off_policy_value(log, own, name, clip=1.0 if name == "clipped-ips" else None)
        assert estimate.value == pytest.approx(log.mean, abs=1e-12)
        assert estimate.effective_rows == pytest.approx(1000)
    # A model that knows each row's reward leaves nothing to correct.
    known = np.where(np.arange(N) == log.actions[:, None], log.rewards[:, None], CHANCES[contexts])
    assert off_policy_value(log, own, "dr", rewards=known).value == pytest.approx(
        off_policy_value(log, own, "dm", rewards=known).value
    )


def test_dr_without_a_model_is_ips() -> None:
    log, contexts = draw(500, 3)
    one, other = (
        off_policy_value(log, POLICY[contexts], name, rewards=rewards)
        for name, rewards in (("dr", np.zeros((1, N))), ("ips", None))
    )
    assert one[1:] == pytest.approx(other[1:])


def test_means_over_many_logs_meet_the_truth_and_intervals_cover_it() -> None:
    values, covers = {name: [] for name in ("ips", "snips", "dr")}, dict.fromkeys(("ips", "snips", "dr"), 0)
    for seed in range(1000):
        log, contexts = draw(200, 100 + seed)
        for name in values:
            rewards = mean_rewards(log) if name == "dr" else None
            estimate = off_policy_value(log, POLICY[contexts], name, rewards=rewards)
            values[name].append(estimate.value)
            covers[name] += estimate.low <= TRUTH <= estimate.high
    for name in ("ips", "dr"):
        error = np.std(values[name], ddof=1) / np.sqrt(1000)
        assert abs(np.mean(values[name]) - TRUTH) < 2.6 * error
    assert abs(np.mean(values["snips"]) - TRUTH) < 0.01
    for name, count in covers.items():
        assert 900 <= count <= 975, (name, count)


def test_snips_does_not_mind_a_constant() -> None:
    errors = {"ips": [], "snips": []}
    for seed in range(200):
        log, contexts = draw(200, 5000 + seed, offset=10.0)
        for name, each in errors.items():
            each.append(off_policy_value(log, POLICY[contexts], name).value - TRUTH - 10.0)
    assert np.square(errors["snips"]).mean() < 0.05 * np.square(errors["ips"]).mean()
    log, contexts = draw(200, 4)
    moved = BanditLog(log.actions, log.rewards + 7, log.propensities, N)
    one, other = (off_policy_value(each, POLICY[contexts], "snips") for each in (log, moved))
    assert other.value - one.value == pytest.approx(7)
    assert other.standard_error == pytest.approx(one.standard_error)


def test_clipping_by_hand() -> None:
    log = BanditLog(np.array([0, 1]), np.array([1.0, 1.0]), np.array([0.1, 0.5]), 2)
    policy = np.array([[0.8, 0.2]])
    assert off_policy_value(log, policy, "ips").value == pytest.approx((8 + 0.4) / 2)
    clipped = off_policy_value(log, policy, "clipped-ips", clip=2.0)
    assert clipped.value == pytest.approx((2 + 0.4) / 2)
    assert clipped.max_weight == 2.0
    assert clipped.effective_rows == pytest.approx(2.4**2 / (4 + 0.16))


def test_replay_is_the_mean_of_the_rows_that_match() -> None:
    log = BanditLog(np.array([0, 1, 1, 0, 2]), np.array([1.0, 5.0, 3.0, 2.0, 9.0]), np.full(5, 1 / 3), 3)
    estimate = off_policy_value(log, np.array([[0.0, 1.0, 0.0]]), "replay")
    assert (estimate.value, estimate.effective_rows) == (4.0, 2.0)
    assert estimate.value == pytest.approx(off_policy_value(log, np.array([[0.0, 1.0, 0.0]]), "snips").value)
    with pytest.raises(ValueError, match=r"replay needs a deterministic policy, got the largest probability 0\.5"):
        off_policy_value(log, np.array([[0.5, 0.5, 0.0]]), "replay")
    skew = BanditLog(log.actions, log.rewards, np.array([0.1, 0.2, 0.3, 0.4, 0.5]), 3)
    with pytest.raises(ValueError, match="replay needs a uniform log"):
        off_policy_value(skew, np.array([[0.0, 1.0, 0.0]]), "replay")


def test_intervals_agree_where_nothing_is_skewed() -> None:
    log, contexts = draw(4000, 6)
    normal = off_policy_value(log, POLICY[contexts], "snips")
    drawn = off_policy_value(log, POLICY[contexts], "snips", interval=Interval("bootstrap"))
    assert (drawn.low, drawn.high) == pytest.approx((normal.low, normal.high), abs=0.15 * normal.standard_error * 2)
    again = off_policy_value(log, POLICY[contexts], "snips", interval=Interval("bootstrap"))
    assert again == drawn
    wider = off_policy_value(log, POLICY[contexts], "snips", interval=Interval(confidence=0.99))
    assert wider.high - wider.low == pytest.approx((normal.high - normal.low) * 2.5758 / 1.9600, rel=1e-3)


def test_rows_of_a_group_count_together() -> None:
    log, contexts = draw(300, 7)
    three = np.repeat(np.arange(300), 3)  # each row three times: no more is known than before
    copied, policy = log.take(three), POLICY[contexts][three]
    one = off_policy_value(log, POLICY[contexts], "ips")
    other = off_policy_value(copied, policy, "ips", groups=three)
    assert other.standard_error == pytest.approx(one.standard_error)
    assert off_policy_value(copied, policy, "ips").standard_error < 0.6 * one.standard_error


def test_probabilities_of_logged_actions_are_enough() -> None:
    log, contexts = draw(300, 8)
    whole = off_policy_value(log, POLICY[contexts], "snips")
    assert off_policy_value(log, POLICY[contexts, log.actions], "snips") == whole
    with pytest.raises(ValueError, match=r"policy must be \[300, 4\] or \[1, 4\], got \[300\]"):
        off_policy_value(log, POLICY[contexts, log.actions], "dm", rewards=CHANCES[contexts])


def test_mean_rewards_never_see_their_own_row() -> None:
    log = BanditLog(np.zeros(4, dtype=np.int64), np.array([1.0, 0, 0, 0]), np.ones(4), 1)
    modelled = mean_rewards(log, folds=4, prior=1e-9)
    assert modelled[:, 0] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "got 0 at row 2 .1 in all.; what cannot happen is in no log"),
        (np.nan, "got nan at row 2 .1 in all.; log the probability"),
        (1.5, "got 1.5 at row 2 .1 in all.; a probability density"),
        (-0.1, "got -0.1 at row 2"),
    ],
)
def test_wrong_propensities_name_their_row(value: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BanditLog(np.array([0, 1, 1]), np.ones(3), np.array([0.5, 0.5, value]), 2)


def test_a_policy_without_support_is_named() -> None:
    log = BanditLog(np.array([0, 1, 0]), np.ones(3), np.full(3, 0.5), 3)
    policy = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]])
    with pytest.raises(ValueError, match=r"got probability 0\.25 for action 2 in row 2, which is never logged"):
        off_policy_value(log, policy, "ips")
    assert off_policy_value(log, policy, "ips", unsupported="ignore").value == pytest.approx((1 + 1 + 0.5) / 3)
    places = BanditLog(np.array([0, 1, 0]), np.ones(3), np.full(3, 0.5), 2, positions=np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="action 1 at position 1 in row 2"):
        off_policy_value(places, np.array([[0.5, 0.5]]), "snips")
    with pytest.raises(ValueError, match="policy must take a logged action with a probability above 0"):
        off_policy_value(log, np.array([[0.0, 0.0, 1.0]]), "ips", unsupported="ignore")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"estimator": "isp"}, "did you mean 'ips'"),
        ({"policy": np.array([[0.5, 0.4, 0.0, 0.0]])}, "with the sum 0.9 in row 0"),
        ({"policy": np.array([[1.5, -0.5, 0.0, 0.0]])}, "got -0.5 to 1.5"),
        ({"policy": np.ones((3, 2))}, r"policy must be \[50, 4\] or \[1, 4\], got \[3, 2\]"),
        ({"estimator": "dr"}, "rewards go with estimators 'dm' and 'dr', got none for 'dr'"),
        ({"rewards": np.zeros((1, N))}, "leave them out"),
        ({"estimator": "dm", "rewards": np.full((1, N), np.nan)}, "rewards must be finite"),
        ({"clip": 2.0}, "clip goes with estimator 'clipped-ips', got 2.0"),
        ({"estimator": "clipped-ips"}, "got None; choose one on other rows"),
        ({"estimator": "clipped-ips", "clip": 0.0}, "clip must be > 0"),
        ({"interval": Interval("exact")}, "kind must be one of normal, bootstrap"),
        ({"interval": Interval(confidence=1.0)}, "confidence must be in"),
        ({"interval": Interval(resamples=10)}, "resamples must be >= 100"),
        ({"groups": np.zeros(50, dtype=np.int64)}, "groups must be two at least"),
        ({"groups": np.zeros(3)}, "groups must be .50. whole numbers"),
        ({"unsupported": "skip"}, "unsupported must be one of raise, ignore"),
    ],
)
def test_bad_arguments_are_named(given: dict[str, object], words: str) -> None:
    log, contexts = draw(50, 9)
    with pytest.raises(ValueError, match=words):
        off_policy_value(log, given.pop("policy", POLICY[contexts]), **given)  # type: ignore[arg-type]


def test_bad_logs_are_named() -> None:
    with pytest.raises(ValueError, match=r"actions must be in \[0, 2\), got 2 at row 1"):
        BanditLog(np.array([0, 2]), np.ones(2), np.ones(2), 2)
    with pytest.raises(ValueError, match="actions must be whole numbers"):
        BanditLog(np.array([0.5, 1]), np.ones(2), np.ones(2), 2)
    with pytest.raises(ValueError, match="rewards must be finite, got nan at row 0"):
        BanditLog(np.array([0, 1]), np.array([np.nan, 1]), np.ones(2), 2)
    with pytest.raises(ValueError, match=r"rewards must be \[2\], got \[3\]"):
        BanditLog(np.array([0, 1]), np.ones(3), np.ones(2), 2)
    with pytest.raises(ValueError, match="log must have a row"):
        off_policy_value(BanditLog(np.array([], dtype=int), np.array([]), np.array([]), 2), np.array([[0.5, 0.5]]))


@pytest.mark.skipif(
    not (Path(os.environ.get("DEEPREC_DATA", "")) / "open-bandit").is_dir(), reason="DEEPREC_DATA has no open-bandit"
)
def test_open_bandit() -> None:
    random, sampled = load_bandit("open-bandit-random"), load_bandit("open-bandit-bts")
    for log in (random, sampled):
        assert (len(log), log.num_actions, log.rewards.sum()) == (10_000, 46, 46)
        assert log.positions is not None
        assert set(log.positions) == {0, 1, 2}
    assert random.propensities == pytest.approx(1 / 46)
    uniform = np.full((1, 46), 1 / 46)
    assert off_policy_value(random, uniform, "ips").value == pytest.approx(0.0046)
    # One row of Thompson sampling had a chance of 1e-6: nearly the whole weight of the uniform policy is its own.
    estimate = off_policy_value(sampled, uniform, "snips")
    assert estimate.effective_rows < 3
    assert estimate.max_weight == pytest.approx(1 / 46 / 1e-6)
    assert set(ESTIMATORS) == {"dm", "ips", "clipped-ips", "snips", "dr", "replay"}
    with pytest.raises(ValueError, match="did you mean 'open-bandit-bts'"):
        load_bandit("open-bandit-bst")


def test_a_log_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPREC_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"random_women\.csv"):
        load_bandit("open-bandit-random", tmp_path)
    (tmp_path / "open-bandit").mkdir()
    file = tmp_path / "open-bandit" / "random_women.csv"
    file.write_text("item_id,position,click\n1,1,0\n")
    with pytest.raises(ValueError, match=r"must have the columns .* got none called propensity_score"):
        load_bandit("open-bandit-random", tmp_path)
