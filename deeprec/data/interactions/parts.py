"""Interactions read apart as one set: several files, and files of their own for choosing and testing."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.interactions.build import Duplicates, build
from deeprec.data.interactions.features import align
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Interactions, OfficialSplit
from deeprec.data.interactions.reviews import Reviews
from deeprec.data.interactions.tags import Folksonomy

_log = logging.getLogger("deeprec")


def joined(
    parts: list[Interactions],
    num_train: int,
    has_validation: bool,
    has_test: bool,
    *,
    name: str,
    duplicates: Duplicates = "latest",
) -> Interactions:
    """One set of the parts' rows, in their order.

    Args:
        parts: those to train on, then that of validation and that of the test, where there are any.
        num_train: how many are to train on.
        duplicates: pairs of user and item in several parts: "latest" keeps the row of the last part, "keep" all,
            "raise" refuses.
    Raises:
        ValueError: no row is left to train on.
    """
    users, items = _shared_ids([part.user_ids for part in parts]), _shared_ids([part.item_ids for part in parts])
    data = build(
        _of_all([part.user_ids for part in parts], [part.users for part in parts], users.values.dtype),
        _of_all([part.item_ids for part in parts], [part.items for part in parts], items.values.dtype),
        ratings=_column([part.ratings for part in parts]),
        order=_column(_orders(parts)),
        order_kind="rank" if any(part.order_kind == "rank" for part in parts) else "time",
        name=name,
        user_ids=users,
        item_ids=items,
        tags=_tags(parts),
        reviews=_reviews(parts),
        duplicates="keep",
        repairs={},
    )
    data = replace(data, user_features=_owners(parts, users))
    part_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    repairs = {kind: sum(part.repairs.get(kind, 0) for part in parts) for part in parts for kind in part.repairs}
    if duplicates != "keep":
        data, part_of = _each_pair_in_one(data, part_of, repairs, duplicates)
    data = replace(data, repairs=repairs)
    if not has_test and not has_validation:
        return data
    rows, test = np.arange(len(data)), len(parts) - 1 if has_test else -1
    train = rows[part_of < num_train]
    if not len(train):
        raise ValueError(f"load: {name} must have rows to train on, got only pairs that the other files hold too")
    held = parts[num_train:]
    split = OfficialSplit(
        train,
        rows[part_of == test],
        None,
        " / ".join([parts[0].name + (f" and {num_train - 1} more" if num_train > 1 else ""), *(p.name for p in held)]),
        rows[part_of == num_train] if has_validation else None,
    )
    _say_new(data, train, name)
    return replace(data, official=split)


def _shared_ids(maps: list[IdMap]) -> IdMap:
    """All ids by their first appearance; texts where the parts disagree."""
    kinds = {ids.values.dtype for ids in maps}
    values = [ids.values if len(kinds) == 1 else ids.values.cast(pl.String) for ids in maps]
    return IdMap.from_values(pl.concat(values), maps[0].name)


def _of_all(maps: list[IdMap], codes: list[NDArray[Any]], dtype: Any) -> pl.Series:
    return pl.concat([ids.values.cast(dtype).gather(each) for ids, each in zip(maps, codes, strict=True)])


def _column(columns: list[NDArray[Any] | None]) -> NDArray[Any] | None:
    present = [column for column in columns if column is not None]
    return np.concatenate(present) if len(present) == len(columns) else None


def _orders(parts: list[Interactions]) -> list[NDArray[Any] | None]:
    """Orders that go on from part to part where they are places: a test row comes after the training rows."""
    if any(part.order is None for part in parts) or not any(part.order_kind == "rank" for part in parts):
        return [part.order for part in parts]
    ends = np.cumsum([0, *(int(part.order.max(initial=0)) for part in parts if part.order is not None)])
    return [part.order + end for part, end in zip(parts, ends[:-1], strict=True) if part.order is not None]


def _owners(parts: list[Interactions], users: IdMap) -> pl.DataFrame | None:
    """What all parts say of their users, such as whose a session is; of one in several parts, what the first says."""
    tables = [part.user_features for part in parts if part.user_features is not None]
    if len(tables) < len(parts):
        return None
    typed = [table.with_columns(pl.col("user_id").cast(users.values.dtype)) for table in tables]
    return align(pl.concat(typed, how="diagonal_relaxed"), users)


def _tags(parts: list[Interactions]) -> pl.Series | None:
    """The tags of all rows; None where no part has any."""
    if not any(isinstance(part, Folksonomy) for part in parts):
        return None
    maps = [part.tag_ids for part in parts if isinstance(part, Folksonomy)]
    dtype = _shared_ids(maps).values.dtype
    columns = []
    for part in parts:
        codes = part.tags if isinstance(part, Folksonomy) else np.full(len(part), -1, dtype=np.int32)
        values = part.tag_ids.values.cast(dtype) if isinstance(part, Folksonomy) else pl.Series([], dtype=dtype)
        places = pl.Series(codes.astype(np.int64))
        columns.append(values.gather(places.set(places < 0, None)))
    return pl.concat(columns)


def _reviews(parts: list[Interactions]) -> pl.Series | None:
    """The texts of all rows; None where no part has any."""
    if not any(isinstance(part, Reviews) for part in parts):
        return None
    nothing = pl.Series([], dtype=pl.String)
    return pl.concat(
        [part.row_texts() if isinstance(part, Reviews) else nothing.extend_constant(None, len(part)) for part in parts]
    )


def _each_pair_in_one(
    data: Interactions, part_of: NDArray[Any], repairs: dict[str, int], duplicates: Duplicates
) -> tuple[Interactions, NDArray[Any]]:
    """Rows less those whose pair comes again in a later part."""
    pairs, pair_of = np.unique(data.pair_keys(), return_inverse=True)
    last = np.zeros(len(pairs), dtype=np.int64)
    last[pair_of] = part_of  # of repeated pairs the last assignment stays, and the parts ascend
    keep = np.flatnonzero(part_of == last[pair_of])
    dropped = len(data) - len(keep)
    if not dropped:
        return data, part_of
    if duplicates == "raise":
        row = int(np.setdiff1d(np.arange(len(data)), keep)[0])
        pair = (data.user_ids.values[int(data.users[row])], data.item_ids.values[int(data.items[row])])
        raise ValueError(f"load: each user and item may meet in one part of {data.name} only, got {pair} in several "
                         f"({dropped:,} rows too many); pass duplicates='latest'")  # fmt: skip
    repairs["rows_of_later_parts_dropped"] = dropped
    _log.warning("%s: %s rows are left out, as a later part holds the same user and item", data.name, f"{dropped:,}")
    return data.take(keep), part_of[keep]


def _say_new(data: Interactions, train: NDArray[Any], name: str) -> None:
    """Log the users and items that no training row knows."""
    counts = [
        int(((np.bincount(codes, minlength=size) > 0) & (np.bincount(codes[train], minlength=size) == 0)).sum())
        for codes, size in ((data.users, data.num_users), (data.items, data.num_items))
    ]
    if any(counts):
        _log.warning(
            "%s: %s users and %s items have no training rows; they are tested, as what the model has learnt nothing of",
            name, *(f"{count:,}" for count in counts),
        )  # fmt: skip
