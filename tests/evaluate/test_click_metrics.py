"""Click metrics against scikit-learn and by hand, and the click protocol."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from deeprec.evaluate import Card, ClickProtocol, protocol, protocol_from_dict
from deeprec.evaluate.card import check_comparable
from deeprec.evaluate.click_metrics import (
    accuracy,
    auc,
    calibration_ratio,
    click_figures,
    correct_for_sampling,
    grouped_auc,
    log_loss,
    plot_reliability,
    probabilities,
    relative_improvement,
    reliability,
)
from deeprec.evaluate.metrics import gain

ROWS = st.lists(st.tuples(st.sampled_from([-2.5, -0.0, 0.0, 0.25, 3.0]), st.booleans()), min_size=1, max_size=30)


def pairs_in_order(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUC from its definition."""
    clicks, others = scores[labels == 1], scores[labels == 0]
    if not len(clicks) or not len(others):
        return math.nan
    return float((np.sign(clicks[:, None] - others[None, :]) / 2 + 0.5).mean())


@given(ROWS, st.sampled_from([np.float16, np.float32, np.float64]))
def test_auc_counts_pairs(rows: list[tuple[float, bool]], dtype: type) -> None:
    scores, labels = (np.array(some) for some in zip(*rows, strict=True))
    got, want = auc(scores.astype(dtype), labels.astype(np.float32)), pairs_in_order(scores, labels)
    assert got == pytest.approx(want, nan_ok=True)


@pytest.mark.parametrize("digits", [1, 7])
def test_figures_equal_scikit_learn(digits: int) -> None:
    rng = np.random.default_rng(digits)
    labels = (rng.random(20_000) < 0.2).astype(np.float32)
    logits = np.round(rng.normal(-2, 1, 20_000) + labels, digits).astype(np.float32)
    assert auc(logits, labels) == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert auc(logits.astype(np.float64), labels) == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert log_loss(logits, labels) == pytest.approx(sklearn_log_loss(labels, probabilities(logits)), abs=1e-12)
    groups = rng.integers(-5, 40, 20_000)
    each = [(roc_auc_score(labels[groups == g], logits[groups == g]), (groups == g).sum()) for g in np.unique(groups)]
    want = np.average([value for value, _ in each], weights=[rows for _, rows in each])
    assert grouped_auc(logits, labels, groups) == pytest.approx(want, abs=1e-12)


def test_grouped_auc_leaves_out_groups_of_one_label() -> None:
    labels, groups = np.array([1, 0, 1, 1, 0]), np.array([7, 7, 9, 9, 3])
    scores = np.array([0.5, 0.1, -3, 4, 9], np.float32)
    assert grouped_auc(scores, labels, groups) == 1.0
    assert math.isnan(grouped_auc(scores[2:], labels[2:], groups[2:]))
    assert math.isnan(grouped_auc(scores[:0], labels[:0], groups[:0]))


def test_extreme_logits_have_a_finite_loss() -> None:
    logits = np.array([1000.0, -1000.0, 3e38], np.float32)
    assert log_loss(logits[:2], np.array([1, 0])) == 0.0
    assert log_loss(logits[:2], np.array([0, 1])) == 1000.0
    assert np.array_equal(probabilities(logits), [1.0, 0.0, 1.0])


def test_log_loss_of_even_odds_is_ln_2() -> None:
    assert log_loss(np.zeros(4, np.float32), np.array([0, 1, 1, 0])) == pytest.approx(math.log(2))


def test_calibration_of_a_known_model() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(-2, 1.5, 200_000)
    labels = (rng.random(len(true)) < probabilities(true)).astype(np.float32)
    assert reliability(true, labels).expected_calibration_error < 0.004
    assert calibration_ratio(true, labels) == pytest.approx(1, abs=0.01)
    shifted = true + 1.0
    gap = (probabilities(shifted) - probabilities(true)).mean()
    assert reliability(shifted, labels).expected_calibration_error == pytest.approx(gap, abs=0.004)
    assert calibration_ratio(shifted, labels) > 1.4


