"""Clicks with histories: what a row knows is what came before it, against a plain loop over real and made events."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.data import Interactions, clicks_with_histories, from_frame, load_clicks, with_features

EVENTS = pl.DataFrame(
    {
        "user_id": ["b", "a", "a", "b", "a", "c", "b", "a", "a"],
        "item_id": ["p", "q", "r", "q", "s", "p", "t", "q", "u"],
        "timestamp": [5, 3, 1, 2, 3, 9, 9, 7, 8],
    }
)


def made(events: pl.DataFrame = EVENTS, **options: object) -> Interactions:
    data = from_frame(events, duplicates="keep", **options)
    kinds = pl.DataFrame({"item_id": sorted(events["item_id"].unique())})
    return with_features(data, items=kinds.with_columns(kind=pl.col("item_id").str.to_uppercase()))


def before(data: Interactions, length: int | None, min_history: int) -> list[tuple[str, str, list[str], int]]:
    """(user, item, history, events of the user after it) of each event, row by row."""
    users, items = data.user_ids.values.to_list(), data.item_ids.values.to_list()
    assert data.order is not None
    rows = sorted(range(len(data)), key=lambda row: (data.users[row], data.order[row], row))
    out = []
    for at, row in enumerate(rows):
        own = [items[data.items[other]] for other in rows[:at] if data.users[other] == data.users[row]]
        after = sum(data.users[other] == data.users[row] for other in rows[at + 1 :])
        if len(own) >= min_history:
            kept = own if length is None else own[max(0, len(own) - length) :]
            out.append((users[data.users[row]], items[data.items[row]], kept, after))
    return out


@pytest.mark.parametrize("length", [None, 2])
@pytest.mark.parametrize("min_history", [0, 1])
def test_each_event_knows_what_came_before_it(length: int | None, min_history: int) -> None:
    data = made()
    clicks = clicks_with_histories(data, length=length, min_history=min_history, columns=("kind",))
    expected = before(data, length, min_history)
    for after, frame in ((2, clicks.source), (1, clicks.validation), (0, clicks.test)):
        positives = frame.filter(pl.col("label") == 1)
        mine = [row[:3] for row in expected if (row[3] == after if after < 2 else row[3] >= 2)]
        assert list(positives.select("user_id", "item_id", "history").iter_rows()) == mine
        for frame_of in (frame, positives):
            assert frame_of["kind"].to_list() == frame_of["item_id"].str.to_uppercase().to_list()
        uppercase = [[item.upper() for item in history] for history in frame["history"].to_list()]
        assert frame["history_kind"].to_list() == uppercase


def test_negatives_are_items_that_the_user_meets_nowhere() -> None:
    rng = np.random.default_rng(0)
    events = pl.DataFrame(
        {"user_id": rng.integers(20, size=900), "item_id": rng.integers(60, size=900), "timestamp": np.arange(900)}
    )
    data = from_frame(events, duplicates="keep")
    clicks = clicks_with_histories(data, negatives=3, seed=4)
    met = {user: set(own["item_id"].to_list()) for (user,), own in events.group_by("user_id")}
    rows = pl.concat([clicks.source, clicks.validation, clicks.test])
    assert rows["label"].mean() == 0.25
    of = rows.filter(pl.col("label") == 0).select("user_id", "item_id", "history").rows()
    assert all(item not in met[user] for user, item, _ in of)
    groups = [{item for _, item, _ in of[at : at + 3]} for at in range(0, len(of), 3)]
    assert all(len(group) == 3 for group in groups)
    first = [group for group, (user, _, _) in zip(groups, of[::3], strict=True) if user == of[0][0]]
    assert len({tuple(sorted(group)) for group in first}) > len(first) // 2, "each event has a draw of its own"
    again, other = (clicks_with_histories(data, negatives=3, seed=seed) for seed in (4, 5))
    assert again.source.equals(clicks.source)
    assert not other.source.equals(clicks.source)
    shares = np.bincount([item for _, item, _ in of], minlength=60) / len(of)
    unmet = np.mean([[item not in own for item in range(60)] for own in met.values()], axis=0)
    assert abs(shares / shares.sum() - unmet / unmet.sum()).max() < 0.02  # uniform among the unmet


def test_a_later_event_changes_no_earlier_history() -> None:
    planted = pl.DataFrame({"user_id": ["a"], "item_id": ["future"], "timestamp": [6]})
    data, more = made(), made(pl.concat([planted, EVENTS]))
    old = {(user, item, tuple(own)) for user, item, own, _ in before(data, None, 0) if user == "a"}
    clicks = clicks_with_histories(more, min_history=0, length=None)
    rows = pl.concat([clicks.source, clicks.validation, clicks.test]).filter(pl.col("label") == 1)
    got = {(u, i, tuple(h)) for u, i, h in rows.select("user_id", "item_id", "history").rows() if u == "a"}
    assert all("future" not in history for _, item, history in got if item in ("q", "r", "s") and len(history) < 3)
    assert {row for row in old if len(row[2]) < 3} <= got
    assert {item for _, item, history in got if "future" in history} == {"q", "u"}


def test_a_split_by_time_trains_before_it_tests() -> None:
    clicks = clicks_with_histories(made(), split="time", shares=(0.25, 0.25), min_history=0)
    times = {name: set(frame.filter(pl.col("label") == 1)["item_id"]) for name, frame in
             (("train", clicks.source), ("validation", clicks.validation), ("test", clicks.test))}  # fmt: skip
    assert times == {"train": {"p", "q", "r", "s"}, "validation": {"q", "u"}, "test": {"p", "t"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "negatives must be >= 1, got 0"),
        ({"length": 0}, "length must be >= 1"),
        ({"min_history": -1}, "min_history must be >= 0"),
        ({"split": "user"}, "split must be position or time, got 'user'"),
        ({"split": "time", "shares": (0.5, 0.5)}, "shares must be > 0 with a sum below 1"),
        ({"columns": ("knd",)}, "columns must be of the items' table, .*got 'knd'"),
        ({"negatives": 3}, "needs 3 items not yet met, got"),
        ({"min_history": 5}, "the train part must hold rows"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clicks_with_histories(made(), **options)


def test_interactions_without_an_order_have_no_histories() -> None:
    with pytest.raises(ValueError, match="the data must have an order, got frame without"):
        clicks_with_histories(from_frame(EVENTS.drop("timestamp"), duplicates="keep"))


def data_folder() -> Path:
    folder = os.environ.get("DEEPREC_DATA")
    if not folder or not (Path(folder) / "mind-extract").is_dir():
        pytest.skip("DEEPREC_DATA has no mind-extract and amazon-grocery-time")
    return Path(folder)


def test_groceries_are_the_events_of_the_file() -> None:
    data_folder()
    log = load_clicks("amazon-grocery-clicks")
    assert log.name == "amazon-grocery-clicks"
    assert log.counts == {"train": 155_698, "validation": 29_362, "test": 29_362}
    assert [part.positives * 2 for part in log.parts.values()] == list(log.counts.values())
    assert sum(log.counts.values()) == 2 * (121_892 - 14_681)  # the first event of a user has no history
    bags = log.parts["test"].bags
    assert np.array_equal(bags["history"].offsets, bags["history_category"].offsets)
    assert np.diff(bags["history"].offsets).min() >= 1


def test_impressions_of_news_are_those_of_the_file() -> None:
    data_folder()
    log = load_clicks("mind-clicks")
    assert sum(log.counts.values()) == 126_245
    assert sum(part.positives for part in log.parts.values()) == 5_036
    groups = [np.unique(part.groups) for part in log.parts.values()]
    assert sum(map(len, groups)) == len(np.unique(np.concatenate(groups))) == 3_318  # no impression is divided
