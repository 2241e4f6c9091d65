"""Items held out whole: ranked among themselves, where popularity can only tie and a scorer of columns cannot."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch

from deeprec.data import Interactions, from_frame, with_features
from deeprec.evaluate import evaluate, protocol, rank
from deeprec.models import Popularity


class GenreScorer:
    """score(u, i) = likeness of the item's genre to those of the user's training items."""

    def __init__(self, train: Interactions) -> None:
        genres = torch.from_numpy(train.item_features["genre"].to_numpy().copy())
        self.one_hot = torch.nn.functional.one_hot(genres).float()
        self.profiles = torch.zeros(train.num_users, self.one_hot.shape[1])
        users, items = (torch.from_numpy(column).long() for column in (train.users, train.items))
        self.profiles.index_add_(0, users, self.one_hot[items])

    def score_items(self, users: torch.Tensor) -> torch.Tensor:
        return self.profiles[users] @ self.one_hot.T

    def score_pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return self.score_items(users).gather(1, items[:, None]).squeeze(1)


def by_genre(num_users: int = 60, num_items: int = 400, num_genres: int = 10) -> Interactions:
    """Users who take items of one genre alone; its number is the last digit of the item."""
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(num_users), 20)
    items = np.concatenate(
        [
            num_genres * generator.permutation(num_items // num_genres)[:20] + user % num_genres
            for user in range(num_users)
        ]
    )
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users))}))
    met = np.unique(items)
    return with_features(data, items=pl.DataFrame({"item_id": met, "genre": met % num_genres}))


def test_the_candidates_are_the_items_of_the_part() -> None:
    data, rule = by_genre(), protocol("cold-items", metrics=("recall", "coverage"))
    split = rule.split(data)
    for part in ("validation", "test"):
        held_out = getattr(split, part)
        ranking = rank(GenreScorer(split.train), split, rule, part)
        assert set(ranking.num_candidates.tolist()) == {len(np.unique(held_out.items))}
        assert set(ranking.top_items.ravel().tolist()) <= {-1, *held_out.items.tolist()}
        assert len(ranking.ranks) == len(held_out)
        assert ranking.ranks.max() <= ranking.num_candidates.max()
    few = rank(GenreScorer(split.train), split, rule, users=np.array([0, 1]))
    assert set(few.num_candidates.tolist()) == {len(np.unique(split.test.items))}


def test_what_knows_no_columns_ties_and_ranks_last_and_what_does_stands_above() -> None:
    data, rule = by_genre(), protocol("cold-items", cutoffs=(10,))
    split = rule.split(data)
    popularity = Popularity().fit(data, protocol=rule)
    assert evaluate(popularity, split, rule) == {"recall@10": 0.0, "hr@10": 0.0, "ndcg@10": 0.0}
    ranking = rank(popularity, split, rule)
    last = ranking.num_candidates[0]
    counts = np.diff(ranking.offsets)
    worst = np.concatenate([np.arange(last - count + 1, last + 1) for count in counts])
    np.testing.assert_array_equal(ranking.ranks, worst)
    assert evaluate(GenreScorer(split.train), split, rule)["recall@10"] > 0.9


def test_cold_items_can_stand_among_all_items() -> None:
    data, rule = by_genre(), protocol("cold-items", candidates="all")
    split = rule.split(data)
    ranking = rank(GenreScorer(split.train), split, rule)
    counts = split.train.user_counts() + np.bincount(split.validation.users, minlength=data.num_users)
    np.testing.assert_array_equal(ranking.num_candidates, data.num_items - counts[ranking.users])
