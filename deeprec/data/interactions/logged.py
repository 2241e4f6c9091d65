"""Interactions whose rows carry the probability with which they came to be in the data."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deeprec.data.interactions.ids import Int32Array
from deeprec.data.interactions.interactions import Float32Array, Interactions, digest_of


def require_propensities(function: str, propensities: NDArray[Any], rows: int) -> None:
    """Raise ValueError unless these are probabilities [rows] in (0, 1]; the message names the first row that is not."""
    if propensities.shape != (rows,):
        raise ValueError(f"{function}: propensities must be [{rows}], got {list(propensities.shape)}; one for each row")
    wrong = ~((propensities > 0) & (propensities <= 1))  # a missing one (NaN) is neither
    if wrong.any():
        row = int(wrong.argmax())
        value = float(propensities[row])
        if np.isnan(value):
            remedy = "log the probability of every row, or drop the row"
        elif value > 1:
            remedy = "a probability density, or a percentage, must be made a probability"
        else:
            remedy = "what cannot happen is in no log; drop the row, or floor estimates, such as np.maximum(p, 1e-3)"
        raise ValueError(
            f"{function}: propensities must lie in (0, 1], got {value:g} at row {row} ({int(wrong.sum())} in all); "
            f"{remedy}"
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LoggedInteractions(Interactions):
    """Interactions with the probability of each row.

    Of a log of recommendations it is the probability with which the policy that ran then showed the item; of ratings
    that users chose to give, that of being given. What corrects for it divides by it.

    Args:
        propensities: float32 [n], in (0, 1].
    Raises:
        ValueError: what `Interactions` raise, and propensities that are zero, missing or above 1.
    """

    row_columns: ClassVar[tuple[str, ...]] = (*Interactions.row_columns, "propensities")

    propensities: Float32Array

    def __post_init__(self) -> None:
        super().__post_init__()
        require_propensities("LoggedInteractions", self.propensities, len(self))
        if self.propensities.dtype != np.float32:
            raise ValueError(f"LoggedInteractions: propensities must be float32, got {self.propensities.dtype}")

    def __repr__(self) -> str:
        return super().__repr__().replace("Interactions", "LoggedInteractions", 1)

    @cached_property
    def sha256(self) -> str:
        """Hash of ids, rows, ratings, order and propensities."""
        return digest_of(np.frombuffer(super().sha256.encode(), dtype=np.uint8), self.propensities)

    def of_pairs(self, users: Int32Array, items: Int32Array) -> Interactions:
        """As of `Interactions`; nobody knows how probable these pairs were."""
        return self.without_propensities().of_pairs(users, items)

    def without_propensities(self) -> Interactions:
        """The same rows as plain `Interactions`."""
        return Interactions(**{field.name: getattr(self, field.name) for field in fields(Interactions)})

    def _last_keys(self) -> tuple[NDArray[Any], ...]:
        return (self.propensities,)


def with_propensities(data: Interactions, propensities: Any) -> LoggedInteractions:
    """The same interactions with the probability of each row; a published split stays.

    Args:
        propensities: [n], in (0, 1].
    Raises:
        ValueError: as of `LoggedInteractions`. TypeError: rows with tags.
    """
    if type(data).row_columns not in (Interactions.row_columns, LoggedInteractions.row_columns):
        raise TypeError(f"with_propensities: data must be Interactions, got {type(data).__name__}; pass data.pairs()")
    values = np.asarray(propensities, dtype=np.float32)
    if isinstance(data, LoggedInteractions):
        return replace(data, propensities=values)
    columns = {field.name: getattr(data, field.name) for field in fields(Interactions)}
    return LoggedInteractions(**columns, propensities=values)


def naive_bayes_propensities(data: Interactions, random: Interactions, *, smoothing: float = 1.0) -> Float32Array:
    """How probable it was that each rating was given, from its value alone, float32 [n].

        P(given | rating = r) = P(r | given) P(given) / P(r)

    P(r) is that among ratings of items that were drawn at random; a small sample of these is enough.

    Args:
        data: the ratings that users chose to give.
        random: ratings of items that somebody else drew at random; its values are a part of those of `data`.
        smoothing: added to the count of each value in both, >= 0.
    Raises:
        ValueError: data without ratings or rows, or a smoothing out of range.
    Reference: Schnabel, Swaminathan, Singh, Chandak, Joachims 2016, "Recommendations as Treatments" (ICML, arXiv
        1602.05352), section 5.1.
    """
    for name, each in (("data", data), ("random", random)):
        if each.ratings is None or not len(each):
            raise ValueError(f"naive_bayes_propensities: {name} must have ratings, got {each}; pass rating= on reading")
    if not smoothing >= 0:
        raise ValueError(f"naive_bayes_propensities: smoothing must be >= 0, got {smoothing}")
    assert data.ratings is not None
    assert random.ratings is not None
    values, place = np.unique(data.ratings, return_inverse=True)

    def shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        smoothed = counts + smoothing
        return np.asarray(smoothed / smoothed.sum())

    at_random = np.array([int((random.ratings == value).sum()) for value in values], dtype=np.int64)
    if not smoothing and not at_random.all():
        raise ValueError(
            f"naive_bayes_propensities: random must have a rating of {values[at_random.argmin()]:g}, as data has, got "
            "none; take a larger sample, or smoothing=1"
        )
    given = len(data) / (data.num_users * data.num_items)
    of_value = np.minimum(1.0, shares(np.bincount(place)) * given / shares(at_random))
    return np.asarray(of_value[place], dtype=np.float32)
