"""`ClickPart`: the rows of one part of a click log, in memory or memory-mapped, as a stream of shuffled batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deeprec.data.columns.inputs import Bags, Encoded
from deeprec.data.columns.rows import join, join_bags, take, take_bags
from deeprec.data.random_bits import random_bits

BLOCK_ROWS = (
    8192  # consecutive on the disk: 1.3 MB of Criteo, so that reading blocks in any order is as fast as in order
)
WINDOW_ROWS = 1 << 20
WINDOW_BYTES = 256 << 20
# Streams of a seed; those of an epoch are (epoch << 8) + stream.
_BLOCKS, _ROWS, _NEGATIVES, _SAMPLE = 0x61, 0x62, 0x63, 0x64

Mask = NDArray[np.bool_]
Array = TypeVar("Array", bound=NDArray[Any])
Window = tuple[Encoded, NDArray[np.int64]]  # rows in memory, and the order to take them in


class ClickPart:
    """The rows of one part of a `ClickLog`.

    Attributes:
        ids: [n, F], int32.
        values: [n, P], float32, finite.
        labels: [n], float32, 0 or 1.
        groups: [n], int64, or None.
        bags: name to `Bags`.
        negative_rate: share of the negatives that is here, in (0, 1]; 1 unless `downsampled`.

    Of a converted log the arrays are memory-mapped, read-only. Of a downsampled part each access copies the kept rows.
    """

    def __init__(self, data: Encoded, *, keep: Mask | None = None, negative_rate: float = 1.0) -> None:
        if data.labels is None:
            raise ValueError("ClickPart: rows must have labels, got none; encode them with_labels=True")
        self._data, self._keep, self.negative_rate = data, keep, negative_rate
        self._rows = len(data) if keep is None else int(keep.sum())
        self._positives: int | None = None

    def __len__(self) -> int:
        return self._rows

    @property
    def ids(self) -> NDArray[np.int32]:
        return self._kept(self._data.ids)

    @property
    def values(self) -> NDArray[np.float32]:
        return self._kept(self._data.values)

    @property
    def labels(self) -> NDArray[np.float32]:
        assert self._data.labels is not None
        return self._kept(self._data.labels)

    @property
    def groups(self) -> NDArray[np.int64] | None:
        return None if self._data.groups is None else self._kept(self._data.groups)

    @property
    def bags(self) -> dict[str, Bags]:
        if self._keep is None:
            return self._data.bags
        rows = np.flatnonzero(self._keep)
        return {name: take_bags(bags, rows) for name, bags in self._data.bags.items()}

    @property
    def positives(self) -> int:
        """Number of rows with label 1."""
        if self._positives is None:
            self._positives = int(self.labels.sum(dtype=np.float64))
        return self._positives

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        skip: int = 0,
        window_rows: int | None = None,
    ) -> Iterator[Encoded]:
        """All rows once, in batches of freshly gathered contiguous arrays; the last one may be shorter.

        Args:
            batch_size: rows a batch, >= 1.
            seed: None keeps the order of the part. Otherwise blocks of 8192 consecutive rows are read in random order
                and the rows of a window of them are permuted; a part that is not larger than the window, or in memory
                (8 bytes a row), is permuted as a whole. The same seed, epoch and window give the same batches.
            epoch: >= 0; each has an order of its own.
            skip: leave out so many batches at the beginning, without reading them, >= 0.
            window_rows: rows held at a time, >= 1; None: 2^20, or 256 MiB of them where that is fewer. One window is in
                use while a background thread reads the next, which ends with the iterator, however that ends.
        Raises:
            ValueError: a batch_size, epoch or window_rows out of range.
        """
        given = {"batch_size": (batch_size, 1), "epoch": (epoch, 0), "skip": (skip, 0), "window_rows": (window_rows, 1)}
        for name, (value, least) in given.items():
            if value is not None and value < least:
                raise ValueError(f"ClickPart.batches: {name} must be >= {least}, got {value}")
        window_rows = window_rows or max(batch_size, min(WINDOW_ROWS, int(WINDOW_BYTES / self._row_bytes())))
        return self._batches(batch_size, self._windows(seed, epoch, skip * batch_size, window_rows))

    def downsampled(self, rate: float, seed: int = 0) -> ClickPart:
        """A view of all positives and a random share of the negatives.

        A model trained on it predicts odds 1 / rate times too high: add log(rate) to its logits.

        Args:
            rate: probability that a negative is kept, in (0, 1].
            seed: the same seed keeps the same rows.
        Returns:
            The view, with `negative_rate` = rate; 1 byte a row.
        """
        if not 0 < rate <= 1:
            raise ValueError(f"ClickPart.downsampled: rate must lie in (0, 1], got {rate}")
        if self._keep is not None:
            raise ValueError(
                f"ClickPart.downsampled: this part is at rate {self.negative_rate}; downsample the whole one"
            )
        keep = np.empty(len(self), dtype=np.bool_)
        labels = self._data.labels
        assert labels is not None
        for start in range(0, len(self), WINDOW_ROWS):
            window = slice(start, min(start + WINDOW_ROWS, len(self)))
            drawn = random_bits(seed, _NEGATIVES, np.arange(window.start, window.stop)) >> np.uint64(11)
            keep[window] = (labels[window] == 1) | (drawn < rate * 2**53)
        return ClickPart(self._data, keep=keep, negative_rate=rate)

    def sampled(self, count: int, seed: int = 0) -> ClickPart:
        """A copy in memory of about `count` rows, in their order; the same seed draws the same rows.

        Args:
            count: expected number of rows, >= 1; at least as many as there are: all of them, and no copy.
        """
        if count < 1:
            raise ValueError(f"ClickPart.sampled: count must be >= 1, got {count}")
        if count >= len(self):
            return self
        rows = np.arange(len(self._data)) if self._keep is None else np.flatnonzero(self._keep)
        drawn = random_bits(seed, _SAMPLE, rows) >> np.uint64(11)
        rows = rows[drawn < count / len(self) * 2**53]
        return ClickPart(take(self._data, rows), negative_rate=self.negative_rate)

    def _kept(self, array: Array) -> Array:
        return array if self._keep is None else array[self._keep]  # type: ignore[return-value]

    def _row_bytes(self) -> float:
        data = self._data
        arrays = [data.ids, data.values, data.labels, data.groups]
        arrays += [array for bags in data.bags.values() for array in bags]
        return max(1.0, sum(array.nbytes for array in arrays if array is not None) / max(1, len(data)))

    def _batches(self, size: int, windows: Iterator[Window]) -> Iterator[Encoded]:
        """Rows of the windows in their order; a batch may begin in one window and end in the next."""
        begun: list[Encoded] = []
        missing = 0
        with closing(windows):  # type: ignore[type-var]  # a generator
            for data, order in windows:
                start = min(missing, len(order))
                if start:
                    begun.append(take(data, order[:start]))
                    missing -= start
                    if missing:
                        continue
                    yield join(begun)
                    begun = []
                end = start + (len(order) - start) // size * size
                for at in range(start, end, size):
                    yield take(data, order[at : at + size])
                if end < len(order):
                    begun, missing = [take(data, order[end:])], size - (len(order) - end)
            if begun:
                yield join(begun)

    def _windows(self, seed: int | None, epoch: int, skip_rows: int, window_rows: int) -> Iterator[Window]:
        if not isinstance(self._data.labels, np.memmap):
            rows = np.arange(len(self)) if self._keep is None else np.flatnonzero(self._keep)
            rows = rows if seed is None else rows[_permutation(seed, epoch, _ROWS, 0, len(rows))]
            yield self._data, rows[skip_rows:]
            return
        block_rows = max(1, min(BLOCK_ROWS, window_rows // 8))
        starts = np.arange(0, len(self._data), block_rows)
        kept = np.diff(np.append(starts, len(self._data)))
        if self._keep is not None:
            kept = np.add.reduceat(self._keep, starts, dtype=np.int64)
        per_window = len(starts)
        if len(self) > window_rows:
            per_window = max(1, int(window_rows * len(starts) / len(self)))
            order = np.arange(len(starts)) if seed is None else _permutation(seed, epoch, _BLOCKS, 0, len(starts))
            starts, kept = starts[order], kept[order]
        windows = np.arange(0, len(starts), per_window)
        ends = np.cumsum(np.add.reduceat(kept, windows))

        def load(window: int) -> Window:
            data = self._read(starts[windows[window] :][:per_window], block_rows)
            rows = np.arange(len(data))
            if seed is not None:
                rows = _permutation(seed, epoch, _ROWS, window << 32, len(data))
            return data, rows[max(0, skip_rows - int(ends[window]) + len(data)) :]

        first = int(np.searchsorted(ends, skip_rows, "right"))
        pool = ThreadPoolExecutor(1, thread_name_prefix="deeprec-batches")
        try:
            coming = pool.submit(load, first) if first < len(windows) else None
            for window in range(first + 1, len(windows) + 1):
                assert coming is not None
                current = coming.result()
                coming = pool.submit(load, window) if window < len(windows) else None
                yield current
                del current
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, starts: NDArray[np.int64], block_rows: int) -> Encoded:
        """The kept rows of the blocks that begin at `starts`, one after the other, in memory."""
        blocks = [(int(start), min(int(start) + block_rows, len(self._data))) for start in starts]
        data, keep = self._data, self._keep
        return Encoded(
            ids=_read_blocks(data.ids, blocks, keep),
            values=_read_blocks(data.values, blocks, keep),
            bags={name: _read_bags(bags, blocks, keep) for name, bags in data.bags.items()},
            labels=_read_blocks(data.labels, blocks, keep),
            groups=None if data.groups is None else _read_blocks(data.groups, blocks, keep),
        )


def _permutation(seed: int, epoch: int, stream: int, first: int, length: int) -> NDArray[np.int64]:
    """A permutation of 0 .. length - 1 that no version of NumPy changes: the order of random numbers."""
    bits = random_bits(seed, (epoch << 8) + stream, np.arange(first, first + length))
    return np.argsort(bits)


def _read_blocks(array: Any, blocks: list[tuple[int, int]], keep: Mask | None) -> Any:
    """The kept rows of the blocks of a memory-mapped array."""
    sizes = [stop - start if keep is None else int(keep[start:stop].sum()) for start, stop in blocks]
    ends = np.cumsum([0, *sizes])
    out = np.empty((int(ends[-1]), *array.shape[1:]), dtype=array.dtype)
    for (start, stop), begin, end in zip(blocks, ends[:-1], ends[1:], strict=True):
        rows = _read_rows(array, start, stop)
        out[begin:end] = rows if keep is None else rows[keep[start:stop]]
    return out


def _read_bags(bags: Bags, blocks: list[tuple[int, int]], keep: Mask | None) -> Bags:
    parts = []
    for start, stop in blocks:
        offsets = _read_rows(bags.offsets, start, stop + 1)
        first, last = int(offsets[0]), int(offsets[-1])
        weights = None if bags.weights is None else _read_rows(bags.weights, first, last)
        block = Bags(_read_rows(bags.ids, first, last), offsets - first, weights)
        parts.append(block if keep is None else take_bags(block, np.flatnonzero(keep[start:stop])))
    return join_bags(parts)


def _read_rows(array: Any, start: int, stop: int) -> Any:
    """Rows of a file by reading them: touched pages of a mapping would count as memory of this process."""
    if not isinstance(array, np.memmap) or array.filename is None:
        return array[start:stop]  # an empty array has no file to map
    width = math.prod(array.shape[1:])
    count, offset = (stop - start) * width, start * width * array.itemsize
    rows = np.fromfile(array.filename, dtype=array.dtype, count=count, offset=offset)
    if len(rows) != count:
        raise ValueError(f"ClickPart: {array.filename} has become shorter; convert the log again")
    return rows.reshape(stop - start, *array.shape[1:])
