"""Damaged, foreign and hostile files: each is read right, or refused by an error that names the file and the remedy."""

from __future__ import annotations

import errno
import gzip
import os
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from deeprec.data import load
from deeprec.data.clicks import log as click_log
from deeprec.data.clicks.log import ClickLog, convert, in_memory
from deeprec.data.columns.schema import Categorical, FeatureSchema, Numeric
from deeprec.data.columns.schema_inference import infer
from deeprec.data.interactions.features import movies_1m
from deeprec.data.reading.chunks import ColumnsToRead
from deeprec.data.reading.sources import open_source
from deeprec.data.reading.tables import read_parquet, read_separated
from deeprec.data.sets.click_datasets import synthetic_clicks

FRAME = pl.DataFrame(
    {"user_id": [n % 9 for n in range(400)], "item_id": [f"i{n % 11}" for n in range(400)], "rating": [3.5] * 400,
     "label": [n % 2 for n in range(400)]}
)  # fmt: skip
CSV = FRAME.write_csv().encode()
SVM = b"".join(b"%d %d:1 %d:1\n" % (n % 2, n % 7, 9 + n % 5) for n in range(200))


def _parquet(path: Path, frame: pl.DataFrame = FRAME) -> bytes:
    frame.write_parquet(path, row_group_size=100)
    return path.read_bytes()


def _all(path: Path) -> Any:
    source = open_source(path)
    return list(source.chunks(ColumnsToRead(categorical=tuple(name for name in source.columns if name != "label"))))


def _pairs(path: Path) -> Any:
    return list(open_source(path).chunks(ColumnsToRead(numeric=("label",))))


READERS = {
    "a.csv": [load, _all, lambda path: read_separated(path), lambda path: infer(path)],
    "a.tsv": [load, _all],
    "a.dat": [load],
    "a.parquet": [load, _all, read_parquet, lambda path: infer(path)],
    "a.svm": [_pairs],
    "a.train.yaml": [FeatureSchema.from_yaml],
    "movies.dat": [movies_1m],
}
CASES = [(name, place) for name, readers in READERS.items() for place in range(len(readers))]
USER_ERRORS = (ValueError, TypeError, OSError)


def _refused(call: Any, path: Path, *parts: str) -> str:
    with pytest.raises(USER_ERRORS) as got:
        call(path)
    text = str(got.value)
    assert str(path) in text, text
    for part in parts:
        assert part in text, text
    assert "polars" not in text
    assert "\n" not in text.strip()
    assert len(text) < 1000
    return text


@pytest.mark.parametrize(("name", "place"), CASES)
def test_what_is_no_file_is_told_what_it_is(tmp_path: Path, name: str, place: int) -> None:
    path, read = tmp_path / name, READERS[name][place]
    (tmp_path / f"x{name}").write_bytes(CSV)
    _refused(read, path, "no file", f"did you mean 'x{name}'")
    path.symlink_to(tmp_path / "gone")
    _refused(read, path, "a link to", "which is not there")
    path.unlink()
    os.mkfifo(path)  # opening it would wait for ever
    _refused(read, path, "a named pipe", "write its content to a file")
    path.unlink()
    path.write_bytes(b"")
    _refused(read, path, "is empty (0 bytes)", "copy or download it again")
    path.unlink()
    path.mkdir()
    if read is not load:
        _refused(read, path, "a folder")


@pytest.mark.parametrize(("name", "place"), CASES)
def test_another_kind_of_file_is_named(tmp_path: Path, name: str, place: int) -> None:
    path, read = tmp_path / name, READERS[name][place]
    if name == "a.train.yaml":
        return
    zeros = bytes(range(64))
    for content, kind in (
        (b"PK\x03\x04" + zeros, "a zip archive; unpack it first"),
        (b"SQLite format 3\0" + zeros, "an SQLite database"),
        (b"\x28\xb5\x2f\xfd" + zeros, "a Zstandard file; unpack it first"),
        (b"<!DOCTYPE html>\n<html>404</html>\n", "a web page; download the file itself"),
    ):
        path.write_bytes(content)
        _refused(read, path, kind)
    path.write_bytes(CSV if name == "a.parquet" else _parquet(path))
    _refused(read, path, "must be a whole Parquet file" if name == "a.parquet" else "a Parquet file")
    if name != "a.parquet":
        path.write_bytes(CSV.decode().encode("utf-16"))
        _refused(read, path, "must be UTF-8, got the first bytes of UTF-16; convert it")
        path.write_bytes(CSV[:500] + b"\0\0\0" + CSV[500:])
        _refused(read, path, "a zero byte in line")


