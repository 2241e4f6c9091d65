"""Fewer terms for a tower: the most frequent ones, clusters of alike ones, or the bits of random projections.

The view of a user can have more terms than a tower can learn weights for; Elkahky et al. 2015 reduce it in these ways
before the first layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deeprec.data.columns.terms import Terms
from deeprec.data.random_bits import random_bits

REDUCTIONS = ("top-k", "k-means", "lsh")
_ROUNDS = 10
_CELLS = 1 << 23  # of columns and centres held at a time
_LSH = 10  # a stream of the seed


@dataclass(frozen=True, eq=False)
class Reduction:
    """How terms become fewer; `fit` makes one of training rows.

    Attributes:
        kind: one of REDUCTIONS.
        width: terms or bits after it, K >= 1.
        places: [size], int64, the term in [0, K) that each term becomes, -1 for one that is dropped; None with "lsh".
        signs: [size, K], float32, the projections, +1 or -1; None with the others.
    """

    kind: str
    width: int
    places: NDArray[np.int64] | None = None
    signs: NDArray[np.float32] | None = None

    @classmethod
    def fit(cls, terms: Terms, kind: str, width: int, seed: int = 0) -> Reduction:
        """The reduction of these, the training rows.

        "top-k": the K terms that most rows have; of equally frequent ones the lower. "k-means": clusters of terms by
        the cosine of which rows have them, begun from the K most frequent, 10 rounds; terms of a cluster are summed.
        "lsh": K random projections of the whole row, of which the signs stay. A term that no row has is dropped, with
        "k-means" also one that shares a row with no cluster.

        Args:
            width: K, >= 1; with fewer terms in use than K, "top-k" and "k-means" leave the last places empty.
            seed: of "lsh", which keeps size K float32 numbers.
        Raises:
            ValueError: another kind, or width < 1.
        Reference: Elkahky, Song and He 2015, section 6.
        """
        if kind not in REDUCTIONS:
            raise ValueError(f"Reduction.fit: kind must be one of {', '.join(REDUCTIONS)}, got {kind!r}")
        if width < 1:
            raise ValueError(f"Reduction.fit: width must be >= 1, got {width}")
        if kind == "lsh":
            return cls(kind, width, signs=signs_of(terms.size, width, seed))
        return cls(kind, width, places=_most_frequent(terms, width) if kind == "top-k" else _clusters(terms, width))

    def apply(self, terms: Terms) -> Terms:
        """Rows of K terms, or, with "lsh", without terms and with K further numbers: 1 where a projection is >= 0.

        A row without terms has bits 0.

        Raises:
            ValueError: terms of another size.
        """
        size = len(self.places if self.signs is None else self.signs)  # type: ignore[arg-type]
        if terms.size != size:
            raise ValueError(f"Reduction.apply: terms must be of the size {size} that it was fitted on, "
                             f"got {terms.size}")  # fmt: skip
        owners = np.repeat(np.arange(len(terms)), np.diff(terms.offsets))
        if self.places is not None:
            places = self.places[terms.ids]
            kept = places >= 0
            made = Terms.of_entries(owners[kept], places[kept], terms.weights[kept], len(terms), self.width)
            return replace(made, values=terms.values)
        assert self.signs is not None
        sums = np.zeros((len(terms), self.width), dtype=np.float32)
        np.add.at(sums, owners, self.signs[terms.ids] * terms.weights[:, None])
        bits = (sums >= 0) & (np.diff(terms.offsets) > 0)[:, None]
        nothing = Terms.of_entries([], [], None, len(terms), 0)
        return replace(nothing, values=np.concatenate([terms.values, bits], axis=1, dtype=np.float32))


def signs_of(size: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Random projections [size, width], +1 or -1, the same for a term whatever the size."""
    words = -(-width // 64)
    bits = random_bits(seed, _LSH, np.arange(size * words)).reshape(size, words)
    bytes_of = bits.astype("<u8").view(np.uint8).reshape(size, 8 * words)
    signs: NDArray[np.float32] = np.unpackbits(bytes_of, axis=1, count=width).astype(np.float32) * 2 - 1
    return signs


def _most_frequent(terms: Terms, width: int) -> NDArray[np.int64]:
    counts = np.bincount(terms.ids, minlength=terms.size)
    chosen = np.argsort(-counts, kind="stable")[:width]
    places = np.full(terms.size, -1, dtype=np.int64)
    chosen = chosen[counts[chosen] > 0]
    places[chosen] = np.arange(len(chosen))
    return places


def _clusters(terms: Terms, width: int) -> NDArray[np.int64]:
    """Spherical k-means of the columns; one that no centre shares a row with stays in its cluster."""
    counts = np.bincount(terms.ids, minlength=terms.size)
    squares = np.bincount(terms.ids, np.square(terms.weights, dtype=np.float64), minlength=terms.size)
    columns = replace(terms, weights=(terms.weights / np.sqrt(squares)[terms.ids]).astype(np.float32))
    used = np.flatnonzero(counts)
    first = np.argsort(-counts, kind="stable")[: min(width, len(used))]
    places = np.full(terms.size, -1, dtype=np.int64)
    places[first] = np.arange(len(first))
    for _ in range(_ROUNDS):
        nearest = _nearest(columns, _centres(columns, places, len(first)), used, places)
        if np.array_equal(nearest, places):
            break
        places = nearest
    return places


def _centres(columns: Terms, places: NDArray[np.int64], count: int) -> Terms:
    """Sums of the columns of each cluster at length 1: rows as those of the columns, a term a cluster."""
    owners = np.repeat(np.arange(len(columns)), np.diff(columns.offsets))
    kept = places[columns.ids] >= 0
    sums = Terms.of_entries(owners[kept], places[columns.ids[kept]], columns.weights[kept], len(columns), count)
    squares = np.bincount(sums.ids, np.square(sums.weights, dtype=np.float64), minlength=count)
    lengths = np.sqrt(np.where(squares > 0, squares, 1))
    return replace(sums, weights=(sums.weights / lengths[sums.ids]).astype(np.float32))


def _nearest(columns: Terms, centres: Terms, used: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.int64]:
    """The centre of the largest cosine with each used column, of equal ones the lower; where all are 0, as before.

    A column meets only the centres with which it shares a row: the work is the sum over rows of their terms times
    their centres.
    """
    order = np.argsort(columns.ids, kind="stable")  # entries by column
    rows = np.repeat(np.arange(len(columns)), np.diff(columns.offsets))[order]
    of, weights = columns.ids[order], columns.weights[order].astype(np.float64)
    lengths = np.diff(centres.offsets)[rows]
    ends = np.searchsorted(of, used, side="right")
    met = np.concatenate([[0], np.cumsum(lengths)])[np.concatenate([[0], ends])]  # pairs up to each used column
    places, at = before.copy(), 0
    while at < len(used):
        upto = int(np.searchsorted(met, met[at] + _CELLS, side="right")) - 1
        upto = min(max(upto, at + 1), at + max(1, _CELLS // centres.size), len(used))
        here = slice(0 if at == 0 else int(ends[at - 1]), int(ends[upto - 1]))
        count = lengths[here]
        own = np.repeat(np.arange(upto - at), np.diff(np.concatenate([[here.start], ends[at:upto]])))
        entries = np.arange(count.sum()) + np.repeat(centres.offsets[rows[here]] - (np.cumsum(count) - count), count)
        cells = np.repeat(own * centres.size, count) + centres.ids[entries]
        products = np.repeat(weights[here], count) * centres.weights[entries]
        scores = np.bincount(cells, products, minlength=(upto - at) * centres.size).reshape(upto - at, centres.size)
        is_near = scores.max(axis=1) > 0
        places[used[at:upto][is_near]] = scores.argmax(axis=1)[is_near]
        at = upto
    return places
