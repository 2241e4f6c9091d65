"""The encoder: fitted on train rows only, exact against plain formulas, saved and loaded without a difference."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from deeprec.data.columns import numbers as module
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import BagField, Encoded, Field
from deeprec.data.columns.rows import join
from deeprec.data.columns.schema import Bag, Categorical, Cross, FeatureSchema, Numeric
from deeprec.data.reading.chunks import hash_text
from deeprec.data.reading.sources import open_source

DATA = Path(os.environ.get("DEEPREC_DATA", "missing"))


def fit(schema: FeatureSchema, source: Any, train: Any = None) -> Encoder:
    """Fitted on the rows where `train` is true."""
    mask = None if train is None else np.asarray(train, dtype=np.bool_)
    chunks = open_source(source).chunks(schema.columns_to_read())
    return Encoder.fit(
        schema, ((c, None if mask is None else mask[c.first_row : c.first_row + c.rows]) for c in chunks)
    )


def encode(encoder: Encoder, source: Any, with_labels: bool = True) -> Encoded:
    return join(list(encoder.stream(source, with_labels=with_labels)))


def one(feature: Any, column: list[Any], train: Any = None, **options: Any) -> tuple[Encoder, Encoded]:
    """A schema of one feature, fitted on a frame of one column "x" and encoded."""
    frame = pl.DataFrame({"x": column, "label": [0, 1] * (len(column) // 2) + [0] * (len(column) % 2)})
    encoder = fit(FeatureSchema((feature,), **options), frame, train)
    return encoder, encode(encoder, frame)


def test_ids_go_by_frequency_then_hash_and_rare_values_share_id_0() -> None:
    column = ["b", "c", "a", "b", "a", "b", "d", None, None]
    encoder, encoded = one(Categorical("x", min_count=2), column)
    tied = sorted([("a", int(hash_text(["a"])[0])), (None, 0)], key=lambda pair: pair[1])
    expected = {"b": 1, tied[0][0]: 2, tied[1][0]: 3}
    assert encoded.ids[:, 0].tolist() == [expected.get(value, 0) for value in column]
    assert encoder.inputs.fields == (Field("x", 4),)
    encoder, encoded = one(Categorical("x", max_size=1), column)
    assert encoded.ids[:, 0].tolist() == [int(value == "b") for value in column]


def test_value_that_occurs_in_test_rows_only_is_unknown() -> None:
    train = [True, True, False, True, False]
    encoder, encoded = one(Categorical("x"), ["a", "b", "c", "a", "a"], train)
    assert encoded.ids[:, 0].tolist() == [1, 2, 0, 1, 1]
    assert encoder.inputs.fields[0].size == 3


def test_statistics_are_those_of_train_rows_alone() -> None:
    train = np.array([True] * 6 + [False] * 4)
    for transform in ("standardise", "log-standardise", "min-max", "quantile", "bucketise", "none"):
        calm, _ = one(Numeric("x", transform), [1.0, 2, 4, None, 9, 16, 1, 1, 1, 1], train)
        wild, _ = one(Numeric("x", transform), [1.0, 2, 4, None, 9, 16, -1e30, 1e9, None, 5], train)
        assert calm.numbers == wild.numbers, transform


@pytest.mark.parametrize("transform", ["standardise", "log", "log-standardise", "min-max", "none"])
def test_transforms_match_their_formulas(transform: str) -> None:
    random = np.random.default_rng(1)
    x = random.normal(3, 50, 1001)
    x[::7] = np.nan
    encoder, encoded = one(Numeric("x", transform, missing_indicator=True), x.tolist())
    y = np.sign(x) * np.log(1 + abs(x)) if transform.startswith("log") else x
    if transform.endswith("standardise"):
        y = (y - np.nanmean(y)) / np.nanstd(y)
    if transform == "min-max":
        y = (y - np.nanmin(y)) / (np.nanmax(y) - np.nanmin(y))
    expected = np.where(np.isnan(x), np.nanmean(y), y)
    assert_allclose(encoded.values[:, 0], expected, rtol=1e-6, atol=1e-6)
    assert_array_equal(encoded.values[:, 1], np.isnan(x))
    assert encoder.inputs.numerics == ("x", "x_missing")


def test_quantiles_are_those_of_wide_and_deep() -> None:
    x = np.arange(1000.0) + 0.5
    _, encoded = one(Numeric("x", "quantile", num_quantiles=5), x.tolist())
    assert_allclose(encoded.values[:, 0], np.repeat([0, 0.25, 0.5, 0.75, 1], 200))
    # Zeros fill the first 8 of 10 quantiles: 7 boundaries, the middle one of quantiles 1 to 8 being 4.5 or so.
    _, encoded = one(Numeric("x", "quantile", num_quantiles=10), [0.0] * 80 + list(range(1, 21)))
    assert_allclose(encoded.values[:80, 0], 4 / 9)
    assert (np.diff(encoded.values[80:, 0]) >= 0).all()
    assert encoded.values[-1, 0] == 1


def test_buckets_are_half_open_and_missing_has_its_own() -> None:
    feature = Numeric("x", "bucketise", boundaries=(18, 25))
    encoder, encoded = one(feature, [17.9, 18.0, 24.0, 25.0, 90.0, None])
    assert encoded.ids[:, 0].tolist() == [1, 2, 2, 3, 3, 0]
    assert encoder.inputs.fields == (Field("x", 4),)
    encoder, encoded = one(Numeric("x", "bucketise", num_quantiles=4), list(range(100)))
    assert Counter(encoded.ids[:, 0].tolist()) == {1: 25, 2: 25, 3: 25, 4: 25}
    encoder, encoded = one(Numeric("x", "bucketise", num_quantiles=4), [0] * 90 + [1] * 10)
    assert encoder.inputs.fields[0].size == 3  # equal quantiles are one boundary: below 0 and from 0 on, and missing


def test_missing_numbers_stand_for_what_is_declared() -> None:
    column = [2.0, None, 4.0, 9.0]
    _, encoded = one(Numeric("x", "none", missing=-1), column)
    assert encoded.values[:, 0].tolist() == [2, -1, 4, 9]
    _, encoded = one(Numeric("x", "min-max", missing=9), column)
    assert encoded.values[1, 0] == 1
    with pytest.raises(ValueError, match=r"x, row 1 \(from 0\): a finite number is required, got nan; .* declare what"):
        one(Numeric("x", missing="raise"), column)


def test_constant_and_empty_columns_become_0() -> None:
    for transform in ("standardise", "min-max", "log-standardise"):
        encoder, encoded = one(Numeric("x", transform), [5.0] * 4)
        assert encoded.values.tolist() == [[0]] * 4
        later = pl.DataFrame({"x": [7.0, 1e300, None], "label": [0, 1, 1]})
        assert encode(encoder, later).values.tolist() == [[0]] * 3
    for constant in (0.1, -1e9 / 3):  # whose mean is not quite the number
        table = pl.DataFrame({"x": [constant] * 3001, "label": [0, 1, 1] + [0] * 2998})
        schema = FeatureSchema((Numeric("x"), Numeric("y", "min-max", column="x")))
        pieces = [
            next(iter(open_source(table[at : at + 7]).chunks(schema.columns_to_read()))) for at in range(0, 3001, 7)
        ]
        encoder = Encoder.fit(schema, ((piece, None) for piece in pieces))
        assert encode(encoder, table.with_columns(x=pl.col("x") * 2)).values.any() == 0
    for transform in ("standardise", "min-max", "quantile", "none", "log"):
        _, encoded = one(Numeric("x", transform), [None, None, None, None, 1.0], [1] * 4 + [0])
        assert encoded.values[:4, 0].tolist() == [0] * 4


@given(
    st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.sampled_from(["standardise", "log", "log-standardise", "min-max", "none", "quantile"]),
)
def test_values_are_always_finite(column: list[float | None], transform: str) -> None:
    table = pl.DataFrame({"x": pl.Series(column, dtype=pl.Float64), "label": [1] * len(column)})
    logging.disable(logging.WARNING)
    for train in (None, [row % 2 == 0 for row in range(len(column))]):
        encoder = fit(FeatureSchema((Numeric("x", transform),)), table, train)
        assert np.isfinite(encode(encoder, table).values).all()
    logging.disable(logging.NOTSET)


def test_infinite_number_of_a_frame_is_named() -> None:
    table = pl.DataFrame({"x": [1.0, math.inf], "label": [0, 1]})
    with pytest.raises(ValueError, match="x"):
        fit(FeatureSchema((Numeric("x"),)), table)
    chunk = next(
        iter(
            open_source(pl.DataFrame({"x": [1.0, 2.0], "label": [0, 1]})).chunks(
                FeatureSchema((Numeric("x"),)).columns_to_read()
            )
        )
    )
    chunk.numbers["x"] = np.array([1.0, -math.inf])
    with pytest.raises(
        ValueError, match=r"encode: x, row 1 \(from 0\): a finite number is required, got -inf; correct"
    ):
        Encoder.fit(FeatureSchema((Numeric("x"),)), [(chunk, None)])


def test_sample_for_quantiles_is_uniform_and_independent_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_ROWS", 2000)
    table = pl.DataFrame({"x": np.arange(50_000.0), "label": np.arange(50_000) % 2})
    schema = FeatureSchema((Numeric("x", "quantile", num_quantiles=5),))
    whole = fit(schema, table)
    wanted = schema.columns_to_read()
    pieces = [
        chunk for start in range(0, 50_000, 777) for chunk in open_source(table[start : start + 777]).chunks(wanted)
    ]
    apart = Encoder.fit(schema, ((piece, None) for piece in pieces))
    assert apart.numbers == whole.numbers
    assert_allclose(whole.numbers["x"].boundaries, [10_000, 20_000, 30_000, 40_000], atol=4 * 50_000 * 0.4 / 2000**0.5)
    assert len(set(whole.numbers["x"].boundaries)) == 4


def test_bags_keep_unknown_values_and_empty_rows() -> None:
    column = ["a|b", "", "a", None, "z|a|b|a"]
    encoder, encoded = one(Bag("x"), column, [True, True, True, True, False])
    bags = encoded.bags["x"]
    assert bags.offsets.tolist() == [0, 2, 2, 3, 3, 7]
    assert bags.ids.tolist() == [1, 2, 1, 0, 1, 2, 1]
    assert bags.weights is None
    assert encoder.inputs.bags == (BagField("x", 3, "mean"),)
    _, encoded = one(Bag("x", max_length=1), column)
    assert encoded.bags["x"].offsets.tolist() == [0, 1, 1, 2, 2, 3]
    _, encoded = one(Bag("x"), [["b", "a"], [], ["a"], None])
    assert encoded.bags["x"].offsets.tolist() == [0, 2, 2, 3, 3]


def test_weighted_bags_carry_their_weights() -> None:
    feature = Bag("x", weight_separator=":", pooling="sum", max_length=2)
    encoder, encoded = one(feature, ["a:0.5|b:2|c:1", "b:-1"])
    assert encoded.bags["x"].weights is not None
    assert encoded.bags["x"].weights.tolist() == [0.5, 2, -1]
    assert encoder.inputs.bags[0].is_weighted


def test_weights_of_libsvm_are_used_or_refused(tmp_path: Path) -> None:
    (tmp_path / "log.svm").write_text("0 1:0.5 7:1\n1 2:3\n-1 7:1\n")
    source = open_source(tmp_path / "log.svm", format="libsvm")
    encoder = fit(FeatureSchema((Bag("features", weight_separator=":"),)), source)
    encoded = encode(encoder, source)
    assert encoded.labels is not None
    assert encoded.labels.tolist() == [0, 1, 0]
    assert encoded.bags["features"].weights.tolist() == [0.5, 1, 3, 1]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="which a bag without weights would lose; declare it with weight_sep"):
        encode(fit(FeatureSchema((Bag("features"),)), source), source)
    (tmp_path / "plain.csv").write_text("features,label\na|b,1\n")
    chunk = next(iter(open_source(tmp_path / "plain.csv").chunks(FeatureSchema((Bag("features"),)).columns_to_read())))
    with pytest.raises(ValueError, match="must have weights, got values alone; drop weight_separator"):
        encoder.encode(chunk)


def test_crosses_hash_the_ids_of_their_columns() -> None:
    table = pl.DataFrame(
        {"a": ["x", "y", "x", "y"] * 5, "b": [1, 1, 2, 2] * 5, "g": ["p|q", "", "q", "p"] * 5, "label": [0, 1] * 10}
    )
    features = (
        Categorical("a"),
        Numeric("b", "bucketise", boundaries=(2,)),
        Bag("g"),
        Cross(("a", "b"), 1 << 30),
        Cross(("b", "g", "a"), 1 << 30, "with_bag"),
        Cross(("a", "b"), 3, "small"),
    )
    encoder = fit(FeatureSchema(features), table)
    encoded = encode(encoder, table)
    assert [field.name for field in encoder.inputs.fields] == ["a", "b", "a_x_b", "small"]
    assert [field.is_cross for field in encoder.inputs.fields] == [False, False, True, True]
    assert encoder.inputs.bags[1] == BagField("with_bag", 1 << 30, "mean", is_cross=True)
    pairs = {(a, b): cross for a, b, cross, _ in encoded.ids.tolist()}
    assert len(pairs) == len(set(pairs.values())) == 4
    assert set(encoded.ids[:, 3].tolist()) <= {0, 1, 2}
    # A few lines of plain Python: the same state for each entry, in the order of the columns.
    bags, plain = encoded.bags["with_bag"], []
    for row in range(len(encoded)):
        start, end = encoded.bags["g"].offsets[row : row + 2]
        for bag_id in encoded.bags["g"].ids[start:end]:
            state = 0
            for number in (encoded.ids[row, 1], bag_id, encoded.ids[row, 0]):
                state = _mix((state + (int(number) + 1) * 0x9E3779B97F4A7C15) % 2**64)
            plain.append(((state >> 32) << 30) >> 32)
    assert bags.ids.tolist() == plain
    assert_array_equal(bags.offsets, encoded.bags["g"].offsets)


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_hash_buckets_need_no_vocabulary() -> None:
    encoder, encoded = one(Categorical("x", num_buckets=50), [f"v{row}" for row in range(1000)], [True] + [False] * 999)
    assert encoder.hashes == {}
    counts = np.bincount(encoded.ids[:, 0], minlength=50)
    assert len(counts) == 50
    assert counts.min() > 4
    assert counts.max() < 45


@pytest.mark.parametrize(
    ("column", "options", "expected"),
    [
        ([0, 1, 1], {}, [0, 1, 1]),
        ([-1, 1, -1], {}, [0, 1, 0]),
        ([True, False, True], {}, [1, 0, 1]),
        ([3, 4, 5], {"positive_from": 4}, [0, 1, 1]),
        ([">50K", "<=50K", ">50K."], {"positive_values": (">50K", ">50K.")}, [1, 0, 1]),
    ],
)
def test_labels_become_0_and_1(column: list[Any], options: Any, expected: list[int]) -> None:
    table = pl.DataFrame({"x": ["a", "b", "c"], "label": column})
    encoder = fit(FeatureSchema((Categorical("x"),), **options), table)
    assert encode(encoder, table).labels.tolist() == expected  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (
            [0, 1, 2],
            {},
            r"label label, row 2 \(from 0\): 0 or 1.* is required, got 2.0; correct the row, or set positive_",
        ),
        ([0, 1, None], {}, r"row 2 \(from 0\): .*got nothing"),
        ([-1, 1, 0], {}, r"row 2 \(from 0\).* is required, got 0.0"),
        ([4, None, 2], {"positive_from": 3}, r"row 1 \(from 0\): a value is required, got nothing"),
        (["y", "n", None], {"positive_values": ("y",)}, r"row 2 \(from 0\): a value is required, got nothing"),
    ],
)
def test_label_that_is_none_is_named(column: list[Any], options: Any, message: str) -> None:
    table = pl.DataFrame({"x": ["a", "b", "c"], "label": column})
    schema = FeatureSchema((Categorical("x"),), **options)
    with pytest.raises(ValueError, match=message):
        fit(schema, table)
    good = [value in (1, 4, "y") for value in column]
    with pytest.raises(ValueError, match=message):
        fit(schema, table, good)
    kept = schema if options else FeatureSchema((Categorical("x"),))
    encoder = fit(kept, table.filter(pl.Series(good)))
    with pytest.raises(ValueError, match=message):
        encode(encoder, table)


def test_minus_1_is_refused_where_train_has_0() -> None:
    schema = FeatureSchema((Categorical("x"),))
    encoder = fit(schema, pl.DataFrame({"x": ["a", "b"], "label": [0, 1]}))
    with pytest.raises(ValueError, match=r"row 0 \(from 0\): 0 or 1 is required, got -1.0"):
        encode(encoder, pl.DataFrame({"x": ["a"], "label": [-1]}))


def test_labels_of_one_kind_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    fit(FeatureSchema((Categorical("x"),), positive_from=9), pl.DataFrame({"x": ["a", "b"], "label": [1, 5]}))
    assert "all 2 train rows have label 0; check label, positive_from" in caplog.text


def test_no_train_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one train row is required, got none"):
        one(Categorical("x"), ["a", "b"], [False, False])


def test_groups_follow_their_column_and_serving_needs_neither() -> None:
    table = pl.DataFrame({"x": ["a", "b", "a"], "user": [7, 8, 7], "label": [0, 1, 1]})
    encoder = fit(FeatureSchema((Categorical("x"),), group="user"), table)
    groups = encode(encoder, table).groups
    assert groups is not None
    assert groups.dtype == np.int64
    assert (groups[0] == groups[2]) & (groups[0] != groups[1])
    served = encode(encoder, table.select("x"), with_labels=False)
    assert served.labels is None
    assert served.groups is None
    assert_array_equal(served.ids, encode(encoder, table).ids)


def test_column_that_is_missing_renamed_or_of_another_type_is_named() -> None:
    table = pl.DataFrame({"price": [1.0, 2.0], "site": ["a", "b"], "label": [0, 1]})
    encoder = fit(FeatureSchema((Numeric("price"), Categorical("site"))), table)
    with pytest.raises(ValueError, match="'price'; did you mean 'Price'"):
        encode(encoder, table.rename({"price": "Price"}), with_labels=False)
    with pytest.raises((TypeError, ValueError), match="price"):
        encode(encoder, table.with_columns(price=pl.Series(["low", "high"])), with_labels=False)
    with pytest.raises((TypeError, ValueError), match="site"):
        encode(encoder, table.with_columns(site=pl.Series([["a"], ["b"]])), with_labels=False)
    chunk = next(iter(open_source(table).chunks(encoder.schema.columns_to_read())))
    chunk.hashes["sites"] = chunk.hashes.pop("site")
    with pytest.raises(ValueError, match="no column 'site' among the hashes of the chunk; did you mean 'sites'"):
        encoder.encode(chunk)


def test_unseen_categories_are_served_as_unknown() -> None:
    table = pl.DataFrame({"x": ["a", "b"], "g": ["p", "q"], "label": [0, 1]})
    encoder = fit(FeatureSchema((Categorical("x"), Bag("g"))), table)
    served = encode(encoder, pl.DataFrame({"g": ["new|p", ""], "x": ["new", None]}), with_labels=False)
    assert served.ids.tolist() == [[0], [0]]
    assert served.bags["g"].offsets.tolist() == [0, 2, 2]
    assert served.bags["g"].ids[0] == 0 < served.bags["g"].ids[1]


values = st.none() | st.text(max_size=3)
numbers = st.none() | st.floats(-1e9, 1e9)


@given(
    st.lists(st.tuples(values, numbers, st.lists(st.text(min_size=1, max_size=2), max_size=3)), min_size=1, max_size=30)
)
def test_saved_encoder_is_the_same_encoder(rows: list[Any]) -> None:
    import tempfile

    table = pl.DataFrame(
        {
            "c": pl.Series([row[0] for row in rows], dtype=pl.String),
            "n": pl.Series([row[1] for row in rows], dtype=pl.Float64),
            "g": pl.Series([row[2] for row in rows], dtype=pl.List(pl.String)),
            "label": [row % 2 for row in range(len(rows))],
        }
    )
    features = [Numeric(f"n_{t}", t, column="n") for t in ("standardise", "log", "min-max", "quantile", "bucketise")]
    features += [Categorical("c", min_count=2), Bag("g", pooling="sum"), Cross(("c", "n_bucketise"), 99)]  # type: ignore[list-item]
    logging.disable(logging.WARNING)
    encoder = fit(FeatureSchema(tuple(features)), table)
    logging.disable(logging.NOTSET)
    with tempfile.TemporaryDirectory() as directory:
        encoder.save(directory)
        loaded = Encoder.load(directory)
    assert (loaded.schema, loaded.inputs, loaded.numbers) == (encoder.schema, encoder.inputs, encoder.numbers)
    before, after = encode(encoder, table), encode(loaded, table)
    assert_array_equal(before.ids, after.ids)
    assert_array_equal(before.values, after.values)
    assert_array_equal(before.bags["g"].ids, after.bags["g"].ids)
    assert all((before.ids[:, at] < field.size).all() for at, field in enumerate(encoder.inputs.fields))


def test_damaged_or_foreign_files_are_refused(tmp_path: Path) -> None:
    encoder, _ = one(Categorical("x"), ["a", "b", "c", "a"])
    encoder.save(tmp_path)
    state = json.loads((tmp_path / "encoder.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"no file .*encoder\.json"):
        Encoder.load(tmp_path / "nowhere")
    for change, message in (
        ({"version": 0}, "is of version"),
        ({"vocabularies_sha256": "0"}, "is damaged or of another encoder"),
        ({"schema": {"features": [{"categorcal": "x"}]}}, "did you mean 'categorical'"),
        ({"numbers": None}, "numbers must be an object, got None"),
    ):
        (tmp_path / "encoder.json").write_text(json.dumps({**state, **change}))
        with pytest.raises(ValueError, match=message):
            Encoder.load(tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps(state)[:50])
    with pytest.raises(ValueError, match="must be JSON"):
        Encoder.load(tmp_path)


@pytest.mark.skipif(not (DATA / "criteo").is_dir(), reason="needs the Criteo sample in DEEPREC_DATA")
def test_criteo_sample_is_encoded_as_plain_python_would() -> None:
    path = DATA / "criteo/train_10k.txt.gz"
    schema = FeatureSchema(
        (
            *(Numeric(f"I{i}", "log-standardise") for i in range(1, 14)),
            *(Categorical(f"C{i}", min_count=5) for i in range(1, 27)),
        )
    )
    source = open_source(path, format="criteo")
    train = np.arange(10_000) % 10 != 0
    chunks = source.chunks(schema.columns_to_read())
    encoder = Encoder.fit(schema, ((c, train[c.first_row : c.first_row + c.rows]) for c in chunks))
    encoded = encode(encoder, source)
    frame = pl.read_csv(path, separator="\t", has_header=False, infer_schema=False)
    assert encoded.labels is not None
    assert_array_equal(encoded.labels, frame.to_series(0).cast(pl.Float32).to_numpy())
    for at in range(26):
        column = frame.to_series(at + 14).to_list()
        counts = Counter(value for value, is_train in zip(column, train, strict=True) if is_train)
        frequent = {value for value, count in counts.items() if count >= 5}
        ids = dict(zip(column, encoded.ids[:, at].tolist(), strict=True))
        assert encoder.inputs.fields[at].size == len(frequent) + 1
        assert {value for value, some in ids.items() if some} == frequent
        assert len({ids[value] for value in frequent}) == len(frequent)
        order = sorted(frequent, key=lambda value: ids[value])
        assert [counts[value] for value in order] == sorted((counts[value] for value in frequent), reverse=True)
    for at in range(13):
        x = frame.to_series(at + 1).cast(pl.Float64).to_numpy()
        y = np.copysign(np.log1p(abs(x)), x)
        y = (y - np.nanmean(y[train])) / np.nanstd(y[train])
        assert_allclose(encoded.values[:, at], np.nan_to_num(y), atol=1e-5)
