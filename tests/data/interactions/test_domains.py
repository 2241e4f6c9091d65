"""Several domains as one set: joined, read from a column and from a file a domain, and made by synthetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deeprec import data
from deeprec.data import Domains, domains_of, from_frame, load, with_features

FRAME = pl.DataFrame(
    {
        "user_id": ["a", "b", "c", "a", "d", "b"],
        "item_id": [1, 2, 11, 11, 15, 1],
        "shop": ["books", "books", "films", "films", "films", "books"],
        "timestamp": [5, 1, 3, 2, 4, 6],
    }
)


def rows_of(made: data.Interactions) -> set[tuple[Any, ...]]:
    return set(made.to_frame().rows())


def test_domains_joined_keep_rows_ids_and_times_and_say_the_domain_of_each_item() -> None:
    made = Domains.from_frame(FRAME, "shop").joined("shops")
    assert made.name == "shops"
    assert rows_of(made) == set(FRAME.select("user_id", "item_id", "timestamp").rows())
    assert made.order_kind == "time"
    assert made.item_features.rows() == [(1, "books"), (2, "books"), (11, "films"), (15, "films")]
    names, codes = domains_of(made)
    assert (names, codes.tolist()) == (("books", "films"), [0, 0, 1, 1])


def test_ids_that_two_domains_share_or_of_two_kinds_get_the_name_of_their_domain() -> None:
    books = from_frame(pl.DataFrame({"user_id": [1, 2], "item_id": [7, 8]}))
    films = from_frame(pl.DataFrame({"user_id": [2, 3], "item_id": [9, 8]}))
    songs = from_frame(pl.DataFrame({"user_id": [2], "item_id": ["x"]}))
    both = Domains.of({"books": books, "films": films}).joined()
    assert rows_of(both) == {(1, "books:7"), (2, "books:8"), (2, "films:9"), (3, "films:8")}
    assert Domains.of({"books": books, "songs": songs}).joined().item_ids.values.to_list()[-1] == "songs:x"


def test_tables_ratings_and_official_splits_come_along(tmp_path: Path) -> None:
    parts = {}
    for name, first in (("books", 0), ("films", 10)):
        (tmp_path / f"{name}-train.csv").write_text(f"user_id,item_id,rating\n1,{first},3\n2,{first + 1},4\n")
        (tmp_path / f"{name}-test.csv").write_text(f"user_id,item_id,rating\n1,{first + 1},5\n")
        parts[name] = load(tmp_path / f"{name}-train.csv", test=str(tmp_path / f"{name}-test.csv"))
    parts["books"] = with_features(parts["books"], items=pl.DataFrame({"item_id": [1, 0], "pages": [10, 20]}))
    made = Domains.of(parts).joined()
    assert made.item_features["pages"].to_list() == [20, 10, None, None]
    assert made.ratings.tolist() == [3, 4, 5, 3, 4, 5]
    test = made.take(made.official.test_index)
    assert rows_of(test) == {(1, 1, 5.0), (1, 11, 5.0)}
    assert len(made.official.train_index) == 4
    parts["films"] = parts["films"].take(np.arange(3))  # which leaves the split behind
    assert Domains.of(parts).joined().official is None


def test_negatives_that_came_with_all_domains_become_those_of_the_joined_items() -> None:
    domain = from_frame(pl.DataFrame({"user_id": [1, 1, 2], "item_id": ["a", "b", "c"]}))
    rows = np.arange(3)
    official = data.OfficialSplit(rows[:2], rows[2:], np.array([[0, 1]], dtype=np.int32), "published")
    both = {name: replace(domain, official=official) for name in ("x", "y")}
    made = Domains.of(both).joined()
    assert made.official.test_negatives.tolist() == [[0, 1], [3, 4]]
    assert made.official.test_index.tolist() == [2, 5]


def test_a_file_with_a_column_of_domains_and_a_file_a_domain_are_the_same_set(tmp_path: Path) -> None:
    FRAME.write_csv(tmp_path / "log.csv")
    for (name,), rows in FRAME.partition_by("shop", as_dict=True).items():
        rows.drop("shop").write_csv(tmp_path / f"{name}.csv")
    column = load(tmp_path / "log.csv", domain="shop").canonical()
    files = load(f"books={tmp_path / 'books.csv'},films={tmp_path / 'films.csv'}").canonical()
    shuffled = FRAME.sample(fraction=1, shuffle=True, seed=1)
    shuffled.write_csv(tmp_path / "shuffled.csv")
    assert column.sha256 == files.sha256 == load(tmp_path / "shuffled.csv", domain="shop").canonical().sha256
    assert column.item_features.equals(files.item_features)
    assert files.name == "books+films"


def test_bad_rows_of_a_file_of_domains_are_named_by_their_line_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,shop\n1,2,a\n,3,b\n1,4,\n2,5,b\n")
    with pytest.raises(ValueError, match=r"line 4: each row must name its shop, got 1 without.*on_bad='skip'"):
        load(path, domain="shop")
    made = load(path, domain="shop", on_bad="skip")
    assert rows_of(made) == {(1, 2), (2, 5)}
    assert made.repairs == {"bad_rows_dropped": 2}
    path.write_text("user_id,item_id,shop\n1,2,a\n,3,b\n2,5,b\n")
    with pytest.raises(ValueError, match=r"\(b\), line 3: user_id must be an id"):
        load(path, domain="shop")


def test_a_table_of_items_given_later_leaves_the_domains_as_they_are() -> None:
    made = Domains.from_frame(FRAME, "shop").joined()
    titled = with_features(made, items=pl.DataFrame({"item_id": [1, 2, 11, 15], "title": list("wxyz")}))
    assert domains_of(titled).names == ("books", "films")
    own = pl.DataFrame({"item_id": [1, 2, 11, 15], "domain": ["p", "q", "p", "q"]})
    assert domains_of(with_features(made, items=own)).codes.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: domains_of(from_frame(FRAME)), "the items of frame must have a column 'domain', got none; read the"),
        (
            lambda: domains_of(
                with_features(from_frame(FRAME), items=pl.DataFrame({"item_id": [1, 2, 11, 15],
                                                                     "domain": ["a", None, "b", None]}))
            ),
            "each item must have a domain, got none for 2 and 2 in all",
        ),
        (
            lambda: Domains.of({"a": Domains.from_frame(FRAME, "shop").joined()}).joined(),
            "items of 'a' has a column 'domain' already",
        ),
        (lambda: domains_of(Domains.from_frame(FRAME, "shop").joined()).place("f", "film"), "f: domain must be one of "
         r"\['books', 'films'\], got 'film'; did you mean 'films'"),
        (lambda: load("a=x.csv,a=y.csv"), "the names of domains must differ"),
        (lambda: load("x.csv", test="y.csv", domain="shop"), "read from one file, got 2 files|no file"),
        (lambda: data.synthetic(domains=5), r"domains must be in \[1, 4\]"),
        (lambda: data.synthetic(domains=0), r"domains must be in \[1, 4\]"),
    ],
)  # fmt: skip
def test_what_says_no_domain_is_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make()


def test_a_column_of_domains_is_not_read_from_several_files(tmp_path: Path) -> None:
    FRAME.write_csv(tmp_path / "log.csv")
    with pytest.raises(ValueError, match="a column of domains is read from one file, got 2 files"):
        load(tmp_path / "log.csv", test=str(tmp_path / "log.csv"), domain="shop")
    with pytest.raises(ValueError, match="domain must be a column of"):
        load(tmp_path / "log.csv", domain="shops")


def test_synthetic_users_meet_items_of_the_domains_in_which_they_are_active() -> None:
    made = data.synthetic(300, 120, 6_000, domains=3)
    names, codes = domains_of(made)
    assert names == ("books", "films", "games")
    assert np.bincount(codes).tolist() == [40, 40, 40]
    assert (len(made), len(np.unique(made.pair_keys()))) == (6_000, 6_000)
    met = np.zeros((300, 3), dtype=bool)
    met[made.users, codes[made.items]] = True
    assert np.bincount(met.sum(axis=1))[1:].min() > 40  # users of one, two and three domains
    # What a user likes in one domain they like in the others: by taste the own items stand above those of chance.
    scores = made.truth.scores(np.arange(300)) - made.truth.item_bias
    assert scores[made.users, made.items].mean() > scores.mean() + 0.5
    assert data.synthetic(300, 120, 6_000).item_features.columns == made.item_features.columns[:-1]
