"""Interactions: checked columns, rows by user, a hash of the content."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data import IdMap, Interactions, from_frame

FRAME = pl.DataFrame(
    {"user_id": ["u", "v", "u", "w"], "item_id": [9, 7, 7, 9], "rating": [1, 2, 3, 4], "timestamp": [4, 3, 2, 1]}
)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=60))
def test_csr_holds_each_users_items_ascending_and_once(pairs: list[tuple[int, int]]) -> None:
    frame = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    data = from_frame(frame, duplicates="keep")
    indptr, indices = data.csr()
    assert (indptr.dtype, indices.dtype) == (np.int64, np.int32)
    for user in range(data.num_users):
        assert indices[indptr[user] : indptr[user + 1]].tolist() == sorted(set(data.items[data.users == user].tolist()))


def test_counts_cover_the_whole_catalogue() -> None:
    part = from_frame(FRAME).take([0])
    assert part.item_counts().tolist() == [1, 0]
    assert part.user_counts().tolist() == [1, 0, 0]
    assert (part.num_users, part.num_items, len(part)) == (3, 2, 1)


def test_take_by_mask_and_by_row_agree() -> None:
    data = from_frame(FRAME)
    by_mask, by_row = data.take(data.ratings > 2), data.take([2, 3])
    assert by_mask.sha256 == by_row.sha256
    assert by_row.order.tolist() == [2, 1]
    assert len(data.take([])) == 0
    with pytest.raises(ValueError, match="mask needs 4 values"):
        data.take(np.ones(3, dtype=bool))
    with pytest.raises(IndexError):
        data.take([4])


def test_hash_tells_content_apart() -> None:
    data = from_frame(FRAME)
    assert data.sha256 == from_frame(FRAME.with_columns(pl.col("rating").cast(pl.Float32))).sha256
    changed = [
        FRAME.with_columns(item_id=pl.col("item_id") + 1),
        FRAME.with_columns(rating=pl.col("rating") + 1),
        FRAME.with_columns(timestamp=pl.col("timestamp") + 1),
        FRAME.drop("rating"),
        FRAME.reverse(),
    ]
    assert len({data.sha256, *(from_frame(frame).sha256 for frame in changed)}) == 6


def test_to_frame_gives_the_external_ids_back() -> None:
    back = from_frame(FRAME).to_frame()
    assert back.select("user_id", "item_id", "timestamp").equals(FRAME.select("user_id", "item_id", "timestamp"))


def test_columns_are_checked() -> None:
    ids = {"user_ids": IdMap([1, 2], "user"), "item_ids": IdMap([1, 2], "item")}
    good = np.array([0, 1], np.int32)
    with pytest.raises(ValueError, match=r"items must be int32 \[2\], got int64"):
        Interactions(good, good.astype(np.int64), **ids)
    with pytest.raises(ValueError, match=r"users must be in \[0, 2\), got 0\.\.2"):
        Interactions(np.array([0, 2], np.int32), good, **ids)
    with pytest.raises(ValueError, match="finite, got nan at row 1"):
        Interactions(good, good, ratings=np.array([1, np.nan], np.float32), **ids)
