"""Coat, rows with propensities, and the naive Bayes estimate of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deeprec.data import (
    IdMap,
    Interactions,
    LoggedInteractions,
    load,
    naive_bayes_propensities,
    official,
    synthetic,
    with_propensities,
)

needs_coat = pytest.mark.skipif(
    not (Path(os.environ.get("DEEPREC_DATA", "")) / "coat").is_dir(), reason="DEEPREC_DATA has no coat"
)


@needs_coat
def test_coat_as_published() -> None:
    data = load("coat")
    assert isinstance(data, LoggedInteractions)
    assert data.official is not None
    split = official(data, validation="none")
    assert (len(split.train), len(split.test), data.num_users, data.num_items) == (6960, 4640, 290, 300)
    for part, counts in ((split.train, [1901, 1437, 1717, 1275, 630]), (split.test, [1879, 899, 1002, 641, 219])):
        assert np.unique(part.ratings, return_counts=True)[1].tolist() == counts
        assert isinstance(part, LoggedInteractions)
    assert np.bincount(split.test.users).tolist() == [16] * 290
    assert split.test.propensities == pytest.approx(16 / 300)
    # If the propensities are right, 1 / p over what was chosen counts all cells.
    assert (1 / split.train.propensities).sum() == pytest.approx(290 * 300, rel=0.05)
    assert data.user_features is not None
    assert data.item_features is not None
    assert data.user_features.columns == ["user_id", "gender", "age", "location", "fashioninterest"]
    assert data.item_features.row(0) == (0, "men", "bomber", "other", "yes")


@needs_coat
def test_naive_bayes_on_coat_sees_that_liked_coats_were_chosen() -> None:
    split = official(load("coat"), validation="none")
    values = naive_bayes_propensities(split.train, split.test)
    by_rating = [values[split.train.ratings == rating][0] for rating in (1, 2, 3, 4, 5)]
    assert by_rating == sorted(by_rating)
    assert by_rating[4] > 1.5 * by_rating[0]


def test_a_damaged_coat_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "coat"
    folder.mkdir()
    (folder / "train.ascii").write_text("1 2 3\n")
    (folder / "test.ascii").write_text("1 2 3\n")
    with pytest.raises(ValueError, match=r"train\.ascii must be 290 lines of 300 numbers, got \[1, 3\]"):
        load("coat", tmp_path)
    (folder / "train.ascii").write_text("1 x 3\n")
    with pytest.raises(ValueError, match="290 lines of 300 numbers, got could not convert"):
        load("coat", tmp_path)


def test_naive_bayes_by_hand() -> None:
    data = _ratings([5.0, 5.0, 5.0, 1.0], num_users=2, num_items=4)
    random = _ratings([5.0, 1.0, 1.0, 1.0], num_users=2, num_items=4)
    # P(r = 5 | given) P(given) / P(r = 5) = 3/4 * 4/8 / (1/4), above 1 and so 1; and 1/4 * 1/2 / (3/4).
    assert naive_bayes_propensities(data, random, smoothing=0.0) == pytest.approx([1, 1, 1, 1 / 6])
    with pytest.raises(ValueError, match="random must have a rating of 5"):
        naive_bayes_propensities(data, random.take(np.array([1, 2])), smoothing=0.0)
    with pytest.raises(ValueError, match="data must have ratings"):
        naive_bayes_propensities(data.of_pairs(data.users, data.items), random)


def test_propensities_go_with_their_rows() -> None:
    plain = synthetic(40, 30, 300, seed=3)
    values = np.linspace(0.1, 1.0, 300, dtype=np.float32)
    data = with_propensities(plain, values)
    key = dict(zip(plain.pair_keys().tolist(), values.tolist(), strict=True))
    for part in (data.take(np.arange(300)[::-7]), data.take(data.users < 5)):
        assert isinstance(part, LoggedInteractions)
        assert part.propensities.tolist() == pytest.approx([key[each] for each in part.pair_keys().tolist()])
    moved = data.canonical()
    assert isinstance(moved, LoggedInteractions)
    assert moved.propensities.sum() == pytest.approx(values.sum(), rel=1e-6)
    assert data.sha256 != with_propensities(plain, values[::-1]).sha256
    assert data.without_propensities().sha256 == plain.sha256
    assert type(data.of_pairs(data.users, data.items)) is Interactions
    assert with_propensities(data, values).sha256 == data.sha256


@pytest.mark.parametrize("value", [0.0, np.nan, 1.01, -1.0])
def test_wrong_propensities_of_rows_are_named(value: float) -> None:
    plain = synthetic(40, 30, 300, seed=3)
    values = np.full(300, 0.5)
    values[17] = value
    with pytest.raises(ValueError, match=r"propensities must lie in .* at row 17"):
        with_propensities(plain, values)
    with pytest.raises(ValueError, match=r"propensities must be \[300\], got \[299\]"):
        with_propensities(plain, values[:299])


def _ratings(values: list[float], *, num_users: int, num_items: int) -> Interactions:
    """Ratings of user 0 for the first items."""
    return Interactions(
        np.zeros(len(values), dtype=np.int32),
        np.arange(len(values), dtype=np.int32),
        IdMap.from_values(np.arange(num_users), "user"),
        IdMap.from_values(np.arange(num_items), "item"),
        np.array(values, dtype=np.float32),
    )
