"""Where converted rows go: arrays in memory, or files that appear together when all is written."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deeprec.data.columns.inputs import BagField, Bags, Encoded, Inputs, TextField
from deeprec.data.columns.rows import join
from deeprec.data.reading.errors import reading


class Writer:
    """Counts what it is given.

    Attributes:
        rows, positives: so far.
        nnz: entries of each bag so far.
        data: the rows, or None where they are in files.
    """

    data: Encoded | None = None

    def __init__(self, inputs: Inputs) -> None:
        self.rows = self.positives = 0
        self.nnz = {bag.name: 0 for bag in inputs.compressed}

    def append(self, rows: Encoded) -> None:
        """Take some rows, with labels."""
        assert rows.labels is not None
        self.rows += len(rows)
        self.positives += int(rows.labels.sum(dtype=np.float64))
        for name, bags in rows.bags.items():
            self.nnz[name] += len(bags.ids)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class MemoryWriter(Writer):
    """Arrays in memory, joined at the end."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        self._blocks: list[Encoded] = []

    def append(self, rows: Encoded) -> None:
        super().append(rows)
        self._blocks.append(rows)

    def __exit__(self, *error: object) -> None:
        if self._blocks and error[0] is None:
            self.data = join(self._blocks)
        self._blocks = []


class FileWriter(Writer):
    """Arrays row after row, each in a file of its own."""

    def __init__(self, directory: Path, inputs: Inputs) -> None:
        super().__init__(inputs)
        directory.mkdir()
        self._directory = directory
        self._files: dict[str, BinaryIO] = {}
        for at in range(len(self.nnz)):
            self._write(f"bag{at}_offsets", np.zeros(1, dtype=np.int64))

    def append(self, rows: Encoded) -> None:
        for at, (name, bags) in enumerate(rows.bags.items()):
            self._write(f"bag{at}_offsets", bags.offsets[1:] + self.nnz[name])
            self._write(f"bag{at}_ids", bags.ids)
            self._write(f"bag{at}_weights", bags.weights)
        super().append(rows)
        for name in ("ids", "values", "labels", "groups"):
            self._write(name, getattr(rows, name))

    def _write(self, name: str, array: NDArray[Any] | None) -> None:
        if array is None or not array.size:
            return
        if name not in self._files:
            self._files[name] = (self._directory / f"{name}.bin").open("wb")
        little = array if sys.byteorder == "little" else array.astype(array.dtype.newbyteorder("<"))
        self._files[name].write(np.ascontiguousarray(little).data)

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            with file:
                if error[0] is None:
                    file.flush()
                    os.fsync(file.fileno())


def mapped(directory: Path, inputs: Inputs, rows: int, nnz: dict[str, int], *, has_groups: bool) -> Encoded:
    """The arrays of a part; ValueError for a file that is not as long as it must be."""

    def array(name: str, dtype: str, *shape: int) -> Any:
        path = directory / f"{name}.bin"
        size = math.prod(shape) * np.dtype(dtype).itemsize
        got = path.stat().st_size if path.is_file() else 0
        if got != size:
            raise ValueError(f"ClickLog.open: {path} must be {size:,} bytes, got {got:,}; convert the log again")
        with reading(path, function="ClickLog.open"):
            return np.memmap(path, dtype, "r", shape=shape) if size else np.empty(shape, dtype)

    bags = {
        bag.name: Bags(
            array(f"bag{at}_ids", "u1" if isinstance(bag, TextField) else "<i4", nnz[bag.name]),
            array(f"bag{at}_offsets", "<i8", rows + 1),
            array(f"bag{at}_weights", "<f4", nnz[bag.name]) if isinstance(bag, BagField) and bag.is_weighted else None,
        )
        for at, bag in enumerate(inputs.compressed)
    }
    return Encoded(
        ids=array("ids", "<i4", rows, len(inputs.fields)),
        values=array("values", "<f4", rows, inputs.num_values),
        bags=bags,
        labels=array("labels", "<f4", rows),
        groups=array("groups", "<i8", rows) if has_groups else None,
    )