@pytest.mark.parametrize(("name", "place"), CASES)
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch, name: str, place: int) -> None:
    path, read = tmp_path / name, READERS[name][place]
    path.write_bytes(_parquet(path) if name == "a.parquet" else SVM if name == "a.svm" else CSV)

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for owner, method in ((Path, "open"), (Path, "read_bytes"), (Path, "read_text"), (pl, "scan_parquet"),
                          (pl, "read_parquet")):  # fmt: skip
        monkeypatch.setattr(owner, method, refuse)
    _refused(read, path, "must be readable, got 'Permission denied'; allow it")


@pytest.mark.parametrize(("name", "place"), [case for case in CASES if case[0] == "a.parquet"])
def test_damaged_parquet_is_read_or_named(tmp_path: Path, name: str, place: int) -> None:
    path, read, rng = tmp_path / name, READERS[name][place], random.Random(place)
    whole = _parquet(path)
    refused = 0
    for turn in range(60):
        content = bytearray(whole)
        if turn % 3 == 0:
            content = content[: rng.randrange(4, len(content))]
        elif turn % 3 == 1:  # of the description at the end
            content[len(content) - 1 - rng.randrange(600)] ^= 1 << rng.randrange(8)
        else:
            start = rng.randrange(4, len(content) - 40)
            content[start : start + 40] = bytes(40)
        path.write_bytes(bytes(content))
        try:
            read(path)
        except USER_ERRORS as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017, a damaged byte may also lie where nobody reads
    assert refused > 20


