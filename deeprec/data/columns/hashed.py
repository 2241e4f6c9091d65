"""Hash buckets: of values, and of the ids that are crossed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec.data.columns.inputs import Bags
from deeprec.data.columns.kinds import Cross
from deeprec.data.reading.hashing import Hashes, mix

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def modulo(hashes: Hashes, num_buckets: int) -> NDArray[np.int32]:
    """Hashes to [0, num_buckets) by their high halves, without a division."""
    return (((hashes >> np.uint64(32)) * np.uint64(num_buckets)) >> np.uint64(32)).astype(np.int32)


def cross(feature: Cross, ids: dict[str, NDArray[np.int32]], bags: dict[str, Bags]) -> NDArray[np.int32] | Bags:
    """h_0 = 0, h_c = mix(h_(c-1) + (id_c + 1) g), modulo the buckets; mix and g are splitmix64's."""
    bag: Bags | None = None
    state: Any = np.uint64(0)
    with np.errstate(over="ignore"):
        for name in feature.columns:
            if name in bags:
                bag = bags[name]
                lengths = np.diff(bag.offsets)
                state = np.repeat(state, lengths) if np.ndim(state) else state
                column = bag.ids
            else:
                column = ids[name] if bag is None else np.repeat(ids[name], lengths)
            state = mix(state + (column.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    crossed = modulo(state, feature.num_buckets)
    return crossed if bag is None else Bags(crossed, bag.offsets, bag.weights)
