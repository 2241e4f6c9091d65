"""A synthetic click log in Criteo's format with a known truth: tab-separated label, 13 integers, 26 hashed categories.

From Criteo's Kaggle log (45,840,617 rows): the number of values of each category, as counted by many (facebookresearch
/dlrm gives them as its embedding sizes), 33.8 million in all. From its first 10,000 rows: the share of empty cells of
each column, and mean and deviation of log(1 + x) of each integer. Values of a category are long-tailed: the r-th most
frequent of c has probability (r / c)^(1/4) - ((r - 1) / c)^(1/4), which is about r^(-3/4). Criteo's own tail is
longer, with more values that occur once; the vocabulary of values that occur twice is larger here.

Truth: logit = b + an effect of each category (of its 16,384 most frequent values; the others have none, for nobody
could learn it) + effects of three pairs of categories + w log(1 + x) of each integer; an empty cell has an effect of
its own. A quarter of the labels are 1, as in Criteo. A function of the seed, the row's block and NumPy's generators.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CARDINALITIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
    2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
EMPTY_CATEGORIES = (
    0, 0, 0.036, 0.036, 0, 0.133, 0, 0, 0, 0, 0, 0.036, 0, 0, 0, 0.036, 0, 0, 0.45, 0.45, 0.036, 0.818, 0, 0.036, 0.45,
    0.45,
)  # fmt: skip
EMPTY_INTEGERS = (0.448, 0, 0.204, 0.198, 0.049, 0.251, 0.049, 0.001, 0.049, 0.448, 0.049, 0.774, 0.198)
LOG_MEANS = (0.80, 2.12, 2.25, 1.73, 7.24, 3.58, 1.54, 2.06, 3.61, 0.38, 0.85, 0.30, 1.88)
LOG_DEVIATIONS = (0.98, 2.13, 1.28, 0.96, 2.90, 1.81, 1.36, 1.18, 1.69, 0.39, 0.74, 0.61, 1.06)
CLICK_SHARE = 0.256
PAIRS = ((5, 13), (8, 21), (16, 19))  # categories of few values, from 0
KNOWN = 16_384  # values of a category that have an effect
BLOCK_ROWS = 16_384  # a block of text, about 5 MB, stays in the cache while it is made

_DIGITS = 6
_POWERS = (10 ** np.arange(_DIGITS - 1, -1, -1)).astype(np.uint32)
_HEX = np.frombuffer("".join(f"{n:02x}" for n in range(256)).encode(), dtype=np.uint16)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BINS, _RANGE = 1 << 14, 12.0  # of the logits, for the truth's AUC


class Rows(NamedTuple):
    """What a block is made of.

    Attributes:
        categories: [n, 26], int64, rank of the value from 0; -1: empty.
        integers: [n, 13], int64; -1: empty.
        logits: [n], float64.
        labels: [n], bool.
    """

    categories: NDArray[np.int64]
    integers: NDArray[np.int64]
    logits: NDArray[np.float64]
    labels: NDArray[np.bool_]


class Log:
    """The law that the rows are drawn from.

    Args:
        seed: of truth and rows.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        self._cardinalities = np.array(CARDINALITIES, dtype=np.float64)
        known = np.minimum(np.array(CARDINALITIES), KNOWN)
        # Of each category: the effect of an empty cell, of the known values, and none for all others.
        self._known = known
        self._starts = np.concatenate([[0], np.cumsum(known + 2)[:-1]])
        effects = [np.concatenate([rng.normal(0, 0.25, count + 1), [0.0]]) for count in known]
        self._effects = np.concatenate(effects).astype(np.float32)
        self._pairs = [rng.normal(0, 0.3, (CARDINALITIES[a] + 1, CARDINALITIES[b] + 1)) for a, b in PAIRS]
        self._slopes = rng.normal(0, 0.12, 13).astype(np.float32)
        self._empty = rng.normal(0, 0.12, 13).astype(np.float32)
        self.bias = 0.0
        logits = np.sort(self._draw(0, 4 * BLOCK_ROWS).logits)
        low, high = -10.0, 10.0
        for _ in range(40):
            self.bias = (low + high) / 2
            share = (1 / (1 + np.exp(-(logits + self.bias)))).mean()
            low, high = (self.bias, high) if share < CLICK_SHARE else (low, self.bias)

    def rows(self, block: int, count: int = BLOCK_ROWS) -> Rows:
        """The rows of a block, numbered from 0."""
        return self._draw(block + 1, count)

    def _draw(self, stream: int, count: int) -> Rows:
        rng = np.random.default_rng([self.seed, 1, stream])
        u = rng.random((count, 26))
        u *= u
        u *= u
        u *= self._cardinalities
        categories = u.astype(np.int64)
        categories[rng.random((count, 26), dtype=np.float32) < np.array(EMPTY_CATEGORIES, dtype=np.float32)] = -1
        logs = rng.standard_normal((count, 13), dtype=np.float32)
        logs *= np.array(LOG_DEVIATIONS, dtype=np.float32)
        logs += np.array(LOG_MEANS, dtype=np.float32)
        integers = np.clip(np.expm1(logs), 0, 10**_DIGITS - 1).astype(np.int64)
        is_empty = rng.random((count, 13), dtype=np.float32) < np.array(EMPTY_INTEGERS, dtype=np.float32)
        logs = np.log1p(integers.astype(np.float32)) - np.array(LOG_MEANS, dtype=np.float32)
        numeric = np.where(is_empty, self._empty, logs * (self._slopes / np.array(LOG_DEVIATIONS, dtype=np.float32)))
        integers[is_empty] = -1
        effects = self._effects[np.minimum(categories, self._known) + (self._starts + 1)]
        logits = self.bias + effects.sum(1, dtype=np.float64) + numeric.sum(1, dtype=np.float64)
        for (a, b), table in zip(PAIRS, self._pairs, strict=True):
            logits += table[categories[:, a], categories[:, b]]  # -1 is the last row or column
        return Rows(categories, integers, logits, rng.random(count) < 1 / (1 + np.exp(-logits)))

    def text(self, rows: Rows) -> NDArray[np.uint8]:
        """Rows as the bytes of Criteo's format: all cells padded side by side, then what is not padding."""
        count = len(rows.labels)
        cells = np.full((count, 2 + 13 * (_DIGITS + 1) + 26 * 9), ord("\t"), dtype=np.uint8)
        keep = np.ones(cells.shape, dtype=np.bool_)
        cells[:, 0] = rows.labels + np.uint8(ord("0"))
        end = 2 + 13 * (_DIGITS + 1)
        integers = np.maximum(rows.integers, 0).astype(np.uint32)[:, :, None]
        digits = cells[:, 2:end].reshape(count, 13, _DIGITS + 1)  # a view only where strides allow, hence the copy back
        digits[:, :, :_DIGITS] = integers // _POWERS % np.uint32(10) + np.uint32(ord("0"))
        cells[:, 2:end] = digits.reshape(count, -1)
        shown = np.ones((count, 13, _DIGITS + 1), dtype=np.bool_)
        shown[:, :, :_DIGITS] = (integers >= _POWERS) & (rows.integers >= 0)[:, :, None]
        shown[:, :, _DIGITS - 1] = rows.integers >= 0  # the last digit of 0 is no padding
        keep[:, 2:end] = shown.reshape(count, -1)
        column = np.arange(1, 27, dtype=np.uint64) << np.uint64(40)
        hashes = ((rows.categories.astype(np.uint64) + column) * _GOLDEN) >> np.uint64(32)
        words = np.full((count, 26, 9), ord("\t"), dtype=np.uint8)
        words[:, :, :8] = _HEX[hashes.astype(">u4").view(np.uint8)].view(np.uint8).reshape(count, 26, 8)
        cells[:, end:] = words.reshape(count, -1)
        shown = np.ones((count, 26, 9), dtype=np.bool_)
        shown[:, :, :8] = (rows.categories >= 0)[:, :, None]
        keep[:, end:] = shown.reshape(count, -1)
        cells[:, -1] = ord("\n")
        return cells[keep]

    def write(
        self,
        path: Path,
        rows: int,
        *,
        threads: int = 1,
        progress: Callable[[str, float, float], None] | None = None,
    ) -> dict[str, float]:
        """Write a log; the file has its name only when it is whole.

        Args:
            rows: >= 1.
            threads: blocks that are made at a time, >= 1; the text does not depend on it.
            progress: called with ("generate", rows so far, rows).
        Returns:
            of these labels: "auc" of the true logits, which no model can beat by more than chance; "clicks", a share.
        """
        unfinished = path.with_name(path.name + ".unfinished")
        counts = np.zeros((2, _BINS), dtype=np.int64)
        done = 0
        with unfinished.open("wb") as file:
            for text, of_block in self._blocks(rows, threads):
                file.write(text.data)
                counts += of_block
                done = int(counts.sum())
                if progress is not None:
                    progress("generate", done, rows)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        negatives, positives = counts
        below = np.cumsum(negatives) - 0.5 * negatives
        wins = float((positives * below).sum())
        return {
            "auc": wins / max(1.0, float(positives.sum()) * float(negatives.sum())),
            "clicks": float(positives.sum() / rows),
        }

    def _blocks(self, rows: int, threads: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[Any]]]:
        """Text and counts [2, bins] of each block, in order."""

        def make(block: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
            some = self.rows(block, min(BLOCK_ROWS, rows - block * BLOCK_ROWS))
            bins = np.clip((some.logits + _RANGE) * (_BINS / (2 * _RANGE)), 0, _BINS - 1).astype(np.int64)
            counts = np.bincount(bins + some.labels * _BINS, minlength=2 * _BINS).reshape(2, _BINS)
            return self.text(some), counts

        with ThreadPoolExecutor(threads) as pool:
            coming: deque[Future[tuple[NDArray[np.uint8], NDArray[Any]]]] = deque()
            for block in range((rows + BLOCK_ROWS - 1) // BLOCK_ROWS):
                coming.append(pool.submit(make, block))
                if len(coming) > 2 * threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
