"""Frames of any make: what columns of Python objects become, and what is refused by name."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from deeprec.data.clicks.log import in_memory
from deeprec.data.columns.kinds import Sequence
from deeprec.data.columns.schema import Bag, Categorical, FeatureSchema, Numeric
from deeprec.data.columns.table import EncodedTable
from deeprec.data.reading.chunks import BagColumn, ColumnsToRead
from deeprec.data.reading.frames import frame_of, is_index_name
from deeprec.data.reading.hashing import hash_text
from deeprec.data.reading.sources import open_source
from deeprec.data.sets.click_datasets import load_clicks


class Table(pd.DataFrame):
    """A subclass as geopandas has one."""

    @property
    def _constructor(self) -> Any:
        return Table


CELLS: list[Any] = [["a", "b"], "a", ("c",), {"e", "d"}, np.array(["a", "f"]), None, float("nan"), [], "a|b"]
BAGS = [["a", "b"], ["a"], ["c"], ["d", "e"], ["a", "f"], [], [], [], ["a|b"]]
WAYS: list[Callable[[list[Any]], Any]] = [
    lambda cells: pd.DataFrame({"tags": cells}),
    lambda cells: Table({"tags": cells}),
    lambda cells: pl.DataFrame({"tags": pl.Series(cells, dtype=pl.Object)}),
]


def bags_of(source: Any, bag: str = "tags") -> list[list[int]]:
    (chunk,) = open_source(source).chunks(ColumnsToRead((), (), (BagColumn(bag),)))
    made = chunk.bags[bag]
    return [made.hashes[start:end].tolist() for start, end in zip(made.offsets, made.offsets[1:], strict=False)]


@pytest.mark.parametrize("way", WAYS)
def test_lone_values_beside_lists_are_bags_of_one(way: Any) -> None:
    assert bags_of(way(CELLS)) == [hash_text(values).tolist() for values in BAGS]


def test_lone_values_are_the_same_in_parquet(tmp_path: Path) -> None:
    frame_of(pd.DataFrame({"tags": CELLS}), "test").write_parquet(tmp_path / "a.parquet")
    assert bags_of(tmp_path / "a.parquet") == [hash_text(values).tolist() for values in BAGS]


def test_lone_values_are_the_same_in_json_lines(tmp_path: Path) -> None:
    cells = [sorted(c) if isinstance(c, tuple | set | np.ndarray) else c if c == c else None for c in CELLS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"tags": cell}) + "\n" for cell in cells))
    assert bags_of(tmp_path / "a.jsonl") == [hash_text(values).tolist() for values in BAGS]
    source = open_source(tmp_path / "a.jsonl", block_bytes=16)  # a block without a list is of the same type
    chunks = source.chunks(ColumnsToRead((), (), (BagColumn("tags"),)))
    hashes = [value for chunk in chunks for value in chunk.bags["tags"].hashes.tolist()]
    assert hashes == [value for values in BAGS for value in hash_text(values).tolist()]


def test_numbers_and_text_of_one_spelling_are_one_value_of_a_bag() -> None:
    cells = [[1, 2], 1, "2", [1.0, "x"], np.int64(2), [np.float32(1)], True]
    expected = [["1", "2"], ["1"], ["2"], ["1", "x"], ["2"], ["1"], ["true"]]
    assert bags_of(pd.DataFrame({"tags": cells})) == [hash_text(values).tolist() for values in expected]


@pytest.mark.parametrize("kind", [Bag, Sequence])
def test_bags_of_frames_are_the_same_in_training_and_serving(kind: Any) -> None:
    frame = pd.DataFrame({"tags": [["a", "b"], "a", "b", None] * 25, "label": [0, 1] * 50})
    log = in_memory(frame, FeatureSchema((kind("tags"),)))
    assert log.inputs.compressed[0].size == 3  # a, b and unknown
    (served,) = log.encoder.stream(pd.DataFrame({"tags": ["a", ["b", "a"]]}))
    assert (
        served.bags["tags"].ids.tolist()
        == log.encoder.encode(
            next(
                iter(
                    open_source(pl.DataFrame({"tags": [["a"], ["b", "a"]]})).chunks(
                        ColumnsToRead((), (), (BagColumn("tags"),))
                    )
                )
            ),
            with_labels=False,
        )
        .bags["tags"]
        .ids.tolist()
    )
    table = EncodedTable.fit(FeatureSchema((kind("tags"),), label=None), frame[["tags"]])
    assert np.diff(table.rows.bags["tags"].offsets)[:4].tolist() == [2, 1, 1, 0]


def test_lists_written_as_text_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"tags": ["['a', 'b']", "['c']"] * 20, "label": [0, 1] * 20})
    frame.to_csv(tmp_path / "a.csv", index=False)
    for source in (frame, tmp_path / "a.csv"):
        with pytest.raises(ValueError, match=r"'tags' of .* got lists written as text such as .*join their values"):
            in_memory(source, FeatureSchema((Bag("tags"),)))


ODD = {
    "mixed": [1, "a", None],
    "interval": pd.cut(pd.Series([1.0, 2.0, 3.0]), 2),
    "period": pd.Series(pd.period_range("2024-01", periods=3, freq="M")),
    "record": [{"a": 1}, {"a": [2]}, None],
    "nested": [[[1]], [[2, 3]], []],
    "bytes": [b"x", b"\xff", None],
    "decimal": [decimal.Decimal("1.5"), None, decimal.Decimal("2")],
    "object": [object(), object(), None],
    "function": [len, "a", 1],
    "complex": [1 + 2j, 2, 3],
    "dates": [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, 5), None],
    "large": [2**70, 1, None],
    "": [0, 1, 2],
    3: [1, 2, 3],
}


@pytest.mark.parametrize("make", [pd.DataFrame, Table])
def test_columns_that_nobody_asked_for_break_nothing(make: Any) -> None:
    source = open_source(make({**ODD, "a": ["x", "y", "x"], "label": [0, 1, 1]}))
    (chunk,) = source.chunks(ColumnsToRead(("a", "mixed", "interval", "period"), ("3",)))
    assert chunk.hashes["mixed"].tolist() == hash_text(["1", "a", None]).tolist()
    assert chunk.hashes["interval"].tolist() == hash_text(["(0.998, 2.0]", "(0.998, 2.0]", "(2.0, 3.0]"]).tolist()
    assert chunk.hashes["period"].tolist() == hash_text(["2024-01", "2024-02", "2024-03"]).tolist()
    assert source.sha256
    with pytest.raises(TypeError, match=r"'function' of frame must hold one value a row, got <built-in.* in row 0"):
        source.check(ColumnsToRead(("function",)))
    with pytest.raises(TypeError, match="'object' of frame must hold numbers, got <object object"):
        source.check(ColumnsToRead((), ("object",)))


def test_every_reader_refuses_a_name_twice_in_the_same_words(tmp_path: Path) -> None:
    twice = pd.DataFrame([[1, 2, 3]], columns=["user_id", "item_id", "item_id"])
    twice.to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.csv").write_text("user_id,item_id,item_id\n1,2,3\n")
    words = r"must have a name of its own, got \['item_id'\] more than once; rename them"
    from deeprec.data import from_frame, infer_schema, load, with_features

    data = from_frame(pl.DataFrame({"user_id": [1], "item_id": [2]}))
    readers: list[Callable[[], Any]] = [
        lambda: from_frame(twice),
        lambda: load(tmp_path / "a.csv"),
        lambda: open_source(twice),
        lambda: open_source(tmp_path / "a.csv"),
        lambda: infer_schema(twice),
        lambda: with_features(data, items=twice),
    ]
    for read in readers:
        with pytest.raises(ValueError, match=words):
            read()


def test_a_subclass_and_a_lazy_frame_are_frames_everywhere() -> None:
    from deeprec.data import from_frame, infer_schema, with_features

    columns = {"user_id": [1, 2] * 20, "item_id": [3, 4] * 20, "age": [0.5, 1.5] * 20, "label": [1, 0] * 20}
    for frame in (Table(columns), pl.DataFrame(columns).lazy()):
        data = from_frame(frame)
        assert with_features(data, users=frame.head(1)).user_features is not None
        assert infer_schema(frame).features
        assert load_clicks(frame, FeatureSchema((Categorical("item_id"), Numeric("age")))).counts["train"]


def test_an_index_without_a_name_is_known_by_its_name() -> None:
    assert [name for name in ("", "Unnamed: 0", "__index_level_0__", "unnamed", "index") if is_index_name(name)] == [
        "", "Unnamed: 0", "__index_level_0__",
    ]  # fmt: skip


def test_blanks_around_categories_and_values_of_bags_are_no_part_of_them(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [" x", "x\t", "x", "  ", "y z"], "tags": [" p | q ", "p|q", "p", " ", "|"]})
    frame.write_csv(tmp_path / "a.csv")
    frame.write_parquet(tmp_path / "a.parquet")
    for source in (frame, frame.to_pandas(), tmp_path / "a.csv", tmp_path / "a.parquet"):
        (chunk,) = open_source(source).chunks(ColumnsToRead(("a",), (), (BagColumn("tags"),)))
        assert chunk.hashes["a"].tolist() == hash_text(["x", "x", "x", "", "y z"]).tolist()
        assert chunk.bags["tags"].hashes.tolist() == hash_text(["p", "q", "p", "q", "p"]).tolist()
    log = in_memory(frame.with_columns(label=pl.Series([0, 1, 0, 1, 0])), FeatureSchema((Categorical("a"),)))
    assert len(set(log.encoder.ids_of("a", ["x", " x", "x "]).tolist())) == 1


def test_missing_numbers_among_text_are_missing_in_every_source(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": ["1.5", "NA", r"\N", "?", "-", "null", " 2 "]})
    frame.write_csv(tmp_path / "a.csv")
    for source in (frame, frame.to_pandas(), tmp_path / "a.csv"):
        (chunk,) = open_source(source).chunks(ColumnsToRead((), ("n",)))
        np.testing.assert_array_equal(chunk.numbers["n"], [1.5, *[np.nan] * 5, 2.0])
        (chunk,) = open_source(source).chunks(ColumnsToRead(("n",)))
        assert (chunk.hashes["n"] != 0).all()  # a category may be called so
        (chunk,) = open_source(source, missing=("NA",)).chunks(ColumnsToRead(("n",)))
        assert (chunk.hashes["n"] == 0).sum() == 1


def test_floats_that_have_lost_digits_are_told(caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(pd.DataFrame({"a": [2.0**60, 1.0]}))
    list(source.chunks(ColumnsToRead(("a",))))
    assert "2^53 and more as Float64, which has lost digits" in caplog.text