def test_reliability_bins_hold_every_row_once() -> None:
    logits, labels = np.array([0.0, -1, 2, 2, 5], np.float32), np.array([0, 0, 1, 0, 1])
    bins = reliability(logits, labels, bins=2)
    assert bins.counts.tolist() == [2, 3]
    assert bins.observed.tolist() == [0.0, pytest.approx(2 / 3)]
    assert bins.predicted[0] == pytest.approx(probabilities(logits[:2]).mean())
    assert reliability(logits, labels, bins=50).counts.tolist() == [1] * 5


def test_sampling_is_corrected() -> None:
    """Keeping a tenth of the negatives multiplies the odds by ten; the correction takes that back."""
    odds = np.log(np.array([0.02, 0.3]) / np.array([0.98, 0.7])).astype(np.float32)
    seen = odds + np.float32(np.log(10))
    assert np.allclose(correct_for_sampling(seen, 0.1), odds, atol=1e-6)
    assert correct_for_sampling(seen, 0.1).dtype == np.float32
    for rate in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"negative_rate must lie in \(0, 1\]"):
            correct_for_sampling(seen, rate)


def test_relative_improvement_is_din_s() -> None:
    assert relative_improvement(0.6, 0.55) == pytest.approx(1.0)
    assert math.isnan(relative_improvement(0.6, 0.5))


def test_accuracy_counts_both_kinds() -> None:
    assert accuracy(np.array([1.0, -1, -1, 0]), np.array([1, 1, 0, 0])) == 0.75


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([0.0, 1.0], [0, 2], r"labels must be 0 or 1, got .*2.* at 1"),
        ([0.0, math.nan], [0, 1], r"scores must be finite, got nan at 1"),
        ([0.0, 1.0], [0], r"equally long"),
    ],
)
def test_bad_input_is_named(scores: list[float], labels: list[int], words: str) -> None:
    for metric in (auc, log_loss, accuracy, reliability, calibration_ratio):
        with pytest.raises(ValueError, match=words):
            metric(np.array(scores, np.float32), np.array(labels))


def test_group_auc_is_left_out_without_groups() -> None:
    logits, labels = np.array([0.0, 1.0], np.float32), np.array([0, 1])
    metrics = protocol("click").metrics
    assert "gauc" in click_figures(logits, labels, np.array([1, 1]), metrics)
    assert [*click_figures(logits, labels, None, metrics)] == [name for name in metrics if name != "gauc"]


def test_reliability_plot_is_written(tmp_path: Path) -> None:
    bins = reliability(np.array([0.0, -1, 2], np.float32), np.array([0, 0, 1]))
    plot_reliability({"model": bins}, tmp_path / "r.png", title="clicks")
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"


def test_lower_log_loss_is_better() -> None:
    assert gain("log_loss", 0.3) > gain("log_loss", 0.4)
    assert gain("auc", 0.8) > gain("auc", 0.7)


def test_protocol_round_trip_and_comparison() -> None:
    rule = protocol("click", test_share=0.2, metrics=["auc", "log_loss"])
    assert protocol_from_dict(rule.as_dict()) == rule
    assert rule.headline == "auc"
    assert rule.same_as(protocol("click", test_share=0.2, negative_rate=0.5))
    assert rule.differences(protocol("click", seed=3)) == ["test_share: 0.2 / 0.1", "seed: 0 / 3"]
    official = ClickProtocol(holdout="official")
    assert official.same_as(ClickProtocol(holdout="official", seed=4))
    assert not official.same_as(protocol("ncf"))
    assert not protocol("ncf").same_as(official)


def test_cards_of_clicks_and_rankings_are_not_compared() -> None:
    data = {"name": "some", "sha256": "a"}
    cards = [
        Card("m", {}, data, rule.as_dict(), {"auc": 0.7}, 0, 1.0) for rule in (protocol("click"), protocol("full"))
    ]
    with pytest.raises(ValueError, match="task: 'click' / 'ranking'"):
        check_comparable(cards)
    check_comparable([cards[0], cards[0]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"holdout": "radnom"}, "random"),
        ({"metrics": "acu"}, "auc"),
        ({"test_share": 0.0}, r"test_share must lie in \(0, 1\)"),
        ({"test_share": 0.6, "validation_share": 0.5}, "must be below 1"),
        ({"negative_rate": 0.0}, r"negative_rate must lie in \(0, 1\]"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seeds": 1}, "seed"),
    ],
)
def test_protocol_refuses(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        protocol("click", **options)
