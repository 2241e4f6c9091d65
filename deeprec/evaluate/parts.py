"""What a protocol makes of data: its parts, and the negatives of each held-out row."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from deeprec._suggest import listed

if TYPE_CHECKING:
    from deeprec.data import Interactions, Split
    from deeprec.evaluate.protocols import Protocol

_TEST_STREAM, _VALIDATION_STREAM = 4, 5  # independent negatives for the two parts under one seed


def require_one_domain(data: Interactions) -> None:
    """Raise ValueError where items are of several domains: then users are new to one of them."""
    table = data.item_features
    if table is not None and "domain" in table.columns and table["domain"].n_unique() > 1:
        names = sorted(map(str, table["domain"].unique()))
        raise ValueError(
            f"protocol: the domain to which users are new must be one of {listed(names)}, got None; pass "
            f"domain={names[0]!r} (protocol.domain={names[0]})"
        )


def split_of(protocol: Protocol, data: Interactions, met: Interactions) -> Split:
    """The parts of `data` under a resolved protocol; negatives are no pairs of `met`."""
    from deeprec.data.interactions import (
        new_users,
        session_splits,
        splits,
    )  # here, so that importing deeprec.evaluate brings torch and numpy only

    validation_rows = "none" if protocol.validation == "share" else protocol.validation
    shares = (protocol.test_share, 0.0 if protocol.validation == "none" else protocol.validation_share)
    of_each, validating = protocol.targets == "events", protocol.validating
    if protocol.holdout in ("random", "random_by_user"):
        by_user = protocol.holdout == "random_by_user"
        parts = splits.random_holdout(data, *shares, seed=protocol.seed, by_user=by_user)
    elif protocol.holdout == "given_by_user":
        parts = splits.given_holdout(data, protocol.given_rows, shares[1], seed=protocol.seed)
    elif protocol.holdout == "last_by_user":
        parts = splits.last_holdout(data, *shares)
    elif protocol.holdout == "time":
        parts = splits.time_holdout(data, *shares, new_users=of_each)
    elif protocol.holdout == "sessions":
        parts = session_splits.sessions_holdout(data, *shares)
    elif protocol.holdout == "official" and of_each:
        parts = session_splits.official_sessions(data, shares[1])
    elif protocol.holdout == "items":
        parts = splits.items_holdout(data, *shares, seed=protocol.seed)
    elif protocol.holdout == "users":
        held_out = new_users.HeldOut(*shares, protocol.new_share, protocol.given_share)
        parts = new_users.new_users_holdout(data, held_out, protocol.seed, domain=protocol.domain)
    elif protocol.holdout == "official":
        options = {"validation": validation_rows, "num_negatives": 0, "validating": validating}
        parts = splits.official(data, protocol.seed, **options)  # type: ignore[arg-type]
    else:
        parts = splits.leave_one_out(data, validation_rows, protocol.seed, validating=validating)
    if protocol.repeats == "drop":
        parts = splits.without_repeats(parts)
    if not isinstance(protocol.candidates, int):
        return dataclasses.replace(parts, test_negatives=None, validation_negatives=None)
    seed, draw = protocol.negatives_seed, splits.sampled_negatives
    if protocol.holdout == "users":
        draw = partial(new_users.negatives_of_domain, train=parts.train, domain=protocol.domain)
    test, validation = (
        draw(met, part.users, protocol.candidates, seed, stream=stream)
        for part, stream in ((parts.test, _TEST_STREAM), (parts.validation, _VALIDATION_STREAM))
    )
    if protocol.negatives == "given":
        assert parts.test_negatives is not None  # resolve() saw them
        test = parts.test_negatives
    return dataclasses.replace(parts, test_negatives=test, validation_negatives=validation)
