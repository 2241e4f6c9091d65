"""Coat: ratings of coats that users chose, and of coats that were shown to them at random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.interactions.build import Duplicates, build
from deeprec.data.interactions.features import align
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Interactions, OfficialSplit
from deeprec.data.interactions.logged import with_propensities
from deeprec.data.reading.errors import naming
from deeprec.data.reading.text import OnBad, needed, read_bytes, with_gz

_NUM_USERS, _NUM_ITEMS, _NUM_SHOWN = 290, 300, 16


def read_coat(folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "keep") -> Interactions:
    """Coat: train.ascii, ratings of coats that users chose, test.ascii, of 16 that were drawn for each user at random.

    The two are the official split; a pair may be in both. Ids are the lines and columns of the files, from 0. With
    propensities.ascii each row has its probability: of the chosen ones the publisher's estimate, of the others 16 in
    300.
    """
    del on_bad, duplicates  # a cell holds a rating or none; whatever is no number is an error
    train, test = (_matrix(needed(folder, f"{part}.ascii"), (_NUM_USERS, _NUM_ITEMS)) for part in ("train", "test"))
    parts = [np.nonzero(part) for part in (train, test)]
    users, items = (np.concatenate([part[axis] for part in parts]) for axis in (0, 1))
    ratings = np.concatenate([part[rows] for part, rows in zip((train, test), parts, strict=True)])
    maps: dict[str, Any] = {"user_ids": IdMap(pl.Series("user_id", np.arange(_NUM_USERS)), "user"),
            "item_ids": IdMap(pl.Series("item_id", np.arange(_NUM_ITEMS)), "item")}  # fmt: skip
    data = build(users, items, ratings=ratings, order_kind=None, name=name, duplicates="keep", **maps)
    num_train = len(parts[0][0])
    rows = np.arange(len(data), dtype=np.int64)
    data = replace(data, official=OfficialSplit(rows[:num_train], rows[num_train:], None, "train.ascii / test.ascii"))
    tables = {f"{side}_features": _features(folder, side) for side in ("user", "item")}
    known: dict[str, Any] = {
        key: align(frame, maps[key.replace("features", "ids")]) for key, frame in tables.items() if frame is not None
    }
    data = replace(data, **known)
    given = with_gz(folder / "propensities.ascii")
    if given is None:
        return data
    chosen = _matrix(given, (_NUM_USERS, _NUM_ITEMS))[parts[0]]
    with naming(given):
        return with_propensities(
            data, np.concatenate([chosen, np.full(len(data) - num_train, _NUM_SHOWN / _NUM_ITEMS)])
        )


def _features(folder: Path, side: str) -> pl.DataFrame | None:
    """The columns of users or items as texts, of 0/1 columns that a map calls "color:beige"; None without the files."""
    values, names = (with_gz(folder / f"{side}_features{part}") for part in (".ascii", "_map.txt"))
    if values is None or names is None:
        return None
    labels = [line.split(":", 1) for line in read_bytes(names).decode().split("\n") if line.strip()]
    table = _matrix(values, (_NUM_USERS if side == "user" else _NUM_ITEMS, len(labels)))
    columns: dict[str, Any] = {f"{side}_id": np.arange(len(table))}
    for column in dict.fromkeys(label[0] for label in labels):
        places = [place for place, label in enumerate(labels) if label[0] == column]
        words = np.array([labels[place][1] for place in places])
        columns[column] = words[table[:, places].argmax(axis=1)]
    return pl.DataFrame(columns)


def _matrix(path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Numbers of a text file; ValueError for another shape."""
    needs = f"read: {path} must be {shape[0]} lines of {shape[1]} numbers"
    try:
        lines = [line.split() for line in read_bytes(path).decode().splitlines() if line.strip()]
        matrix = np.array(lines, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{needs}, got {error}; get it again") from None
    if matrix.shape != shape:
        raise ValueError(f"{needs}, got {list(matrix.shape)}; get it again")
    return matrix
