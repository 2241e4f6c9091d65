"""What an index is built of: vectors with ids, or a model; checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from deeprec._suggest import did_you_mean
from deeprec.data import IdMap
from deeprec.serve.index_items import SIMILARITIES, as_bias, as_vectors
from deeprec.serve.index_models import side_of


class Given(NamedTuple):
    """What an index is built of, as it was given.

    Attributes:
        asked: what the queries are, as `RecallReport.queries` says.
    """

    vectors: Any
    ids: Any
    bias: Any
    queries: Any
    asked: str


def as_share(function: str, recall: Any) -> float:
    """A recall to be reached, in (0, 1]; ValueError for anything else."""
    if isinstance(recall, bool) or not isinstance(recall, int | float) or not 0 < recall <= 1:
        raise ValueError(f"{function}: recall must be in (0, 1], got {recall!r}; pass recall=0.99")
    return float(recall)


def of_model(function: str, given: Given, similarity: str, count: int) -> Given:
    """The item side of a model, and at most `count` of its users as queries."""
    if not hasattr(given.vectors, "capabilities"):
        raise TypeError(
            f"{function}: vectors must be [N, D] numbers or a model of deeprec, got {type(given.vectors).__name__}; "
            "pass the weights of its table"
        )
    for argument in ("ids", "bias", "queries"):
        if getattr(given, argument) is not None:
            raise ValueError(f"{function}: {argument} must be left out beside a model, which brings it; got one")
    if similarity != "dot":
        raise ValueError(f"{function}: similarity of a model must be 'dot', as its scores are, got {similarity!r}")
    side = side_of(given.vectors, count)
    return Given(side.items, given.vectors.item_ids.values, side.item_bias, side.users, "users")


def checked(function: str, given: Given, similarity: str) -> tuple[Tensor, Tensor | None, IdMap]:
    """Vectors [N, D], bias [N] and ids."""
    if similarity not in SIMILARITIES:
        raise ValueError(
            f"{function}: similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}; "
            f"{did_you_mean(str(similarity), SIMILARITIES)}"
        )
    if similarity == "cosine" and given.bias is not None:
        raise ValueError(f"{function}: bias must be left out with cosine, which has none; got one")
    rows = as_vectors(function, "vectors", given.vectors, width=None, similarity=similarity)
    if not len(rows):
        raise ValueError(f"{function}: vectors must hold at least one row, got none; pass one an item")
    number = None if given.bias is None else as_bias(function, given.bias, len(rows))
    known = IdMap(np.arange(len(rows)) if given.ids is None else given.ids, "item")
    if len(known) != len(rows):
        raise ValueError(f"{function}: ids must be one for each of {len(rows)} vectors, got {len(known)}; pass as many")
    return rows, number, known
