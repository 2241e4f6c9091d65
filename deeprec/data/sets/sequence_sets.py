"""Data sets of ordered histories and sessions: those of SASRec, BERT4Rec and S3-Rec, Diginetica, Amazon Grocery.

Nobody's repeats are taken away: a row is an event. Where a file has no times, its order is that of the events.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from deeprec.data.interactions.build import Duplicates, build
from deeprec.data.interactions.features import align
from deeprec.data.interactions.interactions import Int64Array, Interactions, OfficialSplit
from deeprec.data.interactions.prefixes import read_prefixes
from deeprec.data.interactions.readers import read_file
from deeprec.data.reading.errors import naming
from deeprec.data.reading.text import OnBad, needed, read_bytes, with_gz

Reader = Callable[..., Interactions]


def pair_reader(file: str) -> Reader:
    """Of lines "user item", those of a user in the order of time: the form of SASRec and BERT4Rec."""

    def read(folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "keep") -> Interactions:
        path = needed(folder, file)
        with naming(path):
            return read_file(path, name=name, user=0, item=1, order="file", header=False, integers=True, on_bad=on_bad,
                             duplicates=duplicates)  # fmt: skip

    return read


def s3rec_reader(prefix: str) -> Reader:
    """Of S3-Rec's `<prefix>.txt` ("user item item ..."), with `<prefix>_item2attributes.json` as lists of numbers.

    With `<prefix>_sample.txt` beside it, the last item of each user against the 99 of its line is the official split;
    the item before it chooses the epoch.
    """

    def read(folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "keep") -> Interactions:
        path = needed(folder, f"{prefix}.txt")
        with naming(path):
            data = read_file(path, name=name, format="lists", counted=False, ordered=True, on_bad=on_bad,
                             duplicates=duplicates)  # fmt: skip
        attributes, sample = (with_gz(folder / f"{prefix}_{part}") for part in ("item2attributes.json", "sample.txt"))
        if attributes is not None:
            data = replace(data, item_features=align(_attributes(attributes), data.item_ids))
        return data if sample is None else replace(data, official=_last_against_sample(data, sample))

    return read


def _attributes(path: Path) -> pl.DataFrame:
    """item_id and attributes, each once: {"4": [1, 2, 3], ...}."""
    try:
        lists = {
            int(item): list(dict.fromkeys(map(int, values))) for item, values in json.loads(read_bytes(path)).items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"read: {path} must map items to lists of whole numbers, got {error}; get it again") from None
    return pl.DataFrame(
        {"item_id": list(lists), "attributes": pl.Series(list(lists.values()), dtype=pl.List(pl.Int64))}
    )


def _last_against_sample(data: Interactions, path: Path) -> OfficialSplit:
    """The last row of each user, the one before it, and the sampled items that the last is ranked against."""
    rows = [line.split() for line in read_bytes(path).decode().splitlines()]
    if (
        len({len(row) for row in rows}) != 1
        or len(rows[0]) < 2
        or not all(field.isdigit() for row in rows for field in row)
    ):
        raise ValueError(f"read: {path} must have a user and as many items in every line, as numbers; get it again")
    numbers = np.array(rows, dtype=np.int64)
    users = data.user_ids.encode(numbers[:, 0])
    if len(np.unique(users)) != len(users) or len(users) != data.num_users:
        raise ValueError(
            f"read: {path} must have a line for each of {data.num_users} users, got {len(users)}; take both files from "
            "one source"
        )
    last, before = _last_rows(data)
    test = last[users]
    items = data.item_ids.encode(numbers[:, 1:].ravel()).reshape(len(users), -1)
    train = np.setdiff1d(np.arange(len(data)), np.union1d(last, before))
    return OfficialSplit(train, test, items.astype(np.int32), path.name, before)


def _last_rows(data: Interactions) -> tuple[Int64Array, Int64Array]:
    """The last row of each user, by user, and the last but one of those who have three."""
    assert data.order is not None
    ordered = np.lexsort((data.order, data.users))
    counts = data.user_counts()
    ends = np.cumsum(counts) - 1
    return ordered[ends], ordered[ends[counts > 2] - 1]


def read_diginetica(
    folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "keep"
) -> Interactions:
    """all_train_seq.txt, a session a line, and test.txt, `prefix items<TAB>target`: users are sessions, numbered.

    Sessions stand in the order of time; those of the test, joined from their prefixes, are the official test part.
    """
    del on_bad  # whatever is no number is an error
    train, test = needed(folder, "all_train_seq.txt"), needed(folder, "test.txt")
    with naming(train):
        first = read_file(train, name=name, format="sessions", duplicates="keep")
    with naming(test):
        second = read_prefixes(test)
    items = np.concatenate([first.item_ids.values.to_numpy()[first.items], second.items])
    sessions = np.concatenate([first.users, second.sessions + first.num_users])
    order = np.concatenate([_not_none(first.order), second.places])
    data = build(sessions, items, order=order, order_kind="rank", name=name, duplicates=duplicates)
    is_test = data.user_ids.values.to_numpy()[data.users] >= first.num_users
    split = OfficialSplit(np.flatnonzero(~is_test), np.flatnonzero(is_test), None, "all_train_seq.txt / test.txt")
    return replace(data, official=split)


def _not_none(order: Int64Array | None) -> Int64Array:
    assert order is not None  # sessions have the places of their items
    return order


def read_grocery(folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "keep") -> Interactions:
    """train.csv: user_id, item_id, time (Unix seconds); item_meta.csv: category, complements, substitutes."""
    path = needed(folder, "train.csv")
    with naming(path):
        data = read_file(path, name=name, user="user_id", item="item_id", timestamp="time", header=True, on_bad=on_bad,
                         duplicates=duplicates)  # fmt: skip
    meta = with_gz(folder / "item_meta.csv")
    if meta is None:
        return data
    table = pl.read_csv(read_bytes(meta), separator="\t", infer_schema_length=None)
    lists = pl.col("r_complement", "r_substitute").str.json_decode(pl.List(pl.Int64))
    table = table.with_columns(lists).rename(
        {"i_category": "category", "r_complement": "complements", "r_substitute": "substitutes"}
    )
    return replace(data, item_features=align(table, data.item_ids))
