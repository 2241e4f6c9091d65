"""Readers on the real files, where DEEPREC_DATA names a folder that holds them."""

from __future__ import annotations

import os

import numpy as np
import pytest

from deeprec import data

_HAVE = {entry.name for entry in data.list_datasets() if os.environ.get("DEEPREC_DATA") and data.find(entry.name)}


def need(name: str) -> data.Interactions:
    if name not in _HAVE:
        pytest.skip(f"{name} is not at hand: set DEEPREC_DATA to a folder that holds {data.info(name).folder}/")
    return data.load(name)


@pytest.fixture(scope="module")
def ml_1m() -> data.Interactions:
    return need("ml-1m")


def test_ml_1m_has_the_published_counts(ml_1m: data.Interactions) -> None:
    assert (len(ml_1m), ml_1m.num_users, ml_1m.num_items) == (1_000_209, 6_040, 3_706)
    assert np.bincount(ml_1m.ratings.astype(int))[1:].tolist() == [56_174, 107_557, 261_197, 348_971, 226_310]
    assert ml_1m.repairs == {}
    assert ml_1m.user_counts().min() >= 20


def test_ml_1m_ranks_are_an_order_of_each_user(ml_1m: data.Interactions) -> None:
    if ml_1m.order_kind != "rank":
        pytest.skip("ratings.dat with Unix times is at hand; ratings_rank.dat is what this reads")
    assert (ml_1m.order == 0).sum() == 598
    placed = ml_1m.take(ml_1m.order > 0)
    assert len(np.unique(placed.users.astype(np.int64) * 10_000 + placed.order)) == len(placed)


def test_ml_1m_titles_and_ages_are_there(ml_1m: data.Interactions) -> None:
    titles = dict(ml_1m.item_features.select("item_id", "title").iter_rows())
    assert titles[1] == "Toy Story (1995)"
    assert ml_1m.item_features["title"].null_count() == 0
    assert ml_1m.user_features["age"].null_count() == 0


def test_ml_1m_carries_the_ncf_split(ml_1m: data.Interactions) -> None:
    if ml_1m.official is None:
        pytest.skip("ncf/ml-1m.test.rating and .test.negative are not in DEEPREC_DATA")
    split = data.official(ml_1m)
    test = ml_1m.take(ml_1m.official.test_index)
    assert len(test) == 6_040
    assert test.users.tolist() == list(range(6_040))
    assert split.test_negatives.shape == (6_040, 99)
    assert len(split.train) + len(split.validation) == 994_169
    indptr, indices = ml_1m.take(ml_1m.official.train_index).csr()
    in_train = [np.isin(row, indices[indptr[u] : indptr[u + 1]]).sum() for u, row in enumerate(split.test_negatives)]
    assert sum(in_train) == 0
    assert (split.test_negatives == test.items[:, None]).sum() == 156


def test_ncf_triple_and_movielens_hold_the_same_split(ml_1m: data.Interactions) -> None:
    triple = need("ncf-ml-1m")
    if ml_1m.official is None:
        pytest.skip("ncf/ml-1m.test.rating and .test.negative are not in DEEPREC_DATA")
    assert (len(triple), triple.num_users, triple.num_items) == (1_000_209, 6_040, 3_706)
    for index in ("train_index", "test_index"):
        mine, other = (part.take(getattr(part.official, index)) for part in (ml_1m, triple))
        np.testing.assert_array_equal(np.sort(mine.pair_keys()), np.sort(other.pair_keys()))
    np.testing.assert_array_equal(ml_1m.official.test_negatives, triple.official.test_negatives)


def test_ml_1m_order_agrees_with_the_held_out_items_of_ncf(ml_1m: data.Interactions) -> None:
    if ml_1m.official is None or ml_1m.order_kind != "rank":
        pytest.skip("needs ratings_rank.dat and the NCF test files in DEEPREC_DATA")
    last = data.leave_one_out(ml_1m).test
    published = ml_1m.take(ml_1m.official.test_index)
    assert (last.items == published.items).sum() == 4_369


