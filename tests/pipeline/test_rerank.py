"""Each re-ranking against its formula, by enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from deeprec.pipeline.config import MMR, Boost, Calibration, Exploration, ProviderQuota
from deeprec.pipeline.rerank import (
    Boosting,
    Calibrating,
    Diversifying,
    Exploring,
    Limiting,
    Values,
    divergence,
    unit_rows,
    unit_scores,
)
from deeprec.pipeline.rows import Asked, Candidates, Lists, Ranked, ranked

N = 9


def _list(scores: Any) -> Ranked:
    scores = np.asarray(scores, np.float32)
    return ranked(Lists.of([np.arange(len(scores))]), scores, len(scores))


def _asked(history: Any = ()) -> Asked:
    return Asked(np.array([0]), Lists.of([history]), np.array([False]), Lists.of([[]]), None)


NOTHING = Candidates(Lists.of([[]]), np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32))


def _draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.standard_normal(N).astype(np.float32), unit_rows(draw.standard_normal((N, 4)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("diversity", [0.0, 0.3, 1.0])
def test_mmr_takes_the_best_at_every_step(seed: int, diversity: float) -> None:
    scores, vectors = _draw(seed)
    list_ = _list(scores)
    found = Diversifying(MMR(column="c", diversity=diversity), vectors)(_asked(), list_, NOTHING, 5)
    relevance = dict(zip(list_.items[0].tolist(), unit_scores(list_)[0].tolist(), strict=True))
    taken: list[int] = []
    for item in found.items[0, :5].tolist():
        near = {each: max((float(vectors[each] @ vectors[t]) for t in taken), default=0.0) for each in range(N)}
        left = [each for each in range(N) if each not in taken]
        gains = {each: (1 - diversity) * relevance[each] - diversity * near[each] for each in left}
        if taken:
            assert gains[item] >= max(gains.values()) - 1e-5
        else:
            assert item == int(scores.argmax())
        taken.append(item)
    assert sorted(found.items[0].tolist()) == list(range(N))
    assert (np.diff(found.scores[0]) <= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_calibration_takes_the_best_at_every_step(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.standard_normal(N).astype(np.float32)
    shares = draw.dirichlet(np.ones(3), N).astype(np.float32)
    list_, history, weight, alpha = _list(scores), [1, 2, 2], 0.7, 0.01
    stage = Calibrating(Calibration(column="c", weight=weight), shares)
    found = stage(_asked(history), list_, NOTHING, 4).items[0, :4].tolist()
    target = shares[history].mean(0, dtype=np.float64)
    target /= target.sum()
    unit = dict(zip(list_.items[0].tolist(), unit_scores(list_)[0].tolist(), strict=True))

    def utility(items: list[int]) -> float:
        q = shares[items].mean(0, dtype=np.float64)
        kl = float((target * np.log(target / ((1 - alpha) * q + alpha * target))).sum())
        return (1 - weight) * sum(unit[item] for item in items) - weight * kl

    for place in range(4):
        options = {i: utility([*found[:place], i]) for i in range(N) if i not in found[:place]}
        assert options[found[place]] == pytest.approx(max(options.values()), abs=1e-9)


def test_divergence_is_nothing_for_a_calibrated_list_and_grows_apart() -> None:
    target = np.array([0.5, 0.5, 0.0])
    same, one, other = (divergence(target, np.array(q), 0.01) for q in ([0.5, 0.5, 0], [0.8, 0.2, 0], [0, 0, 1.0]))
    assert same == pytest.approx(0, abs=1e-12)
    assert 0 < one < other


def test_calibration_without_a_history_keeps_the_order() -> None:
    scores, shares = np.arange(N, dtype=np.float32), np.eye(N, 3, dtype=np.float32)
    found = Calibrating(Calibration(column="c"), shares)(_asked(), _list(scores), NOTHING, 4)
    assert found.items[0, :4].tolist() == [8, 7, 6, 5]


def test_a_provider_has_no_more_places_than_its_quota() -> None:
    codes = np.array([0, 0, 0, 1, 1, -1, -1, -1, 0])
    found = Limiting(ProviderQuota(column="c", most=2), codes)(_asked(), _list(-np.arange(N)), NOTHING, 9)
    assert found.items[0].tolist() == [0, 1, 3, 4, 5, 6, 7, 2, 8]


def test_a_boost_is_in_standard_deviations_of_the_list() -> None:
    scores = np.array([3.0, 2.0, 1.0, 0.0], np.float32)
    values = Values(["a", "b"], Lists.of([[0], [0], [0], [1]]))
    spread = float(scores.std())
    for by, expected in ((2.9 / spread, [0, 3, 1, 2]), (3.1 / spread, [3, 0, 1, 2]), (-1.0, [0, 1, 2, 3])):
        found = Boosting(Boost(column="c", values=("b",), by=by), values)(_asked(), _list(scores), NOTHING, 4)
        assert found.items[0].tolist() == expected
        assert (np.diff(found.scores[0]) <= 0).all()


def test_exploration_draws_from_what_is_left_uniformly_and_the_same_again() -> None:
    counts = np.zeros(N)
    for seed in range(600):
        stage = Exploring(Exploration(places=1, seed=seed))
        found = stage(_asked(), _list(-np.arange(N)), NOTHING, 4)
        assert found.items[0, :3].tolist() == [0, 1, 2]
        assert found.is_explored[0].tolist() == [place == 3 for place in range(N)]
        assert sorted(found.items[0].tolist()) == list(range(N))
        counts[found.items[0, 3]] += 1
        assert np.array_equal(stage(_asked(), _list(-np.arange(N)), NOTHING, 4).items, found.items)
    assert counts[:3].sum() == 0
    assert counts[3:].min() > 60  # 100 expected of each


def test_short_and_empty_lists_stay() -> None:
    empty = ranked(Lists.of([[], [3], [1, 2, 4]]), np.array([0, 3, 2, 1], np.float32), 5)
    vectors = unit_rows(np.ones((N, 2)))
    asked = Asked(np.arange(3), Lists.of([[]] * 3), np.zeros(3, np.bool_), Lists.of([[]] * 3), None)
    stages = (
        Diversifying(MMR(column="c"), vectors),
        Calibrating(Calibration(column="c"), vectors),
        Limiting(ProviderQuota(column="c"), np.zeros(N, np.int64)),
        Boosting(Boost(column="c", values=("a",)), Values(["a"], Lists.of([[0]] * N))),
        Exploring(Exploration()),
    )
    for stage, k in itertools.product(stages, (1, 3, 5)):
        items = stage(asked, empty, NOTHING, k).items.tolist()
        assert items[:2] == [[-1] * 3, [3, -1, -1]]
        assert items[2][0] == 1 or (k == 1 and items[2][0] in (1, 2, 4))
        assert sorted(items[2]) == [1, 2, 4]
