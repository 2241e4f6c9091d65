"""What a numeric feature learns from the train rows, and what it makes of a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean
from deeprec.data.columns.kinds import Numeric
from deeprec.data.random_bits import random_bits
from deeprec.data.reading.chunks import Chunk, RowError

SAMPLE_ROWS = 1_000_000
_SAMPLE_STREAM = 0x51  # of the seed: the rows that quantiles are taken from
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_NUMBER = 1e100
_ROUNDING = 1e-13  # of float64 sums, relative
# Older encoders kept no range. A standardised number of n train rows is at most sqrt(n).
_WIDEST_STANDARDISED = 1e6

Rows = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NumberState:
    """What a numeric feature learned from the train rows.

    Attributes:
        shift, scale: the value is (x - shift) * scale, x being the logarithm where the transform has one.
        low, high: the smallest and the largest such value of the train rows, to which all others are held: models are
            polynomials of high degree in some places, and what was never seen must not overflow there. 0 and 1 for
            "min-max". Infinite in encoders that kept no range: standardised values are then held to +-1e6, others to
            float32. Of a weighted bag: of its weights.
        boundaries: between quantiles, or of buckets; () otherwise.
        fill: the value that stands for a missing one.
    """

    shift: float = 0.0
    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    boundaries: tuple[float, ...] = ()
    fill: float = 0.0


def numbers_of(chunk: Chunk, feature: Numeric) -> Floats:
    """The numbers of a feature, [rows], NaN = missing, held to +-1e100 so that their squares are finite.

    Raises:
        ValueError: an infinite number, or a missing one where the schema refuses it; names column and row.
    """
    x = np.asarray(column_of(chunk, feature.column, "numbers"), dtype=np.float64)
    is_large = np.abs(x) > _LARGEST_NUMBER
    bad = np.isinf(x) if is_large.any() else is_large
    if feature.missing == "raise" and not bad.any():
        bad = np.isnan(x)
    if bad.any():
        row = int(np.argmax(bad))
        remedy = "correct the row, or declare what missing stands for" if np.isnan(x[row]) else "correct the row"
        problem = f"a finite number is required, got {x[row]}; {remedy}"
        raise RowError("encode", feature.column, chunk.first_row + row, problem)
    return np.clip(x, -_LARGEST_NUMBER, _LARGEST_NUMBER) if is_large.any() else x


def column_of(chunk: Chunk, name: str, kind: str) -> Any:
    """A column of a chunk; ValueError with the nearest name where there is none."""
    columns = getattr(chunk, kind)
    if name not in columns:
        raise ValueError(f"encode: no column {name!r} among the {kind} of the chunk; {did_you_mean(name, columns)}")
    return columns[name]


class Moments:
    """Count, mean, sum of squared deviations and range of a stream, exact in float64 (Chan et al. 1979, eq. 2.1)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, x: Floats) -> None:
        """Count the numbers of x, [any]; NaN is passed over."""
        x = x[~np.isnan(x)]
        if not len(x):
            return
        mean = float(x.mean())
        count, delta = self.count + len(x), mean - self.mean
        self.squares += float(np.square(x - mean).sum()) + delta * delta * (self.count / count) * len(x)
        self.mean += delta * (len(x) / count)
        self.count = count
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))

    @property
    def deviation(self) -> float:
        """Of the population."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def inverse(self, width: float) -> float:
        """1 / width, or 0 in a column that is constant but for rounding, or empty."""
        if not self.low < self.high or width <= _ROUNDING * max(abs(self.low), abs(self.high)):
            return 0.0
        return 1 / width if width >= np.finfo(np.float64).tiny else 0.0


class Sample:
    """Rows with the smallest of independent random numbers: a uniform sample, whatever the chunks."""

    def __init__(self, features: list[Numeric], seed: int) -> None:
        self.features, self.seed = features, seed
        self._column = {feature.name: at for at, feature in enumerate(features)}
        self.rows = self.held = 0
        self.keys: list[NDArray[np.uint64]] = []
        self.values: list[Floats] = []  # [some rows, features]
        self.largest = np.uint64(2**64 - 1)

    def add(self, chunk: Chunk, rows: Rows | None, count: int) -> None:
        """Offer the `count` rows of a chunk where `rows` is true (None: all)."""
        if not self.features:
            return
        keys = random_bits(self.seed, _SAMPLE_STREAM, np.arange(self.rows, self.rows + count))
        self.rows += count
        kept = np.flatnonzero(keys <= self.largest)
        chosen = kept if rows is None else np.flatnonzero(rows)[kept]
        self.keys.append(keys[kept])
        self.values.append(np.stack([numbers_of(chunk, feature)[chosen] for feature in self.features], axis=1))
        self.held += len(kept)
        if self.held > 2 * SAMPLE_ROWS:
            self._shrink()

    def _shrink(self) -> None:
        keys, values = np.concatenate(self.keys), np.concatenate(self.values)
        if len(keys) > SAMPLE_ROWS:
            smallest = np.argpartition(keys, SAMPLE_ROWS - 1)[:SAMPLE_ROWS]
            keys, values = keys[smallest], values[smallest]
            self.largest = keys.max()
        self.keys, self.values, self.held = [keys], [values], len(keys)

    def of(self, feature: Numeric) -> Floats:
        """The sampled numbers of a feature, missing ones left out; none where it needs no sample."""
        if feature.name not in self._column or not self.keys:
            return np.empty(0)
        if len(self.keys) > 1 or self.held > SAMPLE_ROWS:
            self._shrink()
        values = self.values[0][:, self._column[feature.name]]
        return values[~np.isnan(values)]


def number_state(feature: Numeric, moments: Moments, sample: Floats) -> NumberState:
    """What a feature learned, from its moments (of the logarithm where the transform has one) and its sample."""
    if feature.is_bucketised:
        return NumberState(boundaries=feature.boundaries or tuple(np.unique(_quantiles(feature, sample)).tolist()))
    shift, scale, boundaries, fill = 0.0, 1.0, (), moments.mean
    low, high = moments.low, moments.high
    if feature.transform == "quantile":
        boundaries, low, high = tuple(_quantiles(feature, sample).tolist()), 0.0, 1.0
        fill = float(_quantile_of(sample, boundaries).mean()) if len(sample) else 0.0
    elif feature.transform in ("standardise", "log-standardise"):
        shift, scale, fill = moments.mean, moments.inverse(moments.deviation), 0.0
    elif feature.transform == "min-max":
        scale, low, high = moments.inverse(moments.high - moments.low), 0.0, 1.0
        shift = moments.low if scale else 0.0
        fill = (moments.mean - shift) * scale
    if isinstance(feature.missing, float):
        # What stands for a missing number may lie outside of the numbers that were seen.
        bounds = (low, high) if feature.transform == "min-max" else (-_LARGEST, _LARGEST)
        state = NumberState(shift, scale, *bounds, boundaries, fill)
        fill = float(transformed(feature, state, np.array([feature.missing]))[0])
    if feature.transform in ("none", "log", "standardise", "log-standardise"):
        # The same arithmetic as in `transformed`, so that no train row is changed; nothing seen: nothing but the fill.
        low, high = ((low - shift) * scale, (high - shift) * scale) if moments.count else (0.0, 0.0)
    return NumberState(shift, scale, low, high, boundaries, fill)


def _quantiles(feature: Numeric, sample: Floats) -> Floats:
    """The n_q - 1 boundaries between n_q quantiles; none of an empty sample."""
    if not len(sample):
        return np.empty(0)
    return np.asarray(np.quantile(sample, np.arange(1, feature.quantiles) / feature.quantiles))


def _quantile_of(x: Floats, boundaries: tuple[float, ...]) -> Floats:
    """(i - 1) / (n_q - 1), i being the middle one of the quantiles where a repeated number fills several."""
    left, right = np.searchsorted(boundaries, x, "left"), np.searchsorted(boundaries, x, "right")
    return np.where(right > left, (left + right + 1) / 2, right) / max(1, len(boundaries))


def logarithm(feature: Numeric, x: Floats) -> Floats:
    """sign(x) ln(1 + |x|) where the transform has a logarithm, x otherwise."""
    return np.copysign(np.log1p(np.abs(x)), x) if feature.transform in ("log", "log-standardise") else x


def transformed(feature: Numeric, state: NumberState, x: Floats) -> NDArray[np.float32]:
    """[rows], finite; a missing number becomes the fill."""
    if feature.transform == "quantile":
        y = _quantile_of(x, state.boundaries)
    else:
        y = (logarithm(feature, x) - state.shift) * state.scale
        y = np.clip(y, *_bounds(feature, state))
    return np.clip(np.where(np.isnan(x), state.fill, y), -_LARGEST, _LARGEST).astype(np.float32)


def _bounds(feature: Numeric, state: NumberState) -> tuple[float, float]:
    if math.isinf(state.low) and feature.transform in ("standardise", "log-standardise"):
        return -_WIDEST_STANDARDISED, _WIDEST_STANDARDISED
    return state.low, state.high


def buckets(x: Floats, state: NumberState) -> NDArray[np.int32]:
    """[rows]: 0 for a missing number, i for the i-th interval [b_(i-1), b_i)."""
    ids = 1 + np.searchsorted(state.boundaries, x, "right")
    return np.where(np.isnan(x), 0, ids).astype(np.int32)
