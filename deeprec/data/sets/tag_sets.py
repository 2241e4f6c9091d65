"""Data sets with tags: HetRec 2011 (Delicious, Last.fm) as raw triples and with a published split, CiteULike-a."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deeprec.data.interactions.build import Duplicates, build
from deeprec.data.interactions.features import align
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Interactions
from deeprec.data.interactions.parts import joined
from deeprec.data.interactions.readers import read_file
from deeprec.data.interactions.tags import Folksonomy
from deeprec.data.reading.errors import naming
from deeprec.data.reading.text import OnBad, needed, read_bytes, with_gz

_LASTFM_RAW = "hetrec2011-lastfm-2k"


def read_tag_split(
    folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest"
) -> Interactions:
    """Triples to train on, pairs to choose by and to test on, and maps to the ids of HetRec 2011.

    Ids are HetRec's; tags are names where a file of them is there: hetrec_tags.dat beside, or that of the raw Last.fm.
    """
    options: dict[str, Any] = {"on_bad": on_bad, "duplicates": duplicates, "header": True}
    parts = []
    for part in ("train", "val", "test"):
        path, tag = needed(folder, f"{part}.txt"), "tagID" if part == "train" else None
        with naming(path):
            parts.append(read_file(path, name=part, user="userID", item="itemID", tag=tag, **options))
    data = joined(parts, 1, has_validation=True, has_test=True, name=name, duplicates=duplicates)
    assert isinstance(data, Folksonomy)
    user_ids, item_ids, tag_ids = (
        _original(folder, f"{kind}s.txt", ids)
        for kind, ids in (("user", data.user_ids), ("item", data.item_ids), ("tag", data.tag_ids))
    )
    raw = folder.parent.parent / _LASTFM_RAW if folder.name == "lastfm" else folder
    names = with_gz(raw / "tags.dat") or with_gz(folder / "hetrec_tags.dat")
    tag_ids = tag_ids if names is None else _named(tag_ids, names)
    data = replace(data, user_ids=user_ids, item_ids=item_ids, tag_ids=tag_ids)
    return _with_artists(data, raw)


def read_lastfm_2k(
    folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest"
) -> Interactions:
    """user_taggedartists.dat: all triples of HetRec's Last.fm, with names of tags and artists where they are there."""
    path = needed(folder, "user_taggedartists.dat")
    columns: dict[str, Any] = {"user": "userID", "item": "artistID", "tag": "tagID"}
    data = read_file(path, name=name, header=True, on_bad=on_bad, duplicates=duplicates, **columns)
    assert isinstance(data, Folksonomy)
    names = with_gz(folder / "tags.dat")
    named = data if names is None else replace(data, tag_ids=_named(data.tag_ids, names))
    return _with_artists(named, folder)


def read_citeulike(folder: Path, *, name: str) -> Interactions:
    """users.dat: the articles in each user's library; item_features: the tags of each article, a list of text.

    Users and articles are numbered by line, from 0. Articles without a tag have an empty list.
    """
    likes = _lists(needed(folder, "users.dat"))
    tagged = _lists(needed(folder, "item-tag.dat"))
    names = pl.Series(_text(needed(folder, "tags.dat")).splitlines())
    counts, tags = likes.list.len().to_numpy(), tagged.explode().drop_nulls()
    items = likes.explode().drop_nulls().to_numpy()
    for what, numbers, end in (("item", items, len(tagged)), ("tag", tags.to_numpy(), len(names))):
        largest = int(numbers.max(initial=-1))
        if largest >= end:
            raise ValueError(f"load: {folder} must have {what}s below {end}, got {largest}; take all files from one "
                             "source")  # fmt: skip
    data = build(
        np.repeat(np.arange(len(likes)), counts),
        items,
        name=name,
        user_ids=IdMap(np.arange(len(likes)), "user"),
        item_ids=IdMap(np.arange(len(tagged)), "item"),
    )
    ends = np.cumsum(tagged.list.len().to_numpy())
    texts = names.gather(tags).to_list()
    lists = [texts[start:end] for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]
    frame = pl.DataFrame({"item_id": np.arange(len(tagged)), "tags": pl.Series(lists, dtype=pl.List(pl.String))})
    return replace(data, item_features=align(frame, data.item_ids))


def _text(path: Path) -> str:
    data = read_bytes(path)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _table(path: Path, *columns: str) -> pl.DataFrame:
    """The first columns of a text with a row of names and tabs between fields, as text."""
    lines = pl.Series([line.rstrip("\r") for line in _text(path).split("\n")[1:]])
    fields = lines.filter(lines != "").str.split("\t")
    short = fields.list.len() < len(columns)
    if short.any():
        row = int(short.arg_max() or 0)
        raise ValueError(f"read: {path} must have {len(columns)} fields separated by tabs in every line, got "
                         f"{lines.filter(lines != '')[row]!r}; get it again")  # fmt: skip
    return pl.DataFrame({column: fields.list.get(at) for at, column in enumerate(columns)})


def _original(folder: Path, file: str, ids: IdMap) -> IdMap:
    """The map with the ids that its numbers stand for."""
    path = needed(folder, file)
    table = _table(path, "original", "number").cast(pl.Int64)
    known = ids.values.cast(pl.Int64).alias("number").to_frame().join(table, on="number", how="left")
    original = known.get_column("original")
    if original.null_count():
        raise ValueError(
            f"read: {path} must hold every {ids.name} of the other files, got none for "
            f"{known.filter(original.is_null())['number'][0]}; take all files from one source"
        )
    return IdMap(original, ids.name)


def _named(tag_ids: IdMap, path: Path) -> IdMap:
    """Tags by their names; a name of several tags is followed by the number, and an empty one is that."""
    table = _table(path, "number", "name").with_columns(
        pl.col("number").cast(pl.Int64), pl.col("name").str.strip_chars()
    )
    numbers = tag_ids.values.cast(pl.Int64).alias("number").to_frame()
    names = numbers.join(table.unique("number", keep="first"), on="number", how="left", maintain_order="left")
    number = pl.col("number").cast(pl.String)
    is_shared = pl.col("name").is_duplicated() & pl.col("name").is_not_null()
    label = pl.when(is_shared).then(pl.col("name") + " (" + number + ")").otherwise(pl.col("name"))
    return IdMap(names.select(tag=pl.when(pl.col("name") == "").then(number).otherwise(label).fill_null(number))["tag"],
                 "tag")  # fmt: skip


def _with_artists(data: Folksonomy, folder: Path) -> Interactions:
    path = with_gz(folder / "artists.dat")
    if path is None:
        return data
    table = _table(path, "item_id", "name").with_columns(pl.col("item_id").cast(data.item_ids.values.dtype))
    return replace(data, item_features=align(table, data.item_ids))


def _lists(path: Path) -> pl.Series:
    """Lines "count number number ..." as lists of numbers."""
    rows = pl.Series(_text(path).splitlines()).str.strip_chars().str.split(" ").cast(pl.List(pl.Int64), strict=False)
    is_wrong = (rows.list.first() != rows.list.len().cast(pl.Int64) - 1).fill_null(True)
    is_wrong |= rows.list.eval(pl.element().is_null()).list.any()
    if is_wrong.any():
        line = int(is_wrong.arg_max() or 0)
        raise ValueError(f"read: {path}, line {line + 1} must be a count and as many whole numbers; get it again")
    return rows.list.slice(1)
