"""Splits of interactions into train, validation and test, and the items a held-out row is ranked against.

Each split is a pure function of the data and the seed (see random_bits.py), so it can be named on a result card.

Where rows of a user are held out, one training row stays: users with a single interaction are trained on and not
tested, users with two have a test row but no validation row. Where a moment or the items divide, rows that nothing in
the training part could speak for are in no part. How many there were stands in `Split.notes`.
"""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deeprec.data.interactions.interactions import Int32Array, Int64Array, Interactions, Split
from deeprec.data.random_bits import random_below, random_bits

_log = logging.getLogger("deeprec")

Validation = Literal["random", "last", "none"]

# Streams of a seed.
_TEST, _VALIDATION, _HOLDOUT, _TEST_NEGATIVES, _VALIDATION_NEGATIVES, _ITEMS, _ROW_NEGATIVES, _VALIDATING = range(1, 9)


def leave_one_out(
    data: Interactions,
    validation: Validation | bool = "random",
    seed: int = 0,
    *,
    num_negatives: int = 0,
    validating: int = 0,
) -> Split:
    """Hold out each user's last interaction for testing and one more for choosing the epoch.

    Last is by `data.order`, among equals by row order; where no order is known, one at random.

    Args:
        validation: "random" (one of the rest, as He et al. 2017), "last" (the latest of the rest; random where no
            order is known) or "none"; True is "random", False "none".
        seed: of every random choice.
        num_negatives: items sampled for each test and validation row, none of them met by the user anywhere; 0: none.
        validating: so many users, drawn by their ids, give a validation row; that of any other is trained on. 0: all.
    Returns:
        Split; users with one interaction are in train only (notes["users_without_test"]).
    Raises:
        ValueError: no rows, or fewer than `num_negatives` items a user has not met.
    Reference: He et al. 2017 (arXiv 1708.05031), section 4.1.
    """
    mode = _validation_mode("leave_one_out", validation)
    _need_rows("leave_one_out", data)
    counts = data.user_counts()
    if data.order is None:
        _log.info("leave_one_out: %s has no order, so one interaction of each user is held out at random", data.name)
    test = _pick_per_user(data, np.arange(len(data)), "last", seed, _TEST)
    test = test[counts[data.users[test]] > 1]
    return _finish(data, _without(len(data), test), test, mode, seed, num_negatives, None, validating=validating)


def official(
    data: Interactions,
    seed: int = 0,
    *,
    validation: Validation | bool = "random",
    num_negatives: int | None = None,
    validating: int = 0,
) -> Split:
    """The split published with the data set; validation is its own part, or taken from its training rows.

    Args:
        seed: of the validation rows and their negatives; the test part does not depend on it.
        validation: one training row per user, as in `leave_one_out`; where the split has a validation part, that part,
            or none of it with "none".
        num_negatives: for each validation row; None: as many as the published test rows have. A published list is
            used as it is; test rows without one get this many sampled items.
        validating: as in `leave_one_out`.
    Raises:
        ValueError: the data carries no official split.
    """
    mode = _validation_mode("official", validation)
    if data.official is None:
        raise ValueError(
            f"official: a data set with a published split is required, got {data.name} without; "
            "use leave_one_out or random_holdout, or add the authors' files to the data folder"
        )
    given = data.official.test_negatives
    if num_negatives is None:
        num_negatives = 0 if given is None else given.shape[1]
    train = np.sort(data.official.train_index)
    test = np.asarray(data.official.test_index)
    own = data.official.validation_index
    return _finish(data, train, test, mode, seed, num_negatives, given, own, validating=validating)


def random_holdout(
    data: Interactions, test: float = 0.1, validation: float = 0.1, seed: int = 0, *, by_user: bool = False
) -> Split:
    """Hold out a random share of all rows; a row that would leave its user without training rows stays in train.

    Args:
        test, validation: shares of the rows, each in [0, 1), together below 1.
        by_user: hold out these shares of the rows of each user (to the nearest whole number) instead.
    Returns:
        Split; notes["rows_kept_for_training"] counts the rows that stayed.
    """
    _need_rows("random_holdout", data)
    _need_shares("random_holdout", test, validation)
    shuffled = np.argsort(random_bits(seed, _HOLDOUT, np.arange(len(data))), kind="stable")
    if by_user:
        return _holdout_by_user(data, shuffled, test, validation)
    num_test, num_validation = round(len(data) * test), round(len(data) * validation)
    pinned = np.zeros(len(data), dtype=np.bool_)
    last = np.zeros(data.num_users, dtype=np.int64)
    last[data.users[shuffled]] = shuffled  # of repeated users the last assignment stays
    pinned[last[data.users]] = True
    parts = np.split(shuffled, [num_test, num_test + num_validation])
    kept = np.concatenate([part[pinned[part]] for part in parts[:2]])
    test_rows, validation_rows = (np.sort(part[~pinned[part]]) for part in parts[:2])
    train_rows = np.sort(np.concatenate([parts[2], kept]))
    notes = {"rows_kept_for_training": len(kept)}
    return Split(data.take(train_rows), data.take(validation_rows), data.take(test_rows), notes=notes)


