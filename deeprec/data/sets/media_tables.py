"""Tables of items with media: clips with labels, and the plots and posters of MovieLens 1M."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean
from deeprec.data.media.files import MediaFiles
from deeprec.data.reading.text import needed
from deeprec.data.sets.datasets import search_dirs
from deeprec.data.sets.media_sets import film_media, posters_of, table_of


class MediaTable(NamedTuple):
    """Items and where their media lie.

    Attributes:
        kind: of the media: image, audio or video.
        items: item_id, file (the key of the medium, null where there is none) and what else is known.
        files: where the keys are found.
        label: the column that a classifier is to tell from the medium; "" where there is none.
        group: the column with what several media have in common besides, such as a speaker; "": each stands alone.
    """

    kind: str
    items: pl.DataFrame
    files: MediaFiles
    label: str
    group: str

    def held_out(self, share: float = 0.2, seed: int = 0) -> NDArray[np.bool_]:
        """Which items are held out, [N]: whole groups, drawn until they are the share of the items or more.

        Args:
            share: in (0, 1). seed: of the draw.
        Raises:
            ValueError: a share out of range, or nothing would be left.
        """
        if not 0 < share < 1:
            raise ValueError(f"held_out: share must be in (0, 1), got {share}")
        groups = self.items.get_column(self.group).to_numpy() if self.group else np.arange(len(self.items))
        names, group_of, counts = np.unique(groups, return_inverse=True, return_counts=True)
        order = np.random.Generator(np.random.Philox(seed)).permutation(len(names))
        count = int(np.searchsorted(np.cumsum(counts[order]), share * len(self.items))) + 1
        if count >= len(names):
            raise ValueError(f"held_out: share must leave a {self.group or 'medium'} of {len(names)}, got {share}")
        return np.isin(group_of, order[:count])


class _Clips(NamedTuple):
    kind: str
    table: str
    label: str
    group: str


_CLIPS = {
    "audio-spoken-digits": _Clips("audio", "clips.csv", "digit", "speaker"),
    "audio-instruments": _Clips("audio", "clips.csv", "label", ""),
    "video-fights": _Clips("video", "clips.csv", "label", "source_video"),
    "video-exercises": _Clips("video", "items.csv", "body_part", ""),
}
NAMES = (*_CLIPS, "ml-1m")


def load_media(name: str, data_dir: str | os.PathLike[str] | None = None) -> MediaTable:
    """Items with media, by the name of the set.

    "audio-spoken-digits" (2,000 clips, labels digit and speaker, which is the group), "audio-instruments" (200, label),
    "video-fights" (202, label; clips of one source_video are a group), "video-exercises" (196, body_part, and the
    instructions as text) and "ml-1m": the 3,883 films with plot, abstract (null for some) and poster (for 3,256). None
    is in this package, and none may be passed on.

    Args:
        name: one of these.
        data_dir: looked in first, then $DEEPREC_DATA and the cache, as `load` does.
    Raises:
        FileNotFoundError: a file is not there. ValueError: an unknown name, or a damaged file.
    """
    if name not in NAMES:
        raise ValueError(
            f"load_media: a set must be one of {', '.join(NAMES)}, got {name!r}; {did_you_mean(name, NAMES)}"
        )
    places = [place / name for place in search_dirs(data_dir)]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"load_media: no folder {name} in {', '.join(str(place.parent) for place in places)}; get the set, "
            "and pass data_dir or set DEEPREC_DATA"
        )
    return _films(folder) if name == "ml-1m" else _clips(folder, _CLIPS[name])


def _clips(folder: Path, clips: _Clips) -> MediaTable:
    table = table_of(needed(folder, clips.table))
    ids = pl.col("file").str.replace(r"\.[^.]*$", "").alias("item_id")
    files = MediaFiles(needed(folder, "clips.tar"))
    return MediaTable(clips.kind, table.select(ids, pl.all()), files, clips.label, clips.group)


def _films(folder: Path) -> MediaTable:
    archive = posters_of(folder)
    if archive is None:
        raise FileNotFoundError(f"load_media: no posters in {folder}-posters; get them")
    items = film_media(folder).rename({"poster": "file"})
    return MediaTable("image", items, MediaFiles(archive), "", "")
