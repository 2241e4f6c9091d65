"""Ratings to likes: what is kept, renumbered, and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec import data


def ratings(seed: int = 0) -> data.Interactions:
    draw = np.random.default_rng(seed)
    users, items = np.nonzero(draw.random((40, 30)) < 0.5)
    frame = pl.DataFrame({"user_id": users * 7, "item_id": items * 11, "rating": draw.integers(1, 6, len(users))})
    return data.from_frame(frame.with_columns(timestamp=pl.int_range(len(frame))))


def test_rows_rated_well_enough_become_likes() -> None:
    given = ratings()
    likes = data.positives(given, min_rating=4)
    assert likes.ratings is None
    want = given.to_frame().filter(pl.col("rating") >= 4).drop("rating")
    assert likes.to_frame().equals(want)
    assert likes.num_items == want["item_id"].n_unique()
    assert "rating >= 4" in likes.name


@pytest.mark.parametrize("least", [2, 4])
def test_few_rows_go_until_every_user_and_item_has_enough(least: int) -> None:
    likes = data.positives(ratings(), min_rating=4, min_interactions=least)
    assert likes.user_counts().min() >= least
    assert likes.item_counts().min() >= least
    frame = ratings().to_frame().filter(pl.col("rating") >= 4)
    while True:  # the same, one side after the other
        size = len(frame)
        for column in ("user_id", "item_id"):
            frame = frame.filter(pl.len().over(column) >= least)
        if len(frame) == size:
            break
    assert likes.to_frame().equals(frame.drop("rating"))


def test_features_follow_their_ids() -> None:
    given = ratings()
    titles = pl.DataFrame({"title": [f"item {item}" for item in given.item_ids.values]})
    likes = data.positives(replace(given, item_features=titles), min_rating=5, min_interactions=2)
    assert likes.num_items < given.num_items
    assert likes.item_features["title"].to_list() == [f"item {item}" for item in likes.item_ids.values]


def test_without_a_least_rating_the_ratings_stay() -> None:
    likes = data.positives(ratings(), min_interactions=3)
    assert set(likes.ratings.tolist()) == {1, 2, 3, 4, 5}


def test_load_selects(tmp_path: Path) -> None:
    ratings().to_frame().write_csv(tmp_path / "ratings.csv")
    likes = data.load(tmp_path / "ratings.csv", min_rating=4, min_interactions=2)
    assert likes.ratings is None
    assert likes.sha256 == data.positives(data.load(tmp_path / "ratings.csv"), min_rating=4, min_interactions=2).sha256


def test_what_cannot_be_is_refused() -> None:
    given = ratings()
    with pytest.raises(ValueError, match="min_rating needs ratings"):
        data.positives(replace(given, ratings=None), min_rating=4)
    with pytest.raises(ValueError, match=r"no row of .* is left"):
        data.positives(given, min_rating=6)
    with pytest.raises(ValueError, match="min_interactions must be >= 1"):
        data.positives(given, min_interactions=0)