@pytest.mark.parametrize(
    ("name", "rows", "users", "items", "ratings"),
    [("ncf-lastfm", 69_149, 1_741, 2_665, 67_408), ("ncf-amusic", 46_087, 1_776, 12_929, 44_311)],
)
def test_deep_cf_triples_have_the_published_counts(name: str, rows: int, users: int, items: int, ratings: int) -> None:
    triple = need(name)
    assert (len(triple), triple.num_users, triple.num_items) == (rows, users, items)
    assert len(triple.official.train_index) == ratings
    assert triple.official.test_negatives.shape == (users, 99)


def test_ml_100k_has_the_published_counts() -> None:
    interactions = need("ml-100k")
    assert (len(interactions), interactions.num_users, interactions.num_items) == (100_000, 943, 1_682)
    assert interactions.order_kind == "time"
    genres = dict(interactions.item_features.select("item_id", "genres").iter_rows())
    assert genres[1] == ["Animation", "Children's", "Comedy"]
    assert interactions.user_features["occupation"].null_count() == 0


@pytest.mark.parametrize("fold", ["u1", "u5", "ua", "ub"])
def test_ml_100k_folds_are_the_whole_data(fold: str) -> None:
    whole = need("ml-100k")
    part = data.load("ml-100k", fold=fold)
    assert sorted(part.to_frame().rows()) == sorted(whole.to_frame().rows())
    split = data.official(part, validation="none")
    assert len(split.test) == (20_000 if fold.startswith("u1") or fold == "u5" else 9_430)
    assert split.test_negatives is None


@pytest.mark.skipif("douban" not in _HAVE, reason="needs douban, see `deeprec data list`")
def test_douban_carries_its_split() -> None:
    interactions = data.load("douban")
    facts = data.info("douban")
    assert (len(interactions), interactions.num_users, interactions.num_items) == (facts.rows, facts.users, facts.items)
    assert interactions.order is None
    assert interactions.official is not None
    assert len(interactions.official.train_index) == 123_202
    assert sorted(set(interactions.ratings.tolist())) == [1, 2, 3, 4, 5]


def test_delicious_has_the_counts_of_the_paper_of_dspr() -> None:
    bookmarks = need("delicious-tags")
    assert isinstance(bookmarks, data.Folksonomy)
    assert (bookmarks.num_users, bookmarks.num_items, bookmarks.num_tags) == (1_843, 65_877, 3_508)
    split = data.official(bookmarks)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [271_417, 9_735, 9_735]
    assert (split.train.tags >= 0).all()
    assert (split.test.tags == -1).all()
    assert "collection_development" in bookmarks.tag_ids.values.to_list()


def test_lastfm_with_tags_used_five_times_has_the_published_counts() -> None:
    assert need("lastfm-tags").num_tags == 2_305
    raw = need("lastfm-2k")
    assert (len(raw), raw.num_users, raw.num_items) == (186_479, 1_892, 12_523)
    kept = data.positives(raw, min_tag_uses=5)
    assert (len(kept), kept.num_users, kept.num_items, kept.num_tags) == (175_641, 1_808, 12_212, 2_305)
    names = dict(kept.item_features.iter_rows())
    assert names[73] == "Café Del Mar"


def test_citeulike_has_the_tags_of_its_articles() -> None:
    libraries = need("citeulike-a")
    assert (len(libraries), libraries.num_users, libraries.num_items) == (204_986, 5_551, 16_980)
    tags = libraries.item_features["tags"]
    assert len(tags[0]) == 17
    assert tags.explode().n_unique() == 46_390  # of 46,391 one is of no article


def test_reviews_of_amazon_have_their_texts() -> None:
    beauty, instruments = need("amazon-beauty-reviews"), need("amazon-instruments-reviews")
    assert (len(beauty), beauty.num_users, beauty.num_items) == (9_829, 3_543, 2_998)
    assert (len(instruments), instruments.num_users, instruments.num_items) == (5_050, 1_381, 392)
    assert beauty.official is not None
    assert (len(beauty.official.train_index), len(beauty.official.test_index)) == (7_802, 2_027)
    for each, start in ((beauty, "This is perhaps one"), (instruments, "Not much to write")):
        texts = each.row_texts()
        assert texts[0].startswith(start)
        assert texts.null_count() == 2
