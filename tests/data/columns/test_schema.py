"""The feature schema: what it refuses and how it says so, YAML out and in, drafts from real frames."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.columns.schema import Bag, Categorical, Cross, FeatureSchema, Numeric
from deeprec.data.columns.schema_inference import infer
from deeprec.data.reading.sources import open_source

DATA = Path(os.environ.get("DEEPREC_DATA", "missing"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categorical(3), "name must be text, got 3; quote it as '3' in YAML"),
        (lambda: Categorical("a", min_count=0), r"Categorical 'a': min_count must lie in \[1, 2\^31\), got 0"),
        (lambda: Categorical("a", min_count=None), "min_count must be an integer, got None"),
        (lambda: Categorical("a", num_buckets=True), "num_buckets must be an integer, got True"),
        (lambda: Categorical("a", num_buckets=9, max_size=9), "num_buckets hashes without a vocabulary; drop it"),
        (lambda: Numeric("a", "loq"), "got 'loq'; did you mean 'log'"),
        (lambda: Numeric("a", missing="maen"), "or a number; got 'maen'; did you mean 'mean'"),
        (lambda: Numeric("a", missing=float("nan")), "missing must be a finite number, got nan"),
        (lambda: Numeric("a", boundaries=(1,)), "boundaries need transform 'bucketise', got 'standardise'"),
        (lambda: Numeric("a", "bucketise", boundaries=(2, 1)), r"must increase, got \[2.0, 1.0\]; sort them"),
        (lambda: Numeric("a", "bucketise", boundaries="1,2"), "boundaries must be a list of numbers, got '1,2'"),
        (lambda: Numeric("a", "bucketise", boundaries=(1,), num_quantiles=4), "drop num_quantiles"),
        (lambda: Numeric("a", "bucketise", missing_indicator=True), "drop missing and missing_indicator"),
        (lambda: Numeric("a", missing_indicator=1), "missing_indicator must be true or false, got 1"),
        (lambda: Numeric("a", "quantile", num_quantiles=1), r"num_quantiles must lie in \[2, 2\^31\), got 1"),
        (lambda: Bag("a", pooling="maen"), "got 'maen'; did you mean 'mean'"),
        (lambda: Bag("a", separator=""), "separator must be text such as"),
        (lambda: Bag("a", separator=":", weight_separator=":"), "must differ, got ':' twice"),
        (lambda: Cross("ab", 5), "columns must be a list of names, got 'ab'"),
        (lambda: Cross(("a",), 5), r"two or more different features, got \['a'\]"),
        (lambda: Cross(("a", "b"), None), "num_buckets must be an integer, got None; 100000 is a good start"),
    ],
)
def test_wrong_options_are_named_with_a_remedy(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ((), {}, "at least one feature is required"),
        ((Categorical("a"), Numeric("a")), {}, "got a again; to use a column twice"),
        ((Numeric("a", missing_indicator=True), Categorical("a_missing")), {}, "got a_missing again"),
        ((Categorical("label"),), {}, "Categorical 'label' reads the label"),
        (("a",), {}, "must be of the kinds categorical, numeric, bag, cross, .*, got 'a'"),
        (
            (Categorical("age"), Cross(("age", "sexx"), 5), Categorical("sex")),
            {},
            "'sexx' to cross; did you mean 'sex'",
        ),
        ((Categorical("a"), Numeric("b"), Cross(("a", "b"), 5)), {}, "add Numeric.'b_bucket', transform='bucketise'"),
        ((Bag("a"), Bag("b"), Cross(("a", "b"), 5)), {}, "at most one of the columns may be a bag, got 2"),
        ((Bag("a"), Bag("b", ",", column="a")), {}, "bags of one column must have the same separators"),
        ((Categorical("a"),), {"positive_from": 1, "positive_values": ("x",)}, "exclude each other"),
        ((Categorical("a"),), {"positive_values": (1,)}, "must be texts"),
        ((Categorical("a"),), {"group": True}, "group must be the name of a column, got True; quote it"),
        ((Categorical("a"),), {"label": ""}, "label must be the name of a column"),
    ],
)
def test_schema_that_contradicts_itself_is_refused(features: Any, options: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        FeatureSchema(features, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("features:\n  - categorcal: a\n", "did you mean 'categorical'"),
        ("features:\n  - {categorical: a, min_cuont: 3}\n", "unknown option 'min_cuont'; did you mean 'min_count'"),
        ("features:\n  - {cross: [a, b]}\n", "num_buckets is required; 100000"),
        ("features:\n  - a\n", "must be a mapping such as 'categorical: NAME', got 'a'"),
        ("labl: a\nfeatures: []\n", "unknown key 'labl'; did you mean 'label'"),
        ("features: a\nlabel: b\n", "features must be a list, got 'a'"),
        ("features:\n  - categorical: yes\n", "got True; quote it as 'True' in YAML"),
        ("features:\n  - categorical: a\n    categorical: b\n", "line 3: 'categorical' is given twice"),
        ("features:\n\t- a\n", "this is not YAML"),
        ("- a\n- b\n", "a mapping with the key features is required, got list"),
        ("features:\n  - {categorical: [a, b], column: c}\n", "column belongs to one feature"),
        ("features:\n  - !!python/object/apply:os.system ['true']\n", "this is not YAML"),
    ],
)
def test_wrong_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        FeatureSchema.from_yaml(text)


def test_yaml_file_is_read_and_a_wrong_path_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(
        "label: y\nfeatures:\n  - categorical: [a, b]\n    min_count: 2\n  - cross: [a, b]\n    num_buckets: 7\n"
    )
    expected = FeatureSchema((Categorical("a", 2), Categorical("b", 2), Cross(("a", "b"), 7)), label="y")
    assert FeatureSchema.from_yaml(tmp_path / "schema.yaml") == expected
    assert FeatureSchema.from_yaml(str(tmp_path / "schema.yaml")) == expected
    with pytest.raises(FileNotFoundError, match=r"shema\.yaml; did you mean 'schema\.yaml'"):
        FeatureSchema.from_yaml(tmp_path / "shema.yaml")


names = st.text(min_size=1, max_size=8).filter(lambda name: name.isprintable())
counts = st.integers(1, 2**31 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
options = st.one_of(
    st.builds(Categorical, names, counts, st.none() | counts, column=names),
    st.builds(Categorical, names, num_buckets=counts),
    st.builds(Numeric, names, st.sampled_from(["log", "quantile"]), missing=finite | st.just("raise")),
    st.builds(Numeric, names, st.just("bucketise"), boundaries=st.lists(finite, max_size=4, unique=True).map(sorted)),
    st.builds(Bag, names, st.just(","), st.none() | st.just(":"), st.sampled_from(["sum", "mean"]), max_length=counts),
)


@given(
    st.lists(options, min_size=1, max_size=5, unique_by=lambda feature: feature.name), names, st.none() | names, counts
)
def test_any_schema_survives_yaml_and_dict(features: Any, label: str, group: str | None, buckets: int) -> None:
    features = [feature for feature in features if feature.column != label] or [Categorical(label + "0")]
    crossable = [f.name for f in features if isinstance(f, Categorical)]
    if len(crossable) > 1 and "crossed" not in [f.name for f in features]:
        features.append(Cross(tuple(crossable), buckets, "crossed"))
    notes = {features[0].name: "why " * 40, "gone": "left out, # because: {it} says\nnothing"}
    schema = FeatureSchema(tuple(features), label, group=group, notes=notes)
    assert FeatureSchema.from_dict(schema.as_dict()) == schema
    assert FeatureSchema.from_yaml(schema.to_yaml()) == schema
    assert hash(FeatureSchema.from_yaml(str(schema))) == hash(schema)


def test_inference_tells_codes_amounts_bags_and_keys_apart() -> None:
    n = 3000
    random = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "row": np.arange(n),
            "user_id": random.integers(0, 1200, n),
            "age": random.integers(18, 90, n),
            "hour": random.integers(0, 24, n),
            "price": random.lognormal(0, 3, n),
            "device": random.choice(["phone", "tablet"], n),
            "is_new": random.random(n) < 0.5,
            "tags": random.choice(["a|b", "c", "a|c|d"], n),
            "seen": [["x", "y"]] * n,
            "constant": ["same"] * n,
            "day": pl.Series(random.integers(0, 9, n)).cast(pl.Date),
            "key": [f"k{row}" for row in range(n)],
            "click": random.integers(0, 2, n),
        }
    )
    for frame in (table, table.lazy()):
        schema = infer(frame, "click", group="user_id")
        assert schema.features == (
            Categorical("user_id", min_count=2),
            Numeric("age"),
            Categorical("hour"),
            Numeric("price", "log-standardise"),
            Categorical("device"),
            Categorical("is_new"),
            Bag("tags"),
            Bag("seen"),
        )
        assert {name for name, note in schema.notes.items() if note.startswith("left out")} == {
            "row",
            "constant",
            "day",
            "key",
        }
        assert FeatureSchema.from_yaml(str(schema)) == schema
    text = str(schema)
    assert "# key: left out, another value in each of 3,000 rows" in text
    assert (
        "  # 24 different values, whole numbers, few; make it numeric if they are amounts\n  - {categorical: hour}"
        in text
    )


def test_inference_takes_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": ["x", "y"] * 5, "b": [0.5, 1.5] * 5, "label": [0, 1] * 5})
    assert infer(frame).features == (Categorical("a"), Numeric("b"))


def test_inference_reads_files(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,tags,label\n" + "x,p|q,0\ny,p,1\n" * 5)
    assert infer(tmp_path / "log.csv").features == (Categorical("a"), Bag("tags"))
    (tmp_path / "log.svm").write_text("0 1:0.5 7:1\n1 2:3\n")
    opened = open_source(tmp_path / "log.svm", format="libsvm")
    assert infer(opened).features == (Bag("features", weight_separator=":", pooling="sum"),)


def test_inference_refuses_what_has_no_label() -> None:
    frame = pl.DataFrame({"a": ["x", "y"], "rating": [1, 5], "kind": ["no", "yes"]})
    with pytest.raises(ValueError, match="no column 'ratin' for label; did you mean 'rating'"):
        infer(frame, "ratin")
    with pytest.raises(ValueError, match=r"must be 0 or 1, got \[1, 5\]; pass positive_from="):
        infer(frame, "rating")
    with pytest.raises(ValueError, match=r"pass positive_values=\['yes'\]"):
        infer(frame, "kind")
    with pytest.raises(ValueError, match="at least one row"):
        infer(frame.clear(), "rating")
    with pytest.raises(ValueError, match="at least one column to learn from"):
        infer(frame.select("rating"), "rating", positive_from=4)
    assert infer(frame, "rating", positive_from=4).positive_from == 4


@pytest.mark.skipif(not (DATA / "frappe").is_dir(), reason="needs the Frappe log in DEEPREC_DATA")
def test_inference_on_frappe_finds_its_fields() -> None:
    text = gzip.decompress((DATA / "frappe/frappe.csv.gz").read_bytes())
    frame = pl.read_csv(text, separator="\t").with_columns(label=pl.lit(1))
    schema = infer(frame, group="user")
    categorical = [f.name for f in schema.features if isinstance(f, Categorical)]
    assert categorical == [name for name in frame.columns if name not in ("cnt", "label")]
    assert schema.features[2] == Numeric("cnt", "log-standardise")
