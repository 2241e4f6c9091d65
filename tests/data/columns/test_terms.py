"""Terms: each column a range of ids, repeats summed, unknown ones left out; weightings, joins, new rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from deeprec.data.columns.kinds import Bag, Categorical, Cross, Numeric, Sequence, Text, Vector
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.table import EncodedTable
from deeprec.data.columns.terms import Terms, joined

ITEMS = pl.DataFrame(
    {
        "kind": ["film", "film", "book", "play"],
        "tags": [["a"], ["a", "b", "a"], [], ["c"]],
        "price": [1.0, 3.0, None, 100.0],
        "title": ["dog dog", "cat", "", "dog"],
        "visual": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
        "seen": ["film book", "", "play", "book"],
    }
)
SCHEMA = FeatureSchema(
    (
        Vector("visual", 2),
        Categorical("kind"),
        Bag("tags"),
        Numeric("price", transform="none"),
        Numeric("price_bucket", transform="bucketise", boundaries=(2.0,), column="price"),
        Text("title", tokens="words"),
        Sequence("seen", separator=" ", vocabulary="kind"),
        Categorical("hashed", num_buckets=3, column="kind"),
        Cross(("kind", "price_bucket"), 5),
    ),
    label=None,
)
RANDOM = np.random.default_rng(3)


def dense(terms: Terms) -> np.ndarray:
    x = np.zeros((len(terms), terms.size))
    owners = np.repeat(np.arange(len(terms)), np.diff(terms.offsets))
    np.add.at(x, (owners, terms.ids), terms.weights)
    return x


def random_terms(n: int, size: int, nnz: int, v: int = 0) -> Terms:
    terms = Terms.of_entries(
        RANDOM.integers(0, n, nnz), RANDOM.integers(0, size, nnz), RANDOM.normal(size=nnz), n, size
    )
    return Terms(terms.offsets, terms.ids, terms.weights, RANDOM.normal(size=(n, v)).astype(np.float32), size)


def test_entries_in_any_order_are_summed_by_row_and_id() -> None:
    rows, ids, weights = RANDOM.integers(0, 7, 200), RANDOM.integers(0, 11, 200), RANDOM.normal(size=200)
    expected = np.zeros((7, 11))
    np.add.at(expected, (rows, ids), weights)
    terms = Terms.of_entries(rows, ids, weights, 7, 11)
    np.testing.assert_allclose(dense(terms), expected, rtol=1e-6)
    assert (np.diff(terms.offsets) <= 11).all()
    assert dense(Terms.of_entries([2, 2], [1, 1], None, 3, 2)).tolist() == [[0, 0], [0, 0], [0, 2]]


def test_a_table_gives_each_column_its_range() -> None:
    table = EncodedTable.fit(SCHEMA, ITEMS)
    sizes = [f.size for f in table.inputs.fields] + [b.size for b in table.inputs.compressed]
    terms = Terms.of_table(table)
    assert terms.size == sum(sizes)
    assert terms.values.shape == (4, 3)
    assert terms.values[:, 0].tolist()[:2] == [1.0, 3.0]
    assert terms.values[:, 1:].tolist() == ITEMS["visual"].to_list()
    ids = table.rows.ids
    starts = np.cumsum([0, *sizes])
    x = dense(terms)
    for at, field in enumerate(table.inputs.fields):
        block = x[:, starts[at] : starts[at + 1]]
        first = 0 if field.name == "hashed" or field.is_cross else 1  # 0 is unknown or missing elsewhere
        expected = np.zeros((4, field.size))
        expected[np.arange(4), ids[:, at]] = ids[:, at] >= first
        assert (block == expected).all(), field.name
    assert x[2, starts[1]] == 0
    assert not x[2, starts[1] : starts[2]].any()
    for at, bag in enumerate(table.inputs.compressed, len(table.inputs.fields)):
        block, bags = x[:, starts[at] : starts[at + 1]], table.rows.bags[bag.name]
        for row in range(4):
            counts = np.bincount(bags.ids[bags.offsets[row] : bags.offsets[row + 1]], minlength=bag.size)
            assert block[row].tolist() == [0, *counts[1:].tolist()], bag.name


def test_unknown_rows_have_the_terms_of_hash_buckets_alone() -> None:
    table = EncodedTable.fit(SCHEMA, ITEMS, numbers=np.array([0, 1, 2, 3]), size=5)
    row = Terms.of_table(table, ["kind", "tags", "title", "price_bucket", "seen"]).take(np.array([4]))
    assert not len(row.ids)
    new = Terms.of_rows(table.encoder, table.encode(ITEMS.head(1).with_columns(kind=pl.lit("opera"))), ["kind"])
    assert not len(new.ids)


def test_columns_are_chosen_by_name_and_text_is_refused() -> None:
    table = EncodedTable.fit(SCHEMA, ITEMS)
    assert Terms.of_table(table, ["price"]).size == 0
    with pytest.raises(ValueError, match=r"columns must be of .*got colour"):
        Terms.of_table(table, ["colour"])
    raw = EncodedTable.fit(FeatureSchema((Text("title", tokens="raw"), Categorical("kind")), label=None), ITEMS)
    with pytest.raises(ValueError, match="got title as text or media; set tokens"):
        Terms.of_table(raw)
    assert len(Terms.of_table(raw, ["kind"])) == 4


def test_joined_columns_lie_side_by_side() -> None:
    one, two, three = random_terms(6, 5, 12, 1), random_terms(6, 4, 0, 2), random_terms(6, 9, 40)
    both = joined(one, two, three)
    np.testing.assert_array_equal(dense(both), np.hstack([dense(one), dense(two), dense(three)]))
    np.testing.assert_array_equal(both.values, np.hstack([one.values, two.values]))
    with pytest.raises(ValueError, match=r"as many rows each are needed, got \[6, 5\]"):
        joined(one, random_terms(5, 2, 1))


def test_rows_are_taken_and_appended() -> None:
    terms = random_terms(8, 5, 20, 2)
    rows = np.array([3, 0, 3, 7])
    taken = terms.take(rows)
    np.testing.assert_array_equal(dense(taken), dense(terms)[rows])
    np.testing.assert_array_equal(taken.values, terms.values[rows])
    more = terms.appended(taken)
    np.testing.assert_array_equal(dense(more), np.vstack([dense(terms), dense(taken)]))
    with pytest.raises(ValueError, match="encode the new rows by the encoder"):
        terms.appended(random_terms(1, 6, 1, 2))


def test_weightings_are_their_formulas() -> None:
    terms = Terms.of_entries([0, 0, 0, 1, 2, 2], [0, 0, 1, 0, 2, 2], None, 4, 4)
    x = dense(terms)  # [[2, 1, 0, 0], [1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert (dense(terms.weighted("count")) == x).all()
    assert (dense(terms.weighted("binary")) == (x > 0)).all()
    np.testing.assert_allclose(dense(terms.weighted("log")), np.log1p(x), rtol=1e-6)
    np.testing.assert_allclose(dense(terms.weighted("l2"))[0], np.array([2, 1, 0, 0]) / 5**0.5, rtol=1e-6)
    idf = np.log(5 / (1 + np.array([2, 1, 1, 0]))) + 1
    idf[3] = 0
    np.testing.assert_allclose(terms.idf(), idf, rtol=1e-6)
    scaled = x * idf
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    np.testing.assert_allclose(dense(terms.weighted("tf-idf")), scaled / np.where(lengths, lengths, 1), rtol=1e-6)
    of_train = terms.idf(np.array([True, True, False, False]))
    assert of_train[2] == 0
    assert of_train[0] == 1
    assert not dense(terms.weighted("tf-idf", of_train))[2].any()


def test_bad_arrays_are_refused() -> None:
    good = random_terms(3, 4, 6, 1)
    with pytest.raises(ValueError, match="ids must ascend and be distinct within a row"):
        Terms(np.array([0, 2]), np.array([1, 1], np.int32), np.ones(2, np.float32), np.empty((1, 0), np.float32), 3)
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 1\), the size, got 0 to 1"):
        Terms(np.array([0, 2]), np.array([0, 1], np.int32), np.ones(2, np.float32), np.empty((1, 0), np.float32), 1)
    values = good.values.copy()
    values[1] = np.nan
    with pytest.raises(ValueError, match="values must be finite, got nan in 1 places"):
        Terms(good.offsets, good.ids, good.weights, values, 4)
    with pytest.raises(ValueError, match="offsets must be int64"):
        Terms(good.offsets.astype(np.int32), good.ids, good.weights, good.values, 4)
    with pytest.raises(ValueError, match="kind must be one of count"):
        good.weighted("tfidf")
    with pytest.raises(ValueError, match=r"rows must lie in \[0, 2\)"):
        Terms.of_entries([2], [0], None, 2, 1)


def test_one_hots_and_histories() -> None:
    assert (dense(Terms.of_ids(3)) == np.eye(3)).all()

    class Met:
        num_users, num_items = 3, 2

        def csr(self) -> tuple[np.ndarray, np.ndarray]:
            return np.array([0, 2, 2, 3]), np.array([0, 1, 1], np.int32)

    assert dense(Terms.of_interactions(Met())).tolist() == [[1, 1], [0, 0], [0, 1]]
    assert dense(Terms.of_interactions(Met(), "item")).tolist() == [[1, 0, 0], [1, 0, 1]]
    with pytest.raises(ValueError, match="side must be user or item"):
        Terms.of_interactions(Met(), "users")
