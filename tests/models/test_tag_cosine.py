"""Tag-cosine: its formula in dense linear algebra, users and items without tags, new users, folders."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.data import Folksonomy, from_frame
from deeprec.models import TagCosine


def folksonomy(seed: int = 0, users: int = 30, items: int = 40, tags: int = 9) -> Folksonomy:
    """A user's tags are mostly two, an item's two as well; the last user and item have none."""
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(users - 1):
        for item in draw.permutation(items - 1)[:8]:
            given = (user % tags, (user + 1) % tags, int(item) % tags)[: int(draw.integers(1, 4))]
            rows += [(user, int(item), f"t{tag}") for tag in given]
    rows += [(users - 1, 0, None), (users - 1, 1, None), (0, items - 1, None)]
    made = from_frame(pl.DataFrame(rows, schema=["user_id", "item_id", "tag"], orient="row"), tag="tag")
    assert isinstance(made, Folksonomy)
    return made


def counts(data: Folksonomy) -> tuple[np.ndarray, np.ndarray]:
    users, items = np.zeros((data.num_users, data.num_tags)), np.zeros((data.num_items, data.num_tags))
    has_tag = data.tags >= 0
    np.add.at(users, (data.users[has_tag], data.tags[has_tag]), 1)
    np.add.at(items, (data.items[has_tag], data.tags[has_tag]), 1)
    return users, items


def unit(x: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def fitted(data: Folksonomy, **options: str) -> TagCosine:
    model = TagCosine(**options)
    model.build(model.schema_for(data)).fit_directly(data)
    return model


@pytest.mark.parametrize("weighting", ["count", "l2", "log", "binary", "tf-idf"])
def test_scores_are_cosines_of_weighted_profiles(weighting: str) -> None:
    data = folksonomy()
    users, items = counts(data)
    idf = np.log((1 + data.num_items) / (1 + (items > 0).sum(0))) + 1
    change = {"log": np.log1p, "binary": np.sign, "tf-idf": lambda x: x * idf}.get(weighting, lambda x: x)
    expected = unit(change(users)) @ unit(change(items)).T
    model = fitted(data, weighting=weighting)
    every = torch.arange(data.num_users)
    np.testing.assert_allclose(model.score_items(every).numpy(), expected, atol=1e-6)
    pairs = model.score_pairs(torch.from_numpy(data.users), torch.from_numpy(data.items)).numpy()
    np.testing.assert_allclose(pairs, expected[data.users, data.items], atol=1e-6)
    np.testing.assert_allclose(model.item_vectors().numpy(), unit(change(items)), atol=1e-6)


def test_without_tags_a_user_or_an_item_has_score_0() -> None:
    data = folksonomy()
    scores = fitted(data).score_items(torch.arange(data.num_users))
    assert (scores[int(data.user_ids.encode([29])[0])] == 0).all()
    assert (scores[:, int(data.item_ids.encode([39])[0])] == 0).all()


def test_a_new_user_has_the_tags_of_what_they_met() -> None:
    data = folksonomy()
    model = fitted(data, weighting="count")
    items = unit(counts(data)[1])
    rows = model.history_rows(torch.tensor([0, 2, 2, 3]), torch.tensor([4, 7, 1]))
    scores = deeprec.nn.scoring.score_items(model.scorer(rows)).numpy()
    expected = unit(np.stack([items[4] + items[7], 0 * items[0], items[1]])) @ items.T
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_fit_saves_and_loads_profiles(tmp_path) -> None:
    model = TagCosine().fit(folksonomy(), protocol="dspr", out=None)
    model.save(tmp_path / "model")
    loaded = deeprec.load(tmp_path / "model")
    assert loaded.recommend([3], k=5).equals(model.recommend([3], k=5))
    assert loaded.recommend_for_history([5], k=100).height == 39
    state = model.state_dict()
    state["item_tags"] = state["item_tags"] + 100
    with pytest.raises(ValueError, match=r"must lie in \[0, 9\)"):
        loaded.load_state_dict(state)


def test_data_without_a_single_tag_is_refused_and_without_the_column_said(caplog) -> None:
    data = folksonomy()
    with pytest.raises(ValueError, match="tag-cosine: rows must have tags, got none"):
        TagCosine().fit(data.of_pairs(data.users, data.items))
    model = TagCosine().fit(data.pairs())
    assert "has no tags, so each item is its own tag" in caplog.text
    assert model.schema.num_features == data.num_items


def test_later_rows_need_the_earlier_tags() -> None:
    data = folksonomy()
    model = TagCosine().fit(data.take(np.arange(100)))
    with pytest.raises(ValueError, match="tag-cosine needs all tags of its users and items"):
        model.fit_more(data.take(np.arange(100, len(data))))
    assert model.fit_more(data).schema.num_items == data.num_items
