"""Names: where they are looked for, what is said when they are not found; features of MovieLens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deeprec import data

MOVIES = "30::Am\xe9lie: A Tale (2001)::Comedy|Romance\n10::Toy Story (1995)::Animation\n"
RATINGS = "1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n"


@pytest.fixture(autouse=True)
def _no_other_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEEPREC_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make_ml_1m(root: Path, ratings: str = RATINGS) -> Path:
    folder = root / "ml-1m"
    folder.mkdir(parents=True)
    (folder / "ratings.dat").write_text(ratings)
    (folder / "movies.dat").write_bytes(MOVIES.encode("latin-1"))
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    return folder


def test_places_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ml_1m(data.cache_dir(), "1::1::1::978300760\n")
    assert data.load("ml-1m").ratings.tolist() == [1]
    make_ml_1m(tmp_path / "environment", "1::1::2::978300760\n")
    monkeypatch.setenv("DEEPREC_DATA", str(tmp_path / "environment"))
    assert data.load("ml-1m").ratings.tolist() == [2]
    folder = make_ml_1m(tmp_path / "argument", "1::1::3::978300760\n")
    assert data.load("ml-1m", tmp_path / "argument").ratings.tolist() == [3]
    assert data.load("ml-1m", folder).ratings.tolist() == [3]
    assert data.load(folder).ratings.tolist() == [3]


def test_missing_data_set_names_the_places_and_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        data.load("ml-1m", tmp_path / "here")
    message = str(caught.value)
    assert str(tmp_path / "here" / "ml-1m") in message
    assert str(data.cache_dir() / "ml-1m") in message
    assert "deeprec data fetch ml-1m" in message


@pytest.mark.parametrize(("given", "meant"), [("ml1m", "ml-1m"), ("ml-100", "ml-100k"), ("sinthetic", "synthetic")])
def test_unknown_name_suggests_the_closest(given: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        data.load(given)


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*click\.csv; did you mean 'clicks\.csv'"):
        data.load(tmp_path / "click.csv")


def test_unknown_kind_of_file_and_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04\0")
    with pytest.raises(ValueError, match=r"a\.xlsx must be text, got a zip archive; unpack it first"):
        data.load(tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="a folder must hold one known data set"):
        data.load(tmp_path)


def test_unknown_option_suggests_the_closest(tmp_path: Path) -> None:
    make_ml_1m(tmp_path)
    with pytest.raises(TypeError, match="got 'duplicate'; did you mean 'duplicates'"):
        data.load("ml-1m", tmp_path, duplicate="keep")
    with pytest.raises(TypeError, match="without the option"):
        data.load("ml-1m", tmp_path, fold="u1")


def test_features_are_aligned_with_internal_ids(tmp_path: Path) -> None:
    make_ml_1m(tmp_path)
    interactions = data.load("ml-1m", tmp_path)
    items, users = interactions.item_features, interactions.user_features
    assert items["item_id"].to_list() == interactions.item_ids.values.to_list() == [10, 20]
    assert items["title"].to_list() == ["Toy Story (1995)", None]
    assert items["year"].to_list() == [1995, None]
    assert users["zip"].to_list() == ["48067", "70072"]


def test_titles_are_latin_1_and_may_hold_single_colons(tmp_path: Path) -> None:
    make_ml_1m(tmp_path, "1::30::5::978300760\n")
    row = data.load("ml-1m", tmp_path).item_features.row(0, named=True)
    assert row == {"item_id": 30, "title": "Amélie: A Tale (2001)", "genres": ["Comedy", "Romance"], "year": 2001}


def make_ncf_test(root: Path, test: str) -> None:
    (root / "ncf").mkdir()
    (root / "ncf" / "ml-1m.test.rating").write_text(test)
    (root / "ncf" / "ml-1m.test.negative").write_text("(0,1)\t0\n(1,0)\t1\n")


def test_ncf_split_is_found_beside_movielens(tmp_path: Path) -> None:
    make_ml_1m(tmp_path)
    make_ncf_test(tmp_path, "0\t1\t3\t978302109\n1\t0\t4\t978301968\n")
    interactions = data.load("ml-1m", tmp_path)
    assert interactions.official.test_index.tolist() == [1, 2]
    assert interactions.official.train_index.tolist() == [0]
    np.testing.assert_array_equal(interactions.official.test_negatives, [[0], [1]])


def test_ncf_split_of_other_ratings_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_ml_1m(tmp_path)
    make_ncf_test(tmp_path, "0\t1\t5\n1\t0\t4\n")
    assert data.load("ml-1m", tmp_path).official is None
    assert "split is left out" in caplog.text


def test_info_knows_every_name_and_suggests() -> None:
    assert [data.info(entry.name) for entry in data.list_datasets()] == data.list_datasets()
    with pytest.raises(ValueError, match="did you mean 'ml-1m'"):
        data.info("ml-1")


def test_douban_needs_both_parts_of_its_split(tmp_path: Path) -> None:
    folder = tmp_path / "gc-mc" / "douban"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("0\t22\t4\n3\t31\t2\n")
    with pytest.raises(FileNotFoundError, match="must both be in"):
        data.load("douban", tmp_path)
    (folder / "test.tsv").write_text("3\t22\t1\n")
    found = data.load("douban", tmp_path)
    assert found.official.test_index.tolist() == [2]
    assert found.ratings.tolist() == [4, 2, 1]