def last_holdout(data: Interactions, test: float = 0.2, validation: float = 0.1) -> Split:
    """Hold out the last share of each user's rows for testing, and the share before it for choosing the epoch.

    Shares are to the nearest whole number of the user's rows; the first row of a user is never held out. Last is by
    `data.order`, among equals by row order. Other users' training rows may be later than what is held out; see
    `time_holdout` for one moment for all.

    Args:
        test, validation: shares of each user's rows, each in [0, 1), together below 1.
    Returns:
        Split; notes["rows_kept_for_training"] counts the rows that stayed.
    Raises:
        ValueError: no rows, no order, or bad shares.
    Reference: Tang and Wang 2018 (WSDM), section 4.1: 70, 10 and 20 per cent.
    """
    _need_rows("last_holdout", data)
    _need_shares("last_holdout", test, validation)
    if data.order is None:
        raise ValueError(
            f"last_holdout: the data must have an order, got {data.name} without; name its timestamp column, or take "
            "random_holdout with by_user=True"
        )
    latest_first = np.argsort(data.order, kind="stable")[::-1]
    return _holdout_by_user(data, latest_first, test, validation)


def _holdout_by_user(data: Interactions, shuffled: Int64Array, test: float, validation: float) -> Split:
    """The first shares of each user's rows in the order of `shuffled`; the last row of a user is never held out."""
    ordered = shuffled[np.argsort(data.users[shuffled], kind="stable")]
    counts = data.user_counts()
    place = np.arange(len(data)) - np.repeat(np.cumsum(counts) - counts, counts)
    num_test = np.floor(counts * test + 0.5).astype(np.int64)
    num_held = num_test + np.floor(counts * validation + 0.5).astype(np.int64)
    ends = [np.minimum(bound, np.maximum(counts - 1, 0))[data.users[ordered]] for bound in (num_test, num_held)]
    parts = (ordered[place >= ends[1]], ordered[(place >= ends[0]) & (place < ends[1])], ordered[place < ends[0]])
    kept = int((num_held - np.minimum(num_held, np.maximum(counts - 1, 0))).sum())
    train_rows, validation_rows, test_rows = (np.sort(part) for part in parts)
    notes = {"rows_kept_for_training": kept}
    return Split(data.take(train_rows), data.take(validation_rows), data.take(test_rows), notes=notes)


def given_holdout(data: Interactions, given: int = 1, validation: float = 0.1, seed: int = 0) -> Split:
    """Train on so many rows of each user, drawn at random, and hold out all others: sparse data, made on purpose.

    A user with no more rows than that has all of them in training.

    Args:
        given: rows of each user to train on, >= 1.
        validation: share of a user's other rows that chooses the epoch, in [0, 1), to the nearest whole number; the
            rest tests.
        seed: of the draw.
    Raises:
        ValueError: no rows, or an argument out of range.
    Reference: Wang, Wang, Yeung 2015 (CDL, KDD), section 4.2, with P = `given` and no validation part.
    """
    _need_rows("given_holdout", data)
    if not given >= 1:
        raise ValueError(f"given_holdout: given must be a whole number >= 1, got {given}; 1 and 10 are usual")
    if not 0 <= validation < 1:
        raise ValueError(f"given_holdout: validation must be a share in [0, 1), got {validation}; 0.1 is usual")
    shuffled = np.argsort(random_bits(seed, _HOLDOUT, np.arange(len(data))), kind="stable")
    ordered = shuffled[np.argsort(data.users[shuffled], kind="stable")]
    counts = data.user_counts()
    place = np.arange(len(data)) - np.repeat(np.cumsum(counts) - counts, counts)
    others = np.maximum(counts - given, 0)
    end = (given + np.floor(others * validation + 0.5).astype(np.int64))[data.users[ordered]]
    parts = (ordered[place < given], ordered[(place >= given) & (place < end)], ordered[place >= end])
    train_rows, validation_rows, test_rows = (data.take(np.sort(part)) for part in parts)
    return Split(train_rows, validation_rows, test_rows)


