"""Media of data sets: the vectors of TikTok's videos, the plots and posters of MovieLens 1M's films."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deeprec.data.interactions.build import Duplicates
from deeprec.data.interactions.features import align
from deeprec.data.interactions.interactions import Interactions
from deeprec.data.interactions.readers import read_parts
from deeprec.data.media.files import MediaFiles
from deeprec.data.reading.errors import naming, reading
from deeprec.data.reading.text import OnBad, needed, read_bytes, with_gz

_COMPONENTS = ("image", "audio")
_PLOTS, _ABSTRACTS, _POSTERS = "movie_overviews.csv", "dbpedia_abstracts.json", "posters_64x96.tar"


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


def film_media(folder: Path) -> pl.DataFrame:
    """Plot, abstract and poster (the key in the archive) of the films of MovieLens 1M: as far as files are there."""
    table: pl.DataFrame | None = None
    for part in (_plots(folder), _abstracts(folder), _posters(folder)):
        if part is not None:
            table = part if table is None else table.join(part, on="item_id", how="full", coalesce=True)
    if table is None:
        raise FileNotFoundError(
            f"load: media must be {_PLOTS} or {_ABSTRACTS} in {folder}, or {_POSTERS} in {folder}-posters beside it, "
            "got none of them; leave out media, or get them"
        )
    return table.sort("item_id")


def _plots(folder: Path) -> pl.DataFrame | None:
    path = with_gz(folder / _PLOTS)
    return None if path is None else table_of(path).select(item_id=pl.col("movie_id").cast(pl.Int64), plot="overview")


def _abstracts(folder: Path) -> pl.DataFrame | None:
    path = with_gz(folder / _ABSTRACTS)
    if path is None:
        return None
    with reading(path, "a JSON object of texts by film"):
        texts = json.loads(read_bytes(path))
    return pl.DataFrame({"item_id": [int(key) for key in texts], "abstract": [str(text) for text in texts.values()]})


def _posters(folder: Path) -> pl.DataFrame | None:
    archive = posters_of(folder)
    if archive is None:
        return None
    keys = [key for key in MediaFiles(archive).names() if Path(key).stem.isdigit()]
    return pl.DataFrame({"item_id": [int(Path(key).stem) for key in keys], "poster": keys})


def posters_of(folder: Path) -> Path | None:
    """The archive of posters of MovieLens 1M in its folder, or in the one beside it; None where there is none."""
    places = (folder.parent / f"{folder.name}-posters" / _POSTERS, folder / _POSTERS)
    return next((path for path in places if path.is_file()), None)


def table_of(path: Path) -> pl.DataFrame:
    """A table with a row of names and commas, whose texts may hold quoted commas and lines."""
    with reading(path, "a table with a row of names"):
        return pl.read_csv(read_bytes(path))
