"""Times: what is read gives the order, and what could mean two things is refused."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from deeprec.data import from_frame, load
from deeprec.data.reading.times import times_of

MICRO = 1_000_000
DAY = datetime.date(2024, 2, 1)


def order(times: Any, **options: Any) -> list[int]:
    count = len(times)
    frame = pd.DataFrame({"user_id": [1] * count, "item_id": range(count), "timestamp": times})
    made = from_frame(frame, **options).order
    assert made is not None
    return [int(time) for time in made]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-02-01", "2024-02-01T00:00:00+00:00"),
        ("2024-02-01T09:30", "2024-02-01T09:30:00+00:00"),
        ("2024-02-01 09:30:05", "2024-02-01T09:30:05+00:00"),
        ("2024-02-01 09:30:05,25", "2024-02-01T09:30:05.250000+00:00"),
        ("2024-02-01T09:30:05.123456789", "2024-02-01T09:30:05.123456+00:00"),
        ("2024-02-01T09:30:05Z", "2024-02-01T09:30:05+00:00"),
        ("2024-02-01T09:30:05+01:00", "2024-02-01T08:30:05+00:00"),
        ("2024-02-01 09:30:05-0530", "2024-02-01T15:00:05+00:00"),
        ("2024-02-01T09:30-05", "2024-02-01T14:30:00+00:00"),
        (" 2024-02-01 ", "2024-02-01T00:00:00+00:00"),
    ],
)
def test_iso_8601_is_read(text: str, expected: str) -> None:
    time = datetime.datetime.fromisoformat(expected)
    whole = int(time.timestamp()) * MICRO + time.microsecond
    assert order([text]) == [whole]


@pytest.mark.parametrize("unit", [1, 1000, 10**6, 10**9])
def test_epoch_numbers_in_any_unit_are_the_order(unit: int) -> None:
    times = [1_700_000_000 * unit, 1_600_000_000 * unit]
    assert order(times) == order([str(time) for time in times]) == times


def test_dates_of_python_pandas_and_polars_are_the_same() -> None:
    midnight = datetime.datetime(2024, 2, 1)
    whole = 1_706_745_600 * MICRO
    zoned = midnight.replace(tzinfo=datetime.UTC)
    for time in (DAY, midnight, zoned, pd.Timestamp(midnight), pd.Timestamp(zoned).tz_convert("Asia/Tokyo")):
        assert order([time]) == [whole]
    series = pl.Series([midnight])
    for kind in (pl.Date, pl.Datetime("ms"), pl.Datetime("ns"), pl.Datetime("us", "UTC")):
        assert times_of(series.cast(kind))[0].to_list() == [whole]


@pytest.mark.parametrize(
    "text", ["01/02/2024", "2024/02/01", "1.2.2024", "Feb 1, 2024", "2024-02", "20240201T0930", "9:30"]
)
def test_other_text_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"row 0: timestamp must be a time, got .*time_format='%d/%m/%Y' \(data.time_format"
    ):
        order([text, text])


def test_a_format_says_how_times_are_written(tmp_path: Path) -> None:
    assert order(["01/02/2024", "03/01/2024"], time_format="%d/%m/%Y") == [
        1_706_745_600 * MICRO, 1_704_240_000 * MICRO,
    ]  # fmt: skip
    assert order(["Feb 1 2024 09:30"], time_format="%b %d %Y %H:%M") == [1_706_779_800 * MICRO]
    assert order([20240201], time_format="%Y%m%d") == [1_706_745_600 * MICRO]
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,1,01/02/2024\n1,2,03/01/2024\n")
    assert load(tmp_path / "a.csv", time_format="%d/%m/%Y").order.argsort().tolist() == [1, 0]
    with pytest.raises(ValueError, match="row 1: timestamp must be a time written as '%d/%m/%Y', got '31/02/2024'"):
        order(["01/02/2024", "31/02/2024"], time_format="%d/%m/%Y")
    with pytest.raises(ValueError, match="it is for text, got Datetime"):
        order([datetime.datetime(2024, 2, 1)], time_format="%Y")
    with pytest.raises(ValueError, match=r"a format such as .* is required, got 'dd/mm'"):
        order(["01/02/2024"], time_format="dd/mm")
    with pytest.raises(ValueError, match="time_format is for a column of times, got none"):
        from_frame(pl.DataFrame({"user_id": [1], "item_id": [1]}), time_format="%Y")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2024-02-01", "2024-02-02", "17"], "row 2: timestamp must be a date, as most of the column are, got '17'"),
        (
            ["2024-02-01T00:00:00Z", "2024-02-01T00:00:00Z", "2024-02-01T00:00:00"],
            "row 2: .* must be a time with a zone",
        ),
        (["2024-02-01", "2024-02-01 00:00", "2024-02-01 00:00"], "row 0: timestamp must be a local time"),
        ([1_700_000_000, 1_700_000_001, 1_700_000_000_000], "row 2: .* in the unit of the others"),
        ([DAY, datetime.datetime(2024, 2, 1, 5)], "row 1: timestamp must be a date"),
    ],
)
def test_a_mixture_is_refused_with_its_row(times: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order(times)
    assert len(order(times, on_bad="skip")) == len(times) - 1


def test_ranks_and_counters_are_numbers_of_one_unit() -> None:
    assert order([1, 5, 10**12]) == [1, 5, 10**12]
