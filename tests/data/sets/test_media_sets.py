"""Claims about sets whose items have vectors: rows go with their items, and files that do not fit are refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deeprec.data import load
from deeprec.data.sets.media_sets import read_tiktok


def folder_with(path: Path, image: np.ndarray, audio: np.ndarray) -> Path:
    for part, lines in (("train", "0 3\n0 1\n7 2\n"), ("valid", "7 0\n"), ("test", "0 2\n")):
        (path / f"{part}.txt").write_text(lines)
    np.save(path / "image_feat.npy", image)
    np.save(path / "audio_feat.npy", audio)
    return path


def test_rows_of_the_files_go_with_their_videos(tmp_path: Path) -> None:
    image, audio = np.arange(12, dtype=np.float16).reshape(4, 3), -np.arange(8, dtype=np.float32).reshape(4, 2)
    data = read_tiktok(folder_with(tmp_path, image, audio), name="videos")
    videos = data.item_ids.values.to_numpy()
    assert data.item_features is not None
    for name, rows in (("image", image), ("audio", audio)):
        assert (np.stack(data.item_features[name].to_list()) == rows[videos]).all()
    assert data.official is not None
    assert data.official.validation_index is not None
    official = data.official
    parts = (official.train_index, official.validation_index, official.test_index)
    assert [len(part) for part in parts] == [3, 1, 1]
    assert data.ratings is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 2), dtype=np.float32), "must have a row for each video, got 3 for video 3"),
        (np.zeros(4, dtype=np.float32), r"must be a matrix of fractions, got float32 \[4\]"),
        (np.zeros((4, 2), dtype=np.int64), r"must be a matrix of fractions, got int64 \[4, 2\]"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path: Path, image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tiktok(folder_with(tmp_path, image, np.zeros((4, 2), dtype=np.float32)), name="videos")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, np.zeros((4, 2), dtype=np.float32), np.zeros((4, 2), dtype=np.float32))
    (folder / "audio_feat.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"audio_feat\.npy"):
        read_tiktok(folder, name="videos")


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="needs DEEPREC_DATA")
def test_tiktok_is_as_published() -> None:
    data = load("tiktok")
    assert (len(data), data.num_users, data.num_items) == (68_722, 9_308, 6_710)
    assert data.official is not None
    trained = np.unique(data.items[data.official.train_index])
    tested = np.unique(data.items[data.official.test_index])
    assert len(np.setdiff1d(tested, trained)) == 340
    rows = np.load(Path(os.environ["DEEPREC_DATA"]) / "tiktok" / "audio_feat.npy").astype(np.float32)
    assert data.item_features is not None
    assert (np.stack(data.item_features["audio"].to_list()) == rows[data.item_ids.values.to_numpy()]).all()
