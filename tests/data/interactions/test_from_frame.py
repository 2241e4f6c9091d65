"""from_frame: columns mapped, bad rows named or counted, duplicates mended."""

from __future__ import annotations

import datetime
import logging

import numpy as np
import pandas as pd
import polars as pl
import pytest

from deeprec.data import from_frame


def frame(**columns: list[object]) -> pl.DataFrame:
    given = {"user_id": [1, 1, 2], "item_id": ["a", "b", "a"], **columns}
    return pl.DataFrame(given, strict=False)


def test_pandas_and_polars_agree() -> None:
    table = frame(rating=[1.0, 2.0, 3.0], timestamp=[3, 1, 2])
    assert from_frame(table).sha256 == from_frame(table.to_pandas()).sha256 == from_frame(table.lazy()).sha256


def test_columns_are_mapped_by_argument() -> None:
    table = pd.DataFrame({"who": [1, 2], "what": [3, 4], "stars": [5, 1], "when": [1, 2]})
    data = from_frame(table, user="who", item="what", rating="stars", timestamp="when")
    assert data.ratings.tolist() == [5, 1]
    assert data.order.tolist() == [1, 2]
    assert data.user_ids.decode(data.users).tolist() == [1, 2]


def test_missing_column_names_the_columns_and_the_closest() -> None:
    with pytest.raises(ValueError, match=r"'user_id' for the user, got \['userId', 'item_id'\]; did you mean 'userId'"):
        from_frame(pl.DataFrame({"userId": [1], "item_id": [1]}))
    with pytest.raises(ValueError, match="'stars' for the rating"):
        from_frame(frame(), rating="stars")


def test_empty_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row is required, got an empty frame"):
        from_frame(frame().clear())


def test_something_else_than_a_frame_is_refused() -> None:
    with pytest.raises(TypeError, match="a pandas or polars DataFrame is required, got dict"):
        from_frame({"user_id": [1]})


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        ({"user_id": [1, None, 2]}, "user_id must be an id, got None"),
        ({"user_id": [1.0, float("nan"), 2.0]}, "user_id must be an id, got nan"),
        ({"item_id": ["a", None, "b"]}, "item_id must be an id, got None"),
        ({"rating": ["5", "five", "3"]}, "rating must be a number, got 'five'"),
        ({"rating": [5.0, float("nan"), 3.0]}, "rating must be a number, got nan"),
        ({"rating": [5.0, float("inf"), 3.0]}, "rating must be a number, got inf"),
        ({"rating": [5.0, 1e39, 3.0]}, "rating must be a number, got 1e"),
        ({"timestamp": [1, None, 2]}, "timestamp must be a time, got None"),
        (
            {"timestamp": ["2020-01-01", "soon", "2020-01-03"]},
            "timestamp must be a date, as most of the column are, got 'soon'",
        ),
        ({"label": [1, 2, 1]}, "label must be 0 or 1, got 2"),
    ],
)
def test_bad_value_is_named_or_skipped(columns: dict[str, list[object]], value: str) -> None:
    with pytest.raises(ValueError, match=rf"row 1: {value}.*\(1 bad: row 1\); correct them.* or pass on_bad='skip'"):
        from_frame(frame(**columns))
    data = from_frame(frame(**columns), on_bad="skip")
    assert len(data) == 2
    assert data.repairs == {"bad_rows_dropped": 1}


def test_integers_that_pandas_turned_into_floats_stay_integers() -> None:
    table = pd.DataFrame({"user_id": [1, np.nan, 2**40], "item_id": [1, 2, 3]})
    data = from_frame(table, on_bad="skip")
    assert data.user_ids.values.to_list() == [1, 2**40]


def test_nothing_good_left_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one valid row is required, got none of 3"):
        from_frame(frame(user_id=[None, None, None]), on_bad="skip")
    with pytest.raises(ValueError, match="on_bad must be"):
        from_frame(frame(), on_bad="ignore")


def test_of_duplicates_the_latest_stays_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    table = frame(item_id=["a", "a", "a"], rating=[1, 2, 3], timestamp=[9, 5, 1])
    with caplog.at_level(logging.WARNING, "deeprec"):
        data = from_frame(table)
    assert data.ratings.tolist() == [1, 3]
    assert data.repairs == {"duplicate_rows_dropped": 1}
    assert [record.message for record in caplog.records] == ["frame: duplicate_rows_dropped 1"]
    assert from_frame(table.drop("timestamp")).ratings.tolist() == [2, 3]
    assert len(from_frame(table, duplicates="keep")) == 3
    with pytest.raises(ValueError, match=r"got \(1, 'a'\) again \(1 rows too many\)"):
        from_frame(table, duplicates="raise")
    with pytest.raises(ValueError, match="duplicates must be"):
        from_frame(table, duplicates="first")


def test_rows_with_label_0_are_no_interactions() -> None:
    data = from_frame(frame(label=[1, 0, 1]))
    assert len(data) == 2
    assert data.repairs == {"rows_with_label_0_dropped": 1}


@pytest.mark.parametrize(
    "times",
    [
        [30, 10, 20],
        [0.3, 0.1, 0.2],
        [datetime.date(2020, 1, 3), datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)],
        [datetime.datetime(2020, 1, 1, 3), datetime.datetime(2020, 1, 1, 1), datetime.datetime(2020, 1, 1, 2)],
        ["2020-01-03", "2020-01-01", "2020-01-02"],
        ["2020-01-01T03:00:00", "2020-01-01T01:00:00", "2020-01-01T02:00:00"],
        ["30", "10", "20"],
    ],
)
def test_any_notation_of_time_gives_the_order(times: list[object]) -> None:
    assert np.argsort(from_frame(frame(timestamp=times)).order).tolist() == [1, 2, 0]


def test_ids_of_mixed_types_are_refused() -> None:
    with pytest.raises(TypeError, match="one type"):
        from_frame(pd.DataFrame({"user_id": [1, "a"], "item_id": [1, 2]}))
