"""IdMap: any ids in, the same ids out."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data import IdMap, UnknownIdError, from_frame, with_features

int64s = st.integers(-(2**63), 2**63 - 1)
id_lists = st.one_of(
    st.lists(int64s, min_size=1, max_size=50),
    st.lists(st.integers(-100, 100), min_size=1, max_size=50),
    st.lists(st.integers(2**63, 2**64 - 1), min_size=1, max_size=20),
    st.lists(st.text(max_size=8), min_size=1, max_size=50),
    st.lists(st.binary(max_size=8), min_size=1, max_size=20),
    st.lists(st.dates(), min_size=1, max_size=20),
)


@given(id_lists)
def test_every_id_comes_back(values: list[object]) -> None:
    ids = IdMap.from_values(values, "item")
    codes = ids.encode(values)
    assert codes.dtype == np.int32
    assert ids.values.gather(codes).to_list() == values
    assert set(codes.tolist()) == set(range(len(ids)))
    back = pl.Series(ids.decode(codes)).cast(ids.values.dtype).to_list()
    assert back == values


@given(id_lists)
def test_indices_go_by_first_appearance(values: list[object]) -> None:
    assert IdMap.from_values(values, "user").values.to_list() == list(dict.fromkeys(values))


@given(st.lists(int64s, unique=True, min_size=1, max_size=30), st.lists(int64s, max_size=30))
def test_unknown_integers_are_told_from_known(known: list[int], asked: list[int]) -> None:
    codes = IdMap(known, "item").encode(asked, unknown=-1)
    assert codes.tolist() == [known.index(value) if value in known else -1 for value in asked]


def test_texts_of_one_hash_are_told_apart() -> None:
    texts = ["12", "12.0", "True", "true", "", "a", "-3.0", "-3"]  # hash_text makes one value of some of these
    ids = IdMap(texts, "item")
    assert ids.encode(texts).tolist() == list(range(8))
    assert ids.encode([*reversed(texts), "12.00", None, "False"], unknown=-1).tolist() == [
        *range(7, -1, -1),
        -1,
        -1,
        -1,
    ]
    assert IdMap(texts[1:], "item").encode(["12", "12.0"], unknown=-1).tolist() == [-1, 0]


@pytest.mark.parametrize("values", [["a", "b"], [1, 2**40], [dt.date(2020, 1, 1), dt.date(2021, 1, 1)], [False, True]])
def test_missing_ids_are_unknown(values: list[object]) -> None:
    ids = IdMap(values, "user")
    assert ids.encode([*values, None, values[0]], unknown=-1).tolist() == [0, 1, -1, 0]
    assert ids.encode([None, None], unknown=-7).tolist() == [-7, -7]


def test_threads_build_the_index_together() -> None:
    for values in (np.arange(50_000)[::-1], [f"id-{i}" for i in range(50_000)], np.arange(50_000) * 10**12):
        ids = IdMap(values, "user")
        with ThreadPoolExecutor(8) as pool:
            for codes in pool.map(ids.encode, [values] * 8):
                assert np.array_equal(codes, np.arange(50_000))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64])
def test_integer_types_are_kept(dtype: type) -> None:
    limits = np.iinfo(dtype)
    ids = IdMap(np.array([limits.max, limits.min, 3], dtype=dtype), "user")
    assert ids.decode([0, 1]).dtype == dtype
    assert ids.encode([limits.min, limits.max, 3, 4], unknown=-1).tolist() == [1, 0, 2, -1]


def test_ids_beyond_int32_are_kept() -> None:
    ids = IdMap([2**40, 2**40 + 1, -(2**50)], "item")
    assert ids.decode(ids.encode([-(2**50), 2**40])).tolist() == [-(2**50), 2**40]


def test_unknown_ids_are_named_with_a_remedy() -> None:
    ids = IdMap(["anna", "bert"], "user")
    with pytest.raises(UnknownIdError, match=r"user id .* 2 known .* 1 unknown: 'carl'; drop them, or pass unknown=-1"):
        ids.encode(["anna", "carl", "carl"])
    assert ids.encode(["carl", "bert"], unknown=-1).tolist() == [-1, 1]


def test_text_for_integer_ids_is_refused_but_parsed_on_request() -> None:
    ids = IdMap([10, 20], "user")
    with pytest.raises(TypeError, match=r"ids here are integers, got strings \('20'\)"):
        ids.encode(["20"])
    assert ids.encode(ids.parse(["20"])).tolist() == [1]
    with pytest.raises(ValueError, match=r"got 'x'; an example of one is 10"):
        ids.parse(["x"])


def test_one_id_counts_as_a_list() -> None:
    assert IdMap(["a", "b"], "item").encode("b").tolist() == [1]
    assert IdMap([5, 6], "item").encode(np.int64(6)).tolist() == [1]


def test_no_ids_give_an_empty_answer() -> None:
    assert IdMap([1, 2], "item").encode([]).shape == (0,)
    assert IdMap([1, 2], "item").decode([]).shape == (0,)


def test_missing_among_asked_ids_is_unknown() -> None:
    assert IdMap([1, 2], "item").encode([2, None], unknown=-1).tolist() == [1, -1]
    assert IdMap(["a"], "item").encode(["a", None], unknown=-1).tolist() == [0, -1]


@pytest.mark.parametrize("values", [[1, "a"], [object()], [[1], [2]], [1.5]])
def test_ids_that_cannot_be_mapped_are_refused(values: list[object]) -> None:
    with pytest.raises(TypeError, match="convert them with str"):
        IdMap.from_values(values, "item")


def test_a_map_needs_distinct_present_ids() -> None:
    with pytest.raises(ValueError, match="distinct"):
        IdMap([1, 1], "item")
    with pytest.raises(ValueError, match="missing"):
        IdMap([1, None], "item")


def test_index_out_of_range_names_value_and_position() -> None:
    with pytest.raises(IndexError, match=r"in \[0, 2\), got 7 at position 1"):
        IdMap([1, 2], "item").decode([0, 7])
    with pytest.raises(TypeError, match="integer indices"):
        IdMap([1, 2], "item").decode([0.5])


def test_pandas_and_categories_are_read() -> None:
    ids = IdMap.from_values(pd.Series(["x", "y", "x"], dtype="category"), "item")
    assert ids.encode(pd.Series(["y"])).tolist() == [1]
    assert IdMap.from_values(pl.Series(["x", "y"], dtype=pl.Categorical), "item").decode([1]).tolist() == ["y"]


def test_hash_depends_on_ids_and_their_order_not_on_integer_width() -> None:
    assert IdMap(np.array([1, 2], np.int32), "item").sha256() == IdMap(np.array([1, 2]), "item").sha256()
    assert IdMap([1, 2], "item").sha256() != IdMap([2, 1], "item").sha256()
    assert IdMap(["ab", "c"], "item").sha256() != IdMap(["a", "bc"], "item").sha256()


@given(id_lists)
def test_parquet_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    path = tmp_path_factory.mktemp("ids") / "items.parquet"
    ids = IdMap.from_values(values, "item")
    ids.write_parquet(path)
    assert IdMap.read_parquet(path, "item") == ids
    assert [entry.name for entry in path.parent.iterdir()] == ["items.parquet"]


def test_a_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"items\.parquet must hold a column item_id"):
        IdMap.read_parquet(path, "item")
    IdMap([1], "user").write_parquet(path)
    with pytest.raises(ValueError, match="item_id"):
        IdMap.read_parquet(path, "item")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([5, 3], [3, 9, 9, 7], [5, 3, 9, 7]),
        (["b", "a"], ["c", "a"], ["b", "a", "c"]),
        ([], ["c", "a", "c"], ["c", "a"]),
        ([5, 3], [], [5, 3]),
        ([5, 3], [4.0, 3.0], [5, 3, 4]),
        (np.array([1, 2], dtype=np.int8), [300, 2], [1, 2, 300]),
        (np.array([1, 2], dtype=np.int64), np.array([2**63 + 1], dtype=np.uint64), [1, 2, 2**63 + 1]),
    ],
)
def test_a_grown_map_keeps_its_numbers(old: Any, new: Any, expected: list[Any]) -> None:
    ids = IdMap(old, "item")
    grown = ids.grown(new)
    assert grown.values.to_list() == expected
    assert ids.values.to_list() == list(old)
    if len(old):
        assert grown.encode(ids.values).tolist() == list(range(len(ids)))


def test_a_map_grows_by_ids_of_its_own_kind_only() -> None:
    with pytest.raises(TypeError, match="item ids here are integers, got strings"):
        IdMap([1, 2], "item").grown(["a"])
    with pytest.raises(ValueError, match="must not be missing, got 1 null"):
        IdMap([1, 2], "item").grown([3, None])
    with pytest.raises(ValueError, match="must fit in UInt64"):
        IdMap([-1, 2], "item").grown(np.array([2**63 + 1], dtype=np.uint64))


def test_blanks_around_ids_are_stripped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    data = from_frame(pl.DataFrame({"user_id": [" a", "a ", "b"], "item_id": ["x", "y\t", "x"]}))
    assert data.user_ids.values.to_list() == ["a", "b"]
    assert data.repairs == {"user_ids_with_blanks_stripped": 2, "item_ids_with_blanks_stripped": 1}
    assert data.user_ids.encode([" a", "b  ", "a"]).tolist() == [0, 1, 0]
    assert data.user_ids.encode([" c"], unknown=-1).tolist() == [-1]
    table = pl.DataFrame({"user_id": ["a", " b "], "age": [1, 2]})
    assert with_features(data, users=table).user_features["age"].to_list() == [1, 2]
    assert "ids_with_blanks_stripped 1" in caplog.text
    with pytest.raises(ValueError, match="row 1: user_id must be an id, got '  '"):
        from_frame(pl.DataFrame({"user_id": ["a", "  "], "item_id": [1, 2]}))


def test_a_map_keeps_ids_as_they_were_saved(tmp_path: Path) -> None:
    ids = IdMap([" a", "a"], "user")  # of a model saved before blanks were stripped
    ids.write_parquet(tmp_path / "ids.parquet")
    assert IdMap.read_parquet(tmp_path / "ids.parquet", "user").encode([" a", "a", "a "]).tolist() == [0, 1, 1]


@pytest.mark.parametrize("id_", [2.0**53, 1e19, -(2.0**60)])
def test_floats_that_have_lost_digits_are_refused_with_the_remedy(id_: float) -> None:
    with pytest.raises(
        TypeError, match=r"in row 1, which has lost digits; read the column as text or as integers \(Int64"
    ):
        from_frame(pl.DataFrame({"user_id": [1.0, id_], "item_id": [1, 2]}))


def test_mixed_ids_name_the_row() -> None:
    message = "one type for all, got values of several types, such as 1 in row 0 and 'a' in row 2"
    with pytest.raises(TypeError, match=message):
        from_frame(pd.DataFrame({"user_id": [1, None, "a"], "item_id": [1, 2, 3]}))


def test_side_information_may_hold_columns_without_values(caplog: pytest.LogCaptureFixture) -> None:
    data = from_frame(pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2]}))
    table = pd.DataFrame({"user_id": [2, 1], "made": [object(), len], "tags": [["a", "b"], "a"], "mix": [1, "x"]})
    features = with_features(data, users=table).user_features
    assert features.columns == ["user_id", "tags", "mix"]
    assert features["tags"].to_list() == [["a"], ["a", "b"]]
    assert "left out, as no values are in them: ['made']" in caplog.text
