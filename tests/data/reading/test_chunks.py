"""Logs as chunks: every source gives the same hashes, numbers and bags, and every kind of damage is named."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from deeprec.data.reading import chunks, separated
from deeprec.data.reading.chunks import BagColumn, Chunk, ColumnsToRead, Source, hash_text
from deeprec.data.reading.sources import open_source

HEADER = ("site", "price", "tags", "label")
ROWS = [
    ("a.com", "1.5", "x|y", "1"),
    ("b.com", "", "", "0"),
    ("", "-2", "y", "0"),
    ('say "hi", all', "3e2", "x||z", "1"),
    ("two\nlines", "0.1", "y|y", "0"),
]
WANTED = ColumnsToRead(("site", "price"), ("price", "label"), (BagColumn("tags"),))
DATA = Path(os.environ.get("DEEPREC_DATA", "/nowhere"))


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table(rows: list[tuple[str, ...]] = ROWS, header: tuple[str, ...] | None = HEADER, **options: Any) -> str:
    out = io.StringIO()
    csv.writer(out, **{"lineterminator": "\n", **options}).writerows([*([header] if header else []), *rows])
    return out.getvalue()


def frame() -> pl.DataFrame:
    texts = pl.DataFrame(ROWS, schema=list(HEADER), orient="row")
    return texts.with_columns(
        pl.col("site").replace("", None), pl.col("price").cast(pl.Float64, strict=False), pl.col("label").cast(pl.Int8)
    )


def whole(source: Source, wanted: ColumnsToRead = WANTED) -> Chunk:
    """All chunks as one."""
    parts = list(source.chunks(wanted))
    assert [part.first_row for part in parts] == np.cumsum([0, *(part.rows for part in parts[:-1])]).tolist()
    assert all(part.rows for part in parts)
    out = Chunk(sum(part.rows for part in parts), 0)
    for name in wanted.categorical:
        out.hashes[name] = np.concatenate([part.hashes[name] for part in parts])
    for name in wanted.numeric:
        out.numbers[name] = np.concatenate([part.numbers[name] for part in parts])
    for name in (bag.name for bag in wanted.bags):
        bags = [part.bags[name] for part in parts]
        lengths = np.concatenate([np.diff(bag.offsets) for bag in bags])
        weights = [bag.weights for bag in bags if bag.weights is not None]
        out.bags[name] = chunks.BagChunk(
            np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
            np.concatenate([bag.hashes for bag in bags]),
            np.concatenate(weights) if weights else None,
        )
    return out


def assert_same(found: Chunk, expected: Chunk) -> None:
    assert found.rows == expected.rows
    for name, values in expected.hashes.items():
        assert (found.hashes[name].dtype, values.dtype) == (np.uint64, np.uint64)
        np.testing.assert_array_equal(found.hashes[name], values, err_msg=name)
    for name, numbers in expected.numbers.items():
        assert found.numbers[name].dtype == np.float64
        np.testing.assert_array_equal(found.numbers[name], numbers, err_msg=name)
    for name, bag in expected.bags.items():
        for part, wanted, kind in zip(found.bags[name], bag, (np.int64, np.uint64, np.float32), strict=True):
            assert (part is None) == (wanted is None)
            assert part is None or part.dtype == kind
            np.testing.assert_array_equal(part, wanted, err_msg=name)  # type: ignore[arg-type]


def expected_chunk() -> Chunk:
    """A few lines of plain Python."""
    bags = [[tag for tag in row[2].split("|") if tag] for row in ROWS]
    prices = [float(row[1]) if row[1] else float("nan") for row in ROWS]
    return Chunk(
        len(ROWS),
        0,
        {"site": hash_text([row[0] for row in ROWS]), "price": hash_text([row[1] for row in ROWS])},
        {"price": np.array(prices), "label": np.array([float(row[3]) for row in ROWS])},
        {
            "tags": chunks.BagChunk(
                np.cumsum([0, *map(len, bags)], dtype=np.int64), hash_text([tag for bag in bags for tag in bag])
            )
        },
    )


@pytest.mark.parametrize(
    "name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz", "crlf.csv", "bom.csv", "all.csv", "bar.csv"]
)
def test_text_is_read_as_plain_python_reads_it(tmp_path: Path, name: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "a.tsv": {"delimiter": "\t"},
        "a.tsv.gz": {"delimiter": "\t"},
        "crlf.csv": {"lineterminator": "\r\n"},
        "all.csv": {"quoting": csv.QUOTE_ALL},
        "bar.csv": {"delimiter": ";"},
    }
    source = open_source(write(tmp_path / name, "\ufeff" * (name == "bom.csv") + table(**options.get(name, {}))))
    assert source.columns == list(HEADER)
    wanted = WANTED._replace(categorical=("site",))  # "3e2" is another text than 300.0
    assert_same(whole(source, wanted), _without_price(expected_chunk()))
    assert (source.bad.count, source.size) == (0, (tmp_path / name).stat().st_size)


def _without_price(chunk: Chunk) -> Chunk:
    del chunk.hashes["price"]
    return chunk


def frames() -> dict[str, Any]:
    polars = frame()
    pandas = pd.DataFrame(polars.to_dict(as_series=False))
    return {
        "polars": polars,
        "lazy": polars.lazy(),
        "pandas": pandas,
        "float labels": polars.with_columns(pl.col("label").cast(pl.Float32)),
        "boolean labels": polars.with_columns(pl.col("label").cast(pl.Boolean)),
        "categorical": polars.with_columns(pl.col("site").cast(pl.Categorical)),
        "pandas categorical": pandas.assign(site=pandas["site"].astype("category")),
        "lists": polars.with_columns(pl.col("tags").str.split("|")),
        "null lists": polars.with_columns(pl.when(pl.col("tags") != "").then(pl.col("tags").str.split("|"))),
    }


@pytest.mark.parametrize("kind", frames())
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_frames_and_parquet_are_the_same_as_text(tmp_path: Path, kind: str, block_bytes: int) -> None:
    given = frames()[kind]
    found = whole(open_source(given, block_bytes=block_bytes))
    expected = expected_chunk()
    expected.hashes["price"] = hash_text([1.5, None, -2, 300, 0.1])
    assert_same(found, expected)
    polars = given.collect() if kind == "lazy" else pl.DataFrame(given) if kind.startswith("pandas") else given
    polars.write_parquet(tmp_path / "a.parquet")
    assert_same(whole(open_source(tmp_path / "a.parquet", block_bytes=block_bytes)), expected)


def test_what_polars_and_pandas_write_as_csv_has_the_same_hashes(tmp_path: Path) -> None:
    given = pd.DataFrame(
        {
            "n": [3, None, 5],  # float64 for pandas: written as 3.0
            "b": [True, False, True],
            "s": ["x", None, "3.0"],
            "f": [0.5, 2.0, None],
            "i": [-(2**63), 2**63 - 1, 0],
        }
    )
    wanted = ColumnsToRead(tuple(given.columns))
    expected = whole(open_source(given), wanted)
    given.to_csv(tmp_path / "pandas.csv", index=False)
    pl.from_pandas(given).write_csv(tmp_path / "polars.csv")
    given.to_parquet(tmp_path / "pandas.parquet")
    for name in ("pandas.csv", "polars.csv", "pandas.parquet"):
        assert_same(whole(open_source(tmp_path / name), wanted), expected)
    assert expected.hashes["n"].tolist() == hash_text([3, None, "5"]).tolist()


@pytest.mark.parametrize("quote", ['"', None])
def test_blocks_and_threads_change_nothing(tmp_path: Path, quote: str | None) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"s{rng.integers(9)}" * rng.integers(4), "7", "x|y" * rng.integers(3), "1") for _ in range(60)]
    rows += [ROWS[3], ROWS[4]] if quote else []
    path = write(tmp_path / "a.csv", table(rows))
    packed = write(tmp_path / "a.csv.gz", path.read_bytes())
    expected = whole(open_source(path, quote=quote))
    assert expected.rows == len(rows)
    for size in [1, 2, 3, 7, 15, 31, 64, 100, 333, 1000, len(path.read_bytes())]:
        assert_same(whole(open_source(path, quote=quote, block_bytes=size)), expected)
    for threads in (1, 2, 5):
        assert_same(whole(open_source(packed, quote=quote, threads=threads, block_bytes=50)), expected)


def test_the_fallback_without_compiled_code_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", table())
    svm = write(tmp_path / "a.svm", "1 1:0.5 7:1\n-1\n")
    pairs = ColumnsToRead((), ("label",), (BagColumn("features", weight_separator=":"),))
    compiled = [whole(open_source(path, block_bytes=40)), whole(open_source(svm), pairs), whole(open_source(frame()))]
    monkeypatch.setattr(separated, "_host", None)
    monkeypatch.setattr("deeprec.data.reading.hashing._host", None)
    plain = [whole(open_source(path, block_bytes=40)), whole(open_source(svm), pairs), whole(open_source(frame()))]
    for found, expected in zip(plain, compiled, strict=True):
        assert_same(found, expected)


def test_a_text_without_header_takes_names(tmp_path: Path) -> None:
    bare = open_source(write(tmp_path / "a.csv", table(header=None)), columns=HEADER)
    with_header = open_source(write(tmp_path / "b.csv", table()), columns=HEADER)
    wanted = WANTED._replace(categorical=("site",))
    assert_same(whole(bare, wanted), _without_price(expected_chunk()))
    assert_same(whole(with_header, wanted), _without_price(expected_chunk()))


def test_separators_of_several_characters_and_guessed_ones(tmp_path: Path) -> None:
    text = "a, b, c\n1, x, y\n2, z, w\n"
    guessed = open_source(write(tmp_path / "a.csv", text))
    assert guessed.columns == ["a", "b", "c"]
    stars = open_source(write(tmp_path / "b.csv", text.replace(", ", "::")), separator="::")
    wanted = ColumnsToRead(("b", "c"), ("a",))
    assert whole(guessed, wanted).hashes["b"].tolist() == hash_text(["x", "z"]).tolist()
    assert_same(whole(stars, wanted), whole(guessed, wanted))
    # One comma without a space: the spaces belong to the values.
    odd = open_source(write(tmp_path / "c.csv", "a, b\n1,x\n"))
    assert odd.columns == ["a", " b"]


def test_texts_that_mean_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "s,n,b\n?,1,x|?\nNA,?,?\n")
    wanted = ColumnsToRead(("s",), ("n",), (BagColumn("b"),))
    expected = whole(open_source(path, missing=("?", "NA")), wanted)
    assert expected.hashes["s"].tolist() == [0, 0]
    np.testing.assert_array_equal(expected.numbers["n"], [1, np.nan])
    assert expected.bags["b"].hashes.tolist() == hash_text(["x", "?"]).tolist()
    given = pl.DataFrame({"s": ["?", "NA"], "n": [1, None], "b": ["x|?", "?"]})
    assert_same(whole(open_source(given, missing=("?", "NA")), wanted), expected)


def test_codes_make_numbers_of_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "s,income\nx, >50K\ny,<=50K \nz,\n")
    codes = {"income": {">50K": 1, "<=50K": 0}}
    wanted = ColumnsToRead((), ("income",))
    for source in (path, pl.read_csv(path)):
        np.testing.assert_array_equal(whole(open_source(source, codes=codes), wanted).numbers["income"], [1, 0, np.nan])
    broken = {"income": {">50k": 1, "<=50K": 0}}
    with pytest.raises(ValueError, match=r"line 2: income must be one of .* got ' >50K'; did you mean '>50k'"):
        whole(open_source(path, codes=broken), wanted)
    with pytest.raises(ValueError, match=r"row 0: income must be one of .*did you mean '>50k'.* got ' >50K'"):
        whole(open_source(pl.read_csv(path), codes=broken), wanted)
    for source in (path, pl.read_csv(path)):
        with pytest.raises(ValueError, match=r"codes must be of columns of .*; did you mean 'income'"):
            open_source(source, codes={"incomes": {}})


def test_several_files_are_one_log(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.csv", table(ROWS[:2])),
        write(tmp_path / "b.csv.gz", table([row[::-1] for row in ROWS[2:4]], HEADER[::-1])),
    ]
    frame()[4:].write_parquet(tmp_path / "c.parquet")
    source = open_source([*paths, tmp_path / "c.parquet"])
    wanted = WANTED._replace(categorical=("site",))
    steps: list[tuple[int, int]] = []
    assert_same(whole(source, wanted), _without_price(expected_chunk()))
    list(source.chunks(wanted, progress=lambda done, total: steps.append((done, total))))
    assert steps[-1] == (source.size, source.size)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert source.name.endswith("a.csv and 2 more")
    write(tmp_path / "d.csv", "site,prices\n")
    with pytest.raises(ValueError, match=r"d\.csv must have the columns of .*a\.csv, got \['label', 'price', 'prices'"):
        open_source([paths[0], tmp_path / "d.csv"])
    with pytest.raises(ValueError, match="a list of files must hold at least one"):
        open_source([])


# Criteo, libsvm, libffm


def criteo_row(label: str, seed: int) -> str:
    numbers = [str(seed * i % 7) if i % 3 else "" for i in range(13)]
    return "\t".join([label, *numbers, *(f"{seed * i:08x}" if i % 5 else "" for i in range(26))])


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_criteo_is_known_by_its_rows(tmp_path: Path, name: str) -> None:
    source = open_source(write(tmp_path / name, "".join(criteo_row("1", seed) + "\n" for seed in (3, 4))))
    assert source.columns == ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    found = whole(source, ColumnsToRead(("C1", "C2"), ("label", "I1", "I2")))
    assert found.numbers["label"].tolist() == [1, 1]
    np.testing.assert_array_equal(found.numbers["I1"], [np.nan] * 2)
    assert found.numbers["I2"].tolist() == [3, 4]
    assert found.hashes["C1"].tolist() == [0, 0]
    assert found.hashes["C2"].tolist() == hash_text(["00000003", "00000004"]).tolist()


def test_criteo_without_labels(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "test.txt", criteo_row("", 3)[1:]))
    assert source.columns[0] == "I1"
    assert whole(source, ColumnsToRead(("C25",))).hashes["C25"].tolist() == hash_text([f"{3 * 24:08x}"]).tolist()


def test_libsvm_is_a_weighted_bag(tmp_path: Path) -> None:
    text = "+1 3:0.5 7:1\r\n\n-1 007:2 # a comment\n# nothing\n0\n"
    wanted = ColumnsToRead((), ("label",), (BagColumn("features", weight_separator=":"),))
    for name in ("a.svm", "a.libsvm.gz", "a.unknown"):
        source = open_source(write(tmp_path / name, text))
        assert (source.columns, source.weighted) == (["label", "features"], ("features",))
        found = whole(source, wanted)
        assert found.numbers["label"].tolist() == [1, 0, 0]
        assert found.bags["features"].offsets.tolist() == [0, 2, 3, 3]
        assert found.bags["features"].hashes.tolist() == hash_text([3, 7, 7]).tolist()
        assert found.bags["features"].weights is not None
        assert found.bags["features"].weights.tolist() == [0.5, 1, 2]
    with pytest.raises(ValueError, match="values other than 1, which a bag without weights would lose"):
        whole(source, ColumnsToRead((), (), (BagColumn("features"),)))
    with pytest.raises(TypeError, match=r"'label' of .* is numeric"):
        whole(source, ColumnsToRead(("label",)))


def test_libffm_has_a_column_for_each_field(tmp_path: Path) -> None:
    text = "1 0:5:1 2:7:1 2:8:0.5 9:1:0.25\n-1 0:6:1 9:1:4\n0 2:7:1\n"
    source = open_source(write(tmp_path / "a.ffm", text))
    assert source.columns == ["label", "field_0", "field_2", "field_9"]
    assert source.weighted == ("field_2", "field_9")
    wanted = ColumnsToRead(("field_0",), ("label", "field_9"), (BagColumn("field_2", weight_separator=":"),))
    found = whole(source, wanted)
    assert found.hashes["field_0"].tolist() == hash_text([5, 6, None]).tolist()
    np.testing.assert_array_equal(found.numbers["field_9"], [0.25, 4, np.nan])
    assert found.bags["field_2"].offsets.tolist() == [0, 2, 2, 3]
    assert found.bags["field_2"].hashes.tolist() == hash_text([7, 8, 7]).tolist()
    assert found.bags["field_2"].weights is not None
    assert found.bags["field_2"].weights.tolist() == [1, 0.5, 1]
    with pytest.raises(ValueError, match=r"'field_2' of .* must have at most one entry a row, of value 1"):
        whole(source, ColumnsToRead(("field_2",)))
    with pytest.raises(ValueError, match=r"'field_2' of .* must have at most one entry a row to be numeric"):
        whole(source, ColumnsToRead((), ("field_2",)))
    assert source.head().to_dict(as_series=False) == {
        "label": [1.0, 0.0, 0.0],
        "field_0": ["5", "6", None],
        "field_2": [["7", "8"], [], ["7"]],
        "field_9": [0.25, 4.0, None],
    }
    named = open_source(tmp_path / "a.ffm", columns=["label", "field_0", "field_2"])
    with pytest.raises(ValueError, match=r"line 1: fields must be among those of the first MiB, got '9:1:0.25'"):
        whole(named, ColumnsToRead(("field_0",)))


def test_libfm_has_a_column_for_each_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.libfm", "-1 204:1 4798:1\r\n1 42:1 4798:1\r\n1 7:1\r\n")
    with pytest.raises(ValueError, match=r"line 3: rows of libfm must have as many entries each, 2, got 1 \(pass"):
        whole(open_source(path), ColumnsToRead(("field_0",)))
    found = whole(open_source(path, on_bad="skip"), ColumnsToRead(("field_0", "field_1"), ("label",)))
    assert found.hashes["field_0"].tolist() == hash_text([204, 42]).tolist()
    assert found.hashes["field_1"].tolist() == hash_text([4798, 4798]).tolist()
    assert found.numbers["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2:x\n", "features must hold values with a finite weight each, got '2:x'"),
        ("1 2:inf\n", "features must hold values with a finite weight each, got '2:inf'"),
        ("1 a:1\n", "entries must be index:value with integers from 0, got 'a:1'"),
        ("1 -3:1\n", "entries must be index:value with integers from 0, got '-3:1'"),
        ("1 5\n", "entries must be index:value with integers from 0, got '5'"),
        ("3:1 5:1\n", "label must be a number, got '3:1'"),
        ("inf 5:1\n", "label must be finite, got 'inf'"),
        ("nan 5:1\n", "label must be a number, got 'nan'"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "a.svm", "1 1:1\n\n" + text)
    wanted = ColumnsToRead((), ("label",), (BagColumn("features", weight_separator=":"),))
    with pytest.raises(ValueError) as error:
        whole(open_source(path), wanted)
    assert str(error.value) == f"read: {path}, line 3: {message}; correct it or pass on_bad='skip'"
    source = open_source(path, on_bad="skip", block_bytes=3)
    assert (whole(source, wanted).rows, source.bad.count, source.bad.first[0].line) == (1, 1, 3)


# Damage


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b,x,,1\n", "price must be a number, got 'x'"),
        ("b,-inf,,1\n", "price must be finite, got '-inf'"),
        ("b,1e999,,1\n", "price must be finite, got '1e999'"),
        ("b,1\n", "a row must have 4 fields, got 2 (tags is missing)"),
        ("b,1,,1,more,2\n", "a row must have 4 fields, got more, the first of them 'more'"),
        ('"b,1,,1\n', "a quoted field must end in a quote, got 'b,1,,1\\n' and no more quote (pass quote=None?)"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_a_bad_row_is_named(tmp_path: Path, text: str, message: str, block_bytes: int) -> None:
    path = write(tmp_path / "a.csv", table(ROWS[3:]) + "\n" + text)  # line 1 header, 2 row, 3-4 row, 5 blank
    with pytest.raises(ValueError) as error:
        whole(open_source(path, block_bytes=block_bytes), WANTED)
    assert str(error.value) == f"read: {path}, line 6: {message}; correct it or pass on_bad='skip'"
    source = open_source(path, on_bad="skip", block_bytes=block_bytes)
    for _ in range(2):  # counted anew in each pass
        assert whole(source).rows == 2
        assert (source.bad.count, len(source.bad.first), source.bad.first[0].line) == (1, 1, 6)
        assert source.bad.first[0].file == str(path)


def test_bad_weights_are_named_in_text_and_frames(tmp_path: Path) -> None:
    wanted = ColumnsToRead((), (), (BagColumn("tags", "|", ":"),))
    text = "tags,n\nx:1|y:2,1\nx:1|y,2\nz:0.5,3\n"
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(ValueError, match="line 3: tags must hold values with a finite weight each, got 'y'"):
        whole(open_source(path), wanted)
    expected = whole(open_source(path, on_bad="skip"), wanted)
    assert expected.bags["tags"].weights is not None
    assert expected.bags["tags"].weights.tolist() == [1, 2, 0.5]
    given = pl.read_csv(path)
    for one in (given, given.with_columns(pl.col("tags").str.split("|"))):
        with pytest.raises(ValueError, match="row 1: tags must be values with a finite weight each, got"):
            whole(open_source(one), wanted)
        source = open_source(one, on_bad="skip")
        assert_same(whole(source, wanted), expected)
        assert (source.bad.count, source.bad.first[0].line) == (1, 1)


def test_infinite_numbers_of_frames_are_named() -> None:
    given = pl.DataFrame({"a": [1.0, float("inf"), None], "b": [float("-inf"), float("inf"), 1.0]})
    wanted = ColumnsToRead((), ("a", "b"))
    with pytest.raises(ValueError, match="read: frame, row 0: b must be finite, got '-inf'; correct it or pass on_bad"):
        whole(open_source(given), wanted)
    source = open_source(given, on_bad="skip", block_bytes=1)
    np.testing.assert_array_equal(whole(source, wanted).numbers["a"], [np.nan])
    assert (source.bad.count, [bad.line for bad in source.bad.first]) == (2, [0, 1])


def test_a_file_of_bad_rows_only_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\n1\n2\n3\n")
    with pytest.raises(
        ValueError, match=r"must have at least one valid row, got 3 bad ones, the first at line 2: b '1'"
    ):
        whole(open_source(path, on_bad="skip"), ColumnsToRead((), ("a",)))


def test_a_header_taken_for_a_row_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", table())
    with pytest.raises(
        ValueError, match=r"line 1: price must be .* got 'price' \(if it is a header, leave columns out"
    ):
        whole(open_source(path, columns=["SITE", "price", "tags", "label"]), ColumnsToRead((), ("price",)))


@pytest.mark.parametrize("kind", ["text", "frame"])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, kind: str) -> None:
    source = open_source(write(tmp_path / "a.csv", table()) if kind == "text" else frame())
    for wanted in (
        ColumnsToRead(("sites",)),
        ColumnsToRead((), ("sites",)),
        ColumnsToRead((), (), (BagColumn("sites"),)),
    ):
        with pytest.raises(ValueError, match="must have a column 'sites'; did you mean 'site'"):
            source.chunks(wanted)
    with pytest.raises(ValueError, match="must have a column 'user'; choose from label, price, site, tags"):
        source.chunks(ColumnsToRead(("user",)))


def test_columns_of_another_type_are_named(tmp_path: Path) -> None:
    given = pl.DataFrame({"s": ["a"], "l": [["a"]], "n": [1], "ll": [[["a"]]]})
    given.write_parquet(tmp_path / "a.parquet")
    for source in (open_source(given), open_source(tmp_path / "a.parquet")):
        with pytest.raises(ValueError, match=r"row 0: s must be a number, or the column declared categorical, got 'a'"):
            list(source.chunks(ColumnsToRead((), ("s",))))
        with pytest.raises(TypeError, match=r"column 'l' of .* must hold numbers, got List.*; declare it categorical"):
            source.chunks(ColumnsToRead((), ("l",)))
        with pytest.raises(TypeError, match=r"column 'l' of .* must hold one value a row, got List.*declare it a bag"):
            source.chunks(ColumnsToRead(("l",)))
        with pytest.raises(TypeError, match=r"column 'll' of .* must hold lists of values or text, got List"):
            source.chunks(ColumnsToRead((), (), (BagColumn("ll"),)))
        # One value a row is a bag of one.
        assert (
            whole(source, ColumnsToRead((), (), (BagColumn("n"),))).bags["n"].hashes.tolist() == hash_text([1]).tolist()
        )


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", table())
    packed = write(tmp_path / "whole.csv.gz", table(ROWS * 500)).read_bytes()
    cases: list[tuple[str, bytes | None, type[Exception], str]] = [
        ("trian.csv", None, FileNotFoundError, r"no file .*trian\.csv; did you mean 'train\.csv'"),
        ("a.parquet", None, FileNotFoundError, r"no file .*a\.parquet"),
        ("empty.csv", b"", ValueError, r"empty\.csv is empty \(0 bytes"),
        ("blank.csv", b"\n \n", ValueError, r"blank\.csv is empty"),
        ("plain.csv.gz", b"a,b\n", ValueError, r"must be a gzip file, got bytes b'a,'"),
        ("short.csv.gz", packed[: len(packed) // 2], ValueError, "must be a whole gzip file, got one that ends early"),
        ("b.parquet", b"PAR1 nonsense", ValueError, r"b\.parquet must be a whole Parquet file"),
        ("a.unknown", b"hello\n", ValueError, r"must end in one of \.csv, .*pass format= one of csv"),
        ("wide.csv", "a,b\n".encode("utf-16"), ValueError, "must be UTF-8, got the first bytes of UTF-16"),
        ("quote.csv", b'"a,b\n', ValueError, "line 1: a quoted name must end in a quote"),
        ("twice.csv", b"a,b,a\n1,2,3\n", ValueError, r"a name of its own, got \['a'\] more than once"),
    ]
    for name, content, kind, message in cases:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(kind, match=message):
            whole(open_source(tmp_path / name))
    (tmp_path / "late.csv.gz").write_bytes(gzip.compress(table(ROWS * 50_000).encode(), 1)[:-20])
    with pytest.raises(ValueError, match=r"late\.csv\.gz must be a whole gzip file"):
        whole(open_source(tmp_path / "late.csv.gz"))


def test_arguments_out_of_range_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", table())
    for options, message in [
        ({"format": "cvs"}, "format must be known, got 'cvs'; did you mean 'csv'"),
        ({"threads": 0}, "threads and block_bytes must be >= 1, got 0"),
        ({"block_bytes": 0}, "threads and block_bytes must be >= 1"),
        ({"separator": "\n"}, "separator must be free of line ends"),
        ({"separator": '"'}, "separator must be free of line ends and of the quote"),
        ({"quote": "''"}, "quote one byte or None"),
        ({"on_bad": "ignore"}, "on_bad must be 'raise' or 'skip'"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(path, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source must be a path, a polars or pandas frame or a list of these, got int"):
        open_source(3)
    with pytest.raises(ValueError, match="each column of a frame must have a name of its own"):
        open_source(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_a_quote_that_is_not_closed_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprec.data.reading.text_source._LONGEST_ROW", 1 << 20)
    path = write(tmp_path / "a.csv", 'a,b\n1,2\n"3,' + "4\n" * (1 << 20))
    with pytest.raises(ValueError, match=r"a\.csv: a row must be shorter than 1 MiB, got one that begins with b'\"3,4"):
        whole(open_source(path, block_bytes=1 << 16), ColumnsToRead(("a",)))


# What else a source offers


def test_head_infers_types(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", table([*ROWS, ("bad",)]))
    head = open_source(path, missing=("b.com",)).head()
    assert head.schema == {"site": pl.String, "price": pl.Float64, "tags": pl.String, "label": pl.Int64}
    assert head["site"].to_list() == ["a.com", None, None, 'say "hi", all', "two\nlines"]
    assert head["price"].to_list() == [1.5, None, -2, 300, 0.1]
    assert open_source(path).head(2).height == 2
    assert open_source(frame()).head(2).equals(frame().head(2))
    svm = open_source(write(tmp_path / "a.svm", "-1 3:1 4:0.5\n1\n")).head()
    assert svm.to_dict(as_series=False) == {"label": [0.0, 1.0], "features": [["3", "4"], []]}


def test_checksums_are_of_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", table())
    assert open_source(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    lists = frame().with_columns(pl.col("tags").str.split("|"))
    sums = {open_source(one).sha256 for one in (frame(), lists, frame()[1:], frame().rename({"site": "page"}))}
    assert len(sums) == 4
    assert open_source(lists).sha256 == open_source(lists.clone()).sha256
    assert open_source([path, path]).sha256 != open_source(path).sha256


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet"])
def test_progress_reaches_the_end(tmp_path: Path, name: str) -> None:
    if name == "a.parquet":
        pl.concat([frame()] * 100).write_parquet(tmp_path / name)
    else:
        write(tmp_path / name, table(ROWS * 100))
    steps: list[tuple[int, int]] = []
    source = open_source(tmp_path / name, block_bytes=1000)
    list(source.chunks(WANTED, progress=lambda *step: steps.append(step)))
    assert len(steps) > 3
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (source.size, source.size)


def test_leaving_early_ends_the_threads(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", table(ROWS * 1000))
    before = threading.active_count()
    stream = open_source(path, block_bytes=100).chunks(WANTED)
    assert next(stream).rows > 0
    assert threading.active_count() > before
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_no_row_is_no_chunk(tmp_path: Path) -> None:
    assert list(open_source(write(tmp_path / "a.csv", "a,b\n")).chunks(ColumnsToRead(("a",)))) == []
    assert list(open_source(frame()[:0]).chunks(WANTED)) == []


# Real files


def need(*names: str) -> list[Path]:
    paths = [DATA / name for name in names]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not at hand: set DEEPREC_DATA")
    return paths


def python_rows(path: Path, separator: str) -> list[list[str]]:
    return [line.split(separator) for line in gzip.decompress(path.read_bytes()).decode().splitlines() if line]


def test_criteo_sample_is_what_plain_python_reads() -> None:
    (path,) = need("criteo/train_10k.txt.gz")
    source = open_source(path, block_bytes=1 << 18)
    names = source.columns
    found = whole(source, ColumnsToRead(tuple(names[14:]), tuple(names[:14])))
    rows = python_rows(path, "\t")
    assert (found.rows, source.bad.count, found.numbers["label"].mean()) == (10_000, 0, 0.2182)
    for at, name in enumerate(names):
        texts = [row[at] for row in rows]
        if at < 14:
            np.testing.assert_array_equal(found.numbers[name], [float(text or "nan") for text in texts])
        else:
            np.testing.assert_array_equal(found.hashes[name], hash_text(texts))


ADULT = """age workclass fnlwgt education education_num marital_status occupation relationship race sex capital_gain
capital_loss hours_per_week native_country income"""


def test_adult_with_spaces_missing_values_and_points() -> None:
    train, test = need("adult/adult.data.gz", "adult/adult.test.gz")
    codes = {"income": {text + point: value for text, value in (("<=50K", 0), (">50K", 1)) for point in ("", ".")}}
    wanted = ColumnsToRead(("workclass", "native_country"), ("age", "income"))
    counts = []
    for path in (train, test):  # the test file begins with a line of words, which is no row
        source = open_source(
            path, format="csv", columns=ADULT.split(), separator=", ", missing=("?",), codes=codes, on_bad="skip"
        )
        found = whole(source, wanted)
        rows = [row for row in python_rows(path, ", ") if len(row) == 15]
        counts.append((found.rows, int(found.numbers["income"].sum())))
        assert (source.bad.count, len(rows)) == (0, found.rows)
        texts = [row[1] if row[1] != "?" else "" for row in rows]
        np.testing.assert_array_equal(found.hashes["workclass"], hash_text(texts))
        assert found.numbers["age"].tolist() == [float(row[0]) for row in rows]
    assert counts == [(32_561, 7_841), (16_281, 3_846)]


def test_frappe_rows_have_ten_fields() -> None:
    (path,) = need("frappe/frappe.test.libfm.gz")
    source = open_source(path)
    fields = tuple(f"field_{n}" for n in range(10))
    assert source.columns == ["label", *fields]
    found = whole(source, ColumnsToRead(fields, ("label",)))
    rows = python_rows(path, " ")
    assert (found.rows, int(found.numbers["label"].sum())) == (28_860, 9_536)
    for at, name in enumerate(fields):
        np.testing.assert_array_equal(found.hashes[name], hash_text([row[at + 1].split(":")[0] for row in rows]))


def test_frappe_log_is_separated_by_tabs() -> None:
    log, meta = need("frappe/frappe.csv.gz", "frappe/meta.csv.gz")
    assert whole(open_source(log), ColumnsToRead(("user", "country"), ("cnt",))).rows == 96_203
    source = open_source(meta, quote=None, on_bad="skip")
    assert whole(source, ColumnsToRead(("package",))).rows + source.bad.count == 4_082


@pytest.mark.parametrize(("name", "positives"), [("tr", 2172), ("va", 2323)])
def test_criteo_libsvm_is_what_plain_python_reads(name: str, positives: int) -> None:
    (path,) = need(f"criteo/mini_libsvm/{name}.mini.libsvm.gz")
    found = whole(open_source(path), ColumnsToRead((), ("label",), (BagColumn("features", weight_separator=":"),)))
    rows = python_rows(path, " ")
    pairs = [token.split(":") for row in rows for token in row[1:] if token]
    assert (found.rows, int(found.numbers["label"].sum())) == (10_000, positives)
    np.testing.assert_array_equal(found.bags["features"].hashes, hash_text([index for index, _ in pairs]))
    expected = np.array([float(value) for _, value in pairs], dtype=np.float32)
    np.testing.assert_array_equal(found.bags["features"].weights, expected)
