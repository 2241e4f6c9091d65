"""Empty and odd arguments of every method that serves, over every registered model: an answer of the right shape, or an
error that names the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from deeprec.contract import CAPABILITIES, NEW_ITEMS, NEW_USERS, RATES, RECOMMENDS, SIMILAR_ITEMS
from deeprec.data import Interactions
from deeprec.data.clicks.log import ClickLog
from deeprec.evaluate import protocol as protocol_by_name
from deeprec.models import click_models, create, is_click_model, names, recommenders
from deeprec.registry import with_capabilities

RATERS = with_capabilities(RATES)
FIRST, SECOND = 3_000_000_000, 3_000_000_001
NAN = float("nan")
# An argument, and the length that stands for it or the error that it is.
LENGTHS: list[tuple[Any, Any]] = [
    (3, 3),
    (np.int8(3), 3),
    (np.uint64(3), 3),
    (torch.tensor(3), 3),
    (10_000, None),
    (2**70, None),
    (0, ValueError),
    (-1, ValueError),
    (np.int64(-3), ValueError),
    (3.0, TypeError),
    (NAN, TypeError),
    (True, TypeError),
    (np.True_, TypeError),
    ("3", TypeError),
    (None, TypeError),
    ([3], TypeError),
    (torch.tensor([1, 2]), TypeError),
]
# An argument, and how many ids it is or the error.
USERS: list[tuple[Any, Any]] = [
    ([], 0),
    ((), 0),
    (set(), 0),
    (np.empty(0), 0),
    (pl.Series([], dtype=pl.String), 0),
    (pd.Series([], dtype=object), 0),
    ("user-1", 1),
    (np.str_("user-1"), 1),
    (["user-1", "user-2", "user-1"], 3),
    (("user-1",), 1),
    ({"user-1"}, 1),
    (iter(["user-1", "user-2"]), 2),
    (np.array(["user-1", "user-2"]), 2),
    (np.array(["user-1"], dtype=object), 1),
    (np.array("user-1"), 1),
    (pl.Series(["user-1"], dtype=pl.Categorical), 1),
    (pd.Series(["user-1", "user-2"]), 2),
    (pd.Index(["user-1"]), 1),
    ("", ValueError),
    ("nobody", ValueError),
    (["user-1", "nobody"], ValueError),
    ([None], ValueError),
    (["user-1", None], ValueError),
    (None, TypeError),
    (1, TypeError),
    ([NAN], TypeError),
    (True, TypeError),
    (b"user-1", TypeError),
    (["user-1", 1], TypeError),
    ([["user-1"], ["user-2"]], TypeError),
    ([object()], TypeError),
    (object(), TypeError),
    ({"user-1": 1}, TypeError),
    (pl.DataFrame({"user_id": ["user-1"]}), TypeError),
    (pd.DataFrame({"user_id": ["user-1"]}), TypeError),
    (np.array([["user-1", "user-2"]]), ValueError),
]
ITEMS: list[tuple[Any, Any]] = [
    ([], 0),
    (np.empty(0), 0),
    (torch.empty(0), 0),
    (FIRST, 1),
    (float(FIRST), 1),
    (np.uint32(FIRST), 1),
    (torch.tensor(FIRST), 1),
    ([FIRST, SECOND, FIRST], 3),
    (range(FIRST, FIRST + 3), 3),
    (np.array([FIRST, SECOND], dtype=np.float64), 2),
    (torch.tensor([FIRST, SECOND]), 2),
    (pd.Series([FIRST, SECOND], dtype="Int64"), 2),
    (-1, ValueError),
    ([FIRST, 17], ValueError),
    ([FIRST, None], ValueError),
    ([float(FIRST), NAN], ValueError),
    (NAN, ValueError),
    (np.inf, TypeError),
    (FIRST + 0.5, TypeError),
    (2**70, TypeError),
    (True, TypeError),
    (None, TypeError),
    (str(FIRST), TypeError),
    ([FIRST, "x"], TypeError),
    ([[FIRST]], TypeError),
    ({FIRST: 5.0}, TypeError),
    (object(), TypeError),
    (np.array([[FIRST], [SECOND]]), ValueError),
    (torch.tensor([[FIRST, SECOND]]), ValueError),
]


def check(call: Callable[[Any], pl.DataFrame], argument: str, given: Any, expected: Any, empty: pl.DataFrame) -> None:
    """Columns and their types are always the same; an error names the argument and a remedy."""
    if isinstance(expected, type):
        with pytest.raises(expected, match=argument) as caught:
            call(given)
        assert re.search(r"; (pass|convert|drop|try|cast)", str(caught.value)), str(caught.value)
        return
    found = call(given)
    assert found.schema == empty.schema
    if expected is not None:
        assert len(found) == expected


def again(given: Any) -> Any:
    """An iterator can be used once; every model gets one of its own."""
    return iter(["user-1", "user-2"]) if type(given) is type(iter([])) else given


@pytest.mark.parametrize("name", recommenders())
def test_list_lengths(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    calls = [
        (RECOMMENDS, lambda k: model.recommend("user-1", k)),
        (NEW_USERS, lambda k: model.recommend_for_history([FIRST, SECOND], k)),
        (SIMILAR_ITEMS, lambda k: model.similar_items(FIRST, k)),
    ]
    for call in (call for capability, call in calls if capability in model.capabilities):
        for given, expected in LENGTHS:
            check(call, "k must be", given, expected, call(1))


@pytest.mark.parametrize("name", recommenders())
def test_users(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    for given, expected in USERS:
        rows = expected if isinstance(expected, type) else 2 * expected
        check(lambda users: model.recommend(users, 2), "user_ids", again(given), rows, model.recommend("user-1", 1))
    for flag in (None, "yes", 1, [True]):
        with pytest.raises(TypeError, match="exclude_seen must be True or False"):
            model.recommend("user-1", exclude_seen=flag)
    assert len(model.recommend("user-1", 99, exclude_seen=np.False_)) == len(model.item_ids)


@pytest.mark.parametrize("name", recommenders())
def test_items_and_histories(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    for given, expected in ITEMS:
        is_error = isinstance(expected, type)
        if SIMILAR_ITEMS in model.capabilities:
            rows = expected if is_error else 2 * expected
            check(lambda items: model.similar_items(items, 2), "item_ids", given, rows, model.similar_items(FIRST, 1))
        if NEW_USERS not in model.capabilities:
            continue
        rows = expected if is_error else 2 if expected else ValueError
        empty = model.recommend_for_history(FIRST, 1)
        check(lambda items: model.recommend_for_history(items, 2), "item_ids", given, rows, empty)
    if NEW_USERS in model.capabilities:
        everything = model.recommend_for_history(model.item_ids.values)
        assert everything.schema == empty.schema
        assert not len(everything)


@pytest.mark.parametrize("name", recommenders())
def test_pairs(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    pair = ("user-1", FIRST)
    frame = pl.DataFrame({"user_id": ["user-1"], "item_id": [FIRST], "more": [0]})
    for given, expected in [
        ([], 0),
        ((), 0),
        (frame.clear(), 0),
        (np.empty((0, 2)), 0),
        ([pair], 1),
        ([list(pair), pair], 2),
        (iter([pair]), 1),
        (zip(["user-1"], [FIRST], strict=True), 1),
        (frame, 1),
        (frame.to_pandas(), 1),
        (np.array([pair], dtype=object), 1),
        (None, TypeError),
        (5, TypeError),
        ("ab", TypeError),
        ({"user-1": FIRST}, TypeError),
        (pair, ValueError),
        (["ab"], ValueError),
        ([("user-1",)], ValueError),
        ([(*pair, 1)], ValueError),
        ([None], ValueError),
        (frame.drop("item_id"), ValueError),
        ([("nobody", FIRST)], ValueError),
        ([("user-1", None)], ValueError),
        ([("user-1", str(FIRST))], TypeError),
        ([(1, FIRST)], TypeError),
        ([(None, None)], ValueError),
    ]:
        if isinstance(expected, type):
            with pytest.raises(expected, match=r"score: (pairs|user_id|item_id)"):
                model.score(given)
        else:
            scores = model.score(given)
            assert scores.shape == (expected,)
            assert scores.dtype == np.float32
            assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", recommenders())
def test_ratings(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    calls = [
        ({RATES, NEW_USERS}, lambda ids, ratings: model.recommend_for_history(ids, 3, ratings=ratings)),
        ({RATES, NEW_USERS}, lambda ids, ratings: model.predict_for_user(ids, ratings)),
        (
            {RATES, NEW_ITEMS},
            lambda ids, ratings: model.predict_for_item(
                ["user-1", "user-2"] if ids == [FIRST, SECOND] else ids, ratings
            ),
        ),
    ]
    for needed, call in calls:
        if missing := needed - model.capabilities:
            with pytest.raises(ValueError, match=f"a model is needed that .*{CAPABILITIES[min(missing)]}"):
                call([FIRST, SECOND], [1, 2])
            continue
        for good in ([1, 2.5], (1, 5), np.array([1, 2]), torch.tensor([1.0, 2.0]), pl.Series([1, 2]), iter([1, 2])):
            assert len(call([FIRST, SECOND], good))
        for bad, error in [
            ([], ValueError),
            ([1], ValueError),
            ([1, 2, 3], ValueError),
            (3, ValueError),
            ([1, NAN], ValueError),
            ([1, np.inf], ValueError),
            ([1, 1e300], ValueError),
            ([[1, 2]], ValueError),
            ([1, None], TypeError),
            (["1", "2"], TypeError),
            ("12", TypeError),
            ([True, False], TypeError),
            ({1: 2}, TypeError),
            ([[1], [2, 3]], ValueError),
        ]:
            with pytest.raises(error, match="ratings must be"):
                call([FIRST, SECOND], bad)
        with pytest.raises(ValueError, match="at least one"):
            call([], [])
    if {RATES, NEW_USERS} <= model.capabilities:
        assert len(model.recommend_for_history(FIRST, 3, ratings=4)) == 3
        with pytest.raises(ValueError, match="may be rated once"):
            model.predict_for_user([FIRST, FIRST], [1, 2])


@pytest.mark.parametrize("name", RATERS)
def test_predicted_ratings_of_internal_ids(name: str, fitted: Callable[[str], Any]) -> None:
    model, one, none = fitted(name), torch.tensor([0]), torch.tensor([], dtype=torch.int64)
    assert model.predict_ratings(none, none).shape == (0,)
    assert model.predict_ratings(one, one.int()).shape == (1,)
    for users, items in [
        ([0], one),
        (None, one),
        (one, "x"),
        (one.float(), one),
        (torch.tensor([[0]]), torch.tensor([[0]])),
        (one, torch.tensor([0, 1])),
        (one, none),
        (torch.tensor([-1]), one),
        (torch.tensor([40]), one),
        (one, torch.tensor([30])),
    ]:
        with pytest.raises((TypeError, ValueError, IndexError), match=r"predict_ratings: (users|items) must"):
            model.predict_ratings(users, items)


@pytest.mark.parametrize("name", recommenders())
def test_evaluation_and_training(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    for protocol in (3, "", "fulll", [], {"name": "full"}):
        with pytest.raises((TypeError, ValueError), match="protocol"):
            model.evaluate(protocol)
    for data in (3, [], object(), {"user_id": [1]}):
        with pytest.raises((TypeError, ValueError), match="frame"):
            model.evaluate("full", data)
        with pytest.raises((TypeError, ValueError), match="frame"):
            type(model)(config=model.config).fit(data)


@pytest.mark.parametrize("name", names())
def test_seeds_protocols_and_sizes(name: str, ratings: Interactions, log: ClickLog) -> None:
    data = log if is_click_model(name) else ratings
    for seed in ("x", 1.5, True, None, -1, 2**70, [1]):
        with pytest.raises((TypeError, ValueError), match="fit: seed must be"):
            create(name).fit(data, seed=seed)
    for protocol in (3, [], protocol_by_name("full" if is_click_model(name) else "click")):
        with pytest.raises(TypeError, match="fit: protocol must be"):
            create(name).fit(data, protocol=protocol)
    for sizes in (None, (3, 4), 3, "x"):
        with pytest.raises(TypeError, match="inputs must be Inputs" if is_click_model(name) else "schema must be"):
            create(name).build(sizes)


@pytest.mark.parametrize("name", click_models())
def test_rows_of_a_log(name: str, fitted: Callable[[str], Any], rows: pl.DataFrame, log: ClickLog) -> None:
    model = fitted(name)
    unlabelled = rows.head(3).drop("label")
    for given, expected in [
        (rows.head(2), 2),
        (unlabelled, 3),
        (unlabelled.to_pandas(), 3),
        (unlabelled.lazy(), 3),
        ([unlabelled, unlabelled], 6),
        (unlabelled.clear(), 0),
        (unlabelled.select(sorted(unlabelled.columns)), 3),
    ]:
        found = model.predict(given)
        assert found.shape == (expected,)
        assert found.dtype == np.float32
    for bad in (None, 3, [], {}, {"site": ["a"]}, np.zeros((2, 3)), [1], unlabelled.drop("site"), pl.DataFrame(), b"x"):
        with pytest.raises((TypeError, ValueError), match=r"open_source: |chunks: .* must have a column 'site'"):
            model.predict(bad)
    with pytest.raises(FileNotFoundError, match="no file"):
        model.predict("nowhere.csv")
    for option in ({"on_bad": "x"}, {"on_bad": None}):
        with pytest.raises(ValueError, match="on_bad must be"):
            model.predict(unlabelled, **option)
    for data in (None, 3, [], {}):
        with pytest.raises((TypeError, ValueError), match=r"load_clicks|open_source|data"):
            model.evaluate(data)