def test_a_row_group_that_is_damaged_is_named_when_it_is_read(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.parquet"
    whole = bytearray(_parquet(path))
    whole[100:200] = bytes(100)
    path.write_bytes(bytes(whole))
    source = open_source(path)  # the description is whole
    _refused(lambda path: list(source.chunks(ColumnsToRead(categorical=("item_id",), numeric=("user_id",)))), path,
             "must be a whole Parquet file")  # fmt: skip
    schema = FeatureSchema((Categorical("item_id"), Numeric("user_id")))
    _refused(lambda path: in_memory(path, schema), path)
    _refused(lambda path: convert(path, schema, tmp_path / "log"), path)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("name", ["a.csv.gz", "a.dat.gz", "a.svm.gz"])
def test_a_gzip_that_ends_early_or_is_damaged_is_named(tmp_path: Path, name: str) -> None:
    path, reads = tmp_path / name, READERS[name.removesuffix(".gz")]
    packed = gzip.compress(SVM if "svm" in name else CSV * 40)
    for content in (
        packed[: len(packed) // 2],
        packed[:12],
        packed[:-4],
        b"\x1f\x8b" + bytes(50),
        packed[:100] + bytes(9),
    ):
        path.write_bytes(content)
        for read in reads:
            _refused(read, path, "gzip")


ROWS = {
    # row of user_id,item_id,rating -> what is read
    "1,2,5.": (1, 2, 5.0),
    "1,2, 3 ": (1, 2, 3.0),
    "007,2,3": ("007", 2, 3.0),
    "99999999999999999999,2,3": ("99999999999999999999", 2, 3.0),
    '"a,b",2,3': ("a,b", 2, 3.0),
    '"a\nb",2,3': ("a\nb", 2, 3.0),
    '"a""b",2,3': ('a"b', 2, 3.0),
    'a"b,2,3': ('a"b', 2, 3.0),
    "nan,2,3": ("nan", 2, 3.0),
    "1,2,3\r": (1, 2, 3.0),
    "1,2,3\n\n   \n": (1, 2, 3.0),
    "x" * 1_000_000 + ",2,3": ("x" * 1_000_000, 2, 3.0),
    # -> what the error says
    "1,2,1e400": "line 2: rating must be a number, got '1e400'",
    "1,2,nan": "line 2: rating must be a number, got 'nan'",
    "1,2,0x10": "line 2: rating must be a number, got '0x10'",
    '1,2,"1,234.5"': "line 2: rating must be a number, got '1,234.5'",
    "1,2,": "line 2: rating must be a number, got None",
    "1,,3": "line 2: item_id must be an id, got None",
    '"",1,3': "line 2: user_id must be an id, got None",
    "\n\n1,2,x": "line 4: rating must be a number, got 'x'",
    '"a\nb",2,3\n"c\nd",2,x': "line 4: rating must be a number, got 'x'",
    "1,2,3\n\n4,5": "line 4: a row of a table separated by ',' must have 3 fields, as the header has, got 2",
    "1,2,3\n4,5,6,7": "line 3: a row of a table separated by ',' must have 3 fields, as the header has, got more",
    '1,2,3\n"4,5,6': "line 3: a quoted field must end in a quote, got '4,5,6",
    "1;2;3": "line 2: a row of a table separated by ',' must have 3 fields",
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[:20])
def test_rows_are_read_right_or_named_by_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"user_id,item_id,rating\n" + row.encode() + b"\n")
    expected = ROWS[row]
    if isinstance(expected, tuple):
        assert load(path).to_frame().rows() == [expected]
    else:
        _refused(load, path, expected, "on_bad='skip'")


def test_malformed_rows_are_skipped_and_counted_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('user_id,item_id,rating\n1,2,3\n4,5\n1,3,x\n"6,7",8,9\n1,2,3,4\n')
    data = load(path, on_bad="skip")
    assert data.to_frame().rows() == [("1", 2, 3.0), ("6,7", 8, 9.0)]
    assert data.repairs == {"bad_rows_dropped": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"user_id,user_id,item_id\n1,2,3\n", "got ['user_id'] more than once; rename them"),
        (b"user_id,item_id,\xe9\n1,2,3\n", "names must be UTF-8, got b'\\xe9'; convert the file"),
        (b"user_id,item_id\n1,\xe9\n", "line 2: item_id must be UTF-8, got b'\\xe9'; convert the file"),
        (b"user_id,item_id\n", "at least one row is required"),
        (b"user_id,item_id", "at least one row is required"),
        (b"user_is,item_id\n1,2\n", "did you mean 'user_is'?; name it by user=NAME, or its place from 0 by user=0"),
        (b'"user_id,item_id\n1,2\n', "a quoted name must end in a quote"),
        (b"user_id,item_id,label\n1,2,yes\n", "line 2: label must be 0 or 1, got 'yes'"),
        (b"user_id,item_id,timestamp\n1,2,2020-13-01\n", "line 2: timestamp must be a time, got '2020-13-01'"),
        (b"user_id,item_id,timestamp\n1,2,1e300\n", "line 2: timestamp must be a time, got '1e300'"),
        (b"   \n", "is empty (4 bytes of text)"),
    ],
)
def test_tables_of_interactions_name_file_and_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    _refused(load, path, message)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfuser_id,item_id\r\n1,2\r\n", b"\n\nuser_id,item_id\n1,2\n\n",
                                     b'"user_id","item_id"\n"1",2'])  # fmt: skip
