"""Raw columns to checked Interactions: missing values, duplicates, id maps, repairs counted and logged once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._suggest import listed
from deeprec.data.interactions.ids import IdMap, normalise_ids, stripped_ids, to_series
from deeprec.data.interactions.interactions import Interactions
from deeprec.data.interactions.reviews import Reviews
from deeprec.data.interactions.tags import Folksonomy
from deeprec.data.reading.errors import did_you_mean
from deeprec.data.reading.frames import frame_of, plain_texts
from deeprec.data.reading.text import OnBad, check_on_bad, first_few
from deeprec.data.reading.times import REMEDY, times_of

_log = logging.getLogger("deeprec")

Duplicates = Literal["latest", "keep", "raise"]

_EXPECTED = {"user": "an id", "item": "an id", "rating": "a number", "label": "0 or 1"}

DEFAULT_COLUMNS = {
    "user": "user_id",
    "item": "item_id",
    "rating": "rating",
    "timestamp": "timestamp",
    "label": "label",
}


def from_frame(
    frame: Any,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    timestamp: str | None = None,
    label: str | None = None,
    *,
    tag: str | None = None,
    review: str | None = None,
    session: str | None = None,
    time_format: str | None = None,
    name: str = "frame",
    on_bad: OnBad = "raise",
    duplicates: Duplicates | None = None,
    first_row: int = 0,
    row_word: str = "row",
) -> Interactions:
    """Interactions from a pandas or polars frame.

    Args:
        frame: pandas or polars DataFrame (or LazyFrame), or one of a subclass. Columns that are not named here are not
            looked at.
        user, item: columns of external ids of any type; default user_id and item_id. Blanks around a text are no part
            of an id: they are taken away and counted in `repairs`.
        rating: column of finite numbers; default "rating" where there is one.
        timestamp: column of times, later is larger; default "timestamp" where there is one. Epoch numbers in any one
            unit (seconds, milli-, micro-, nanoseconds), ranks, dates, or ISO 8601 text, all of one kind.
        time_format: of `timestamp` where it is another text, as strptime has it: "%d/%m/%Y %H:%M".
        label: column of 0 and 1; rows with 0 are not interactions and are dropped (counted); default "label" where
            there is one.
        tag: column of tags, which makes the rows assignments of a `Folksonomy`; names or numbers, of which blanks
            around a text are no part. A row without a tag, also one of blanks alone, is kept and counted. Not taken by
            itself.
        review: column of texts, what the user wrote of the item, which makes the rows `Reviews`; a row without a text
            is kept. Not taken by itself, and not beside tags.
        session: column of sessions, which take the place of users: `user_features` says the user of each (owner; None
            without a column of users) and its start. Not taken by itself.
        name: for messages and cards.
        on_bad: rows with a missing id, or with a rating, time or label that is not a number: "raise" names the first
            ones, "skip" drops and counts them.
        duplicates: rows with the same user and item (and tag): "latest" keeps the latest by timestamp, then by row;
            "keep" keeps all, so that an assignment counts as often as it comes; "raise" refuses. None: "latest", and
            "keep" with `session`.
        first_row, row_word: how messages number rows: of the frame from 0, or of a file by line.
    Raises:
        ValueError: an empty frame, a missing column or one twice, bad rows, duplicates when refused. TypeError: not a
            frame, ids of several types, with fractions or of 2^53 and more as floats.
    """
    return from_table(
        frame_of(frame, "from_frame"),
        user,
        item,
        rating,
        timestamp,
        label,
        tag=tag,
        review=review,
        session=session,
        time_format=time_format,
        name=name,
        on_bad=on_bad,
        duplicates=duplicates,
        place=lambda row: f"{row_word} {row + first_row}",
    )


def from_table(
    table: pl.DataFrame,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    timestamp: str | None = None,
    label: str | None = None,
    *,
    tag: str | None = None,
    review: str | None = None,
    session: str | None = None,
    time_format: str | None = None,
    name: str,
    on_bad: OnBad = "raise",
    duplicates: Duplicates | None = None,
    place: Callable[[int], str] = "row {}".format,
    dropped: int = 0,
) -> Interactions:
    """`from_frame` of a polars frame that may come from a file.

    Args:
        place: what messages call a row of the frame, such as "line 7".
        dropped: malformed rows of the file that are not in the frame, for the count of repairs.
    """
    check_on_bad(on_bad)
    if session is not None:
        owner = user if user is not None or DEFAULT_COLUMNS["user"] in table.columns else session
        owner, user = cast(str, _find_column("user", owner, table.columns, name)), session
        duplicates = duplicates or "keep"
    given = {"user": user, "item": item, "rating": rating, "timestamp": timestamp, "label": label}
    columns = {role: _find_column(role, column, table.columns, name) for role, column in given.items()}
    tags = None if tag is None else table.get_column(cast(str, _find_column("tag", tag, table.columns, name)))
    reviews = (
        None
        if review is None
        else _texts(table.get_column(cast(str, _find_column("review", review, table.columns, name))))
    )
    if table.height == 0:
        raise ValueError(f"from_frame: at least one row is required, got an empty frame ({name})")
    picked = {role: table.get_column(column) for role, column in columns.items() if column is not None}
    if time_format is not None and "timestamp" not in picked:
        raise ValueError(
            f"from_frame: time_format is for a column of times, got none in {name}; name it by timestamp=..."
        )
    repairs, expected = {}, dict(_EXPECTED)
    raw = dict(picked)
    for role in ("user", "item"):
        stripped, count = stripped_ids(picked[role].alias(role))
        raw[role] = normalise_ids(stripped)
        repairs[f"{role}_ids_with_blanks_stripped"] = count
    if "timestamp" in raw:
        raw["timestamp"], expected["timestamp"] = times_of(picked["timestamp"], time_format)
    raw |= {role: rule(picked[role]) for role, rule in (("rating", _numbers), ("label", _labels)) if role in picked}

    if tags is not None:
        stripped, repairs["tags_with_blanks_stripped"] = stripped_ids(tags.alias("tag"))
        tags = normalise_ids(stripped)
        repairs["rows_without_a_tag"] = tags.null_count()
    bad = np.zeros(table.height, dtype=np.bool_)
    for role, column in raw.items():
        wrong = column.is_null().to_numpy()
        if on_bad == "raise" and wrong.any():
            rows = np.flatnonzero(wrong)
            places = first_few([place(row) for row in rows[:6].tolist()])
            remedy = f" ({REMEDY})" if role == "timestamp" else ""
            raise ValueError(
                f"from_frame: {name}, {place(int(rows[0]))}: {columns[role]} must be {expected[role]}, "
                f"got {picked[role][int(rows[0])]!r:.100} ({len(rows):,} bad: {places}); "
                f"correct them{remedy} or pass on_bad='skip'"
            )
        bad |= wrong
    repairs["bad_rows_dropped"] = int(bad.sum()) + dropped
    keep = ~bad
    if "label" in raw:
        positive = (raw["label"].fill_null(0) > 0).to_numpy()
        repairs["rows_with_label_0_dropped"] = int((keep & ~positive).sum())
        keep &= positive
    if not keep.any():
        raise ValueError(f"from_frame: at least one valid row is required, got none of {table.height} in {name}")
    chosen = {role: column.filter(pl.Series(keep)) for role, column in raw.items()}
    data = build(
        chosen["user"],
        chosen["item"],
        ratings=chosen["rating"].to_numpy() if "rating" in chosen else None,
        order=chosen["timestamp"].to_numpy() if "timestamp" in chosen else None,
        tags=None if tags is None else tags.filter(pl.Series(keep)),
        reviews=None if reviews is None else reviews.filter(pl.Series(keep)),
        name=name,
        duplicates=duplicates or "latest",
        repairs=repairs,
    )
    if session is None:
        return data
    from deeprec.data.interactions.sessions import owned  # which reads times, and is made of what this builds

    is_named = owner is not None and owner != session
    owners = normalise_ids(stripped_ids(table.get_column(cast(str, owner)).alias("owner"))[0]) if is_named else None
    return owned(data, owners, raw["user"])


def build(
    users: Any,
    items: Any,
    *,
    ratings: NDArray[Any] | None = None,
    order: NDArray[Any] | None = None,
    order_kind: Literal["time", "rank"] | None = "time",
    name: str,
    user_ids: IdMap | None = None,
    item_ids: IdMap | None = None,
    tags: Any = None,
    tag_ids: IdMap | None = None,
    reviews: pl.Series | None = None,
    duplicates: Duplicates = "latest",
    repairs: dict[str, int] | None = None,
) -> Interactions:
    """Interactions from clean columns of equal length: external ids, numbers.

    Internal ids go by first appearance unless a map is given. Duplicate rows as in `from_frame`. With `tags`, where a
    missing one is none, they are a `Folksonomy`; with `reviews`, texts, they are `Reviews`.
    """
    if tags is not None and reviews is not None:
        raise ValueError(f"build: tags and reviews do not go together, got both in {name}; leave one out")
    if duplicates not in ("latest", "keep", "raise"):
        raise ValueError(f"duplicates must be 'latest', 'keep' or 'raise', got {duplicates!r}")
    user_series, item_series = to_series(users, "user"), to_series(items, "item")
    user_ids = user_ids or IdMap.from_values(user_series, "user")
    item_ids = item_ids or IdMap.from_values(item_series, "item")
    columns: dict[str, Any] = {
        "users": user_ids.encode(user_series),
        "items": item_ids.encode(item_series),
        "user_ids": user_ids,
        "item_ids": item_ids,
        "ratings": None if ratings is None else ratings.astype(np.float32),
        "order": None if order is None else order.astype(np.int64),
        "order_kind": None if order is None else order_kind,
        "name": name,
    }
    if tags is not None:
        columns |= _tag_columns(to_series(tags, "tag"), tag_ids, len(user_series))
    columns["repairs"] = {kind: count for kind, count in (repairs or {}).items() if count}
    if reviews is not None:
        data: Interactions = Reviews.of_texts(reviews, **columns)
    else:
        data = Interactions(**columns) if tags is None else Folksonomy(**columns)
    if duplicates != "keep":
        keep = _latest_of_duplicates(data)
        dropped = len(data) - len(keep)
        if dropped and duplicates == "raise":
            what = "user and item" if tags is None else "user, item and tag"
            again = np.setdiff1d(np.arange(len(data)), keep)[0]
            pair = (user_ids.values[int(data.users[again])], item_ids.values[int(data.items[again])])
            raise ValueError(
                f"build: each {what} may meet once in {name}, got {pair} again ({dropped:,} rows "
                "too many); pass duplicates='latest' or 'keep'"
            )
        if dropped:
            data = data.take(keep)
            data.repairs["duplicate_rows_dropped"] = dropped
    if data.repairs:
        _log.warning("%s: %s", name, ", ".join(f"{kind} {count:,}" for kind, count in data.repairs.items()))
    return data


def _tag_columns(tags: pl.Series, tag_ids: IdMap | None, rows: int) -> dict[str, Any]:
    """The columns of a `Folksonomy` that `Interactions` have not; a tag that is missing is -1."""
    if len(tags) != rows:
        raise ValueError(f"build: tags must be one for each of {rows} rows, got {len(tags)}")
    has_tag = tags.is_not_null()
    given = tags.filter(has_tag)
    tag_ids = tag_ids or IdMap.from_values(given, "tag")
    codes = np.full(rows, -1, dtype=np.int32)
    codes[has_tag.to_numpy()] = tag_ids.encode(given) if len(given) else 0
    return {"tags": codes, "tag_ids": tag_ids}


def _latest_of_duplicates(data: Interactions) -> NDArray[np.int64]:
    """Rows to keep, ascending: of equal (user, item), and tag, the one with the largest order, then the last."""
    keys = data.row_keys()
    ascending = np.sort(keys)
    if not (ascending[1:] == ascending[:-1]).any():
        return np.arange(len(keys))
    rows = np.arange(len(keys))
    ordered = np.lexsort((rows, keys) if data.order is None else (rows, data.order, keys))
    last = np.append(keys[ordered][1:] != keys[ordered][:-1], np.True_)
    return np.sort(ordered[last])


def _find_column(role: str, given: str | None, present: list[str], name: str) -> str | None:
    column = given or DEFAULT_COLUMNS.get(role, role)
    if column in present:
        return column
    if given is None and role not in ("user", "item"):
        return None
    raise ValueError(
        f"from_frame: {name} needs a column {column!r} for the {role}, got {listed(present)}"
        f"{did_you_mean(column, present)} Name it by {role}=..."
    )


def _texts(column: pl.Series) -> pl.Series:
    texts: pl.Series = plain_texts(column).cast(pl.String)
    return texts


def _numbers(column: pl.Series) -> pl.Series:
    column = plain_texts(column)
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    numbers: pl.Series = column.cast(pl.Float64, strict=False)
    # float32 is what the models see: a number beyond it would turn infinite later.
    numbers = numbers.set(~(numbers.abs() <= np.finfo(np.float32).max).fill_null(False), None)
    return numbers


def _labels(column: pl.Series) -> pl.Series:
    numbers = _numbers(column)
    numbers = numbers.set(~numbers.is_in([0.0, 1.0]), None)
    return numbers
