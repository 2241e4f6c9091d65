"""Every protocol by its name on a part of MovieLens, where DEEPREC_DATA names a folder that holds it."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor

from deeprec import data as deeprec_data
from deeprec.data import Interactions
from deeprec.evaluate import PROTOCOLS, evaluate, protocol
from deeprec.evaluate.metrics import WITHOUT_CUTOFF
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models import MF, AutoRec, ItemKNN, Popularity


def need(name: str) -> Interactions:
    if not os.environ.get("DEEPREC_DATA") or deeprec_data.find(name) is None:
        pytest.skip(f"DEEPREC_DATA has no {name}")
    return deeprec_data.load(name)


@pytest.fixture(scope="module")
def films() -> Interactions:
    whole = need("ml-1m")
    return whole.take(whole.users < 400)


class GenreScorer:
    """score(u, i) = likeness of the film's genres to those of the user's training films."""

    def __init__(self, train: Interactions) -> None:
        lists = train.item_features["genres"].to_list()
        names = sorted({name for genres in lists for name in genres or ()})
        self.has = torch.tensor([[float(name in (genres or ())) for name in names] for genres in lists])
        self.has = torch.nn.functional.normalize(self.has)
        users, items = (torch.from_numpy(column).long() for column in (train.users, train.items))
        self.likes = torch.zeros(train.num_users, len(names)).index_add_(0, users, self.has[items])

    def score_items(self, users: Tensor) -> Tensor:
        return self.likes[users] @ self.has.T

    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.likes[users] * self.has[items]).sum(1)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_measures_models_on_ml_1m(films: Interactions, name: str) -> None:
    task = InteractionTask(films, protocol(name))
    is_rating = task.protocol.task == "rating"
    # MF would fit the history before each event by itself.
    other = ItemKNN() if task.protocol.targets == "events" else MF(epochs=1, factors=8)
    for model in [AutoRec(epochs=1, hidden=8)] if is_rating else [Popularity(), other]:
        figures = model.fit(task).evaluate()
        names = {
            metric if is_rating or metric in WITHOUT_CUTOFF else f"{metric}@{cutoff}"
            for metric in task.protocol.metrics
            for cutoff in task.protocol.cutoffs
        }
        if task.protocol.name == "cross-domain":  # of new users alone, too
            names |= {f"new_{figure}" for figure in names}
        assert set(figures) == names
        assert all(np.isfinite(value) for value in figures.values())


def test_of_films_without_training_genres_know_more_than_popularity(films: Interactions) -> None:
    rule = protocol("cold-items")
    split = rule.split(films)
    popularity = evaluate(Popularity().fit(films, protocol=rule), split, rule)
    genres = evaluate(GenreScorer(split.train), split, rule)
    assert popularity["recall@20"] == 0.0
    assert genres["recall@20"] > 20 / len(np.unique(split.test.items))  # chance


def test_places_in_a_users_own_sequence_are_no_times(films: Interactions) -> None:
    if films.order_kind != "rank":
        pytest.skip("ratings.dat with Unix times is at hand; ratings_rank.dat is what this reads")
    with pytest.raises(ValueError, match="got places within each user's own sequence in ml-1m"):
        protocol("full", holdout="time").split(films)


@pytest.mark.parametrize("name", ["full", "next-item"])
def test_a_moment_divides_ml_100k(name: str) -> None:
    task = InteractionTask(need("ml-100k"), protocol(name, holdout="time"))
    split = task.split
    assert split.train.order.max() < split.validation.order.min()
    assert split.validation.order.max() < split.test.order.min()
    assert split.notes["users_left_out"] > 0
    figures = Popularity().fit(task).evaluate()
    assert 0 < figures["ndcg@10"] < 1
