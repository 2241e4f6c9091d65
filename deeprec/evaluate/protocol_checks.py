"""What a protocol may say: each field in its range, and those that go together."""

from __future__ import annotations

import math
import typing
from typing import TYPE_CHECKING, Any

from deeprec._suggest import did_you_mean
from deeprec.evaluate.metrics import RATING_METRICS, check_metric

if TYPE_CHECKING:
    from deeprec.evaluate.protocols import Protocol

BY_SHARE = ("random", "random_by_user", "given_by_user", "last_by_user", "time", "items", "users", "sessions")
ONE_ROW = ("leave_one_out", "official", "auto")  # of these the validation part is a row of each user, by itself


def check_protocol(made: Protocol) -> None:
    """Raise ValueError for a field out of its range, or for fields that do not go together."""
    _check_fields(made)
    _check_validation(made)
    _check_task(made)
    _check_candidates(made)


def validates_by_share(holdout: str, targets: str) -> bool:
    """Whether the validation part of such a protocol is a share, and not a row of each user."""
    return holdout in BY_SHARE or (targets == "events" and holdout in ("official", "auto"))


def _check_choice(field: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"protocol: unknown {field} {value!r}; {did_you_mean(str(value), choices)}")


def _require(condition: bool, requirement: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"protocol: {requirement}, got {value!r}")


def _check_fields(made: Protocol) -> None:
    hints = typing.get_type_hints(type(made))
    for field in ("holdout", "validation", "negatives", "repeats", "ties", "task", "targets"):
        _check_choice(field, getattr(made, field), typing.get_args(hints[field]))
    for part in made.mask:
        _check_choice("mask", part, ("train", "validation"))
    for metric in made.metrics:
        check_metric(metric)
    _require(bool(made.metrics), "metrics must name at least one metric", made.metrics)
    fits = all((name in RATING_METRICS) == (made.task == "rating") for name in made.metrics)
    _require(fits, f"metrics must fit the task {made.task!r}", made.metrics)
    whole = all(isinstance(k, int) and k >= 1 for k in made.cutoffs)
    _require(bool(made.cutoffs) and whole, "cutoffs must be whole numbers of at least 1", made.cutoffs)
    given = made.given_rows
    is_number = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    _require(is_number, "given_rows must be a whole number of at least 1", given)
    for field in ("seed", "negatives_seed", "validating"):
        value = getattr(made, field)
        _require(isinstance(value, int) and value >= 0, f"{field} must be a whole number of at least 0", value)
    _require(made.domain is None or isinstance(made.domain, str), "domain must be a name or None", made.domain)
    for field in ("test_share", "validation_share", "default_rating", "new_share", "given_share"):
        value = getattr(made, field)
        if value is None and field == "default_rating":
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        _require(is_number, f"{field} must be a finite number", value)
    for field in ("test_share", "validation_share"):
        _require(0.0 < getattr(made, field) < 1.0, f"{field} must lie in (0, 1)", getattr(made, field))
    _require(0.0 <= made.new_share <= 1.0, "new_share must lie in [0, 1]", made.new_share)
    _require(0.0 <= made.given_share < 1.0, "given_share must lie in [0, 1)", made.given_share)
    _require(isinstance(made.clamp, bool), "clamp must be True or False", made.clamp)
    count = made.validation_users
    is_count = count is None or (isinstance(count, int) and not isinstance(count, bool) and count >= 0)
    _require(is_count, "validation_users must be a whole number of at least 0, or None", count)


def _check_validation(made: Protocol) -> None:
    by_share = validates_by_share(made.holdout, made.targets)
    if made.validation != "none" and by_share != (made.validation == "share"):
        remedy = "'share'" if by_share else "'random' or 'last'"
        raise ValueError(
            f"protocol: validation={made.validation!r} does not go with holdout={made.holdout!r}; "
            f"take validation={remedy} or 'none'"
        )


def _check_task(made: Protocol) -> None:
    of_each = made.targets == "events"
    if of_each and made.task != "next-item":
        raise ValueError(
            f"protocol: targets='events' are next items, got task={made.task!r}; take task='next-item' or "
            "targets='users'"
        )
    if made.holdout == "sessions" and not of_each:
        raise ValueError(
            f"protocol: sessions held out have nothing but their own events, got targets={made.targets!r}; take the "
            "protocol 'next-event', or targets='events' with task='next-item'"
        )
    holdouts = ("leave_one_out", "last_by_user", "time", "official", *(("sessions", "auto") if of_each else ()))
    if made.task == "next-item" and (made.holdout not in holdouts or made.validation == "random"):
        raise ValueError(
            f"protocol: a next item needs what came before it, got holdout={made.holdout!r} and "
            f"validation={made.validation!r}; take holdout='leave_one_out' with validation='last', or "
            "'last_by_user' or 'time' with 'share'"
        )
    if made.holdout in ("items", "users") and made.task != "ranking":
        raise ValueError(
            f"protocol: {made.holdout} held out whole can be ranked only, got task={made.task!r}; take another holdout"
        )


def _check_candidates(made: Protocol) -> None:
    candidates = made.candidates
    sampled = made.has_negatives
    enough = isinstance(candidates, int) and not isinstance(candidates, bool) and candidates >= 1
    requirement = "candidates must be 'all', 'part' or a number of negatives of at least 1"
    _require(not sampled or enough, requirement, candidates)
    if candidates == "part" and made.holdout != "items":
        raise ValueError(
            f"protocol: candidates='part' goes with holdout='items', got {made.holdout!r}; take candidates='all'"
        )
    if made.domain is not None and not sampled and made.holdout == "users":
        raise ValueError(
            f"protocol: items of one domain are ranked against a number of others, got candidates={candidates!r}; "
            "take candidates=9"
        )
    if sampled != (made.negatives != "none"):
        remedy = "'given', 'seeded' or 'auto'" if sampled else "'none', or candidates a number"
        raise ValueError(
            f"protocol: candidates={candidates!r} does not go with negatives={made.negatives!r}; take {remedy}"
        )
    if made.ties == "authors" and not sampled:
        raise ValueError("protocol: ties='authors' is defined for sampled candidates; take ties='pessimistic'")
    if made.repeats == "drop" and made.negatives in ("given", "auto"):
        raise ValueError("protocol: repeats='drop' does not go with given negatives; take negatives='seeded'")
    if made.negatives == "given" and made.holdout not in ("official", "auto"):
        raise ValueError(
            f"protocol: given negatives belong to the official test part, got holdout={made.holdout!r}; "
            "take holdout='official' or negatives='seeded'"
        )
