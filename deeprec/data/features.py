"""MovieLens side information (latin-1 text) as frames whose row i describes internal id i."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from deeprec.data.ids import IdMap
from deeprec.data.text import read_bytes

# fmt: off
_GENRES_100K = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]
# fmt: on


def _fields(path: Path, separator: str, names: list[str]) -> pl.DataFrame:
    """All fields of a file as text, one column a name; ValueError names a line with too few."""
    lines = pl.Series(read_bytes(path).decode("latin-1").splitlines())
    lines = lines.filter(lines.str.len_chars() > 0)
    frame: pl.DataFrame = lines.str.splitn(separator, len(names)).struct.unnest()
    frame = frame.rename(dict(zip(frame.columns, names, strict=True)))
    short = frame.get_column(names[-1]).is_null()
    if short.any():
        line = int(short.arg_max() or 0)
        raise ValueError(
            f"read: {path}, line {line + 1} must have {len(names)} fields separated by {separator!r}, "
            f"got {lines[line]!r}; download it again"
        )
    return frame


def _integers(frame: pl.DataFrame, path: Path, *columns: str) -> pl.DataFrame:
    try:
        return frame.with_columns(pl.col(*columns).cast(pl.Int64))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"read: {path}: {columns} must be integers, got {str(error).splitlines()[0]}") from None


def _with_year(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(year=pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32))


def movies_1m(path: Path) -> pl.DataFrame:
    """movies.dat: item_id, title, genres (list), year."""
    frame = _integers(_fields(path, "::", ["item_id", "title", "genres"]), path, "item_id")
    return _with_year(frame.with_columns(pl.col("genres").str.split("|")))


def users_1m(path: Path) -> pl.DataFrame:
    """users.dat: user_id, gender, age (lower bound of a bracket), occupation (code), zip."""
    frame = _fields(path, "::", ["user_id", "gender", "age", "occupation", "zip"])
    return _integers(frame, path, "user_id", "age", "occupation")


def items_100k(path: Path) -> pl.DataFrame:
    """u.item: item_id, title, release_date, url, genres (list), year."""
    names = ["item_id", "title", "release_date", "video_release_date", "url", *_GENRES_100K]
    frame = _integers(_fields(path, "|", names), path, "item_id")
    genres = pl.concat_list(
        pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES_100K
    ).list.drop_nulls()
    return _with_year(frame.select("item_id", "title", "release_date", "url", genres=genres))


def users_100k(path: Path) -> pl.DataFrame:
    """u.user: user_id, age, gender, occupation, zip."""
    frame = _fields(path, "|", ["user_id", "age", "gender", "occupation", "zip"])
    return _integers(frame, path, "user_id", "age")


def align(frame: pl.DataFrame, ids: IdMap) -> pl.DataFrame:
    """Rows in the order of the id map; an id without a row gets nulls."""
    key = f"{ids.name}_id"
    order = ids.values.alias(key).to_frame()
    return order.join(frame.unique(key, keep="first"), on=key, how="left", maintain_order="left")
