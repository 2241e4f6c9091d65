"""Sessions held out whole: the last ones by their start, or those of a published split.

A session belongs to one part, by its start. Where the events have times, what a session holds of the time from which a
later part begins is cut off, so that nothing that is trained on is later than the first event that is tested; without
times, sessions start in the order of their first rows.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from deeprec.data.interactions.interactions import Int64Array, Interactions, Split

_log = logging.getLogger("deeprec")

BoolArray = NDArray[np.bool_]


def sessions_holdout(data: Interactions, test: float = 0.1, validation: float = 0.1) -> Split:
    """Hold out the sessions (the users of the data) that start last: the last share tests, the one before validates.

    Of the test, events of items that no other part knows are left out, and then sessions of one event.

    Args:
        data: whose users are sessions, with an order; see `sessions`.
        test, validation: shares of the sessions, each in [0, 1), together below 1; of sessions that start with the
            first one of a part, all are in it.
    Returns:
        Split; notes: rows_cut_at_the_moment (of sessions that span the beginning of a later part), and of the test
        rows_of_unknown_items and sessions_of_one_event.
    Raises:
        ValueError: no order, bad shares, or no session before the first that is held out.
    Reference: Hidasi et al. 2016 (arXiv 1511.06939), section 4.
    """
    _require_order(data)
    if not (0 <= test < 1 and 0 <= validation < 1 and test + validation < 1):
        raise ValueError(
            f"sessions_holdout: test and validation must be shares in [0, 1) with a sum below 1, got {test} and "
            f"{validation}; the usual are 0.1 and 0.1"
        )
    held, cut = _later(data, np.ones(len(data), dtype=np.bool_), test)
    chosen, cut_again = _later(data, ~held & ~cut, validation, of=1 - test)
    cut |= cut_again
    train = ~held & ~chosen & ~cut
    known = np.bincount(data.items[(train | chosen) & ~cut], minlength=data.num_items) > 0
    is_test = held & known[data.items]
    lengths = np.bincount(data.users[is_test], minlength=data.num_users)
    is_long = lengths[data.users] > 1
    notes = {
        "rows_cut_at_the_moment": int(cut.sum()),
        "rows_of_unknown_items": int((held & ~is_test).sum()),
        "sessions_of_one_event": int((lengths == 1).sum()),
    }
    if any(notes.values()):
        _log.info("sessions of %s held out: %s", data.name, notes)
    return Split(data.take(train), data.take(chosen & ~cut), data.take(is_test & is_long), notes=notes)


def official_sessions(data: Interactions, validation: float = 0.1) -> Split:
    """A published split whose parts hold sessions, as it is; the last share of its training sessions validates.

    Args:
        validation: share of the training sessions, in [0, 1); with a validation part of its own, 0 leaves that out and
            any other share takes it.
    Returns:
        Split; notes: rows_cut_at_the_moment (of training sessions that span the beginning of the validation part).
    Raises:
        ValueError: no order, no published split, or a share out of range.
    """
    _require_order(data)
    published = data.official
    if published is None:
        raise ValueError(
            f"official_sessions: a data set with a published split is required, got {data.name}; take sessions_holdout"
        )
    if not 0 <= validation < 1:
        raise ValueError(f"official_sessions: validation must be a share in [0, 1), got {validation}; the usual is 0.1")
    is_train = np.zeros(len(data), dtype=np.bool_)
    is_train[published.train_index] = True
    test = data.take(np.sort(published.test_index))
    if published.validation_index is not None:
        own = np.sort(published.validation_index) if validation else np.empty(0, dtype=np.int64)
        return Split(data.take(is_train), data.take(own), test)
    chosen, cut = _later(data, is_train, validation)
    notes = {"rows_cut_at_the_moment": int(cut.sum())}
    return Split(data.take(is_train & ~chosen & ~cut), data.take(chosen), test, notes=notes)


def _require_order(data: Interactions) -> None:
    if data.order is None:
        raise ValueError(
            f"sessions: their events must be in order, got {data.name} without; name the column of times by "
            "timestamp=, or pass order='file'"
        )
    if not len(data):
        raise ValueError(f"sessions: at least one event is required, got none in {data.name}")


def session_starts(data: Interactions) -> Int64Array:
    """When each user of the data, a session, began [num_users]: its first time, or the place of its first row.

    Of sessions without rows, the largest number.
    """
    assert data.order is not None
    starts = np.full(data.num_users, np.iinfo(np.int64).max)
    has_times = data.order_kind == "time"
    np.minimum.at(starts, data.users, data.order if has_times else np.arange(len(data)))
    return starts


def _later(data: Interactions, rows: BoolArray, share: float, of: float = 1.0) -> tuple[BoolArray, BoolArray]:
    """(`rows` of the sessions that start last, `rows` of the others that come after the first of these).

    Args:
        share: of the sessions that have rows, over `of`.
    """
    none = np.zeros(len(data), dtype=np.bool_)
    part = data.take(rows)
    units = np.flatnonzero(part.user_counts())
    count = round(len(units) * share / of)
    if not count:
        return none, none
    starts = session_starts(part)
    moment = np.sort(starts[units])[len(units) - count]
    is_later = starts >= moment
    if is_later[units].all():
        raise ValueError(
            f"sessions_holdout: sessions must start before the first one held out, got none of the {len(units)} of "
            f"{data.name}; take smaller shares, or finer times"
        )
    held = rows & is_later[data.users]
    assert data.order is not None
    return held, rows & ~held & (data.order >= moment) if data.order_kind == "time" else none
