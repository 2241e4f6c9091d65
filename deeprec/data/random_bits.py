"""Counter-based random bits for splits and sampled candidates.

NumPy promises no stable stream between its versions; a split must be the same split next year. So random numbers here
are a pure function of (seed, stream, counter): the same on every machine, thread count and subset of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: UInt64Array) -> UInt64Array:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014), a bijection of uint64 [...]; wraps modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    mixed: UInt64Array = x ^ (x >> np.uint64(31))
    return mixed


def random_bits(seed: int, stream: int, counter: NDArray[Any]) -> UInt64Array:
    """Random uint64 of the shape of `counter`.

    Args:
        seed: the user's seed, any Python integer (taken modulo 2^64).
        stream: which use of the seed this is; different streams are independent.
        counter: integers >= 0, any shape; equal counters give equal bits.
    """
    key = np.array([(seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) % 2**64], dtype=np.uint64)
    return _mix(_mix(_mix(key) ^ (counter.astype(np.uint64) * _GAMMA)) + _GAMMA)


def random_below(bits: UInt64Array, limit: NDArray[Any]) -> NDArray[np.int64]:
    """Integers in [0, limit) from random bits; `limit` in [1, 2^32), broadcast. Bias is below limit / 2^32."""
    high = bits >> np.uint64(32)
    scaled: UInt64Array = (high * limit.astype(np.uint64)) >> np.uint64(32)
    return scaled.astype(np.int64)
