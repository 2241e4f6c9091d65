"""Users held out whole or by half in one domain, while what they did elsewhere is known: new users of that domain."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprec.data.interactions.domains import domains_of
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Int32Array, Int64Array, Interactions, Split
from deeprec.data.interactions.splits import sampled_negatives
from deeprec.data.random_bits import random_bits

_log = logging.getLogger("deeprec")
_USERS, _GIVEN = 8, 9  # streams of a seed; those before are of the other splits and of the choice of users


class HeldOut(NamedTuple):
    """How many users are held out, and what of theirs is trained on.

    Attributes:
        test, validation: shares of the users, each in [0, 1), together below 1.
        new: share of either who are new to the domain: nothing of theirs there is trained on; in [0, 1].
        given: share of the rows of the others that is, rounded up; in [0, 1).
    """

    test: float = 0.1
    validation: float = 0.05
    new: float = 0.2
    given: float = 0.5


def new_users_holdout(
    data: Interactions, shares: HeldOut | None = None, seed: int = 0, *, domain: str | None = None
) -> Split:
    """Hold out users: of new ones all rows of a domain, of old ones a part of these. All other rows are trained on.

    Users are drawn among those with rows in the domain and in another one, where there is another. Held-out rows of
    items without a training row are left out.

    Args:
        shares: None: those of the paper, and a twentieth of the users to choose the epoch by.
        seed: of the choice; it depends on nothing else but the ids of the users and items.
        domain: a domain of the items; None: all items are one.
    Returns:
        Split; notes: new_users (of the test part), items_left_out and rows_left_out.
    Raises:
        ValueError: bad shares, an unknown domain, or fewer users than either share needs for one.
    Reference: Elkahky, Song and He 2015, section 7: 0.9 and 0.1, of these 0.8 old with half of their items and 0.2 new.
    """
    shares = shares or HeldOut()
    _check(shares)
    is_own = np.ones(len(data), dtype=np.bool_)
    if domain is not None:
        of_items = domains_of(data)
        is_own = (of_items.codes == of_items.place("new_users_holdout", domain))[data.items]
    own = np.bincount(data.users[is_own], minlength=data.num_users)
    elsewhere = np.bincount(data.users[~is_own], minlength=data.num_users)
    users = np.flatnonzero((own > 0) & ((elsewhere > 0) | is_own.all()))
    drawn = users[np.argsort(random_bits(seed, _USERS, data.user_ids.keys()[users]), kind="stable")]
    counts = round(len(users) * shares.test), round(len(users) * shares.validation)
    for name, share, count in zip(("test", "validation"), shares[:2], counts, strict=True):
        if share > 0 and count < 1:
            raise ValueError(
                f"new_users_holdout: {name} must be one user at least, got {share} of the {len(users)} users of "
                f"{data.name} with rows in the domain and elsewhere; take a larger share"
            )
    test, validation = drawn[: counts[0]], drawn[counts[0] : sum(counts)]
    new = np.concatenate([part[: round(len(part) * shares.new)] for part in (test, validation)])
    is_held = is_own & np.isin(data.users, drawn[: sum(counts)]) & ~_given(data, is_own, new, shares.given, seed)
    train = data.take(~is_held)
    is_known = train.item_counts()[data.items] > 0
    is_test = np.isin(data.users, test)
    notes = {
        "new_users": round(len(test) * shares.new),
        "items_left_out": len(np.unique(data.items[is_held & ~is_known])),
        "rows_left_out": int((is_held & ~is_known).sum()),
    }
    _log.info("new_users_holdout of %s: %s (nobody else has these items)", data.name, notes)
    choosing, tested = (data.take(is_held & is_known & is_part) for is_part in (~is_test, is_test))
    return Split(train, choosing, tested, notes=notes)


def _check(shares: HeldOut) -> None:
    test, validation, new, given = shares
    if not (0 < test < 1 and 0 <= validation < 1 and test + validation < 1 and 0 <= new <= 1 and 0 <= given < 1):
        raise ValueError(
            "new_users_holdout: test, validation and given must be shares in [0, 1), test above 0 and with validation "
            f"below 1, and new in [0, 1], got {shares}; the usual are {HeldOut()}"
        )


def _given(
    data: Interactions, is_own: NDArray[np.bool_], new: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.bool_]:
    """Rows of the domain that are trained on if their users are held out, [n]: none of new users'."""
    rows = np.flatnonzero(is_own & ~np.isin(data.users, new))
    pairs = data.user_ids.keys()[data.users[rows]] ^ (data.item_ids.keys()[data.items[rows]] * np.uint64(3))
    order = np.lexsort((random_bits(seed, _GIVEN, pairs), data.users[rows]))
    counts = np.bincount(data.users[rows], minlength=data.num_users)
    place = np.arange(len(rows)) - (np.cumsum(counts) - counts)[data.users[rows[order]]]
    is_given = np.zeros(len(data), dtype=np.bool_)
    is_given[rows[order]] = place < np.ceil(counts * share - 1e-9)[data.users[rows[order]]]
    return is_given


def is_new(train: Interactions, users: NDArray[Any], domain: str | None) -> NDArray[np.bool_]:
    """Whether users [n] have no row of the domain in a training part."""
    rows = np.arange(len(train))
    if domain is not None:
        of_items = domains_of(train)
        rows = np.flatnonzero((of_items.codes == of_items.place("is_new", domain))[train.items])
    result: NDArray[np.bool_] = (np.bincount(train.users[rows], minlength=train.num_users) == 0)[users]
    return result


def negatives_of_domain(
    met: Interactions,
    users: NDArray[Any],
    count: int,
    seed: int,
    *,
    stream: int,
    train: Interactions,
    domain: str | None,
) -> Int32Array:
    """`sampled_negatives` among the items of a domain with a training row, as the held-out items have one.

    Args:
        met: every interaction to avoid. train: over the same id maps.
    Returns:
        int32 [len(users), count].
    """
    is_candidate = train.item_counts() > 0
    if domain is not None:
        of_items = domains_of(met)
        is_candidate &= of_items.codes == of_items.place("negatives_of_domain", domain)
    pool: Int64Array = np.flatnonzero(is_candidate)
    place = np.full(met.num_items, -1, dtype=np.int32)
    place[pool] = np.arange(len(pool), dtype=np.int32)
    rows = np.flatnonzero(is_candidate[met.items])
    ids = IdMap(met.item_ids.values.gather(pool), "item")
    among = Interactions(met.users[rows], place[met.items[rows]], met.user_ids, ids, name=met.name)
    return pool[sampled_negatives(among, users, count, seed, stream=stream)].astype(np.int32)
