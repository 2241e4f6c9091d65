"""What the functions that serve accept: ids, ratings, pairs and list lengths, or an error that names the argument."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec.data import IdMap, UnknownIdError


def require_k(function: str, k: Any) -> int:
    """A list length, a whole number >= 1.

    Raises:
        TypeError: another type, 3.0 and True among them. ValueError: below 1.
    """
    try:
        if isinstance(k, bool | np.bool_):
            raise TypeError
        number = operator.index(k)
    except TypeError:
        raise TypeError(f"{function}: k must be a whole number >= 1, got {k!r}; pass an int, k=10 for ten") from None
    if number < 1:
        raise ValueError(f"{function}: k must be >= 1, got {number}; pass k=10 for ten")
    return number


def require_flag(function: str, argument: str, value: Any) -> bool:
    """True or False; TypeError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {argument} must be True or False, got {value!r}; pass one of them")
    return bool(value)


def codes_of(
    function: str,
    argument: str,
    values: Any,
    known: IdMap,
    *,
    unknown: int | None = None,
    remedy: str = "drop them",
) -> NDArray[np.int32]:
    """Internal indices [n] of one external id or a sequence of them, in any container of one dimension.

    Args:
        unknown: the index of ids that the model does not know; None raises instead.
        remedy: what that error advises.
    Raises:
        UnknownIdError (a ValueError): an id that the model does not know. TypeError: ids of another type, or none.
        ValueError: more than one dimension.
    """
    if isinstance(values, Mapping):
        raise TypeError(
            f"{function}: {argument} must be one id or a sequence of ids, got {_short(values)}; pass a list"
        )
    try:
        return known.encode(values, unknown)
    except (TypeError, ValueError) as error:
        kind = next(one for one in (UnknownIdError, TypeError, ValueError) if isinstance(error, one))
        words = str(error).removeprefix("IdMap.encode: ").replace("drop them, or pass unknown=-1", remedy)
        raise kind(f"{function}: {argument}: {words}") from None


def ratings_of(function: str, ratings: Any, count: int, what: str) -> NDArray[np.float32]:
    """One finite number for each of `count` ids, a `what` each, as float32 [count]; a single one counts as a list.

    Raises:
        ValueError: not as many, or one that is not finite. TypeError: no numbers.
    """
    if not isinstance(ratings, str | Mapping) and hasattr(ratings, "__iter__") and not hasattr(ratings, "__array__"):
        ratings = list(ratings)
    try:
        given = np.atleast_1d(np.asarray(ratings))
    except ValueError:  # lists of several lengths
        given = np.empty(0, dtype=object)
    if given.size and given.dtype.kind not in "iuf":
        raise TypeError(f"{function}: ratings must be numbers, one for each {what}, got {_short(ratings)}; pass floats")
    # Beyond float32 a number becomes infinite, and is refused as such.
    with np.errstate(over="ignore"):
        given = given.astype(np.float32)
    if given.shape != (count,) or not np.isfinite(given).all():
        raise ValueError(
            f"{function}: ratings must be one finite number for each {what}, got {count} {what}s and ratings "
            f"{_short(ratings)}; pass as many, within the range of the data"
        )
    return given


def pairs_of(function: str, pairs: Any) -> tuple[Any, Any]:
    """The user ids and the item ids of pairs: a frame's columns, or the two halves of a sequence or an array [n, 2].

    Raises:
        ValueError: columns are missing, or something is no pair. TypeError: neither a frame nor a sequence.
    """
    if hasattr(pairs, "columns"):
        columns = list(pairs.columns)
        if not {"user_id", "item_id"} <= set(columns):
            raise ValueError(f"{function}: pairs must have columns user_id and item_id, got {columns}; rename them")
        return pairs["user_id"], pairs["item_id"]
    if isinstance(pairs, str | bytes | Mapping) or not hasattr(pairs, "__iter__"):
        raise TypeError(
            f"{function}: pairs must be a frame or a sequence of (user id, item id), got {_short(pairs)}; pass "
            "[(user, item), ...]"
        )
    if isinstance(pairs, np.ndarray) and pairs.ndim == 2 and pairs.shape[1] == 2:
        return pairs[:, 0], pairs[:, 1]
    listed = list(pairs)
    for place, pair in enumerate(listed):
        if isinstance(pair, str | bytes | Mapping | set) or not hasattr(pair, "__len__") or len(pair) != 2:
            raise ValueError(
                f"{function}: pairs must be (user id, item id) tuples, got {_short(pair)} at {place}; pass "
                "[(user, item), ...], or a frame with columns user_id and item_id"
            )
    return [pair[0] for pair in listed], [pair[1] for pair in listed]


def _short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
