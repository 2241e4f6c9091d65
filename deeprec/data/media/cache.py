"""A cache on the disk: rows of one shape by the hash of the content they were made of, read through a memory map."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deeprec._files import make_folder, only_process, read_json, write_atomically, writing

_ABOUT, _ROWS, _INDEX = "cache.json", "rows.bin", "index.bin"
_FORMAT = 1
_ENTRY = np.dtype([("key", "S16"), ("length", "<i8"), ("check", "<u4")])
_REMEDY = "delete the folder, it is made again"


def content_key(file: BinaryIO) -> bytes:
    """The BLAKE2b hash of a file's bytes, 16 bytes; the file is left at its beginning."""
    digest = hashlib.blake2b(digest_size=16)
    while part := file.read(1 << 20):
        digest.update(part)
    file.seek(0)
    return digest.digest()


class ContentCache:
    """Rows by the hash of a content; rows are only ever added.

    Rows are written before the index that names them, and what is beyond the last whole entry of the index is written
    over: a process that was killed loses the rows of its last call at most. One process at a time can write; any number
    can read at the same time, and sees what was there when it opened the cache.

    Made by `writing_cache` or `reading_cache`.

    Attributes:
        folder: of cache.json, rows.bin and index.bin.
        shape, dtype: of a row.
    """

    def __init__(self, folder: Path, shape: Sequence[int], dtype: Any, *, can_write: bool) -> None:
        self.folder, self.shape, self.dtype = folder, tuple(shape), np.dtype(dtype)
        self._can_write = can_write
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape)
        index = self._entries()
        self._rows = {entry.tobytes()[:16]: at for at, entry in enumerate(index)}
        self._lengths = index["length"].tolist()
        self._map: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def row(self, key: bytes) -> int | None:
        """The row of a content, or None."""
        return self._rows.get(key)

    def take(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Rows [n, *shape] in memory, and their lengths [n]."""
        if self._map is None or len(self._map) < len(self):
            size = (len(self), *self.shape)
            path = self.folder / _ROWS
            self._map = np.memmap(path, self.dtype, "r", shape=size) if len(self) else np.empty(size, self.dtype)
        lengths = np.asarray(self._lengths, dtype=np.int64)
        return np.asarray(self._map[rows]), lengths[rows]

    def add(self, keys: Sequence[bytes], values: NDArray[Any], lengths: Sequence[int]) -> list[int]:
        """Keep rows that are not there yet, on the disk when it returns.

        Args:
            keys: of `content_key`, [n]. values: [n, *shape]. lengths: [n].
        Returns:
            the row of each key.
        Raises:
            WriteError: a full disk; the cache is then as it was.
        """
        if not self._can_write:
            raise ValueError(f"ContentCache.add: {self.folder} is open for reading; open it by writing_cache")
        new = [at for at, key in enumerate(keys) if key not in self._rows and key not in keys[:at]]
        rows = np.ascontiguousarray(values[new], dtype=self.dtype)
        entries = np.zeros(len(new), dtype=_ENTRY)
        for place, at in enumerate(new):
            entries[place] = (keys[at], lengths[at], _check(keys[at], lengths[at]))
        self._write(_ROWS, len(self) * self._row_bytes, rows.tobytes())
        self._write(_INDEX, len(self) * _ENTRY.itemsize, entries.tobytes())
        for at in new:
            self._rows[keys[at]] = len(self._lengths)
            self._lengths.append(int(lengths[at]))
        return [self._rows[key] for key in keys]

    def _write(self, name: str, at: int, content: bytes) -> None:
        path = self.folder / name
        with writing(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            with os.fdopen(handle, "r+b") as file:
                file.seek(at)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    def _entries(self) -> NDArray[Any]:
        """The entries of the index up to the first that is not whole, or whose row is not there."""
        index, rows = self.folder / _INDEX, self.folder / _ROWS
        if not index.exists() or not rows.exists():
            return np.zeros(0, dtype=_ENTRY)
        content = index.read_bytes()
        count = min(len(content) // _ENTRY.itemsize, rows.stat().st_size // self._row_bytes)
        entries = np.frombuffer(content, dtype=_ENTRY, count=count)
        for at, entry in enumerate(entries):
            if entry["check"] != _check(entry.tobytes()[:16], int(entry["length"])):
                return entries[:at]
        return entries


def _check(key: bytes, length: int) -> int:
    digest = hashlib.blake2b(key + length.to_bytes(8, "little", signed=True), digest_size=4)
    return int.from_bytes(digest.digest(), "little")


def cache_folder(parent: Path, identity: str) -> Path:
    """Where below `parent` the rows of one decoder or encoder lie."""
    return parent / hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


@contextlib.contextmanager
def writing_cache(parent: Path, identity: str, shape: Sequence[int], dtype: Any) -> Iterator[ContentCache]:
    """The cache of rows that `identity` made, to be read and added to; made if it is not there.

    Args:
        parent: folder of caches.
        identity: what makes the rows, with all its options and the hash of its weights.
    Raises:
        ValueError: another process adds to it, or it is damaged. WriteError: the folder cannot be written.
    """
    folder = cache_folder(parent, identity)
    make_folder(folder)
    with only_process(folder, f"ContentCache: {folder}", "wait for it to end, or choose another folder"):
        if not (folder / _ABOUT).exists():
            about = {"format": _FORMAT, "identity": identity, "shape": list(shape), "dtype": np.dtype(dtype).str}
            write_atomically(folder / _ABOUT, json.dumps(about, indent=1).encode())
        _check_about(folder, identity, shape, dtype)
        yield ContentCache(folder, shape, dtype, can_write=True)


def reading_cache(parent: Path, identity: str, shape: Sequence[int], dtype: Any) -> ContentCache | None:
    """The same to be read alone, or None where there is none."""
    folder = cache_folder(parent, identity)
    if not (folder / _ABOUT).exists():
        return None
    _check_about(folder, identity, shape, dtype)
    return ContentCache(folder, shape, dtype, can_write=False)


def _check_about(folder: Path, identity: str, shape: Sequence[int], dtype: Any) -> None:
    about = read_json(folder / _ABOUT, "ContentCache", _REMEDY)
    expected = {"format": _FORMAT, "identity": identity, "shape": list(shape), "dtype": np.dtype(dtype).str}
    for name, value in expected.items():
        if about.get(name) != value:
            raise ValueError(f"ContentCache: {folder}: {name} must be {value}, got {about.get(name)}; {_REMEDY}")