def time_holdout(data: Interactions, test: float = 0.1, validation: float = 0.1, *, new_users: bool = False) -> Split:
    """Hold out what came last: train before one moment, validate up to a second one, test from there on.

    The moments are those of the rows where the shares begin, so that rows of one moment are never divided; the test
    part may hold more than its share. Nothing that is trained on is as late as the validation part, and nothing of that
    as late as the test part. Held-out rows of users or items without training rows are left out.

    Args:
        test, validation: shares of the rows, each in [0, 1), together below 1.
        new_users: keep the held-out rows of users without training rows.
    Returns:
        Split; notes: users_left_out, items_left_out and rows_left_out, of validation and test together.
    Raises:
        ValueError: the data has no times, bad shares, or nothing is before the first moment.
    """
    _need_rows("time_holdout", data)
    _need_shares("time_holdout", test, validation)
    if data.order is None or data.order_kind == "rank":
        got = "no order" if data.order is None else "places within each user's own sequence"
        raise ValueError(
            f"time_holdout: the data must have times, got {got} in {data.name}; take leave_one_out, or data with a "
            "timestamp"
        )
    order = data.order
    ascending = np.sort(order)
    num_test, num_validation = round(len(data) * test), round(len(data) * validation)

    def is_since(count: int) -> NDArray[np.bool_]:
        """Rows from the moment on at which the last `count` rows begin."""
        return order >= ascending[len(data) - count] if count else np.zeros(len(data), dtype=np.bool_)

    is_test, is_held = is_since(num_test), is_since(num_test + num_validation)
    if is_held.all():
        raise ValueError(
            f"time_holdout: interactions must lie before the first moment held out, got none of the {len(data)} of "
            f"{data.name}; take smaller shares, or finer times"
        )
    return _of_known(data, is_held, is_test, items_too=True, users_too=not new_users)


def items_holdout(data: Interactions, test: float = 0.1, validation: float = 0.1, seed: int = 0) -> Split:
    """Hold out random items whole: all interactions of a share of the items test, those of another one validate.

    Held-out rows of users without training rows are left out.

    Args:
        test, validation: shares of the items that have interactions, each in [0, 1), together below 1.
        seed: of the choice.
    Returns:
        Split; notes: users_left_out and rows_left_out, of validation and test together.
    Raises:
        ValueError: bad shares, or one above 0 that is less than one item, or no item is left to train on.
    """
    _need_rows("items_holdout", data)
    _need_shares("items_holdout", test, validation)
    items = np.flatnonzero(data.item_counts())
    shuffled = items[np.argsort(random_bits(seed, _ITEMS, items), kind="stable")]
    num_test, num_validation = round(len(items) * test), round(len(items) * validation)
    for name, share, count in (("test", test, num_test), ("validation", validation, num_validation)):
        if share > 0 and count < 1:
            raise ValueError(
                f"items_holdout: {name} must be at least one of the items, got {share} of {len(items)} items of "
                f"{data.name}; take a larger share"
            )
    if num_test + num_validation >= len(items):
        raise ValueError(
            f"items_holdout: an item must be left to train on, got shares {test} and {validation} of {len(items)} "
            f"items of {data.name}; take smaller shares"
        )
    is_test = np.isin(data.items, shuffled[:num_test])
    is_held = np.isin(data.items, shuffled[: num_test + num_validation])
    return _of_known(data, is_held, is_test, items_too=False)


def _of_known(
    data: Interactions,
    is_held: NDArray[np.bool_],
    is_test: NDArray[np.bool_],
    *,
    items_too: bool,
    users_too: bool = True,
) -> Split:
    """The parts, in the order of the rows; held-out rows of users (and items) without training rows are left out."""
    train = data.take(~is_held)
    knows_user, knows_item = train.user_counts() > 0, train.item_counts() > 0
    knows_user |= not users_too
    is_known = knows_user[data.users] & (knows_item[data.items] if items_too else True)
    notes = {"users_left_out": len(np.unique(data.users[is_held & ~knows_user[data.users]]))}
    if items_too:
        notes["items_left_out"] = len(np.unique(data.items[is_held & ~knows_item[data.items]]))
    notes["rows_left_out"] = int((is_held & ~is_known).sum())
    if any(notes.values()):
        _log.info("split of %s: %s (nothing of theirs is in the training part)", data.name, notes)
    return Split(train, data.take(is_held & ~is_test & is_known), data.take(is_test & is_known), notes=notes)


