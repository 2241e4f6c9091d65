"""Logs as chunks: every source gives the same hashes, numbers and bags, and every kind of damage is named."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deeprec.data.chunks import BagColumn, Chunk, Source, Wanted, hash_text, open_source

ROWS = [
    ("site", "price", "tags", "label"),
    ("a.com", "1.5", "x|y", "1"),
    ("b.com", "", "", "0"),
    ("", "-2", "y", "0"),
    ("a.com", "3e2", "x||z", "1"),
]
WANTED = Wanted(("site",), ("price", "label"), (BagColumn("tags"),))


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table(rows: list[tuple[str, ...]] = ROWS, **options: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", **options).writerows(rows)
    return out.getvalue()


def whole(source: Source, wanted: Wanted = WANTED) -> Chunk:
    """All chunks as one."""
    parts = list(source.chunks(wanted))
    assert [part.first_row for part in parts] == np.cumsum([0, *(part.rows for part in parts[:-1])]).tolist()
    out = Chunk(sum(part.rows for part in parts), 0)
    for name in wanted.categorical:
        out.hashes[name] = np.concatenate([part.hashes[name] for part in parts])
    for name in wanted.numeric:
        out.numbers[name] = np.concatenate([part.numbers[name] for part in parts])
    return out


def test_a_csv_gives_hashes_numbers_and_bags(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.csv", table()))
    assert source.columns == ["site", "price", "tags", "label"]
    (chunk,) = source.chunks(WANTED)
    assert (chunk.rows, chunk.first_row) == (4, 0)
    assert chunk.hashes["site"].tolist() == hash_text(["a.com", "b.com", None, "a.com"]).tolist()
    np.testing.assert_array_equal(chunk.numbers["price"], [1.5, np.nan, -2, 300])
    assert chunk.bags["tags"].offsets.tolist() == [0, 2, 2, 3, 5]
    assert chunk.bags["tags"].hashes.tolist() == hash_text(["x", "y", "y", "x", "z"]).tolist()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "frame"])
def test_every_source_gives_the_same(tmp_path: Path, name: str) -> None:
    expected = whole(open_source(write(tmp_path / "x.csv", table())))
    if name == "frame":
        source = open_source(pl.read_csv(tmp_path / "x.csv"))
    else:
        source = open_source(write(tmp_path / name, table(delimiter="\t" if "tsv" in name else ",")))
    found = whole(source)
    np.testing.assert_array_equal(found.hashes["site"], expected.hashes["site"])
    np.testing.assert_array_equal(found.numbers["price"], expected.numbers["price"])


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", table([*ROWS, ("c.com", "dear", "", "1")]))
    with pytest.raises(ValueError, match=r"a\.csv, line 6: price must be a number, got 'dear'"):
        list(open_source(path).chunks(WANTED))
    source = open_source(path, on_bad="skip")
    assert whole(source).rows == 4
    assert (source.bad.count, source.bad.first[0][:3]) == (1, (6, "price", "dear"))
