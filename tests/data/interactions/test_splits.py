"""Splits: disjoint, complete, seeded, and fair to users with little."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec import data
from deeprec.data import Interactions, Split


def make(pairs: list[tuple[int, int, int]], num_items: int = 0) -> Interactions:
    table = pl.DataFrame(pairs, schema=["user_id", "item_id", "timestamp"], orient="row")
    made = data.from_frame(table)
    if num_items:
        made = replace(made, item_ids=data.IdMap([*made.item_ids.values, *range(1_000, 1_000 + num_items)], "item"))
    return made


SMALL = make([(1, 1, 5), (1, 2, 9), (1, 3, 9), (1, 4, 1), (2, 1, 1), (2, 2, 2), (3, 4, 7)])
random_data = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 20), st.integers(0, 5)), min_size=1, max_size=80
).map(make)


def rows_of(split: Split) -> list[tuple[object, ...]]:
    return sorted(row for part in (split.train, split.validation, split.test) for row in part.to_frame().rows())


@given(random_data, st.integers(0, 3), st.sampled_from(["random", "last", "none"]))
def test_leave_one_out_parts_are_disjoint_and_complete(interactions: Interactions, seed: int, mode: str) -> None:
    split = data.leave_one_out(interactions, mode, seed)
    assert rows_of(split) == sorted(interactions.to_frame().rows())
    counts = interactions.user_counts()
    assert sorted(split.test.users.tolist()) == np.flatnonzero(counts > 1).tolist()
    held = np.flatnonzero(counts > 2).tolist() if mode != "none" else []
    assert sorted(split.validation.users.tolist()) == held
    assert (split.train.user_counts() > 0).tolist() == (counts > 0).tolist()
    assert split.notes["users_without_test"] == (counts == 1).sum()


def test_the_last_by_order_is_held_out_and_among_equals_the_last_row() -> None:
    split = data.leave_one_out(SMALL, "last")
    assert split.test.to_frame()["item_id"].to_list() == [3, 2]
    assert split.validation.to_frame()["item_id"].to_list() == [2]
    assert split.notes == {"users_without_test": 1, "users_without_validation": 2}


def test_a_random_validation_row_depends_on_the_seed_and_the_test_row_does_not() -> None:
    splits = [data.leave_one_out(SMALL, seed=seed) for seed in range(12)]
    assert len({split.test.sha256 for split in splits}) == 1
    assert {split.validation.to_frame()["item_id"][0] for split in splits} == {1, 2, 4}
    assert data.leave_one_out(SMALL, True, 3).sha256 == splits[3].sha256
    assert len(data.leave_one_out(SMALL, False).validation) == 0


def test_without_order_a_seeded_random_row_is_held_out() -> None:
    blind = replace(SMALL, order=None, order_kind=None)
    held = {data.leave_one_out(blind, "none", seed).test.to_frame()["item_id"][0] for seed in range(20)}
    assert held == {1, 2, 3, 4}


def test_nothing_to_split_is_refused() -> None:
    for split in (data.leave_one_out, data.random_holdout):
        with pytest.raises(ValueError, match="at least one interaction"):
            split(SMALL.take([]))
    with pytest.raises(ValueError, match="validation must be"):
        data.leave_one_out(SMALL, "first")
    with pytest.raises(ValueError, match="a data set with a published split is required"):
        data.official(SMALL)


@given(random_data, st.integers(0, 3), st.sampled_from([(0.1, 0.1), (0.5, 0.3), (0.0, 0.0), (0.9, 0.05)]))
def test_random_holdout_parts_are_disjoint_and_complete(
    interactions: Interactions, seed: int, shares: tuple[float, float]
) -> None:
    split = data.random_holdout(interactions, *shares, seed=seed)
    assert rows_of(split) == sorted(interactions.to_frame().rows())
    assert (split.train.user_counts() > 0).tolist() == (interactions.user_counts() > 0).tolist()
    held = len(split.test) + len(split.validation) + split.notes["rows_kept_for_training"]
    assert held == round(len(interactions) * shares[0]) + round(len(interactions) * shares[1])


def test_random_holdout_is_random_over_rows_and_seeded() -> None:
    big = data.synthetic(200, 300, 6_000)
    first, second = (data.random_holdout(big, seed=seed) for seed in (1, 2))
    assert (len(first.test), len(first.validation)) == (600, 600)
    assert first.sha256 == data.random_holdout(big, seed=1).sha256 != second.sha256
    with pytest.raises(ValueError, match="sum below 1"):
        data.random_holdout(big, 0.6, 0.4)


def test_official_takes_validation_from_training_rows() -> None:
    published = data.OfficialSplit(np.array([0, 2, 3, 4, 6]), np.array([5, 1]), np.array([[2], [0]], np.int32))
    carrying = replace(make(SMALL.to_frame().rows(), 10), official=published)
    split = data.official(carrying, validation="last")
    assert split.test.to_frame()["item_id"].to_list() == [2, 2]
    assert split.test_negatives.tolist() == [[2], [0]]
    assert split.validation.to_frame()["item_id"].to_list() == [3]
    assert split.validation_negatives.shape == (1, 1)
    assert split.notes == {"users_without_test": 1, "users_without_validation": 2}


@given(random_data, st.integers(1, 15), st.integers(0, 3))
def test_negatives_are_distinct_and_never_met(interactions: Interactions, count: int, seed: int) -> None:
    interactions = replace(interactions, item_ids=data.IdMap(np.arange(interactions.num_items + 15), "item"))
    users = np.arange(interactions.num_users)
    drawn = data.sampled_negatives(interactions, users, count, seed)
    assert (drawn.dtype, drawn.shape) == (np.int32, (len(users), count))
    indptr, indices = interactions.csr()
    for user, row in enumerate(drawn.tolist()):
        assert len(set(row)) == count
        assert min(row) >= 0
        assert max(row) < interactions.num_items
        assert not set(row) & set(indices[indptr[user] : indptr[user + 1]].tolist())


def test_a_user_who_met_nearly_all_gets_exactly_the_rest() -> None:
    nearly = make([(1, item, 0) for item in range(20)], num_items=3)
    assert sorted(data.sampled_negatives(nearly, np.array([0]), 3)[0].tolist()) == [20, 21, 22]
    with pytest.raises(ValueError, match=r"needs 4 items not yet met, got 3 for user 1 of 23 items; ask for fewer"):
        data.sampled_negatives(nearly, np.array([0]), 4)


def test_negatives_are_uniform_over_the_unmet_items() -> None:
    met = make([(user, item, 0) for user in range(4_000) for item in (3, 7)], num_items=18)
    drawn = data.sampled_negatives(met, np.arange(4_000), 5, seed=1)
    counts = np.bincount(drawn.ravel(), minlength=20)
    expected = 4_000 * 5 / 18
    assert counts[:2].tolist() == [0, 0]  # items 3 and 7 are internal 0 and 1
    chi2 = float((((counts[2:] - expected) ** 2) / expected).sum())
    assert chi2 < 40.8  # 99.9 % quantile at 17 degrees of freedom; without replacement varies less


def test_negatives_depend_on_the_user_alone_not_on_who_else_is_asked() -> None:
    made = data.synthetic(50, 200, 1_000)
    everyone = data.sampled_negatives(made, np.arange(50), 20, seed=5)
    some = data.sampled_negatives(made, np.array([7, 3, 7]), 20, seed=5)
    np.testing.assert_array_equal(some, everyone[[7, 3, 7]])
    assert (data.sampled_negatives(made, np.arange(50), 20, seed=6) != everyone).any()


def test_negatives_of_both_parts_avoid_all_the_user_met() -> None:
    made = data.synthetic(50, 300, 1_000)
    split = data.leave_one_out(made, num_negatives=99)
    met = set(made.pair_keys().tolist())
    for part, negatives in ((split.test, split.test_negatives), (split.validation, split.validation_negatives)):
        keys = part.users.astype(np.int64)[:, None] * made.num_items + negatives
        assert not met & set(keys.ravel().tolist())
    assert (split.test_negatives != split.validation_negatives).any()


def test_the_split_of_a_seed_is_pinned() -> None:
    """Published results name a seed: the same seed must mean the same split on every machine and in every release."""
    made = make([(user, item, 0) for user in range(6) for item in range(user, user + 8)])
    blind = replace(made, order=None, order_kind=None)
    split = data.leave_one_out(blind, seed=7, num_negatives=3)
    assert split.test.to_frame()["item_id"].to_list() == [4, 4, 6, 10, 7, 5]
    assert split.test_negatives.tolist() == [[9, 10, 12], [11, 9, 10], [10, 12, 1], [11, 12, 1], [3, 1, 12], [2, 1, 3]]


@given(random_data, st.integers(0, 3), st.sampled_from([(0.2, 0.1), (0.5, 0.3), (0.0, 0.0), (0.9, 0.05)]))
def test_holdout_by_user_takes_the_share_of_each_user(
    interactions: Interactions, seed: int, shares: tuple[float, float]
) -> None:
    split = data.random_holdout(interactions, *shares, seed=seed, by_user=True)
    assert rows_of(split) == sorted(interactions.to_frame().rows())
    counts = interactions.user_counts()
    wanted = np.floor(counts * shares[0] + 0.5)
    np.testing.assert_array_equal(split.test.user_counts(), np.minimum(wanted, np.maximum(counts - 1, 0)))
    held = np.minimum(wanted + np.floor(counts * shares[1] + 0.5), np.maximum(counts - 1, 0))
    np.testing.assert_array_equal(split.train.user_counts(), counts - held)
    assert split.notes["rows_kept_for_training"] == len(split.train) - (
        len(interactions) - wanted.sum() - np.floor(counts * shares[1] + 0.5).sum()
    )


def test_holdout_by_user_is_random_and_seeded() -> None:
    big = make([(user, item, item) for user in range(20) for item in range(50)])
    first, second = (data.random_holdout(big, 0.2, 0.1, seed=seed, by_user=True) for seed in (1, 2))
    assert first.sha256 == data.random_holdout(big, 0.2, 0.1, seed=1, by_user=True).sha256 != second.sha256
    assert first.test.item_counts().max() < 13  # of 20 users, a fifth each: 4 expected


@given(random_data, st.sampled_from([(0.2, 0.2), (0.5, 0.0), (0.0, 0.3)]))
def test_a_moment_divides_and_nothing_later_is_before_it(
    interactions: Interactions, shares: tuple[float, float]
) -> None:
    held = sum(round(len(interactions) * share) for share in shares)
    if held and np.sort(interactions.order)[-held] == interactions.order.min():
        with pytest.raises(ValueError, match="take smaller shares, or finer times"):
            data.time_holdout(interactions, *shares)
        return
    split = data.time_holdout(interactions, *shares)
    parts = (split.train, split.validation, split.test)
    assert sum(map(len, parts)) + split.notes["rows_left_out"] == len(interactions)
    filled = [part.order for part in parts if len(part)]
    assert all(earlier.max() < later.min() for earlier, later in pairwise(filled))
    for part in parts[1:]:
        assert np.isin(part.users, split.train.users).all()
        assert np.isin(part.items, split.train.items).all()
    if split.notes["rows_left_out"] == 0:
        assert len(split.test) >= round(len(interactions) * shares[0])


def test_who_and_what_comes_after_the_moment_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [(1, 1, 1), (1, 2, 2), (2, 1, 3), (2, 3, 4), (1, 9, 5), (2, 2, 5), (3, 1, 6), (3, 9, 7), (1, 3, 7)]
    interactions = make(rows)
    with caplog.at_level("INFO", logger="deeprec"):
        split = data.time_holdout(interactions, 0.35, 0.2)
    assert split.train.to_frame().rows() == [(1, 1, 1), (1, 2, 2), (2, 1, 3), (2, 3, 4)]
    assert split.validation.to_frame().rows() == [(2, 2, 5)]
    assert split.test.to_frame().rows() == [(1, 3, 7)]
    assert split.notes == {"users_left_out": 1, "items_left_out": 1, "rows_left_out": 3}
    assert "nothing of theirs is in the training part" in caplog.text
    assert len(data.time_holdout(interactions, 0.1, 0.0).train) == 7  # both rows of the last moment are held out


def test_data_without_times_has_no_moment() -> None:
    with pytest.raises(ValueError, match="must have times, got no order"):
        data.time_holdout(replace(SMALL, order=None, order_kind=None))
    with pytest.raises(ValueError, match="got places within each user's own sequence"):
        data.time_holdout(replace(SMALL, order_kind="rank"))
    with pytest.raises(ValueError, match="sum below 1"):
        data.time_holdout(SMALL, 0.6, 0.4)


@given(random_data, st.integers(0, 3))
def test_items_are_held_out_whole(interactions: Interactions, seed: int) -> None:
    counts = [round(share * interactions.num_items) for share in (0.3, 0.2)]
    if 0 in counts:
        with pytest.raises(ValueError, match="must be at least one of the items"):
            data.items_holdout(interactions, 0.3, 0.2, seed)
        return
    split = data.items_holdout(interactions, 0.3, 0.2, seed)
    parts = [set(part.items.tolist()) for part in (split.train, split.validation, split.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert len(parts[0]) == interactions.num_items - sum(counts)
    assert len(split.train) + len(split.validation) + len(split.test) + split.notes["rows_left_out"] == len(
        interactions
    )
    for part in (split.validation, split.test):
        assert np.isin(part.users, split.train.users).all()
    assert data.items_holdout(interactions, 0.3, 0.2, seed).sha256 == split.sha256


def test_too_few_items_to_hold_out_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"validation must be at least one of the items, got 0\.05 of 4 items"):
        data.items_holdout(SMALL, 0.3, 0.05)
    with pytest.raises(ValueError, match="an item must be left to train on"):
        data.items_holdout(SMALL, 0.5, 0.45)
    assert len(data.items_holdout(SMALL, 0.3, 0.0).validation) == 0
    assert len({data.items_holdout(SMALL, 0.3, 0.3, seed).sha256 for seed in range(6)}) > 1
