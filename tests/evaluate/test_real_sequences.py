"""Sets of histories and sessions in the data folder: their counts, their splits, and the simple methods on sessions."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.data import find, info, load, sessions
from deeprec.evaluate import evaluate, protocol
from deeprec.evaluate.events import Events
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models import model_class

SETS = ("sasrec-ml-1m", "bert4rec-beauty", "s3rec-beauty", "s3rec-sports", "s3rec-lastfm", "amazon-grocery")


def need(name: str) -> None:
    if find(name) is None:
        pytest.skip(f"{name} is not there; set DEEPREC_DATA")


@pytest.mark.parametrize("name", SETS)
def test_counts_are_those_of_the_publishers_and_each_history_is_divided(name: str) -> None:
    need(name)
    data, about = load(name), info(name)
    assert (len(data), data.num_users, data.num_items) == (about.rows, about.users, about.items)
    split = protocol("next-item").split(data)
    assert len(split.test) == data.num_users
    ordered = np.lexsort((data.order, data.users))
    last = np.append(data.users[ordered][1:] != data.users[ordered][:-1], True)
    assert split.test.items.tolist() == data.items[ordered][last][np.argsort(np.argsort(split.test.users))].tolist()
    if name == "s3rec-beauty":
        assert data.item_features["attributes"].explode().n_unique() == 637
    if name == "s3rec-sports":
        assert data.item_features["attributes"].explode().n_unique() == 2277
    if name == "amazon-grocery":
        assert data.item_features["category"].n_unique() <= 57
        assert data.item_features["category"].null_count() == 0


def test_lastfm_has_its_published_negatives() -> None:
    need("s3rec-lastfm")
    data = load("s3rec-lastfm")
    assert data.item_features["attributes"].explode().n_unique() == 388
    rule = protocol("next-item", holdout="official", candidates=99, negatives="given", validation="last")
    given, last = rule.split(data), protocol("next-item").split(data)
    assert given.test_negatives.shape == (1090, 99)
    keys = given.test.users[:, None] * data.num_items + given.test_negatives
    assert not np.isin(keys, data.pair_keys()).any()
    for part in ("train", "validation", "test"):
        rows, same = getattr(given, part), getattr(last, part)
        assert sorted(rows.pair_keys().tolist()) == sorted(same.pair_keys().tolist())


def test_sessions_of_grocery_end_with_a_day_and_keep_their_users() -> None:
    need("amazon-grocery")
    data = load("amazon-grocery")
    cut = sessions(data, "1d")
    assert len(cut) == len(data)
    owners = cut.user_features["owner"].to_numpy()[cut.users]
    assert owners.tolist() == data.user_ids.values.to_numpy()[data.users].tolist()
    assert (np.diff(cut.user_features["start"].to_numpy()) >= 0).all()
    assert cut.num_users > data.num_users
    week = InteractionTask(data, protocol("next-item", holdout="time", targets="events"))
    assert week.split.train.order.max() < week.split.test.order.min()


def test_simple_methods_on_sessions_of_diginetica() -> None:
    need("diginetica")
    data, about = load("diginetica"), info("diginetica")
    assert (len(data), data.num_users, data.num_items) == (about.rows, about.users, about.items)
    task = InteractionTask(data, protocol("next-event"))
    assert len(Events.of(task.split, "test")) == 60_858
    users = np.unique(task.split.test.users)[:700]
    figures = {}
    for name in ("popularity", "item-knn", "session-knn"):
        model = model_class(name)()
        model.build(model.schema_for(data))
        model.fit_directly(task.split.train)
        figures[name] = evaluate(model, task.split, task.protocol, users=users)
    for figure in ("recall@20", "mrr@20"):
        assert figures["popularity"][figure] < 0.05 < figures["item-knn"][figure] < figures["session-knn"][figure]
