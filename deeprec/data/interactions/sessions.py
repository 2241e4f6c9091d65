"""Sessions: events of a user that belong together, by a column that says so or by a gap in time."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Int64Array, Interactions
from deeprec.data.interactions.selection import without_gaps
from deeprec.data.interactions.session_splits import session_starts

_log = logging.getLogger("deeprec")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS = ((1e8, 1), (1e11, 10**3), (1e14, 10**6), (1e17, 10**9))  # least epoch number, and how many are a second


def sessions(
    data: Interactions,
    gap: str | float | timedelta | None = "30m",
    *,
    min_events: int = 1,
    min_support: int = 1,
    repeats: Literal["keep", "drop"] = "keep",
) -> Interactions:
    """The same events by session: the users of what comes back are sessions, numbered from 0 as they began.

    A user's session ends where more than `gap` passes before the next event. Then, as GRU4Rec's preparation has it, too
    short sessions go, then rare items, then the sessions that are too short now; once each. An official split is left
    behind.

    Args:
        data: with times; read with duplicates="keep", or what a user met again is not in it.
        gap: "30m" (s, m, h, d), a timedelta, or a number in the unit of the times; None: the users of `data` are
            sessions already (such as of a file that was read with session=), and are only sifted.
        min_events: least events of a session, >= 1; GRU4Rec's preparation takes 2.
        min_support: least events of an item, >= 1; there 5.
        repeats: "drop" leaves out an event of the item that the session had just before it.
    Returns:
        Interactions; `user_features` has a row for each session: user_id (its number), owner (the user's id) and start
        (its first time, in the unit of the data). With gap=None ids and side information stay as they are. `repairs`
        counts repeats_dropped, short_sessions_dropped and rows_of_rare_items_dropped.
    Raises:
        ValueError: no order, no times for a gap, a gap or a least number out of range, or no event is left.
    Reference: Hidasi et al. 2016 (arXiv 1511.06939), section 4.1; the authors' preparation of RSC15.
    """
    for name, least in (("min_events", min_events), ("min_support", min_support)):
        if isinstance(least, bool) or not isinstance(least, int) or least < 1:
            raise ValueError(f"sessions: {name} must be a whole number of at least 1, got {least!r}")
    if repeats not in ("keep", "drop"):
        raise ValueError(f"sessions: repeats must be 'keep' or 'drop', got {repeats!r}")
    if data.order is None:
        raise ValueError(f"sessions: events must be in order, got {data.name} without; name their times by timestamp=")
    cut = data if gap is None else _cut(data, _in_units(gap, data))
    return _sifted(cut, min_events, min_support, repeats)


def owned(data: Interactions, owners: pl.Series | None = None, ids: pl.Series | None = None) -> Interactions:
    """Interactions whose users are sessions, with a table of these: user_id, owner where it is known, and start.

    Args:
        owners, ids: by event the user, and the session as `data.user_ids` has it.
    """
    table = data.user_ids.values.alias("user_id").to_frame()
    if owners is not None and ids is not None:
        by_event = pl.DataFrame({"user_id": ids, "owner": owners}).drop_nulls("user_id")
        table = table.join(by_event.unique("user_id", keep="first"), on="user_id", how="left", maintain_order="left")
    if data.order is not None and data.order_kind == "time":
        table = table.with_columns(pl.Series("start", session_starts(data)))
    return replace(data, user_features=table)


def _cut(data: Interactions, gap: int) -> Interactions:
    """Each user's events cut where more than `gap` lies between two."""
    assert data.order is not None
    ordered = np.lexsort((data.order, data.users))
    users, times = data.users[ordered], data.order[ordered]
    begins = np.ones(len(data), dtype=np.bool_)
    begins[1:] = (users[1:] != users[:-1]) | (times[1:] - times[:-1] > gap)
    starts = np.flatnonzero(begins)
    places = np.empty(len(starts), dtype=np.int64)
    places[np.lexsort((users[starts], times[starts]))] = np.arange(len(starts))
    numbers = np.empty(len(data), dtype=np.int32)
    numbers[ordered] = places[np.cumsum(begins) - 1]
    by_number = np.argsort(places)
    ids = IdMap(np.arange(len(starts)), "user")
    table = pl.DataFrame(
        {
            "user_id": ids.values,
            "owner": data.user_ids.values.gather(users[starts][by_number]),
            "start": times[starts][by_number],
        }
    )
    return replace(data, users=numbers, user_ids=ids, user_features=table, official=None)


def _sifted(data: Interactions, min_events: int, min_support: int, repeats: str) -> Interactions:
    keep = np.ones(len(data), dtype=np.bool_)
    counts: dict[str, int] = {}
    if repeats == "drop":
        keep = ~_repeats_at_once(data)
        counts["repeats_dropped"] = int((~keep).sum())
    short = 0
    for sift in (1, 2):
        lengths = np.bincount(data.users[keep], minlength=data.num_users)
        short += int(((lengths > 0) & (lengths < min_events)).sum())
        keep &= lengths[data.users] >= min_events
        if sift == 1:
            support = np.bincount(data.items[keep], minlength=data.num_items)
            rare = keep & (support[data.items] < min_support)
            counts["rows_of_rare_items_dropped"] = int(rare.sum())
            keep &= ~rare
    counts["short_sessions_dropped"] = short
    counts = {name: count for name, count in counts.items() if count}
    if not keep.any():
        raise ValueError(
            f"sessions: an event must be left, got none of the {len(data)} of {data.name} with min_events={min_events} "
            f"and min_support={min_support}; lower them"
        )
    if counts:
        _log.info("sessions of %s: %s", data.name, counts)
    if keep.all():
        return replace(data, repairs={**data.repairs, **counts})
    taken = data.take(keep)
    user_ids, users_kept, users = without_gaps(data.user_ids, taken.users)
    item_ids, items_kept, items = without_gaps(data.item_ids, taken.items)
    tables: dict[str, Any] = {
        name: None if table is None else table[kept]
        for name, table, kept in (
            ("user_features", data.user_features, users_kept),
            ("item_features", data.item_features, items_kept),
        )
    }
    repairs = {**data.repairs, **counts}
    return replace(taken, users=users, items=items, user_ids=user_ids, item_ids=item_ids, repairs=repairs, **tables)


def _repeats_at_once(data: Interactions) -> NDArray[np.bool_]:
    """Rows of the item that their session had just before."""
    assert data.order is not None
    ordered = np.lexsort((data.order, data.users))
    users, items = data.users[ordered], data.items[ordered]
    again = np.zeros(len(data), dtype=np.bool_)
    again[ordered[1:]] = (users[1:] == users[:-1]) & (items[1:] == items[:-1])
    return again


def _in_units(gap: str | float | timedelta, data: Interactions) -> int:
    """The gap in the unit of the times."""
    if data.order_kind != "time":
        raise ValueError(
            f"sessions: a gap needs times, got places in an order in {data.name}; name the column of times, or pass "
            "gap=None where the users are sessions"
        )
    if isinstance(gap, int | float) and not isinstance(gap, bool):
        if not 0 <= gap < float("inf"):
            raise ValueError(f"sessions: gap must be at least 0 in the unit of the times, got {gap}")
        return int(gap)
    if isinstance(gap, timedelta):
        seconds = gap.total_seconds()
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", str(gap))
        if match is None:
            raise ValueError(f"sessions: gap must be such as '30m', '2h' or '1d', a timedelta or a number, got {gap!r}")
        seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds < 0:
        raise ValueError(f"sessions: gap must be at least 0, got {gap!r}")
    return round(seconds * ticks_per_second(data, "sessions: gap"))


def ticks_per_second(data: Interactions, function: str) -> int:
    """How many of the numbers of the data's times are a second: 1, 10^3, 10^6 or 10^9, by how large they are.

    Raises:
        ValueError: times that are no epoch numbers since 1973.
    """
    assert data.order is not None
    least = _median(data.order)
    units = [ticks for start, ticks in _UNITS if least >= start]
    if data.order_kind != "time" or not units:
        raise ValueError(
            f"{function}: the unit of the times must be known, got numbers such as {least} in {data.name}, which are "
            "no epoch; give it as a number in their unit"
        )
    return units[-1]


def _median(order: Int64Array) -> int:
    return int(np.partition(order, len(order) // 2)[len(order) // 2]) if len(order) else 0