def test_marks_blank_lines_and_quotes_around_a_header_do_not_matter(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert load(path).to_frame().rows() == [(1, 2)]
    (chunk,) = open_source(path).chunks(ColumnsToRead(numeric=("user_id", "item_id")))
    assert (chunk.numbers["user_id"].tolist(), chunk.numbers["item_id"].tolist()) == ([1], [2])


def test_a_byte_order_mark_before_ratings_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    path.write_bytes(b"\xef\xbb\xbf1::2::3::4\n")
    assert load(path).to_frame().rows() == [(1, 2, 3.0, 4)]


SCHEMA = FeatureSchema((Categorical("c"), Numeric("n")))


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
@pytest.mark.parametrize("fallback", [False, True])
def test_a_label_that_is_none_is_named_by_file_and_line(
    tmp_path: Path, monkeypatch, on_bad: str, fallback: bool
) -> None:
    if fallback:
        monkeypatch.setattr("deeprec.data.reading.separated._host", None)
    rows = [f'"a\nb",{n},{n % 2}\n\n' for n in range(300)]
    rows[150] = "x,y,1\n" if on_bad == "skip" else rows[150]  # not a number: no row of a chunk
    rows[200] = "c,1,7\n"
    path = tmp_path / "a.csv"
    path.write_text("c,n,label\n" + "".join(rows))
    line = 1 + "".join(rows[:200]).count("\n") + 1
    source = open_source(path, on_bad=on_bad, block_bytes=700)
    _refused(lambda path: in_memory(source, SCHEMA), path, f"label label, line {line}: 0 or 1", "got 7.0; correct")


def test_a_missing_number_that_is_refused_is_named_by_file_and_line(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("c,n,label\na,1,0\nb,2,1\n")
    second.write_text("c,n,label\na,1,0\n\nb,,1\n")
    schema = FeatureSchema((Categorical("c"), Numeric("n", missing="raise")))
    _refused(lambda path: in_memory([first, second], schema), second, "n, line 4: a finite number is required, got nan")
    encoder = in_memory(first, schema, click_log.Split("random", (1.0, 0.0, 0.0))).encoder
    _refused(lambda path: list(encoder.stream(path)), second, "n, line 4: a finite number is required")


def test_errors_about_a_whole_log_name_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("c,n,label\n")
    _refused(lambda path: in_memory(path, SCHEMA), path, "at least one train row is required")
    _refused(lambda path: infer(path), path, "at least one row is required")
    path.write_text("c,n,label\na,1,0\nb,2,1\n")
    _refused(lambda path: infer(path, label="clicked"), path, "no column 'clicked' for label")
    _refused(lambda path: in_memory(path, SCHEMA), path, "must have rows, got none")
    path.write_text("c,n,label\na,1,maybe\nb,2,no\n")
    _refused(lambda path: infer(path), path, "label 'label' must be 0 or 1")
    _refused(lambda path: in_memory(path, FeatureSchema((Categorical("d"),))), path, "must have a column 'd'")
    _refused(lambda path: in_memory(path, SCHEMA), path, "line 2: label must be a number, got 'maybe'")
    path.write_bytes(b"c,n,\xe9\na,1,0\n")
    _refused(_all, path, "names must be UTF-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("features: [\n", "this is not YAML"),
        ("features: 3\n", "features must be a list"),
        ("lable: x\nfeatures: []\n", "did you mean 'label'"),
        ("features:\n  - categorical: 3\n", "name must be text"),
        ("[" * 5000, "this is not YAML"),
        ("features:\n  - categorical: \xe9\n", "YAML in UTF-8"),
    ],
)
def test_a_schema_that_is_wrong_names_its_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("latin-1"))
    _refused(FeatureSchema.from_yaml, path, message)


def test_a_log_with_damaged_files_is_named(tmp_path: Path) -> None:
    frame, schema = synthetic_clicks(300, fields=2, values=9, numerics=1)
    convert(frame, schema, tmp_path / "log")
    meta = tmp_path / "log" / "meta.json"
    whole = meta.read_bytes()
    for content in (b"", b"{", b"\xff", whole[: len(whole) // 2], b"[" * 5000, b"[]", b'{"version": 1}'):
        meta.write_bytes(content)
        _refused(lambda path: ClickLog.open(path.parent), meta)


def test_names_with_brackets_are_names_not_patterns(tmp_path: Path) -> None:
    path = tmp_path / "[a]*?.parquet"
    _parquet(path)
    assert load(path).num_users == 9
    assert sum(chunk.rows for chunk in _all(path)) == 400
