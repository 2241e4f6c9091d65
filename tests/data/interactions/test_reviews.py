"""Reviews: interactions with a text for each row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.data import Interactions, Reviews, from_frame, load, positives
from deeprec.evaluate import protocol
from deeprec.evaluate.tasks import joined_rows

FRAME = pl.DataFrame(
    {
        "user_id": ["b", "a", "b", "a", "c", "b"],
        "item_id": [1, 1, 2, 3, 3, 1],
        "rating": [5.0, 4.0, 1.0, 2.0, 3.0, 2.0],
        "timestamp": [1, 2, 3, 4, 5, 6],
        "text": ["old", "fine", None, "  ", "bad", "new"],
    }
)


def test_rows_keep_their_texts() -> None:
    data = from_frame(FRAME, review="text")
    assert isinstance(data, Reviews)
    assert repr(data) == "Reviews(frame: 5 rows, 3 users, 3 items, ratings, order, reviews)"
    assert data.row_texts().to_list() == ["fine", None, None, "bad", "new"]  # of a pair the latest row
    assert data.to_frame()["review"].to_list() == data.row_texts().to_list()
    part = data.take(np.array([4, 0]))
    assert isinstance(part, Reviews)
    assert part.row_texts().to_list() == ["new", "fine"]
    assert joined_rows(part, data.take(data.users == 2)).row_texts().to_list() == ["new", "fine", "bad"]
    assert data.of_pairs(data.users[:1], data.items[:1]).row_texts().to_list() == [None]
    assert positives(data, min_rating=3).row_texts().to_list() == ["fine", "bad"]


def test_hash_goes_by_the_texts_and_not_by_their_places() -> None:
    data = from_frame(FRAME, review="text")
    shuffled = from_frame(FRAME.sample(fraction=1, shuffle=True, seed=3), review="text")
    assert data.sha256 != shuffled.sha256
    assert data.canonical().sha256 == shuffled.canonical().sha256
    other = from_frame(FRAME.with_columns(text=pl.Series(["old", "fine", None, "  ", "bad", "newer"])), review="text")
    assert other.sha256 != data.sha256
    assert from_frame(FRAME).sha256 == Interactions(**{
        name: getattr(data, name) for name in ("users", "items", "user_ids", "item_ids", "ratings", "order")
    }).sha256  # fmt: skip


def test_files_and_parts_are_read_with_texts(tmp_path: Path) -> None:
    FRAME.head(3).write_ndjson(tmp_path / "train.jsonl")
    FRAME.tail(2).write_ndjson(tmp_path / "test.jsonl")
    one = load(tmp_path / "train.jsonl", review="text")
    assert one.row_texts().to_list() == ["old", "fine", None]
    both = load(tmp_path / "train.jsonl", test=tmp_path / "test.jsonl", review="text")
    assert both.row_texts().to_list() == ["fine", None, "bad", "new"]
    split = protocol("full", holdout="official", validation="none").split(both)
    assert split.test.row_texts().to_list() == ["bad", "new"]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="needs a column 'texts' for the review"):
        from_frame(FRAME, review="texts")
    with pytest.raises(ValueError, match="tags and reviews do not go together"):
        from_frame(FRAME.with_columns(tag=pl.lit("x")), tag="tag", review="text")
    data = from_frame(FRAME, review="text")
    columns = {name: getattr(data, name) for name in ("users", "items", "user_ids", "item_ids")}
    with pytest.raises(ValueError, match=r"reviews must be int32 \[5\], got int64 \[5\]"):
        Reviews(**columns, reviews=np.zeros(5, np.int64), texts=data.texts)
    with pytest.raises(ValueError, match=r"reviews must be in \[0, 6\), or -1 for none, got 0 to 6"):
        Reviews(**columns, reviews=np.array([0, 1, 2, 3, 6], np.int32), texts=pl.Series(["a"] * 6))
