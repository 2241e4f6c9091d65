"""Sessions: by a column, by a gap in time, from the files that hold them; what is sifted out is counted."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.data import Interactions, from_frame, load, sessions

MINUTE = 60
START = 1_600_000_000


def make(rows: list[tuple[str, int, int]]) -> Interactions:
    """Rows of (user, item, minute)."""
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return from_frame(frame.with_columns(pl.col("timestamp") * MINUTE + START), duplicates="keep")


def lists(data: Interactions) -> dict[int, list[int]]:
    ordered = np.lexsort((data.order, data.users))
    frame = data.to_frame()[ordered].group_by("user_id", maintain_order=True).agg("item_id")
    return dict(frame.iter_rows())


def test_a_gap_ends_a_session_whose_user_and_start_are_known() -> None:
    data = make([("a", 1, 0), ("b", 5, 10), ("a", 2, 30), ("a", 2, 61), ("b", 5, 20), ("a", 1, 70), ("b", 6, 500)])
    cut = sessions(data)
    assert lists(cut) == {0: [1, 2], 1: [5, 5], 2: [2, 1], 3: [6]}
    assert cut.user_features.rows() == [
        (0, "a", START), (1, "b", START + 10 * MINUTE), (2, "a", START + 61 * MINUTE), (3, "b", START + 500 * MINUTE)
    ]  # fmt: skip
    assert len(cut) == len(data)
    for gap in (timedelta(minutes=30), 1800, "0.5h", "1800s"):
        assert sessions(data, gap).sha256 == cut.sha256
    assert lists(sessions(data, 0)) == {0: [1], 1: [5], 2: [5], 3: [2], 4: [2], 5: [1], 6: [6]}
    assert lists(sessions(data, "1d")) == {0: [1, 2, 2, 1], 1: [5, 5, 6]}


@pytest.mark.parametrize("ticks", [1, 10**3, 10**6, 10**9])
def test_the_unit_of_times_is_known_by_their_size(ticks: int) -> None:
    data = from_frame(
        pl.DataFrame(
            {"user_id": [1] * 3, "item_id": [1, 2, 3], "timestamp": [(START + t) * ticks for t in (0, 1800, 3601)]}
        )
    )
    assert lists(sessions(data, "30m")) == {0: [1, 2], 1: [3]}


def test_equal_times_stay_in_the_order_of_the_rows_and_shuffled_users_change_nothing() -> None:
    rows = [("a", 3, 0), ("a", 1, 0), ("a", 2, 0), ("b", 9, 0), ("b", 7, 40), ("c", 8, 40)]
    assert lists(sessions(make(rows))) == {0: [3, 1, 2], 1: [9], 2: [7], 3: [8]}
    other = sessions(make([rows[place] for place in (3, 5, 0, 4, 1, 2)]))
    assert sorted(lists(other).values()) == sorted([[3, 1, 2], [9], [7], [8]])


def test_sifting_follows_the_authors_and_is_counted() -> None:
    data = make(
        [("a", 1, 0), ("a", 1, 1), ("a", 2, 2), ("b", 1, 0), ("b", 3, 1), ("c", 1, 5), ("d", 2, 0), ("d", 1, 1)]
    )
    kept = sessions(data, min_events=2, min_support=2)
    assert lists(kept) == {0: [1, 1, 2], 2: [2, 1]}
    assert kept.repairs == {"rows_of_rare_items_dropped": 1, "short_sessions_dropped": 2}
    assert kept.num_items == 2
    assert kept.user_ids.values.to_list() == [0, 2]
    assert kept.user_features["owner"].to_list() == ["a", "d"]
    once = sessions(data, repeats="drop")
    assert lists(once)[0] == [1, 2]
    assert once.repairs == {"repeats_dropped": 1}


def test_a_column_of_sessions_takes_the_place_of_users(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "visit": [" x", "y", "x", "y", "z"],
            "who": [1, 2, 1, 2, 1],
            "item_id": [4, 4, 4, 5, 6],
            "timestamp": [3, 1, 5, 2, 9],
        }
    )
    data = from_frame(frame, "who", session="visit")
    assert lists(data) == {"x": [4, 4], "y": [4, 5], "z": [6]}
    assert data.user_features.rows() == [("x", 1, 3), ("y", 2, 1), ("z", 1, 9)]
    assert "owner" not in from_frame(frame, session="visit").user_features.columns
    assert len(from_frame(frame, "who", session="visit", duplicates="latest")) == 4
    frame.write_csv(tmp_path / "visits.csv")
    read = load(tmp_path / "visits.csv", user="who", session="visit")
    assert read.sha256 == data.sha256
    assert read.user_features.equals(data.user_features)
    frame.filter(pl.col("who") == 1).write_csv(tmp_path / "early.csv")
    frame.filter(pl.col("who") == 2).write_csv(tmp_path / "late.csv")
    divided = load(tmp_path / "early.csv", user="who", session="visit", test=tmp_path / "late.csv")
    assert lists(divided) == lists(data)
    assert sorted(divided.user_features.rows()) == sorted(data.user_features.rows())
    assert divided.to_frame()["user_id"][divided.official.test_index].to_list() == ["y", "y"]
    sifted = sessions(read, None, min_events=2)
    assert sifted.user_features.rows() == [("x", 1, 3), ("y", 2, 1)]
    with pytest.raises(ValueError, match="needs a column 'visits' for the user"):
        from_frame(frame, session="visits")


def test_clicks_of_rsc15_are_read_to_the_millisecond(tmp_path: Path) -> None:
    path = tmp_path / "yoochoose-clicks.dat"
    path.write_text(
        "1,2014-04-07T10:51:09.277Z,214536502,0\n1,2014-04-07T10:54:09.868Z,214536500,S\n"
        "2,2014-04-07T10:51:09.276Z,214536502,0\n1,2014-04-07T10:54:09.867Z,214536502,0\n"
    )
    for options in ({}, {"format": "rsc15"}, {"session": 0, "timestamp": 1, "item": 2, "header": False}):
        data = load(path, **options)
        assert lists(data) == {1: [214536502, 214536502, 214536500], 2: [214536502]}
        assert (data.order - data.order.min()).tolist() == [1000, 180_592_000, 0, 180_591_000]
        assert data.user_features["start"].to_list() == [data.order[0], data.order[2]]
        assert data.user_features.columns == ["user_id", "start"]


def test_sessions_and_prefixes_are_read_with_their_repeats(tmp_path: Path) -> None:
    lines = tmp_path / "sessions.txt"
    lines.write_text("5 6 5\n7 8\n9 9\n1 2 3 4\n")
    assert lists(load(lines, format="sessions")) == {0: [5, 6, 5], 1: [7, 8], 2: [9, 9], 3: [1, 2, 3, 4]}
    prefixes = tmp_path / "test.txt"
    prefixes.write_text("5 6 5\t7\n5 6\t5\n5\t6\n8\t8\n5 6\t5\n5\t6\n")
    for options in ({}, {"format": "prefixes"}):
        assert lists(load(prefixes, **options)) == {0: [5, 6, 5, 7], 1: [8, 8], 2: [5, 6, 5]}
    prefixes.write_text("5 6 5\t7\n5 6 5\n")
    with pytest.raises(ValueError, match="line 2 must be 'item item"):
        load(prefixes, format="prefixes")
    with pytest.raises(ValueError, match="have no columns, got item"):
        load(prefixes, format="prefixes", item=0)


def test_what_does_not_fit_is_refused() -> None:
    data = make([("a", 1, 0), ("a", 2, 1)])
    for gap in ("30", "half an hour", "-3m"):
        with pytest.raises(ValueError, match="gap must be such as '30m'"):
            sessions(data, gap)
    with pytest.raises(ValueError, match="gap must be at least 0"):
        sessions(data, -1)
    with pytest.raises(ValueError, match="min_events must be a whole number of at least 1, got 0"):
        sessions(data, min_events=0)
    with pytest.raises(ValueError, match="an event must be left, got none of the 2"):
        sessions(data, min_support=5)
    small = from_frame(pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]}))
    with pytest.raises(ValueError, match="which are no epoch; give it as a number"):
        sessions(small)
    with pytest.raises(ValueError, match="events must be in order"):
        sessions(from_frame(pl.DataFrame({"user_id": [1], "item_id": [1]})))
