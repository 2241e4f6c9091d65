"""Columns of users and items of a data set, encoded by internal id; domains that share their users."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deeprec.data import Domains, IdMap, encode_tables, from_frame, leave_one_out, load, with_features
from deeprec.data.columns.data_schema import DataSchema
from deeprec.data.columns.kinds import Bag, Categorical, Numeric, Sequence, Text, Vector
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.interactions.features import feature_matrix

SCHEMA = DataSchema(
    users=FeatureSchema((Categorical("city"),)),
    items=FeatureSchema((Bag("tags"), Numeric("price", transform="none"))),
    events=FeatureSchema((Categorical("item_id"), Sequence("viewed", vocabulary="item_id")), label="clicked"),
    domain="shop",
)


def test_a_schema_of_a_data_set_goes_through_yaml(tmp_path: Path) -> None:
    assert SCHEMA.users is not None
    assert SCHEMA.users.label is None
    assert DataSchema.from_yaml(str(SCHEMA)) == SCHEMA
    (tmp_path / "s.yaml").write_text(str(SCHEMA))
    assert DataSchema.from_yaml(tmp_path / "s.yaml") == SCHEMA
    assert DataSchema.from_dict(SCHEMA.as_dict()) == SCHEMA
    written = "users:\n  features:\n    - categorical: city\nuser_id: person\n"
    assert DataSchema.from_yaml(written) == DataSchema(users=SCHEMA.users, user_id="person")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user": {}}, "unknown key 'user'; did you mean 'users'"),
        ({"items": {"features": [{"txt": "a"}]}}, "items: schema: a feature must have one of the keys .*'text'"),
        ({"domain": "d"}, "columns of users, items or events are required, got none"),
        ({"users": {"features": [{"text": "a"}]}, "user_id": 3}, "user_id must be the name of a column, got 3"),
        ([], "a mapping with the keys users, items, events is required"),
    ],
)
def test_a_wrong_schema_is_refused_by_part(values: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        DataSchema.from_dict(values)


def test_tables_are_by_internal_id_and_know_train_rows_only() -> None:
    data = from_frame(pl.DataFrame({"user_id": [7, 7, 8, 9], "item_id": ["x", "y", "x", "z"]}))
    users = pl.DataFrame({"user_id": [9, 8, 7], "city": ["rome", None, "oslo"]})
    items = pl.DataFrame({"item_id": ["z", "y", "x"], "tags": [["c"], ["b"], ["a"]], "price": [3.0, 2.0, 1.0]})
    tables = encode_tables(with_features(data, users=users, items=items), SCHEMA, train=data.take(np.arange(3)))
    assert tables.users is not None
    assert tables.items is not None
    assert tables.users.rows.ids[:, 0].tolist() == [1, 0, 0]  # 8 has no row, rome was never in train
    assert tables.items.gather(np.array([2, 0])).values.tolist() == [[2.0], [1.0]]  # 3 is held to what train had
    assert tables.items.rows.bags["tags"].ids.tolist()[2] == 0
    with pytest.raises(ValueError, match="must have a table of its 3 users, got none; pass one with"):
        encode_tables(data, SCHEMA)


def test_movies_and_people_of_ml_1m() -> None:
    try:
        data = load("ml-1m")
    except FileNotFoundError:
        pytest.skip("ml-1m is not at hand: set DEEPREC_DATA to a folder that holds it")
    schema = DataSchema(
        users=FeatureSchema((Categorical("gender"), Categorical("zip", min_count=5), Numeric("age"))),
        items=FeatureSchema((Bag("genres"), Text("title", tokens="trigrams"), Numeric("year"))),
    )
    tables = encode_tables(data, schema, train=leave_one_out(data.take(data.order > 0)).train)
    assert tables.users is not None
    assert tables.items is not None
    assert (len(tables.users), len(tables.items)) == (6040, 3706)
    rows = tables.items.gather(np.array([0, 5]))
    genres = [data.item_features["genres"][number].to_list() for number in (0, 5)]
    assert np.diff(rows.bags["genres"].offsets).tolist() == [len(one) for one in genres]
    assert next(field.size for field in tables.users.inputs.fields) == 3


def test_side_information_is_an_indicator_of_each_value_in_order() -> None:
    values = {
        "text": ["b", "", "a", "b"],
        "list": [["z", "y"], [], ["y", "y"], ["x"]],
        "number": [10, 9, 9, -1],
        "flag": [True, False, True, True],
    }
    frame = pl.DataFrame({"item_id": [1, 2, 3, 4], **values, "share": [0.25, 1e-9, -0.0, 3.0]})
    ids = IdMap([1, 2, 3, 4], "item")
    for column, cells in values.items():
        rows = [set(cell) if isinstance(cell, list) else {cell} for cell in cells]
        expected = [[float(value in row) for value in sorted(set().union(*rows))] for row in rows]
        assert feature_matrix(frame, [column], ids).tolist() == expected
    both = feature_matrix(frame, ["share", "flag"], ids)
    assert both.tobytes() == np.array([[0.25, 0, 1], [1e-9, 1, 0], [-0.0, 0, 1], [3, 0, 1]], np.float32).tobytes()


FRAME = pl.DataFrame(
    {
        "user_id": ["a", "b", "c", "a", "d"],
        "item_id": [1, 2, 1, 1, 5],
        "shop": ["books", "books", "films", "films", "films"],
    }
)


def test_domains_of_a_frame_share_users_and_have_their_own_items() -> None:
    shops = Domains.from_frame(FRAME, "shop")
    assert list(shops.parts) == ["books", "films"]
    assert shops.user_ids.values.to_list() == ["a", "b", "c", "d"]
    assert shops["books"].user_ids is shops["films"].user_ids
    assert shops["films"].users.tolist() == [2, 0, 3]
    assert shops["films"].item_ids.values.to_list() == [1, 5]
    assert shops.active().tolist() == [[True, True], [True, False], [False, True], [False, True]]
    assert shops["films"].to_frame().equals(FRAME.filter(shop="films").drop("shop"))


def test_tables_of_users_of_several_domains_become_one() -> None:
    parts = {name: from_frame(rows.drop("shop")) for (name,), rows in FRAME.partition_by("shop", as_dict=True).items()}
    parts["books"] = with_features(parts["books"], users=pl.DataFrame({"user_id": ["b", "a"], "age": [20, 30]}))
    films = pl.DataFrame({"user_id": ["a", "c", "d"], "age": [31, 40, 50], "city": ["x", "y", "z"]})
    parts["films"] = with_features(parts["films"], users=films)
    table = Domains.of(parts)["books"].user_features
    assert table["age"].to_list() == [30, 20, 40, 50]
    assert table["city"].to_list() == [None, None, "y", "z"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Domains({}), "at least one domain is required"),
        (lambda: Domains.of({}), "at least one domain is required"),
        (lambda: Domains({"a": from_frame(FRAME), "b": from_frame(FRAME.reverse())}), "another in 'b'; use Domains.of"),
        (lambda: Domains.from_frame(FRAME, "shops"), "no column 'shops' of domains; did you mean 'shop'"),
        (lambda: Domains.from_frame(FRAME.with_columns(shop=None), "shop"), "must name its shop, got 5 without"),
        (lambda: Domains.from_frame(FRAME, "shop")["music"], "no domain 'music'"),
        (
            lambda: Domains.of({"a": from_frame(FRAME), "b": from_frame(FRAME.with_columns(user_id=1))}),
            "user ids here are strings, got integers",
        ),
    ],
)
def test_what_is_no_domain_is_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        make()


def shared(name: str) -> Path:
    path = Path(os.environ.get("DEEPREC_DATA", ""), name)
    if not os.environ.get("DEEPREC_DATA") or not path.exists():
        pytest.skip(f"{name} is not at hand: set DEEPREC_DATA to a folder that holds it")
    return path


def test_sports_and_phones_of_amazon_share_their_users() -> None:
    parts = {}
    for name in ("sport_phone", "phone_sport"):
        path = shared(f"cross-domain/{name}/train.txt.gz")
        table = pl.read_csv(path, separator="\t", has_header=False)
        if table.width == 1:
            table = pl.read_csv(path, separator=" ", has_header=False)
        parts[name] = from_frame(table[:, :2].rename(dict(zip(table.columns[:2], ("user_id", "item_id"), strict=True))))
    domains = Domains.of(parts)
    assert len(domains.user_ids) == 4998
    assert [len(part) for part in domains.parts.values()] == [50_558, 42_446]
    assert [part.num_items for part in domains.parts.values()] == [20_845, 13_655]
    assert domains.active().all()


def test_videos_of_tiktok_by_internal_id() -> None:
    path = shared("tiktok")
    pairs = pl.read_csv(path / "train.txt.gz", separator=" ", has_header=False, new_columns=["user_id", "item_id"])
    data = from_frame(pairs)
    visual = np.load(path / "image_feat.npy", mmap_mode="r")
    items = pl.DataFrame({"item_id": range(len(visual)), "visual": pl.Series(visual.astype(np.float32))})
    data = with_features(data, items=items.filter(pl.col("item_id").is_in(data.item_ids.values.implode())))
    table = encode_tables(data, DataSchema(items=FeatureSchema((Vector("visual", visual.shape[1]),)))).items
    assert table is not None
    assert (table.rows.values == visual[data.item_ids.values.to_numpy()]).all()
    late = items.filter(~pl.col("item_id").is_in(data.item_ids.values.implode()))
    grown, ids = table.appended(late), data.item_ids.grown(late["item_id"])
    assert len(grown) == len(ids) == len(visual)
    assert (grown.rows.values == visual[ids.values.to_numpy()]).all()
