"""Tables of users and items: rows by number, unknown rows, new rows after training, encoders that grow."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import Encoded
from deeprec.data.columns.kinds import Bag, Categorical, Cross, Image, Numeric, Sequence, Text, Vector
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.table import EncodedTable
from deeprec.data.reading.sources import open_source

ITEMS = pl.DataFrame(
    {
        "item_id": [10, 11, 12, 13],
        "kind": ["film", "film", "book", "play"],
        "tags": [["a"], ["a", "b"], [], ["c"]],
        "price": [1.0, 3.0, None, 100.0],
        "title": ["good dog", "bad dog", "cat", ""],
        "visual": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], None],
    }
)
SCHEMA = FeatureSchema(
    (
        Categorical("kind"),
        Bag("tags", max_length=2),
        Numeric("price", missing_indicator=True),
        Numeric("price_bucket", transform="bucketise", boundaries=(2.0,), column="price"),
        Text("title"),
        Text("plot", tokens="raw", column="title"),
        Vector("visual", 2),
        Cross(("kind", "price_bucket"), 50),
    ),
    label=None,
)


def same(one: Encoded, other: Encoded) -> bool:
    pairs = [(one.ids, other.ids), (one.values, other.values)]
    pairs += [(a, b) for name in one.bags for a, b in zip(one.bags[name], other.bags[name], strict=True)]
    return list(one.bags) == list(other.bags) and all(np.array_equal(a, b) for a, b in pairs if a is not None)


def test_rows_lie_at_their_numbers_and_others_are_unknown() -> None:
    table = EncodedTable.fit(SCHEMA, ITEMS, numbers=np.array([4, 0, 2, -1]), size=6)
    assert len(table) == 6
    whole = EncodedTable.fit(SCHEMA, ITEMS.head(3))
    assert same(table.gather(np.array([4, 0, 2, 4])), whole.gather(np.array([0, 1, 2, 0])))
    unknown = table.gather(np.array([1, 3, 5]))
    assert same(unknown, table.encoder.unknown(3))
    assert unknown.ids[:, :2].tolist() == [[0, 0]] * 3
    assert unknown.values.tolist() == [[0.0, 1.0, 0.0, 0.0]] * 3
    assert all(not len(bags.ids) for bags in unknown.bags.values())


def test_the_encoder_knows_train_rows_only() -> None:
    table = EncodedTable.fit(SCHEMA, ITEMS, train=np.array([True, True, False, False]))
    assert table.rows.ids[:, 0].tolist() == [1, 1, 0, 0]
    assert np.allclose(table.rows.values[:2, 0], [-1.0, 1.0])
    assert table.rows.values[3, 0] == 1.0  # held to what was seen


def test_new_rows_come_after_the_old_ones() -> None:
    table = EncodedTable.fit(SCHEMA, ITEMS)
    new = ITEMS.head(2).with_columns(kind=pl.Series(["opera", "book"]), tags=pl.Series([["z", "b"], ["c"]]))
    rows = table.encode(new)
    grown = table.appended(new)
    assert len(grown) == 6
    assert same(grown.gather(np.array([4, 5])), rows)
    assert same(grown.gather(np.arange(4)), table.rows)
    assert rows.ids[0, 0] == 0 != rows.ids[1, 0]
    assert table.appended(new.head(0)) is table


def test_a_table_saves_and_loads(tmp_path: Path) -> None:
    table = EncodedTable.fit(SCHEMA, ITEMS)
    table.save(tmp_path)
    loaded = EncodedTable.load(tmp_path)
    assert same(loaded.rows, table.rows)
    assert same(loaded.encode(ITEMS), table.rows)
    EncodedTable.fit(FeatureSchema((Categorical("kind"),)), ITEMS).save(tmp_path / "other")
    (tmp_path / "rows.safetensors").replace(tmp_path / "other" / "rows.safetensors")
    with pytest.raises(ValueError, match=r"rows.safetensors is damaged .*ids must be int32 \[4, 1\]"):
        EncodedTable.load(tmp_path / "other")


@pytest.mark.parametrize("numbers", [[0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 9]])
def test_numbers_that_do_not_fit_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="numbers must be distinct and below 5, one for each of the 4 rows"):
        EncodedTable.fit(SCHEMA, ITEMS, numbers=np.array(numbers), size=5)


def chunks(frame: pl.DataFrame, schema: FeatureSchema) -> Any:
    return ((chunk, None) for chunk in open_source(frame).chunks(schema.columns_to_read(with_label=False)))


def test_an_encoder_grows_without_changing_what_it_knows(tmp_path: Path) -> None:
    schema = FeatureSchema(
        (
            Categorical("kind", min_count=2),
            Categorical("few", max_size=2, column="kind"),
            Categorical("hashed", num_buckets=7, column="kind"),
            Sequence("viewed", vocabulary="kind"),
            Numeric("price"),
        ),
        label=None,
    )
    old = pl.DataFrame({"kind": ["b", "b", "a", "a", "a"], "viewed": [["a", "z"]] * 5, "price": [1.0, 2, 3, 4, 5]})
    new = pl.DataFrame({"kind": ["z", "z", "a", "y", "x", "x", "x"], "viewed": [["z", "y"]] * 7, "price": [9.0] * 7})
    encoder = Encoder.fit(schema, chunks(old, schema))
    grown = encoder.grown(chunks(new, schema))
    assert grown.ids_of("kind", ["a", "b", "x", "z", "y"]).tolist() == [1, 2, 3, 4, 0]  # y is seen once
    assert encoder.ids_of("kind", ["a", "b", "x", "z", "y"]).tolist() == [1, 2, 0, 0, 0]
    assert grown.ids_of("few", ["a", "b", "x", "z", "y"]).tolist() == [1, 2, 0, 0, 0]  # full
    assert grown.numbers == encoder.numbers
    ((before, _),), ((after, _),) = chunks(old, schema), chunks(old, schema)
    first, second = encoder.encode(before), grown.encode(after)
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(first.values, second.values)
    assert first.bags["viewed"].ids.tolist() == [1, 0] * 5
    assert second.bags["viewed"].ids.tolist() == [1, 4] * 5
    assert (encoder.inputs.fields[0].size, grown.inputs.fields[0].size, grown.inputs.sequences[0].size) == (3, 5, 5)
    grown.save(tmp_path)
    assert Encoder.load(tmp_path).inputs == grown.inputs
    assert grown.grown(chunks(new, schema)).inputs == grown.inputs


def test_a_table_by_the_ids_of_an_event_column() -> None:
    """The columns of items, gathered by the ids that a log has for them."""
    log = pl.DataFrame({"item": [12, 10, 12, 99], "label": [1, 0, 1, 0]})
    schema = FeatureSchema((Categorical("item"),))
    ((chunk, _),) = ((chunk, None) for chunk in open_source(log).chunks(schema.columns_to_read()))
    events = Encoder.fit(schema, [(chunk, None)])
    ids = events.ids_of("item", ITEMS["item_id"])
    numbers = np.where(ids > 0, ids, -1)
    table = EncodedTable.fit(SCHEMA, ITEMS, numbers=numbers, size=events.inputs.fields[0].size)
    rows = table.gather(events.encode(chunk).ids[:, 0])
    assert rows.bags["plot"].texts() == ["cat", "good dog", "cat", ""]


def test_files_that_are_not_there_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    keys = ["a.jpg", "c.jpg", None, "", "../b.jpg", str(tmp_path / "b.jpg"), "x" * 5000, "\0"]
    schema = FeatureSchema((Image("poster", folder=str(tmp_path / "in")),), label=None)
    table = EncodedTable.fit(schema, pl.DataFrame({"poster": keys}))
    assert table.missing_files["poster"].tolist() == [1, 4, 5, 6, 7]
    assert "poster: 5 files are not there, such as 'c.jpg', '../b.jpg'" in caplog.text
    more = table.appended(pl.DataFrame({"poster": ["a.jpg", "d.jpg"]}))
    assert more.missing_files["poster"].tolist() == [1, 4, 5, 6, 7, 9]
    more.save(tmp_path / "saved")
    assert EncodedTable.load(tmp_path / "saved").missing_files["poster"].tolist() == [1, 4, 5, 6, 7, 9]


def shared(name: str) -> Path:
    path = Path(os.environ.get("DEEPREC_DATA", ""), name)
    if not os.environ.get("DEEPREC_DATA") or not path.exists():
        pytest.skip(f"{name} is not at hand: set DEEPREC_DATA to a folder that holds it")
    return path


def test_movies_of_ml_1m_with_posters_and_late_ones(tmp_path: Path) -> None:
    with gzip.open(shared("ml-1m/movie_overviews.csv.gz")) as file:
        movies = pl.read_csv(file.read()).with_columns(poster=pl.format("{}.jpg", "movie_id"))
    with tarfile.open(shared("ml-1m-posters/posters_64x96.tar")) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = next(tmp_path.rglob("*.jpg")).parent
    schema = FeatureSchema(
        (Bag("genres"), Numeric("year"), Text("overview", min_count=2), Image("poster", folder=str(folder))), label=None
    )
    old, late = movies.head(3700), movies.tail(183)
    table = EncodedTable.fit(schema, old)
    table.save(tmp_path / "saved")
    grown = EncodedTable.load(tmp_path / "saved").appended(late)
    assert len(grown) == 3883
    assert len(grown.missing_files["poster"]) == 3883 - 3256
    has_words = np.diff(grown.gather(np.arange(3700, 3883)).bags["overview"].offsets) > 10
    assert has_words.mean() > 0.95
