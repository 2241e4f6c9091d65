"""One text is one table to every reader: ratings, click logs, tables, what predict keeps; or each refuses it alike."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from deeprec.data import load, open_source
from deeprec.data.reading.chunks import ColumnsToRead
from deeprec.data.reading.layout import TextOptions, layout_of, told
from deeprec.data.reading.tables import read_table
from deeprec.serve.predict import _columns

ROWS = [("1", "10", "3.5"), ("1", "20", "4"), ("2", "10", "1")]
NAMES = ("user_id", "item_id", "rating")
COMMA = "user_id,item_id,rating\n1,10,3.5\n1,20,4\n2,10,1\n"


def lines(separator: str, header: bool = True) -> str:
    return "".join(separator.join(row) + "\n" for row in ([NAMES] if header else []) + ROWS)


WAYS: dict[str, tuple[str | bytes, dict[str, Any]]] = {
    "comma": (COMMA, {}),
    "semicolon": (lines(";"), {}),
    "tab": (lines("\t"), {}),
    "pipe": (lines("|"), {}),
    "colons": (lines("::"), {}),
    "comma and blank": (lines(", "), {}),
    "blank": (lines(" "), {}),
    "several blanks": (lines("   ").replace("1   20", " 1 \t 20"), {}),
    "odd separator, told": (lines("~~"), {"separator": "~~"}),
    "separator by its word": (lines(";"), {"separator": "semicolon"}),
    "carriage returns": (COMMA.replace("\n", "\r\n"), {}),
    "byte order mark": (b"\xef\xbb\xbf" + COMMA.encode(), {}),
    "blank lines": ("\n\n" + COMMA.replace("\n", "\n\n") + "   \n", {}),
    "no last line end": (COMMA.rstrip("\n"), {}),
    "quotes": ('"user_id","item_id","rating"\n"1","10","3.5"\n1,"20",4\n2,10,"1"\n', {}),
    "other quotes": ("'user_id','item_id',rating\n'1','10',3.5\n1,20,4\n2,10,1\n", {"quote": "'"}),
    "comments": ("# by hand\n" + COMMA.replace("1,20", "# no row\n1,20"), {"comment": "#"}),
    "title lines": ("A table,\nof ours\n" + COMMA, {"skip_lines": 2}),
    "title without a separator": ("A table of ours\n" + COMMA, {}),
    "gzip": (gzip.compress(COMMA.encode()), {}),
}


def write(folder: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path = folder / ("a.csv.gz" if data.startswith(b"\x1f\x8b") else "a.csv")
    path.write_bytes(data)
    return path


def rows_by_source(path: Path, options: dict[str, Any]) -> list[tuple[float, ...]]:
    chunks = open_source(path, **options).chunks(ColumnsToRead((), NAMES))
    return [row for chunk in chunks for row in zip(*(chunk.numbers[name].tolist() for name in NAMES), strict=True)]


@pytest.mark.parametrize("way", WAYS)
def test_every_reader_takes_the_same_file(tmp_path: Path, way: str) -> None:
    content, options = WAYS[way]
    path = write(tmp_path, content)
    numbers = [tuple(map(float, row)) for row in ROWS]
    assert load(path, **options).to_frame().rows() == [(1, 10, 3.5), (1, 20, 4), (2, 10, 1)]
    assert rows_by_source(path, options) == numbers
    assert open_source(path, **options).head().rows() == [(1, 10, 3.5), (1, 20, 4), (2, 10, 1)]
    assert read_table(path, told(**options)).frame.rows() == ROWS
    assert _columns(path, NAMES, "probability", options).rows() == ROWS


@pytest.mark.parametrize("way", ["comma", "semicolon", "tab", "pipe", "colons", "comma and blank", "blank"])
def test_a_first_row_of_numbers_is_data_to_every_reader(tmp_path: Path, way: str) -> None:
    content = WAYS[way][0]
    path = write(tmp_path, content[content.index("\n") + 1 :])  # type: ignore[arg-type,index]
    assert load(path).to_frame().rows() == [(1, 10, 3.5), (1, 20, 4), (2, 10, 1)]
    assert open_source(path).columns == ["0", "1", "2"]
    assert read_table(path).frame.rows() == ROWS


def test_missing_texts_are_missing_to_every_reader(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id,item_id,rating\n1,10,NA\n1,20,4\n?,10,1\n")
    options: dict[str, Any] = {"missing": "NA,?"}
    assert read_table(path, told(**options)).frame.rows() == [("1", "10", None), ("1", "20", "4"), (None, "10", "1")]
    (chunk,) = open_source(path, **options).chunks(ColumnsToRead(("user_id",), ("rating",)))
    assert [value != value for value in chunk.numbers["rating"].tolist()] == [True, False, False]
    assert (chunk.hashes["user_id"] == 0).tolist() == [False, False, True]
    assert load(path, on_bad="skip", **options).to_frame().rows() == [(1, 20, 4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (COMMA + "3,10\n", "line 5"),
        (COMMA + "3,10,1,7\n", "line 5"),
        (COMMA + '3,10,"1\n', "line 5"),
        ("user_id,user_id,rating\n1,10,3\n", "must have a name of its own, got ['user_id'] more than once"),
        ('"user_id,item_id\n1,10\n', "line 1: a quoted name must end in a quote"),
    ],
)
def test_every_reader_refuses_the_same_file(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, content)
    for read in (load, lambda path: rows_by_source(path, {}), read_table):
        with pytest.raises(ValueError) as caught:
            read(path)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("uid\tsid\t3\n0\t5\tcart\n0\t6\tcart\n", ["uid", "sid", "3"]),  # a number among the names
        ("u1,i1\nu1,i2\nu2,i1\n", None),  # a first value that comes again is none
        ("name,city\nann,rome\nbob,oslo\n", ["name", "city"]),
        ("1::Toy Story (1995)::Animation|Comedy\n2::Up::Comedy\n", None),
        ("7\n8\n", None),
        (",a,b\n0,1,x\n1,2,y\n", ["", "a", "b"]),  # an index without a name
        ("1,2,five\n1,3,4\n2,3,5\n", None),  # a damaged row is no header
    ],
)
def test_a_header_is_told_from_data(text: str, names: list[str] | None) -> None:
    layout = layout_of(Path("a"), text.encode(), TextOptions())
    assert layout.has_names == (names is not None)
    assert layout.names == (names or [str(place) for place in range(len(layout.first))])


def test_what_is_told_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "1,2\n3,4\n")
    assert read_table(path, TextOptions(header=True)).frame.columns == ["1", "2"]
    assert read_table(path, TextOptions(columns=("a", "b"))).frame.rows() == [("1", "2"), ("3", "4")]
    assert read_table(path, TextOptions(separator=";", header=False)).frame.rows() == [("1,2",), ("3,4",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": "\n"}, "separator must be free of line ends"),
        ({"separator": 7}, "separator must be text, got 7"),
        ({"header": "perhaps"}, "header must be true or false"),
        ({"skip_lines": -1}, "skip_lines must be a whole number >= 0, got -1"),
        ({"separater": ";"}, "got 'separater'; did you mean 'separator'"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        told(**options)


def test_blanks_inside_quotes_stay(tmp_path: Path) -> None:
    path = write(tmp_path, 'who what\n1  "a  b"\n2 "c d"\n')
    assert read_table(path, TextOptions(separator="spaces")).frame.rows() == [("1", "a  b"), ("2", "c d")]


def test_json_lines_are_columns_in_every_block(tmp_path: Path) -> None:
    texts = [f'{{"user_id": {n}, "item_id": "i{n % 3}", "label": {n % 2}, "tags": ["a", "t{n}"]}}' for n in range(400)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(texts) + "\n")
    source = open_source(path, block_bytes=1000)
    chunks = list(source.chunks(ColumnsToRead(("item_id",), ("label",))))
    assert len(chunks) > 5
    assert [value for chunk in chunks for value in chunk.numbers["label"].tolist()] == [n % 2 for n in range(400)]
    assert chunks[1].first_row == chunks[0].rows
    assert source.head(2)["tags"].to_list() == [["a", "t0"], ["a", "t1"]]
    path.write_text("\n".join([*texts[:3], "{nothing", *texts[3:]]))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 4: a line must be an object such as .*got '\{nothing'"):
        list(open_source(path, block_bytes=100).chunks(ColumnsToRead((), ("label",))))
    skipping = open_source(path, on_bad="skip")
    assert sum(chunk.rows for chunk in skipping.chunks(ColumnsToRead((), ("label",)))) == 400
    assert skipping.bad.count == 1


def test_impressions_of_mind_are_rows_of_clicks(tmp_path: Path) -> None:
    path = tmp_path / "behaviors.tsv"
    path.write_text("1\tU1\t11/13/2019 5:53:12 PM\tN1 N2\tN5-1 N6-0\n2\tU2\t11/14/2019 5:00:00 AM\t\tN5-0\n")
    frame = open_source(path, format="mind").head()
    assert frame.select("user", "item", "label").rows() == [("U1", "N5", 1), ("U1", "N6", 0), ("U2", "N5", 0)]
    assert frame["history"].to_list() == [["N1", "N2"], ["N1", "N2"], []]
    data = load(path, format="mind")
    assert data.to_frame().select("user_id", "item_id").rows() == [("U1", "N5")]
    assert data.order.tolist() == [pl.Series(["2019-11-13 17:53:12"]).str.to_datetime(time_unit="us").to_physical()[0]]
