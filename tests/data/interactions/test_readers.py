"""Readers on small made files: every form, plain and gzip, and every kind of damage."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data import load
from deeprec.data.reading import text

ROWS = [(1, 10, 5, 978300760), (1, 30, 3, 978302109), (2, 10, 4, 978301968), (2, 20, 1, 978300275)]
ML_1M = "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in ROWS)


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def forms(folder: Path) -> list[Path]:
    import polars as pl

    frame = pl.DataFrame(ROWS, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    frame.write_parquet(folder / "a.parquet")
    table = frame.write_csv()
    return [
        write(folder / "ratings.dat", ML_1M),
        write(folder / "ratings2.dat.gz", ML_1M),
        write(folder / "crlf.dat", ML_1M.replace("\n", "\r\n")),
        write(folder / "u.data", ML_1M.replace("::", "\t")),
        write(folder / "a.csv", table),
        write(folder / "a.csv.gz", table),
        write(folder / "b.tsv", table.replace(",", "\t")),
        folder / "a.parquet",
    ]


def test_every_form_of_file_has_the_same_content(tmp_path: Path) -> None:
    data = [load(path) for path in forms(tmp_path)]
    assert {part.sha256 for part in data} == {data[0].sha256}
    assert data[0].to_frame().rows() == ROWS
    assert data[0].order_kind == "time"


@pytest.mark.parametrize("bad", ["x", "20.5", "99999999999999999999", "007"])
def test_ids_that_are_no_whole_numbers_are_refused_where_a_set_has_whole_numbers(tmp_path: Path, bad: str) -> None:
    write(tmp_path / "ml-1m" / "ratings.dat", f"1::10::5::978300760\n{bad}::20::5::1\n3::10::5::978300760")
    with pytest.raises(ValueError, match=rf"line 2: user must be a whole number, got '{bad}'"):
        load("ml-1m", tmp_path)
    assert len(load("ml-1m", tmp_path, on_bad="skip")) == 2


def test_a_path_without_its_gz_is_found(tmp_path: Path) -> None:
    write(tmp_path / "x.dat.gz", ML_1M)
    assert len(load(tmp_path / "x.dat")) == 4


@pytest.mark.parametrize("name", ["ratings_rank.dat", "ratings.dat"])
def test_ranks_are_recognised_and_taken_as_order(tmp_path: Path, name: str) -> None:
    data = load(write(tmp_path / name, "1::10::5::2\n1::20::3::0\n1::30::3::1\n2::10::4::1\n"))
    assert data.order_kind == "rank"
    assert data.order.tolist() == [2, 0, 1, 1]


def test_times_under_a_rank_name_are_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(write(tmp_path / "ratings_rank.dat", ML_1M)).order_kind == "time"
    assert "called rank" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2::20::five::1", r"line 3: rating must be a number, got 'five' \(1 bad: line 3\)"),
        ("2::20::nan::1", "line 3: rating must be a number, got 'nan'"),
        ("2::20::::1", r"line 3: rating must be a number, got None"),
        ("2::20::5", r"line 3: a row of a table separated by '::' must have 4 fields, as the first row has, got 3"),
        ("2:20:5:1", "line 3: a row of a table separated by '::' must have 4 fields, as the first row has, got 1"),
    ],
)
@pytest.mark.parametrize("fallback", [False, True])
def test_bad_line_is_named_or_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str, fallback: bool
) -> None:
    if fallback:
        monkeypatch.setattr(text, "_host", None)
    elif text._host is None:
        pytest.skip("deeprec._host is not built (no C++ compiler at installation)")
    path = write(tmp_path / "ratings.dat", f"1::10::5::978300760\n\n{line}\n3::10::5::978300760")
    with pytest.raises(ValueError, match=message):
        load(path)
    data = load(path, on_bad="skip")
    assert data.users.tolist() == [0, 1]
    assert data.repairs == {"bad_rows_dropped": 1}


FIELD = st.one_of(st.integers(-5, 5).map(str), st.floats(width=32).map(str), st.sampled_from(["", "x", " 7 ", "1e3"]))


@pytest.mark.skipif(text._host is None, reason="deeprec._host is not built (no C++ compiler at installation)")
@given(
    st.lists(st.lists(FIELD, min_size=1, max_size=5), max_size=12),
    st.sampled_from(["::", "\t", ","]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["iif", "i-f", "f", "-i"]),
)
def test_compiled_parser_and_fallback_agree(rows: list[list[str]], separator: str, end: str, kinds: str) -> None:
    data = end.join(separator.join(row) for row in rows).encode()
    mine, other = text._host.parse_table(data, separator, kinds), text._parse_table_python(data, separator, kinds)
    assert len(mine[0]) == len(other[0])
    for a, b in zip(mine[0], other[0], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(mine[1], other[1])
    assert [(line, column) for line, column, _ in mine[2]] == [(line, column) for line, column, _ in other[2]]


@pytest.mark.parametrize("keep", [3, 20, 40])
def test_truncated_gzip_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "ratings.dat.gz"
    path.write_bytes(gzip.compress(ML_1M.encode())[:keep])
    with pytest.raises(ValueError, match=r"ratings\.dat\.gz must be a whole gzip file, .*; copy or download it again"):
        load(path)


def test_plain_text_called_gz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ratings.dat.gz"
    path.write_bytes(ML_1M.encode())
    with pytest.raises(ValueError, match=r"must be a gzip file, got bytes b'1::1'; drop the \.gz"):
        load(path)


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(ML_1M.encode() * 50))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "ratings.dat.gz").write_bytes(bytes(data))
    with pytest.raises(ValueError, match="must be a whole gzip file"):
        load(tmp_path / "ratings.dat.gz")


@pytest.mark.parametrize("name", ["ratings.dat", "a.csv", "a.parquet", "ratings.dat.gz"])
def test_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load(tmp_path / name)


def test_csv_header_alone_is_an_empty_frame(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        load(write(tmp_path / "a.csv", "user_id,item_id,rating\n"))


def test_csv_bad_rating_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user_id,item_id,rating\n1,2,3\n1,3,good\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 3: rating must be a number, got 'good'"):
        load(path)
    assert len(load(path, on_bad="skip")) == 1


def test_csv_with_a_ragged_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.csv, line 3: a row of a table separated by ',' must have 2 fields"):
        load(write(tmp_path / "a.csv", "user_id,item_id\n1,2\n1,2,3,4\n"))


def test_csv_ids_with_leading_zeros_stay_text(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.csv", "user_id,item_id\n007,1\n7,9999999999999\n"))
    assert data.user_ids.values.to_list() == ["007", "7"]
    assert data.item_ids.values.to_list() == [1, 9999999999999]


def test_csv_columns_are_mapped(tmp_path: Path) -> None:
    data = load(
        write(tmp_path / "a.csv", "who;what;stars\nu;v;3\n"), user="who", item="what", rating="stars", separator=";"
    )
    assert data.ratings.tolist() == [3]


def test_parquet_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.parquet must be a whole Parquet file"):
        load(write(tmp_path / "a.parquet", b"PAR1nothing"))


TRAIN, TEST, NEGATIVE = "0\t0\t5\n0\t1\t3\n1\t2\t4\n", "0\t2\t4\n1\t0\t1\n", "(0,2)\t3\t4\n(1,0)\t1\t4\n"


def triple(folder: Path, train: str = TRAIN, test: str = TEST, negative: str = NEGATIVE, end: str = "") -> Path:
    write(folder / f"x.test.rating{end}", test)
    write(folder / f"x.test.negative{end}", negative)
    return write(folder / f"x.train.rating{end}", train)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_ncf_triple_carries_its_split(tmp_path: Path, end: str) -> None:
    data = load(triple(tmp_path, end=end))
    assert data.num_items == 5  # items 3 and 4 are negatives only
    assert data.order is None
    assert data.official.train_index.tolist() == [0, 1, 2]
    assert data.take(data.official.test_index).items.tolist() == [2, 0]
    assert data.official.test_negatives.tolist() == [[3, 4], [1, 4]]
    assert load(tmp_path).sha256 == data.sha256


def test_ncf_fourth_column_is_order(tmp_path: Path) -> None:
    def add(table: str) -> str:
        return "".join(f"{line}\t{978300000 + row}\n" for row, line in enumerate(table.splitlines()))

    data = load(triple(tmp_path, add(TRAIN), add(TEST)))
    assert data.order.tolist() == [978300000, 978300001, 978300002, 978300000, 978300001]
    assert load(triple(tmp_path, TRAIN, add(TEST))).order is None


def test_ncf_training_row_that_repeats_a_test_pair_is_dropped(tmp_path: Path) -> None:
    data = load(triple(tmp_path, train=TRAIN + "0\t2\t4\n0\t0\t5\n"))
    assert data.repairs == {"duplicate_rows_dropped": 2}
    assert len(data.official.train_index) == 3
    assert data.take(data.official.test_index).items.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        ("(0,2)\t3\t4\n", "one line for each of 2 test rows, got 1"),
        ("(0,2)\t3\t4\n(1,3)\t1\t4\n", r"line 2 must be for \(1,0\), got \(1,3\)"),
        ("(0,2)\t3\t4\n(1,0)\t1\n", r"line 2: negative 2 must be an integer, got nothing"),
        ("(0,2)\t3\tx\n(1,0)\t1\t4\n", r"line 1: negative 2 must be an integer, got 'x'"),
    ],
)
def test_ncf_negatives_must_fit_the_test_rows(tmp_path: Path, negative: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(triple(tmp_path, negative=negative))


def test_ncf_missing_file_is_named(tmp_path: Path) -> None:
    path = triple(tmp_path)
    (tmp_path / "x.test.negative").unlink()
    with pytest.raises(FileNotFoundError, match=r"none called \['x\.test\.negative'\]"):
        load(path)
