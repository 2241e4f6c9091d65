"""Every metric against an independent implementation: ranx, scikit-learn, or the definition written out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from deeprec.evaluate import metrics


@pytest.fixture(scope="module")
def ranx() -> Iterator[Any]:
    """Its functions as plain Python: to compile them takes more than a minute, to run them on few users nothing."""
    numba = pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)
        yield pytest.importorskip("ranx")


def _random_case(seed: int, users: int = 40, items: int = 60, most: int = 9):
    """Distinct scores, positives per user, and the ranks they imply."""
    generator = np.random.default_rng(seed)
    scores = np.stack([generator.permutation(items) for _ in range(users)]).astype(float)
    positives = [generator.choice(items, size=generator.integers(1, most + 1), replace=False) for _ in range(users)]
    order = np.argsort(-scores, axis=1)
    rank_of = np.empty_like(order)
    np.put_along_axis(rank_of, order, np.arange(1, items + 1)[None, :].repeat(users, 0), axis=1)
    ranks = [np.sort(rank_of[u, p]) for u, p in enumerate(positives)]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in ranks])])
    return scores, positives, order, np.concatenate(ranks), offsets


@pytest.mark.parametrize("k", [1, 3, 10, 60])
@pytest.mark.parametrize(
    ("name", "theirs"),
    [("hr", "hit_rate"), ("recall", "recall"), ("precision", "precision"), ("ndcg", "ndcg"), ("mrr", "mrr")],
)
def test_metric_equals_ranx(ranx: Any, name: str, theirs: str, k: int) -> None:
    scores, positives, _, ranks, offsets = _random_case(seed=k)
    qrels = ranx.Qrels({f"{u}": {f"{i}": 1 for i in p} for u, p in enumerate(positives)})
    run = ranx.Run({f"{u}": {f"{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)})
    expected = ranx.evaluate(qrels, run, f"{theirs}@{k}")
    assert metrics.RANK_METRICS[name](ranks, k, offsets).mean() == pytest.approx(float(expected), abs=1e-9)


def test_map_equals_ranx_when_the_cutoff_holds_all_positives(ranx: Any) -> None:
    scores, positives, _, ranks, offsets = _random_case(seed=4)
    qrels = ranx.Qrels({f"{u}": {f"{i}": 1 for i in p} for u, p in enumerate(positives)})
    run = ranx.Run({f"{u}": {f"{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)})
    expected = ranx.evaluate(qrels, run, "map@20")
    assert metrics.average_precision(ranks, 20, offsets).mean() == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_map_equals_its_definition(k: int) -> None:
    _, positives, order, ranks, offsets = _random_case(seed=5)
    expected = []
    for user, wanted in enumerate(positives):
        total, hits = 0.0, 0
        for position, item in enumerate(order[user, :k], start=1):
            if item in wanted:
                hits += 1
                total += hits / position
        expected.append(total / min(k, len(wanted)))
    np.testing.assert_allclose(metrics.average_precision(ranks, k, offsets), expected)


def test_ndcg_and_auc_equal_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, positives, _, ranks, offsets = _random_case(seed=6)
    truth = np.zeros_like(scores)
    for user, wanted in enumerate(positives):
        truth[user, wanted] = 1
    assert metrics.ndcg(ranks, 10, offsets).mean() == pytest.approx(sklearn.ndcg_score(truth, scores, k=10))
    expected = [sklearn.roc_auc_score(t, s) for t, s in zip(truth, scores, strict=True)]
    np.testing.assert_allclose(metrics.auc(ranks, np.full(len(scores), scores.shape[1]), offsets), expected)


def test_average_precision_over_the_whole_list_equals_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, positives, _, ranks, offsets = _random_case(seed=7)
    expected = []
    for user, wanted in enumerate(positives):
        truth = np.zeros(scores.shape[1])
        truth[wanted] = 1
        expected.append(sklearn.average_precision_score(truth, scores[user]))
    np.testing.assert_allclose(metrics.average_precision(ranks, scores.shape[1], offsets), expected)


def test_figures_of_the_whole_list_equal_their_definitions() -> None:
    _, _, _, ranks, offsets = _random_case(seed=7)
    by_user = np.split(ranks, offsets[1:-1])
    aps = [np.mean([(j + 1) / rank for j, rank in enumerate(of_one)]) for of_one in by_user]
    np.testing.assert_allclose(metrics.average_precision_all(ranks, offsets), aps)
    np.testing.assert_allclose(
        metrics.average_precision_all(ranks, offsets), metrics.average_precision(ranks, 60, offsets)
    )
    np.testing.assert_allclose(metrics.mrr_all(ranks, offsets), [1 / of_one[0] for of_one in by_user])
    assert metrics.mrr_pairs(ranks, offsets) == pytest.approx(np.mean(1 / ranks))


def test_f1_is_that_of_the_means_as_in_the_paper_of_dspr() -> None:
    _, _, _, ranks, offsets = _random_case(seed=8)
    p, r = metrics.precision(ranks, 10, offsets).mean(), metrics.recall(ranks, 10, offsets).mean()
    assert metrics.f1(ranks, 10, offsets) == pytest.approx(2 * p * r / (p + r))
    assert metrics.f1(np.array([50]), 10) == 0.0
    for printed_p, printed_r, printed_f in ((22.68, 1.750, 3.250), (14.86, 9.219, 11.38), (11.43, 13.21, 12.26)):
        assert 2 * printed_p * printed_r / (printed_p + printed_r) == pytest.approx(printed_f, abs=0.006)


def test_leave_one_out_reduces_to_the_textbook_forms() -> None:
    ranks = np.array([1, 2, 10, 11, 100])
    hit = [1, 1, 1, 0, 0]
    np.testing.assert_array_equal(metrics.hit_ratio(ranks, 10), hit)
    np.testing.assert_array_equal(metrics.recall(ranks, 10), hit)
    expected = [math.log(2) / math.log(r + 1) if r <= 10 else 0 for r in ranks]
    np.testing.assert_allclose(metrics.ndcg(ranks, 10), expected)
    np.testing.assert_allclose(metrics.mrr(ranks, 10), metrics.average_precision(ranks, 10))
    np.testing.assert_allclose(metrics.precision(ranks, 10), np.array(hit) / 10)


def test_list_metrics_equal_their_definitions() -> None:
    generator = np.random.default_rng(8)
    num_users, num_items, k = 30, 25, 4
    lists = np.stack([generator.permutation(num_items)[:6] for _ in range(num_users)])
    lists[3, 1:] = -1
    counts = generator.integers(0, 20, num_items)
    shown = [i for row in lists[:, :k] for i in row if i >= 0]
    assert metrics.coverage(lists, k, num_items) == pytest.approx(len(set(shown)) / num_items)
    information = [-math.log2(max(counts[i], 1) / num_users) for i in shown]
    assert metrics.novelty(lists, k, counts, num_users) == pytest.approx(sum(information) / len(shown))
    exposure = [shown.count(i) for i in range(num_items)]
    differences = sum(abs(a - b) for a in exposure for b in exposure)
    expected = differences / (2 * num_items**2 * (sum(exposure) / num_items))  # half the relative mean difference
    assert metrics.gini(lists, k, num_items) == pytest.approx(expected)


def test_gini_is_zero_for_equal_and_near_one_for_single_item_exposure() -> None:
    assert metrics.gini(np.arange(10)[:, None], 1, 10) == pytest.approx(0.0)
    assert metrics.gini(np.zeros((10, 1), dtype=int), 1, 10) == pytest.approx(0.9)


def test_auc_of_a_user_without_negatives_is_nan() -> None:
    assert np.isnan(metrics.auc(np.array([1]), np.array([1]))[0])


def test_no_users_give_empty_arrays() -> None:
    empty = np.zeros(0, dtype=int)
    for metric in metrics.RANK_METRICS.values():
        assert metric(empty, 10).shape == (0,)
        assert metric(empty, 10, np.zeros(1, dtype=int)).shape == (0,)


@pytest.mark.parametrize(
    ("ranks", "k", "offsets", "message"),
    [
        ([0], 10, None, "counted from 1"),
        ([1], 0, None, "cutoff k must be at least 1"),
        ([1, 2], 10, [0, 0, 2], "drop the users without"),
        ([1, 2], 10, [0, 1], "must rise from 0 to 2"),
    ],
)
def test_malformed_ranks_are_refused(ranks, k, offsets, message) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.hit_ratio(np.array(ranks), k, None if offsets is None else np.array(offsets))


def test_unknown_metric_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'ndcg'"):
        metrics.check_metric("ndgc")
