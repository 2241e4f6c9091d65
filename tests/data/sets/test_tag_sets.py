"""Data sets with tags, from small files of their layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprec import data


def make_delicious(root: Path) -> Path:
    folder = root / "hetrec2011-tag-aware" / "delicious"
    folder.mkdir(parents=True)
    files = {
        "train": "userID\titemID\ttagID\n0\t0\t0\n0\t0\t1\n1\t1\t2\n",
        "val": "userID\titemID\n1\t0\n",
        "test": "userID\titemID\n0\t2\n",
        "users": "org_id\tremap_id\n8\t0\n32\t1\n",
        "items": "org_id\tremap_id\n7\t0\n9\t1\n11\t2\n",
        "tags": "org_id\tremap_id\n1\t0\n6\t1\n9\t2\n",
    }
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_a_published_split_has_the_ids_and_names_of_its_source(tmp_path: Path) -> None:
    folder = make_delicious(tmp_path)
    numbers = data.load("delicious-tags", tmp_path)
    assert numbers.tag_ids.values.to_list() == [1, 6, 9]
    (folder / "hetrec_tags.dat").write_bytes(
        "id\tvalue\r\n1\tcafé\r\n6\tjazz\r\n9\tjazz\r\n10\tother\r\n".encode("latin-1")
    )
    bookmarks = data.load("delicious-tags", tmp_path)
    assert bookmarks.tag_ids.values.to_list() == ["café", "jazz (6)", "jazz (9)"]
    assert bookmarks.user_ids.values.to_list() == [8, 32]
    assert bookmarks.item_ids.values.to_list() == [7, 9, 11]
    split = data.official(bookmarks)
    assert split.train.tags.tolist() == [0, 1, 2]
    assert split.validation.to_frame().rows() == [(32, 7, None)]
    assert split.test.to_frame().rows() == [(8, 11, None)]


def test_files_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    folder = make_delicious(tmp_path)
    (folder / "items.txt").write_text("org_id\tremap_id\n7\t0\n9\t1\n")
    with pytest.raises(ValueError, match=r"items.txt must hold every item of the other files, got none for 2"):
        data.load("delicious-tags", tmp_path)
    (folder / "items.txt").write_text("org_id\tremap_id\n7\n")
    with pytest.raises(ValueError, match="must have 2 fields separated by tabs in every line, got '7'"):
        data.load("delicious-tags", tmp_path)
    (folder / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val.txt \(or with .gz\) must be in"):
        data.load("delicious-tags", tmp_path)


def test_raw_triples_of_lastfm_have_names_of_artists(tmp_path: Path) -> None:
    folder = tmp_path / "hetrec2011-lastfm-2k"
    folder.mkdir()
    (folder / "user_taggedartists.dat").write_text("userID\tartistID\ttagID\tday\tmonth\tyear\n2\t52\t13\t1\t4\t2009\n")
    (folder / "tags.dat").write_text("tagID\ttagValue\n13\tchillout\n")
    (folder / "artists.dat").write_text("id\tname\turl\tpictureURL\n52\tMorcheeba\tu\tp\n")
    listened = data.load("lastfm-2k", tmp_path)
    assert listened.tag_ids.values.to_list() == ["chillout"]
    assert listened.item_features.rows() == [(52, "Morcheeba")]


def test_citeulike_lists_the_tags_of_articles(tmp_path: Path) -> None:
    folder = tmp_path / "citeulike-a"
    folder.mkdir()
    (folder / "users.dat").write_text("2 0 2\n1 1\n")
    (folder / "item-tag.dat").write_text("1 1\n0\n2 0 1\n")
    (folder / "tags.dat").write_text("a\nb\n")
    libraries = data.load("citeulike-a", tmp_path)
    assert libraries.to_frame().rows() == [(0, 0), (0, 2), (1, 1)]
    assert libraries.item_features["tags"].to_list() == [["b"], [], ["a", "b"]]
    (folder / "users.dat").write_text("3 0 2\n")
    with pytest.raises(ValueError, match=r"users\.dat, line 1 must be a count and as many whole numbers"):
        data.load("citeulike-a", tmp_path)
    (folder / "users.dat").write_text("1 7\n")
    with pytest.raises(ValueError, match="must have items below 3, got 7"):
        data.load("citeulike-a", tmp_path)
