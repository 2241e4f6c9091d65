"""Layouts of files of interactions, columns by place, several files, and files of their own for testing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeprec.data import load, official
from deeprec.evaluate import protocol


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def pairs(data: Any) -> list[tuple[Any, Any]]:
    return data.to_frame().select("user_id", "item_id").rows()


LISTS = "u1 3 1 2\nu2 9\nu3 5 4 7 8 6\n"


def test_lists_give_each_user_a_line(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.txt", LISTS), format="lists")
    assert pairs(data)[:4] == [("u1", 3), ("u1", 1), ("u1", 2), ("u2", 9)]
    assert (data.order_kind, data.order.tolist()) == ("rank", [1, 2, 3, 1, 1, 2, 3, 4, 5])
    assert load(tmp_path / "a.txt", format="lists", ordered=False).order is None


def test_lists_sorted_by_item_have_no_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "\n".join(f"{user} {' '.join(map(str, range(user, user + 5)))}" for user in range(20))
    data = load(write(tmp_path / "a.txt", text), format="lists")
    assert data.order is None
    assert "sorted by item" in caplog.text
    assert load(tmp_path / "a.txt", format="lists", ordered=True).order is not None


def test_lists_that_begin_with_their_length_are_told(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.txt", "3 7 5 6\n1 4\n2 5 4\n"), format="lists")
    assert pairs(data) == [(0, 7), (0, 5), (0, 6), (1, 4), (2, 5), (2, 4)]
    own = load(tmp_path / "a.txt", format="lists", counted=False)
    assert pairs(own)[:2] == [(3, 7), (3, 5)]
    with pytest.raises(ValueError, match=r"line 2: the first number must count the items behind it, got '2' before 1"):
        load(write(tmp_path / "b.txt", "1 7\n2 4\n"), format="lists", counted=True)


def test_sessions_are_users_by_their_lines(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.txt", "a b\n\nb c d\n"), format="sessions")
    assert pairs(data) == [(0, "a"), (0, "b"), (1, "b"), (1, "c"), (1, "d")]
    assert data.order.tolist() == [1, 2, 1, 2, 3]


@pytest.mark.parametrize(("distinct", "kind"), [(True, "lists"), (False, "sessions")])
def test_ragged_lines_are_guessed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, distinct: bool, kind: str
) -> None:
    rng = np.random.default_rng(0)
    first = range(50) if distinct else [1] * 50
    text = "".join(f"{at} {' '.join(map(str, rng.integers(50, 99, rng.integers(1, 9))))}\n" for at in first)
    load(write(tmp_path / "a.txt", text))
    assert f"a.txt: taken as {kind}" in caplog.text


def test_a_matrix_holds_ratings_where_it_is_not_0(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.ascii", " 0 5 0\n 1  0 2.5\n"), format="matrix")
    assert data.to_frame().rows() == [(0, 1, 5), (1, 0, 1), (1, 2, 2.5)]
    with pytest.raises(ValueError, match=r"line 2: a matrix must hold numbers, got 'x'"):
        load(write(tmp_path / "b.ascii", "0 5 0\n1 x 2\n"), format="matrix")


def test_a_table_without_names_that_nothing_tells_is_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "1 2 3 4 5\n1 3 4 5 6\n")
    with pytest.raises(ValueError, match=r"has 5 columns without names; say which by user=0, .* format='matrix'"):
        load(path)
    assert load(path, user=0, item=4).to_frame().rows() == [(1, 5), (1, 6)]


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ("1 2", "user = 0, item = 1"),
        ("1 2 5", "user = 0, item = 1, rating = 2"),
        ("1 2 978300760", "user = 0, item = 1, timestamp = 2"),
        ("1 2 5 978300760", "user = 0, item = 1, rating = 2, timestamp = 3"),
        ("1 2 a", "user = 0, item = 1"),
    ],
)
def test_columns_without_names_are_taken_by_place_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: str, roles: str
) -> None:
    data = load(write(tmp_path / "a.txt", f"{row}\n{row.replace('2', '3', 1)}\n"))
    assert f"a.txt: {roles} (columns without names" in caplog.text
    assert (data.ratings is not None) == ("rating" in roles)
    assert (data.order is not None) == ("timestamp" in roles)


@pytest.mark.parametrize("text", ["a,b,c,d\nx,1,i,4\ny,2,i,5\n", "1,1,i,4\n1,2,j,5\n"])
def test_the_place_of_a_column_works_as_its_name_does(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.csv", text)
    data = load(path, user=1, item="2", rating=3, order=1)
    assert data.to_frame().select("user_id", "rating", "timestamp").rows() == [(1, 4, 1), (2, 5, 2)]
    with pytest.raises(ValueError, match=r"user must be a column of .*a\.csv or its place from 0 to 3, got 9"):
        load(path, user=9, item=1)


def test_usual_names_are_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load(write(tmp_path / "a.csv", "userID,movieId,overall,unixReviewTime,year\n1,2,5,978300760,1990\n"))
    assert data.to_frame().rows() == [(1, 2, 5, 978300760)]
    assert "user = userID, item = movieId, rating = overall, timestamp = unixReviewTime" in caplog.text
    caplog.clear()
    load(write(tmp_path / "b.csv", "user_id,item_id\n1,2\n"))
    assert not caplog.text


def test_a_column_that_is_not_numbers_is_not_taken_for_time(tmp_path: Path) -> None:
    assert load(write(tmp_path / "a.csv", "user_id,item_id,time\n1,2,noon\n1,3,night\n")).order is None


def test_the_order_of_rows_is_time_where_it_is_said(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.txt", "1 5\n2 5\n1 4\n"), order="file")
    assert (data.order_kind, data.order.tolist()) == ("rank", [1, 1, 2])


def test_mostly_whole_numbers_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "".join(f"{user} 5\n" for user in range(30)) + "x 5\n"
    data = load(write(tmp_path / "a.txt", text))
    assert data.user_ids.values.to_list()[-1] == "x"
    assert "user ids are texts, as 1 of 31 are no whole numbers, the first of them 'x' in line 31" in caplog.text


def parts(folder: Path) -> Path:
    write(folder / "train.txt", "".join(f"{user} {item}\n" for user in range(6) for item in range(user, user + 4)))
    write(folder / "valid.txt", "0 20\n1 2\n")
    write(folder / "test.txt", "0 3\n1 21\n9 1\n")
    return folder


@pytest.mark.parametrize("way", ["folder", "options", "commas"])
def test_files_of_their_own_are_the_official_split(tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = parts(tmp_path / "set")
    source: Any = folder if way == "folder" else folder / "train.txt"
    options = {} if way == "folder" else {"validation": folder / "valid.txt", "test": folder / "test.txt"}
    if way == "commas":  # a part more
        source = f"{source},{write(folder / 'more.txt', '7 1' + chr(10))}"
    data = load(source, **options)
    assert "1 users and 2 items have no training rows" in caplog.text
    assert "2 rows are left out, as a later part holds the same user and item" in caplog.text
    split = official(data)
    assert pairs(split.test) == [(0, 3), (1, 21), (9, 1)]
    assert pairs(split.validation) == [(0, 20), (1, 2)]
    assert len(split.train) == 22 + (way == "commas")
    assert len(official(data, validation="none").validation) == 0
    assert protocol("full", holdout="official").split(data).sha256 != protocol("full").split(data).sha256


def test_a_test_row_comes_after_the_training_rows_where_order_is_places(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "1 5 4 3\n2 3 1 2\n")
    write(tmp_path / "test.txt", "1 9\n2 8\n")
    data = load(tmp_path, format="lists")
    assert data.order.tolist() == [1, 2, 3, 1, 2, 3, 4, 4]


def test_files_that_do_not_say_what_they_are_are_refused(tmp_path: Path) -> None:
    valid = write(tmp_path / "valid.txt", "1 2\n")
    with pytest.raises(ValueError, match="a file of validation rows goes with one of test rows"):
        load(valid, validation=valid)
    write(tmp_path / "a.csv", "1 2\n")
    with pytest.raises(ValueError, match=r"files called train and test, or files of one kind, got .* with \['a\.csv'"):
        load(tmp_path)


def test_all_tables_of_a_folder_are_one_set(tmp_path: Path) -> None:
    for day in range(3):
        write(tmp_path / f"day{day}.csv", f"user_id,item_id\n{day},1\n")
    assert pairs(load(tmp_path)) == [(0, 1), (1, 1), (2, 1)]


def test_click_logs_name_the_models_that_take_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a click log by its name; take a click model"):
        load(write(tmp_path / "a.libsvm", "1 3:1\n"))


def test_a_reader_says_nothing_where_all_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    load(write(tmp_path / "a.txt", "1 2 5\n1 3 4\n"), user=0, item=1, rating=2)
    assert not caplog.text
