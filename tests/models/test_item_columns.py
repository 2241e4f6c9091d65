"""Columns of items in models of histories: vectors are e_i + W x_i, and items that nobody met are served by them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import deeprec
from deeprec.data import Categorical, DataSchema, FeatureSchema, Interactions, Numeric, Text, from_frame, with_features
from deeprec.models import Schema, create

ITEMS, KINDS = 30, 5
SCHEMA = DataSchema(items=FeatureSchema((Categorical("kind"), Text("title"), Numeric("year")), label=None))
SMALL = {"factors": 8, "length": 8, "batch_size": 16, "lr": 0.02, "dropout": 0.0, "patience": 0}


def items_table(items: Any) -> pl.DataFrame:
    """Items of five kinds; the title names the kind too."""
    items = np.asarray(items)
    kinds = [f"kind{item % KINDS}" for item in items]
    titles = [f"{kind} number {item}" for kind, item in zip(kinds, items, strict=True)]
    return pl.DataFrame({"item_id": items, "kind": kinds, "title": titles, "year": 1950.0 + items % ITEMS})


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Users whose next item is of the next kind: what kind comes next, only columns say of items that nobody met."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(80):
        kind = int(draw.integers(KINDS))
        for step in range(int(draw.integers(4, 9))):
            item = int(draw.integers(ITEMS // KINDS)) * KINDS + (kind + step) % KINDS
            rows += [(user, item, step)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    plain = from_frame(frame.unique(["user_id", "item_id"], maintain_order=True), timestamp="timestamp")
    return with_features(plain, items=items_table(plain.item_ids.values))


@pytest.fixture(scope="module", params=["sasrec", "bert4rec"])
def fitted(request: Any, data: Interactions) -> Any:
    model = create(request.param, **SMALL, epochs=30, item_inputs=("id", "features"))
    return model.fit(data, protocol="next-item", schema=SCHEMA, seed=1, baselines=False)


def test_vectors_are_those_of_ids_and_columns_together(fitted: Any) -> None:
    tower, rows = fitted.towers[0], fitted._item_rows
    with torch.no_grad():
        by_hand = fitted.items.weight.double().clone()
        for item in range(len(by_hand)):
            for place in range(int(rows.offsets[item]), int(rows.offsets[item + 1])):
                by_hand[item] += float(rows.weights[place]) * tower.terms[rows.ids[place]].double()
            by_hand[item] += rows.values[item].double() @ tower.numbers.double()
    torch.testing.assert_close(fitted.item_vectors().double(), by_hand, rtol=1e-5, atol=1e-5)


def test_items_that_came_later_are_served_by_their_columns(fitted: Any, data: Interactions, tmp_path: Any) -> None:
    model = copy.deepcopy(fitted)
    users = data.user_ids.values.to_list()[:20]
    before = model.recommend(users, 5)
    new = list(range(1000, 1000 + KINDS))
    model.add_items(items_table(new))
    assert_frame_equal(model.recommend(users, 5, deny=new), before)
    for kind in range(KINDS):
        history = [kind + KINDS, (kind + 1) % KINDS, 1000 + (kind + 2) % KINDS]
        listed = model.recommend_for_history(history, KINDS - 1, allow=new)
        assert listed["score"].is_finite().all()
        if model.name == "sasrec":  # the new item of the next kind is the best of the new ones
            assert listed["item_id"][0] == 1000 + (kind + 3) % KINDS
    model.save(tmp_path / "model")
    again = deeprec.load(tmp_path / "model")
    assert_frame_equal(again.recommend(users, 5), model.recommend(users, 5))
    again.add_items(items_table([2000]))
    assert len(again.recommend_for_history([2000, 1000], 3, exclude_seen=False)) == 3
    with pytest.raises(ValueError, match="fit_more: vectors of columns do not go on with other encoders"):
        model.begin_from({}, data)


@pytest.mark.parametrize("loss", ["full", "bce", "sampled"])
def test_what_nobody_met_learns_nothing(data: Interactions, loss: str) -> None:
    """Neither as a negative: an item without a training row keeps the vector of its columns alone."""
    cold = np.isin(data.items, [0, 1, 2])
    train = data.take(np.flatnonzero(~cold))
    model = create("sasrec", **SMALL, loss=loss, item_inputs=("id", "features"), tied=False)
    model.task_for(train, "next-item", SCHEMA)
    model.build(model.schema_for(train), torch.Generator().manual_seed(0))
    batch = next(iter(model.batches(train, 1).epoch(0)))
    model.loss(batch).backward()
    for table in (model.items, model.outputs):
        grad = table.weight.grad.to_dense()
        assert not table.weight[:3].any()
        assert not grad[:3].any()
        assert grad[3:].any()


def test_columns_alone_make_vectors_and_losses_of_all_kinds_train(data: Interactions) -> None:
    for options in ({"item_inputs": ("features",)}, {"loss": "gbce", "num_negatives": 4}, {"loss": "sampled"}):
        options = {"epochs": 1, "item_inputs": ("id", "features"), **options}
        model = create("sasrec", **SMALL, **options).fit(data, SCHEMA, protocol="next-item", baselines=False)
        assert model.item_vectors().isfinite().all()
        assert (model.items is None) == (options["item_inputs"] == ("features",))


def test_what_columns_need_is_said(data: Interactions) -> None:
    model = create("sasrec", **SMALL, item_inputs=("features",))
    with pytest.raises(ValueError, match="columns of items are an input, so a schema must say what they mean"):
        model.fit(data, protocol="next-item", baselines=False)
    with pytest.raises(ValueError, match="schema must be ItemSizes with item_terms or item_values"):
        model.build(Schema(3, 4))
    with pytest.raises(ValueError, match="item_inputs must be one or more of id, features, each once, got"):
        create("sasrec", item_inputs=())
    plain = create("sasrec", **SMALL, epochs=1).fit(data, protocol="next-item", baselines=False)
    with pytest.raises(ValueError, match="train it with 'features' in item_inputs"):
        plain.add_items(items_table([1000]))
