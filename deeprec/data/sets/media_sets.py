"""Data sets whose items have vectors of their media: TikTok, with what was seen and heard in each video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deeprec.data.interactions.build import Duplicates
from deeprec.data.interactions.features import align
from deeprec.data.interactions.interactions import Interactions
from deeprec.data.interactions.readers import read_parts
from deeprec.data.reading.errors import naming
from deeprec.data.reading.text import OnBad, needed

_COMPONENTS = ("image", "audio")


def read_tiktok(folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest") -> Interactions:
    """train.txt, valid.txt and test.txt ("user item"), with the vectors of the videos.

    The files are the official split. Row i of image_feat.npy and of audio_feat.npy is video i; the item table has them
    as the columns "image" and "audio", 128 numbers each, half precision in the files.

    Raises:
        ValueError: files of vectors that are no matrices of numbers, or have no row for a video.
    """
    train, valid, test = (needed(folder, f"{part}.txt") for part in ("train", "valid", "test"))
    options: dict[str, Any] = {"user": 0, "item": 1, "header": False, "integers": True}
    data = read_parts([train], valid, test, name=name, on_bad=on_bad, duplicates=duplicates, **options)
    videos = data.item_ids.values.to_numpy()
    table = {"item_id": data.item_ids.values}
    for component in _COMPONENTS:
        path = needed(folder, f"{component}_feat.npy")
        with naming(path):
            table[component] = _vectors(path, videos)
    return replace(data, ratings=None, item_features=align(pl.DataFrame(table), data.item_ids))


def _vectors(path: Path, videos: np.ndarray) -> pl.Series:
    """The rows of a file for some videos."""
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(f"load: {path.name} must be a matrix of fractions, got {rows.dtype} {list(rows.shape)}")
    if videos.max(initial=-1) >= len(rows):
        raise ValueError(
            f"load: {path.name} must have a row for each video, got {len(rows)} for video {videos.max()}; take all "
            "files from one source"
        )
    return pl.Series(np.asarray(rows[videos], dtype=np.float32))
