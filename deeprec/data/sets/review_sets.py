"""Data sets of Amazon's reviews with their texts: All Beauty 2023, and a part of Musical Instruments."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import polars as pl

from deeprec.data.interactions.build import Duplicates, from_frame
from deeprec.data.interactions.interactions import Interactions
from deeprec.data.interactions.parts import joined
from deeprec.data.reading.errors import naming, reading
from deeprec.data.reading.text import OnBad, needed, read_bytes

_FILE = "reviews.jsonl"


def read_beauty(folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest") -> Interactions:
    """user_id, item_id, rating, timestamp and text; the field `split` is the official one, of train and test."""
    path = needed(folder, _FILE)
    table = _table(path)
    with naming(path):
        parts = [
            from_frame(
                table.filter(pl.col("split") == part),
                review="text",
                name=f"{name} ({part})",
                on_bad=on_bad,
                duplicates=duplicates,
            )
            for part in ("train", "test")
        ]
        return joined(parts, 1, has_validation=False, has_test=True, name=name, duplicates=duplicates)


def read_instruments(
    folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest"
) -> Interactions:
    """reviewerID, asin, overall, unixReviewTime and reviewText."""
    path = needed(folder, _FILE)
    columns: dict[str, Any] = {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"}
    with naming(path):
        return from_frame(_table(path), **columns, review="reviewText", name=name, on_bad=on_bad, duplicates=duplicates)


def _table(path: Path) -> pl.DataFrame:
    with reading(path, "a JSON object of a review in each line"):
        return pl.read_ndjson(io.BytesIO(read_bytes(path)))
