"""`deeprec features extract`: a table of items in, a column of vectors out, and every bad file named."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.data import EncodedTable, FeatureSchema, Vector

pillow = pytest.importorskip("PIL.Image")


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Five items: three covers, one broken, one none; and texts."""
    for number in range(3):
        pillow.new("RGB", (20, 30), (80 * number, 10, 200)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes()[:50])
    keys = ["0.png", "1.png", "2.png", "3.png", None]
    texts = ["a red dragon", "a comet", "", "the dragon [bold]", None]
    frame = pl.DataFrame({"item_id": ["a", "b", "c", "d", "e"], "cover": keys, "plot": texts, "price": [1.0] * 5})
    frame.write_parquet(tmp_path / "items.parquet")
    return tmp_path / "items.parquet"


def test_covers_become_a_column_that_joins_the_table(deeprec, items: Path, tmp_path: Path) -> None:
    words = ("features", "extract", "--items", items, "--column", "cover", "--out", tmp_path / "out", "--workers", 1)
    done = deeprec(*words)
    assert done.exit_code == 0, done.output
    assert "3 of 5 items have a vector of 384 numbers; 3 files were new" in done.output
    assert "1 items have no image" in done.output
    assert "1 could not be decoded" in done.output
    joined = pl.read_parquet(items).join(pl.read_parquet(tmp_path / "out" / "cover.parquet"), on="item_id")
    assert joined["cover_ok"].to_list() == [True, True, True, False, False]
    table = EncodedTable.fit(FeatureSchema((Vector("cover_vector", 384),), label=None), joined)
    assert (table.rows.values == np.load(tmp_path / "out" / "cover.npy")).all()
    bad = pl.read_csv(tmp_path / "out" / "cover_bad.csv")
    assert bad["item_id"].to_list() == ["d"]
    assert bad["file"].to_list() == ["3.png"]
    before = (tmp_path / "out" / "cover.parquet").read_bytes()
    assert "0 files were new" in deeprec(*words).output
    assert (tmp_path / "out" / "cover.parquet").read_bytes() == before
    assert "item d: 3.png is no whole image" in deeprec(*words, "--on-bad", "raise").stderr


def test_texts_are_their_own_column(deeprec, items: Path, tmp_path: Path) -> None:
    words = ("--items", items, "--column", "plot", "--kind", "text", "--out", tmp_path / "out")
    done = deeprec("features", "extract", *words)
    assert done.exit_code == 0, done.output
    table = pl.read_parquet(tmp_path / "out" / "plot.parquet")
    assert table["plot_ok"].to_list() == [True, True, False, True, False]
    assert len(table["plot_vector"][0]) == 512


def test_what_does_not_fit_is_one_line(deeprec, items: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--column", "covr"), "must have a column covr"),
        (("--column", "price"), "price must be text, paths or texts, got Float64"),
        (("--column", "plot"), "the values of plot do not say what they are; add --kind image|audio|video|text"),
        (("--column", "cover", "--kind", "picture"), "--kind must be one of image, audio, video, text, got 'picture'"),
        (("--column", "cover", "--on-bad", "skip"), "--on-bad must be one of zeros, raise, got 'skip'"),
        (("--column", "cover", "--size", 20), "sides must be multiples of 8, got 20 x 20"),
        (("--column", "cover", "--media", tmp_path / "nowhere"), "no folder or .tar"),
        (("--column", "cover", "--workers", 0), "workers"),
        (("--column", "plot", "--kind", "text", "--encoder", tmp_path), "leave out --encoder"),
    ):
        done = deeprec("features", "extract", "--items", items, "--out", tmp_path / "out", *words)
        assert done.exit_code == 2, (words, done.output)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_saved_encoder_makes_the_vectors(deeprec, items: Path, tmp_path: Path) -> None:
    encoder = importlib.import_module("deeprec.nn.image_cnn").ImageCNN(5, channels=(8,))
    encoder.save(tmp_path / "encoder")
    words = ("features", "extract", "--items", items, "--column", "cover", "--out", tmp_path / "out", "--size", 12)
    words = (*words, "--encoder", tmp_path / "encoder", "--device", "cpu")
    done = deeprec(*words)
    assert done.exit_code == 0, done.output
    assert "3 of 5 items have a vector of 5 numbers; 3 files were new" in done.output
    assert "0 files were new" in deeprec(*words).output
    with torch.no_grad():
        encoder.output.bias += 1
    encoder.save(tmp_path / "encoder")  # other weights make other vectors
    before = np.load(tmp_path / "out" / "cover.npy")
    assert "3 files were new" in deeprec(*words).output
    assert np.load(tmp_path / "out" / "cover.npy")[:3] == pytest.approx(before[:3] + 1, abs=1e-5)
    (tmp_path / "encoder" / "encoder.json").unlink()
    assert "encoder.json" in deeprec(*words).stderr
