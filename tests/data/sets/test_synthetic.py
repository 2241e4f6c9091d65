"""The synthetic data has the sizes asked for, a long tail, and a truth worth learning."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec import data


@pytest.fixture(scope="module")
def made() -> data.SyntheticInteractions:
    return data.synthetic()


def test_default_sizes_are_as_documented(made: data.SyntheticInteractions) -> None:
    assert (len(made), made.num_users, made.num_items) == (120_000, 2_000, 1_500)
    assert made.user_counts().min() >= 5
    assert set(np.unique(made.ratings)) == {1, 2, 3, 4, 5}
    assert made.repairs == {}


def test_no_pair_repeats(made: data.SyntheticInteractions) -> None:
    assert len(np.unique(made.pair_keys())) == len(made)


@pytest.mark.parametrize("sizes", [(1, 10, 5), (3, 10, 15), (7, 400, 35), (40, 20, 400), (300, 30, 4_000)])
def test_any_fitting_sizes_are_met_exactly(sizes: tuple[int, int, int]) -> None:
    made = data.synthetic(*sizes)
    assert (made.num_users, made.num_items, len(made)) == sizes
    assert len(np.unique(made.pair_keys())) == len(made)
    assert made.user_counts().min() >= 5


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_interactions must be in \[50, 100\]"):
        data.synthetic(10, 20, 101)
    with pytest.raises(ValueError, match=r"num_interactions must be in"):
        data.synthetic(10, 20, 49)
    with pytest.raises(ValueError, match="num_users must be at least 1, got 0"):
        data.synthetic(0)
    with pytest.raises(TypeError, match="num_user"):
        data.load("synthetic", num_user=3)


def test_one_seed_gives_one_data_set(made: data.SyntheticInteractions) -> None:
    assert data.load("synthetic").sha256 == made.sha256
    assert data.synthetic(seed=1).sha256 != made.sha256


def test_popularity_has_a_long_tail(made: data.SyntheticInteractions) -> None:
    counts = np.sort(made.item_counts())[::-1]
    assert 0.25 < counts[:150].sum() / counts.sum() < 0.6  # a tenth of the items
    assert counts[0] > 10 * np.median(counts)


def test_truth_ranks_far_better_than_popularity(made: data.SyntheticInteractions) -> None:
    split = data.leave_one_out(made, num_negatives=99)
    users, candidates = split.test.users, np.column_stack([split.test.items, split.test_negatives])

    def hit_rate(scores: np.ndarray) -> float:
        return float(((scores[:, 1:] >= scores[:, :1]).sum(axis=1) < 10).mean())

    popularity = hit_rate(split.train.item_counts()[candidates])
    truth = hit_rate(np.take_along_axis(made.truth.scores(users), candidates, axis=1))
    assert truth > popularity + 0.2


def test_ratings_follow_the_taste(made: data.SyntheticInteractions) -> None:
    affinity = (made.truth.user_factors[made.users] * made.truth.item_factors[made.items]).sum(axis=1)
    assert np.corrcoef(affinity, made.ratings)[0, 1] > 0.7


def test_features_describe_every_user_and_item(made: data.SyntheticInteractions) -> None:
    items, users = made.item_features, made.user_features
    assert items.columns == ["item_id", "title", "genres", "year", "text", "tags"]
    assert users.columns == ["user_id", "gender", "age", "occupation"]
    assert (items.height, users.height) == (1_500, 2_000)
    assert items["item_id"].to_list() == made.item_ids.values.to_list()
    main = [made.truth.genres[genre] for genre in made.truth.item_genres.argmax(axis=1)]
    assert items["genres"].list.first().to_list() == main
    assert items["tags"].list.len().min() >= 2


def test_timestamps_ascend_for_each_user(made: data.SyntheticInteractions) -> None:
    same_user = made.users[1:] == made.users[:-1]
    assert (np.diff(made.order)[same_user] > 0).all()


def test_a_part_keeps_the_truth(made: data.SyntheticInteractions) -> None:
    part = made.take([0, 1])
    assert isinstance(part, data.SyntheticInteractions)
    assert part.truth is made.truth