def without_repeats(split: Split) -> Split:
    """The split less the held-out rows whose user and item meet in a part before, too: train, then validation.

    Returns:
        Split; notes["repeated_rows_left_out"] counts them. It has no negatives: draw them for the rows that are left.
    """
    known = np.unique(split.train.pair_keys())
    is_new = ~np.isin(split.validation.pair_keys(), known)
    validation = split.validation.take(is_new)
    is_new_test = ~np.isin(split.test.pair_keys(), np.union1d(known, validation.pair_keys()))
    test = split.test.take(is_new_test)
    count = len(split.validation) - len(validation) + len(split.test) - len(test)
    return Split(split.train, validation, test, notes={**split.notes, "repeated_rows_left_out": count})


def sampled_negatives(
    data: Interactions, users: NDArray[np.integer], num_negatives: int, seed: int = 0, *, stream: int = _TEST_NEGATIVES
) -> Int32Array:
    """Distinct items, uniform among those a user has not met in `data`.

    Args:
        data: every interaction to avoid: pass the whole data, not only the training part.
        users: internal user ids [b]; a repeated user gets the same items.
        num_negatives: n >= 1.
        seed, stream: of the choice; it depends on nothing else but the user and the user's items.
    Returns:
        int32 [b, n].
    Raises:
        ValueError: a user has met so much that fewer than n items are left.

    Floyd's sampling without replacement on the ranks of the unmet items: n steps over all users at once, and no
    rejection, so it works for users who have met nearly everything.
    """
    if num_negatives < 1:
        raise ValueError(f"sampled_negatives: num_negatives must be at least 1, got {num_negatives}")
    indptr, indices = data.csr()
    users = np.asarray(users, dtype=np.int64)
    unmet = data.num_items - (indptr[users + 1] - indptr[users])
    if len(users) and unmet.min() < num_negatives:
        worst = int(users[np.argmin(unmet)])
        raise ValueError(
            f"sampled_negatives: each user needs {num_negatives} items not yet met, "
            f"got {unmet.min()} for user {data.user_ids.values[worst]!r} of {data.num_items} items; "
            "ask for fewer negatives or use the full protocol"
        )
    distinct, where = np.unique(users, return_inverse=True)
    blocks = [
        _ranks_to_items(ranks, rows, indptr, indices)
        for rows in np.array_split(distinct, max(1, len(distinct) * num_negatives // (1 << 20)))
        for ranks in (_floyd(rows, data.num_items - (indptr[rows + 1] - indptr[rows]), num_negatives, seed, stream),)
    ]
    return np.concatenate(blocks)[where] if len(distinct) else np.empty((0, num_negatives), dtype=np.int32)


def negatives_of_rows(
    data: Interactions, users: NDArray[np.integer], num_negatives: int, seed: int = 0, *, stream: int = _ROW_NEGATIVES
) -> Int32Array:
    """As `sampled_negatives`, but each row has a draw of its own: it depends on the number of the row too, [b, n]."""
    users, (indptr, indices) = np.asarray(users, dtype=np.int64), data.csr()
    sampled_negatives(data, np.unique(users), num_negatives, seed)  # for its errors
    limits = data.num_items - np.diff(indptr)
    blocks = [np.empty((0, num_negatives), dtype=np.int32)]
    for rows in np.array_split(np.arange(len(users)), max(1, len(users) >> 13)):
        of = users[rows].astype(np.int64)
        blocks.append(_ranks_to_items(_floyd(rows, limits[of], num_negatives, seed, stream), of, indptr, indices))
    return np.concatenate(blocks)


def _floyd(users: Int64Array, limits: Int64Array, count: int, seed: int, stream: int) -> Int64Array:
    """`count` distinct integers in [0, limit) for each user: [b, count]."""
    steps = np.arange(count)
    bits = random_bits(seed, stream, (users[:, None] << 20) + steps)
    draws = random_below(bits, limits[:, None] - count + 1 + steps)
    chosen = np.empty_like(draws)
    for step in range(count):
        taken = (chosen[:, :step] == draws[:, step : step + 1]).any(axis=1)
        chosen[:, step] = np.where(taken, limits - count + step, draws[:, step])
    # Floyd puts large ranks last; shuffled (by the bits not yet used), any part of the list is a fair sample too.
    shuffled: Int64Array = np.take_along_axis(chosen, np.argsort(bits << np.uint64(32), axis=1, kind="stable"), axis=1)
    return shuffled


def _ranks_to_items(ranks: Int64Array, users: Int64Array, indptr: Int64Array, indices: Int32Array) -> Int32Array:
    """Item of each rank among the items a user has not met: rank + number of met items below it."""
    counts = indptr[users + 1] - indptr[users]
    start = np.repeat(indptr[users], counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    # A met item with p met items before it has indices[p] - p unmet ones before it; a rank passes it when >= that.
    unmet_before = indices[start + place] - place
    row = np.arange(len(users))
    width = max(int(unmet_before.max(initial=0)), int(ranks.max(initial=0))) + 1
    keys = np.repeat(row, counts) * width + unmet_before  # ascending
    passed = np.searchsorted(keys, row[:, None] * width + ranks, side="right") - (np.cumsum(counts) - counts)[:, None]
    items: Int64Array = ranks + passed
    return items.astype(np.int32)


def _finish(
    data: Interactions,
    train: Int64Array,
    test: Int64Array,
    mode: Validation,
    seed: int,
    num_negatives: int,
    test_negatives: Int32Array | None,
    own_validation: Int64Array | None = None,
    *,
    validating: int = 0,
) -> Split:
    """Take a validation row per user out of `train`, unless there are such rows, sample what is asked for, and count
    who was left out."""
    validation = np.empty(0, dtype=np.int64)
    if mode != "none" and own_validation is not None:
        validation = own_validation
    elif mode != "none" and len(train):
        validation = _pick_per_user(data, train, mode, seed, _VALIDATION)
        counts = np.bincount(data.users[train], minlength=data.num_users)
        validation = validation[counts[data.users[validation]] > 1]
        if 0 < validating < len(validation):
            drawn = random_bits(seed, _VALIDATING, data.user_ids.keys()[data.users[validation]])
            validation = np.sort(validation[np.argsort(drawn, kind="stable")[:validating]])
        held = np.zeros(len(data), dtype=np.bool_)
        held[validation] = True
        train = train[~held[train]]
    validation_negatives = None
    if num_negatives:
        if test_negatives is None:
            test_negatives = sampled_negatives(data, data.users[test], num_negatives, seed)
        if len(validation):
            validation_negatives = sampled_negatives(
                data, data.users[validation], num_negatives, seed, stream=_VALIDATION_NEGATIVES
            )
    active = int((data.user_counts() > 0).sum())
    notes = {"users_without_test": active - len(np.unique(data.users[test]))}
    if mode != "none" and not validating:
        notes["users_without_validation"] = active - len(np.unique(data.users[validation]))
    if any(notes.values()):
        _log.info("split of %s: %s (too few interactions; they stay in training)", data.name, notes)
    return Split(
        data.take(train),
        data.take(validation),
        data.take(test),
        test_negatives=test_negatives,
        validation_negatives=validation_negatives,
        notes=notes,
    )


def _pick_per_user(data: Interactions, rows: Int64Array, mode: Validation, seed: int, stream: int) -> Int64Array:
    """One of `rows` (ascending: the sort is stable, so the last row wins a tie) for each user that has any."""
    users = data.users[rows]
    if mode == "last" and data.order is not None:
        ordered = rows[np.lexsort((data.order[rows], users))]
    else:
        ordered = rows[np.lexsort((random_bits(seed, stream, rows), users))]
    sorted_users = data.users[ordered]
    is_last = np.append(sorted_users[1:] != sorted_users[:-1], np.True_)[: len(ordered)]
    picked: Int64Array = ordered[is_last]
    return picked


def _without(count: int, rows: Int64Array) -> Int64Array:
    keep = np.ones(count, dtype=np.bool_)
    keep[rows] = False
    return np.flatnonzero(keep)


def _need_rows(function: str, data: Interactions) -> None:
    if len(data) == 0:
        raise ValueError(f"{function}: at least one interaction is required, got none in {data.name}")


def _need_shares(function: str, test: float, validation: float) -> None:
    if not (0 <= test < 1 and 0 <= validation < 1 and test + validation < 1):
        raise ValueError(
            f"{function}: test and validation must be shares in [0, 1) with a sum below 1, "
            f"got {test} and {validation}; the usual are 0.1 and 0.1"
        )


def _validation_mode(function: str, validation: Validation | bool) -> Validation:
    if isinstance(validation, bool):
        return "random" if validation else "none"
    if validation not in ("random", "last", "none"):
        raise ValueError(f"{function}: validation must be 'random', 'last' or 'none', got {validation!r}")
    return validation
