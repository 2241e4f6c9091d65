"""Some rows of `Encoded`, and several `Encoded` as one; fresh contiguous arrays, no Python once a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec.data.columns.inputs import Bags, Encoded


def take(data: Encoded, rows: NDArray[Any]) -> Encoded:
    """The rows of the numbers `rows`, [m], integers in [0, n), any order."""
    return Encoded(
        ids=data.ids.take(rows, axis=0),
        values=data.values.take(rows, axis=0),
        bags={name: take_bags(bags, rows) for name, bags in data.bags.items()},
        labels=None if data.labels is None else data.labels.take(rows),
        groups=None if data.groups is None else data.groups.take(rows),
    )


def take_bags(bags: Bags, rows: NDArray[Any]) -> Bags:
    """The bags of the numbers `rows`."""
    starts = bags.offsets.take(rows)
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(bags.offsets.take(rows + 1) - starts, out=offsets[1:])
    entries = np.repeat(starts - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
    return Bags(bags.ids.take(entries), offsets, None if bags.weights is None else bags.weights.take(entries))


def join(parts: Sequence[Encoded]) -> Encoded:
    """The rows of one or more `Encoded` of the same inputs, one after the other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return Encoded(
        ids=np.concatenate([part.ids for part in parts]),
        values=np.concatenate([part.values for part in parts]),
        bags={name: join_bags([part.bags[name] for part in parts]) for name in first.bags},
        labels=None if first.labels is None else np.concatenate([_given(part.labels) for part in parts]),
        groups=None if first.groups is None else np.concatenate([_given(part.groups) for part in parts]),
    )


def join_bags(parts: Sequence[Bags]) -> Bags:
    """The bags of one column, one after the other."""
    ends = np.cumsum([0] + [len(part.ids) for part in parts])
    offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
    is_weighted = parts[0].weights is not None
    return Bags(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([*offsets, ends[-1:]]),
        np.concatenate([_given(part.weights) for part in parts]) if is_weighted else None,
    )


def _given(array: NDArray[Any] | None) -> NDArray[Any]:
    assert array is not None, "some parts have it, others do not"
    return array
