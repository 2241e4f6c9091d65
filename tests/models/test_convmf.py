"""ConvMF: rows as the equations solve them, cold items by their texts, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.batches.documents import DocumentBatch
from deeprec.data import Interactions, from_frame, with_features
from deeprec.models import create
from deeprec.models.convmf import _solved

SMALL = {"text": "plot", "factors": 4, "embedding_dim": 5, "filters": 3, "text_hidden": 6, "batch_size": 16}


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Two kinds of films for two kinds of people, told apart by a word of the plot."""
    draw = np.random.default_rng(0)
    users, items = (part.ravel() for part in np.meshgrid(np.arange(40), np.arange(60)))
    is_rated = draw.random(len(users)) < 0.4
    users, items = users[is_rated], items[is_rated]
    ratings = np.where(users % 2 == items % 2, 5.0, 1.0)
    columns = {"user_id": users, "item_id": items, "rating": ratings}
    made = from_frame(pl.DataFrame(columns), rating="rating")
    words = [["a tale of war and battle", "a story of love and kisses"][item % 2] + f" w{item}" for item in range(60)]
    return with_features(made, items=pl.DataFrame({"item_id": np.arange(60), "plot": words}))


def test_rows_are_those_of_the_equations() -> None:
    draw = torch.Generator().manual_seed(0)
    others = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    prior = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    offsets, indices = torch.tensor([0, 3, 3, 5]), torch.tensor([0, 2, 5, 1, 2])
    ratings = torch.randn(5, generator=draw, dtype=torch.float64)
    rows = _solved(offsets, indices, ratings, others, prior, 0.7)
    for row in range(3):
        y, r = (x[int(offsets[row]) : int(offsets[row + 1])] for x in (others[indices], ratings))
        right = y.T @ r + 0.7 * prior[row]
        expected = torch.linalg.solve(y.T @ y + 0.7 * torch.eye(3, dtype=torch.float64), right)
        torch.testing.assert_close(rows[row], expected)
    torch.testing.assert_close(rows[1], prior[1])  # an item without ratings is where its text puts it


def test_an_epoch_reads_the_texts_then_solves_both_sides(data: Interactions) -> None:
    model = create("convmf", **SMALL, text_epochs=2)
    model.build(model.schema_for(data))
    batches = model.batches(data, 0)
    first, second = (list(batches.epoch(number)) for number in (0, 1))
    assert [batch.of_users for batch in first] == [True, False]
    texts = [batch for batch in second if isinstance(batch, DocumentBatch)]
    assert sorted(torch.cat([batch.items for batch in texts]).tolist()) == sorted([*range(60)] * 2)
    assert len(second) == len(batches) == len(texts) + 2
    assert all(int(batch.words[:, -1].max()) > 0 for batch in texts)  # as wide as the longest text
    assert torch.equal(next(batches.epoch(1, skip=3)).items, second[3].items)


def test_cold_items_are_rated_by_their_texts(data: Interactions) -> None:
    warm, cold = data.take(data.items < 48), data.take(data.items >= 48)
    users, items = (torch.from_numpy(column) for column in (cold.users, cold.items))
    options = {"epochs": 6, "patience": 0, "user_l2": 1.0, "item_l2": 1.0}
    errors = {}
    for text in ("plot", ""):
        model = create("convmf", **({**SMALL, "lr": 0.01} if text else {"factors": 4}), **options)
        model.fit(warm, protocol="rating", seed=0)
        errors[text] = float(np.abs(model.predict_ratings(users, items).numpy() - cold.ratings).mean())
    assert errors[""] > 1.9  # the mean of 1 and 5
    assert errors["plot"] < 1.2


def test_what_is_missing_is_said(data: Interactions) -> None:
    with pytest.raises(ValueError, match=r"text must be a column of the item table, got 'plott' and columns .*plot"):
        create("convmf", text="plott").fit(data, protocol="rating")
    bare = with_features(data, items=data.item_features.with_columns(plot=pl.Series([None] + ["a b"] * 59)))
    with pytest.raises(ValueError, match="every item must have a text in 'plot', got 1 without, the first 0"):
        create("convmf", text="plot").fit(bare, protocol="rating")
    with pytest.raises(ValueError, match="must have ratings"):
        create("convmf").fit(data.of_pairs(data.users, data.items), protocol="full")
    with pytest.raises(ValueError, match="filters has no effect here"):
        create("convmf", filters=3)


def test_later_items_are_where_their_texts_put_them(data: Interactions, tmp_path: Path) -> None:
    model = create("convmf", **SMALL, lr=0.01, epochs=6, patience=0, user_l2=1.0, item_l2=1.0)
    model.fit(data, protocol="rating", seed=0)
    model.build_index()
    later = pl.DataFrame({"item_id": [100, 101], "plot": ["war and battle", "love and kisses"]})
    model.add_items(later)
    assert model.schema.num_items == 62
    ratings = model.score([(0, 100), (0, 101), (1, 100), (1, 101)])
    assert min(ratings[0], ratings[3]) > 3 > max(ratings[1], ratings[2])
    listed = model.recommend([0, 1], k=10)
    assert model.recommend([0, 1], k=10, approximate=True).equals(listed)
    again = deeprec.load(model.save(tmp_path / "model"))
    again.add_items(later.with_columns(item_id=pl.col("item_id") + 10))
    assert again.score([(0, 110), (1, 111)]).tolist() == model.score([(0, 100), (1, 101)]).tolist()
    with pytest.raises(ValueError, match="every item must have a text in 'plot', got 1 without, the first 200"):
        model.add_items(pl.DataFrame({"item_id": [200], "plot": [""]}))
    with pytest.raises(ValueError, match="plot"):
        model.add_items(pl.DataFrame({"item_id": [200]}))
    with pytest.raises(ValueError, match="train it with text=COLUMN"):
        create("convmf", factors=4, epochs=1).fit(data, protocol="rating").add_items(later)
