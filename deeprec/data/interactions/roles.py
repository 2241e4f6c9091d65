"""Which column of a file is the user, the item, the rating, the time: told by name or place, or by what is usual."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

import polars as pl

from deeprec._suggest import listed
from deeprec.data.interactions.build import DEFAULT_COLUMNS
from deeprec.data.reading.errors import did_you_mean

_log = logging.getLogger("deeprec")

Column = str | int

# Names that are taken for a role, letters and digits only, where the usual ones of `DEFAULT_COLUMNS` are missing.
_USUAL = {
    "user": {"user", "userid", "uid", "reviewerid", "customerid", "visitorid", "memberid"},
    "item": {"item", "itemid", "iid", "asin", "parentasin", "productid", "movieid", "artistid", "animeid", "bookid",
             "newsid", "songid", "trackid", "isbn"},
    "rating": {"rating", "ratings", "overall", "stars"},
    "timestamp": {"timestamp", "time", "unixtime", "unixreviewtime", "unixtimestamp"},
}  # fmt: skip
_PLACES = ("user", "item", "rating", "timestamp")  # of a text without names
_NAMED = ("label", "tag", "review", "domain", "session")
_EARLIEST_TIME = 1e8  # a third number that is never smaller is a Unix time (after March 1973), not a rating


class Roles(NamedTuple):
    """Columns by role: user, item and, where there are any, rating, timestamp, label, tag, review, domain, session."""

    columns: dict[str, str]


def roles_of(head: pl.DataFrame, given: dict[str, Column], path: Path, *, has_names: bool) -> Roles:
    """The columns of a file; what was guessed is logged.

    Args:
        head: its first rows, all columns.
        given: by role the name of a column, or its place from 0.
    Raises:
        ValueError: a column that is not there, or no telling which is the user or the item.
    """
    names = head.columns
    told = {role: _column(role, column, names, path) for role, column in given.items()}
    guessed = {} if {"user", "item"} <= set(given) and not has_names else _guessed(head, told, path, has_names)
    for role in ("user", "item"):
        if role not in told and role not in guessed:
            default = DEFAULT_COLUMNS[role]
            raise ValueError(
                f"load: {path} needs a column {default!r} for the {role}, got {listed(names)}"
                f"{did_you_mean(default, names)}; name it by {role}=NAME, or its place from 0 by {role}=0"
            )
    columns = {role: told.get(role) or guessed[role] for role in (*_PLACES, *_NAMED) if role in (*told, *guessed)}
    said = [f"{role} = {column}" for role, column in guessed.items() if column != DEFAULT_COLUMNS[role]]
    if said:
        where = "" if has_names else " (columns without names, counted from 0)"
        _log.warning("%s: %s%s; user=, item=, rating=, order= say otherwise", path.name, ", ".join(said), where)
    return Roles(columns)


def _column(role: str, column: Column, names: list[str], path: Path) -> str:
    if str(column) in names:
        return str(column)
    if not isinstance(column, bool) and re.fullmatch("[0-9]{1,9}", str(column)) and int(column) < len(names):
        return names[int(column)]
    raise ValueError(
        f"load: {role} must be a column of {path} or its place from 0 to {len(names) - 1}, got {column!r}; it has "
        f"{listed(names)}{did_you_mean(str(column), names)}"
    )


def _guessed(head: pl.DataFrame, told: dict[str, str], path: Path, has_names: bool) -> dict[str, str]:
    left = [role for role in (*_PLACES, "label") if role not in told]
    names = [name for name in head.columns if name not in told.values()]
    if not has_names:
        return _by_place(head, told, path)
    guessed = {role: DEFAULT_COLUMNS[role] for role in left if DEFAULT_COLUMNS[role] in names}
    for role in left:
        if role in guessed or role not in _USUAL:
            continue
        usual = [name for name in names if re.sub("[^a-z0-9]", "", name.lower()) in _USUAL[role]]
        if len(usual) == 1 and (role in ("user", "item") or _is_number(head.get_column(usual[0]))):
            guessed[role] = usual[0]
    return guessed


def _by_place(head: pl.DataFrame, told: dict[str, str], path: Path) -> dict[str, str]:
    """user, item, rating, time from the left; a third column of Unix times is the time."""
    if told:
        raise ValueError(f"load: {path} has no names of columns, so user= and item= must both be given, by their "
                         f"places from 0, got {', '.join(told)}")  # fmt: skip
    width = len(head.columns)
    if not 2 <= width <= 4:
        raise ValueError(
            f"load: {path} has {width} columns without names; say which by user=0, item=1, rating=2, order=3 (places "
            "from 0), or format='matrix' for a row a user and a column an item, 'lists' for a line of items a user"
        )
    guessed = dict(zip(_PLACES, head.columns, strict=False))
    for role in ("rating", "timestamp"):
        if role in guessed and not _is_number(head.get_column(guessed[role])):
            del guessed[role]
    if width == 3 and "rating" in guessed:
        column = head.get_column(guessed["rating"])
        smallest = column.cast(pl.Float64, strict=False).min()
        if smallest is not None and smallest >= _EARLIEST_TIME:  # type: ignore[operator]
            guessed["timestamp"] = guessed.pop("rating")
    return guessed


def _is_number(column: pl.Series) -> bool:
    """Whether most values are numbers or moments: one that is none is an error to be named, not a reason to pass over
    the column."""
    if column.dtype.is_numeric() or column.dtype.is_temporal():
        return True
    if column.dtype != pl.String:
        return False
    present = column.drop_nulls()
    numbers = present.str.strip_chars().cast(pl.Float64, strict=False)
    return 2 * numbers.null_count() <= len(present)
