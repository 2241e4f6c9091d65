"""Whatever finite number a model is given, it answers with numbers: what was never seen is held to what was."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deeprec
from deeprec.contract import NEW_ITEMS, NEW_USERS, RATES
from deeprec.data.clicks.log import ClickLog
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.schema import TRANSFORMS, FeatureSchema, Numeric
from deeprec.data.reading.sources import open_source
from deeprec.models import click_models, names, recommenders
from deeprec.registry import with_capabilities

NUMERICS = tuple(f"x-{transform}" for transform in TRANSFORMS)
LARGE = 1.7e308
EXTREMES = (LARGE, -LARGE, 1e100, -1e39, 3.4e38, -1e12, 1e12, 1e6, 5e-324, -1e-310, -0.0, 2.0**63)
RATERS = with_capabilities(RATES)
finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("name", click_models())
def test_extreme_numbers_give_probabilities(name: str, fitted: Callable[[str], Any], rows: pl.DataFrame) -> None:
    model = fitted(name)
    some = rows.head(len(EXTREMES))
    one = {column: some.with_columns(pl.Series(column, EXTREMES)) for column in NUMERICS}
    every = some.with_columns(*(pl.Series(column, np.roll(EXTREMES, place)) for place, column in enumerate(NUMERICS)))
    alike = some.with_columns(*(pl.Series(column, EXTREMES) for column in NUMERICS))
    whole = some.with_columns(*(pl.Series(column, [2**63 - 1, -(2**63)] * 6) for column in NUMERICS))
    for frame in (*one.values(), every, alike, whole):
        found = model.predict(frame)
        assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("name", click_models())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(finite, min_size=len(NUMERICS), max_size=len(NUMERICS)), weight=st.floats(-3.4e38, 3.4e38))
def test_any_finite_row_gives_a_probability(
    name: str, numbers: list[float], weight: float, fitted: Callable[[str], Any], rows: pl.DataFrame
) -> None:
    given_numbers = (pl.Series(column, [number]) for column, number in zip(NUMERICS, numbers, strict=True))
    row = rows.head(1).with_columns(*given_numbers, pl.Series("likes", [f"l0:{weight!r}|l1:{-weight!r}|l7:{weight!r}"]))
    (probability,) = fitted(name).predict(row)
    assert 0 <= probability <= 1


def test_train_rows_are_encoded_as_without_bounds(
    fitted: Callable[[str], Any], rows: pl.DataFrame, log: ClickLog
) -> None:
    encoder = log.encoder
    wide = {
        name: dataclasses.replace(state, low=-math.inf, high=math.inf) if "min-max" not in name else state
        for name, state in encoder.numbers.items()
    }
    unbounded = type(encoder)(encoder.schema, encoder.hashes, wide, encoder.negative_label)
    (chunk,) = open_source(rows).chunks(encoder.schema.columns_to_read(with_label=False))
    bounded, free = encoder.encode(chunk, with_labels=False), unbounded.encode(chunk, with_labels=False)
    train = log.parts["train"].values
    low, high = train.min(0), train.max(0)
    inside = ((free.values >= low) & (free.values <= high)).all(1)
    assert inside.sum() >= len(train)
    assert np.array_equal(bounded.values[inside], free.values[inside])
    assert (bounded.values >= low).all()
    assert (bounded.values <= high).all()


def test_weights_of_a_bag_are_held_to_those_of_the_training(rows: pl.DataFrame, log: ClickLog) -> None:
    odd = rows.head(1).with_columns(pl.Series("likes", ["l0:0.75|l1:-9|l1:3e38"]))
    (chunk,) = open_source(odd).chunks(log.encoder.schema.columns_to_read(with_label=False))
    weights = log.encoder.encode(chunk, with_labels=False).bags["likes"].weights
    assert weights.tolist() == [0.75, 0.5, 1.5]


def test_what_stands_for_a_missing_number_may_lie_outside() -> None:
    frame = pl.DataFrame({"y": [0, 1, 0, 1], "x": [5.0, 6.0, None, 8.0]})
    schema = FeatureSchema((Numeric("x", transform="none", missing=-1.0),), "y")
    (chunk,) = open_source(frame).chunks(schema.columns_to_read())
    encoder = Encoder.fit(schema, [(chunk, None)])
    assert encoder.encode(chunk).values.ravel().tolist() == [5.0, 6.0, -1.0, 8.0]
    (chunk,) = open_source(pl.DataFrame({"x": [-1.0, None, 1e9]})).chunks(schema.columns_to_read(with_label=False))
    assert encoder.encode(chunk, with_labels=False).values.ravel().tolist() == [5.0, -1.0, 8.0]


def test_what_stands_for_a_missing_number_is_not_held_to_anything() -> None:
    frame = pl.DataFrame({"y": [0, 1, 0, 1], "x": [0.0, 1e-3, None, 0.0]})
    schema = FeatureSchema((Numeric("x", missing=-1e6),), "y")
    (chunk,) = open_source(frame).chunks(schema.columns_to_read())
    x = np.array([0.0, 1e-3, 0.0])
    found = Encoder.fit(schema, [(chunk, None)]).encode(chunk).values[2]
    assert found == pytest.approx((-1e6 - x.mean()) / x.std())


@pytest.mark.parametrize("name", click_models())
def test_a_folder_without_ranges_still_serves(
    name: str, fitted: Callable[[str], Any], rows: pl.DataFrame, tmp_path: Path
) -> None:
    model = fitted(name)
    older = copy.deepcopy(model)
    older.encoder.numbers = {
        number: dataclasses.replace(state, low=-math.inf, high=math.inf) if "min-max" not in number else state
        for number, state in model.encoder.numbers.items()
        if number != "likes"
    }
    older.save(tmp_path)
    old = deeprec.load(tmp_path)
    # These are the train rows and a few more, which the encoder now bounds.
    assert (np.abs(old.predict(rows) - model.predict(rows)) < 1e-7).mean() > 0.9
    standardised = [column for column in NUMERICS if "standardise" in column]
    for value in EXTREMES:
        found = old.predict(rows.head(3).with_columns(*(pl.lit(value).alias(column) for column in standardised)))
        assert np.isfinite(found).all()
    raw = rows.head(3).with_columns(pl.lit(LARGE).alias("x-none"))
    if name == "dcn-v2":  # the only polynomial of a high degree
        with pytest.raises(ValueError, match=r"row 0 \(from 0\)"):
            old.predict(raw)
    else:
        assert np.isfinite(old.predict(raw)).all()


def test_a_row_without_a_probability_is_named(fitted: Callable[[str], Any], rows: pl.DataFrame, tmp_path: Path) -> None:
    fitted("dcn-v2").save(tmp_path)
    model = deeprec.load(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e20)
    with pytest.raises(ValueError, match=r"predict: row \d+ \(from 0\) must have numbers .* got NaN from dcn-v2"):
        model.predict(rows)


@pytest.mark.parametrize("name", RATERS)
def test_ratings_are_held_to_those_of_the_training(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    items, users = model.item_ids.values[:3], model.user_ids.values[:3]
    calls = [
        (NEW_USERS, lambda ratings: model.recommend_for_history(items, 5, ratings=ratings)["score"]),
        (NEW_USERS, lambda ratings: model.predict_for_user(items, ratings)["rating"]),
        (NEW_ITEMS, lambda ratings: model.predict_for_item(users, ratings)["rating"]),
    ]
    for call in (call for capability, call in calls if capability in model.capabilities):
        inside = call([5.0, 1.0, 3.0])
        for high, low in ((3.4e38, -3.4e38), (1e12, -1e12), (6, 0)):
            assert call([high, low, 3.0]).equals(inside)
        assert np.isfinite(call([1e-45, 1e-310, -0.0]).to_numpy()).all()
        for bad in (LARGE, math.inf, math.nan):
            with pytest.raises(ValueError, match="ratings must be one finite number"):
                call([bad, 1.0, 1.0])


@pytest.mark.parametrize("name", [name for name in names() if name in recommenders()])
def test_recommended_scores_are_finite(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    assert np.isfinite(model.recommend(model.user_ids.values, 99)["score"].to_numpy()).all()
    if NEW_USERS in model.capabilities:
        assert np.isfinite(model.recommend_for_history(model.item_ids.values[:2], 99)["score"].to_numpy()).all()
