"""A 64-bit hash of text that never changes, and vocabularies of hashes.

The hash (`TEXT_HASH_VERSION` 1, csrc/host/text_hash.h): all arithmetic modulo 2^64, words little-endian.

    mix(x): x ^= x >> 30; x *= 0xBF58476D1CE4E5B9; x ^= x >> 27; x *= 0x94D049BB133111EB; x ^= x >> 31
    h = length * 0x9E3779B97F4A7C15
    for each 8 bytes, the last ones filled up with zero bytes:  h = mix(h ^ word)
    0 becomes 0x9E3779B97F4A7C15, as 0 means missing

`mix` is the finaliser of splitmix64 (Steele, Lea and Flood 2014, with the constants of Stafford's variant 13); as it
is a bijection, two texts of one length of at most 8 bytes never collide. Ten million other values collide with
probability 3e-6 altogether.

Values are hashed by their text in UTF-8, after the few spellings that writers differ in are made one:

    "True", "False" -> "true", "false"     a boolean of a frame is the same text
    "12.0", "-3.0"  -> "12", "-3"          digits without leading zeros, then ".0": what a column of integers becomes
                                           once pandas has met a missing value in it
    12.0 (number)   -> "12"                below 2^53; another float is the text polars gives it, "0.5"
    12              -> "12"                so an integer, its text and its float are the same value
    "", null, NaN   -> 0, missing

Nothing else is changed: "007", "+3", " a" and "A" are themselves. Who reads a column of categories or bags takes the
blanks around a value away first (`hash_values`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._compiled import host as _host
from deeprec.data.reading.arrays import without_nulls
from deeprec.data.reading.frames import plain_texts, series_of, series_of_values

TEXT_HASH_VERSION = 1

Hashes = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_INTEGRAL_FLOAT = re.compile(rb"(-?[1-9][0-9]*|0)\.0")
_FEW = 256
_LARGEST_EXACT = float(1 << 53)  # from here on a float stands for several integers


def hash_text(values: Any) -> Hashes:
    """The 64-bit hash of each value, as the module says; 0 where it is missing (empty, null or NaN).

    Args:
        values: polars or pandas Series, NumPy array, or any iterable of strings, numbers and None.
    Returns:
        [n], uint64.
    Raises:
        TypeError: values that are not text, bytes, numbers, booleans or times.

    >>> int(hash_text(["a"])[0]) == int(hash_text(["", "a"])[1])
    True
    >>> hash_text([3, None]).tolist() == hash_text(["3", ""]).tolist() == hash_text([3.0, float("nan")]).tolist()
    True
    """
    return hash_series(as_series(values))


def as_series(values: Any, name: str = "") -> pl.Series:
    """`values` as a polars Series; plain Python values of mixed types become their text, None stays missing."""
    if isinstance(values, pl.Series):
        return plain_texts(values)
    if hasattr(values, "to_numpy") and hasattr(values, "dtype"):  # pandas
        return plain_texts(series_of(values, name))
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return pl.Series(name, values)
    return plain_texts(series_of_values(list(values), name))


def hash_values(series: pl.Series) -> Hashes:
    """`hash_series` of values of a category: blanks (spaces and tabs) around a text are no part of it."""
    if not isinstance(series.dtype, pl.String | pl.Categorical | pl.Enum):
        return hash_series(series)
    offsets, data = buffers(series.cast(pl.String))
    hashes = hash_buffers(offsets, data)
    letters = np.frombuffer(data, dtype=np.uint8)
    rows = np.flatnonzero(offsets[1:] > offsets[:-1])
    ends = np.stack([letters[offsets[rows]], letters[offsets[rows + 1] - 1]])
    rows = rows[((ends == ord(" ")) | (ends == ord("\t"))).any(axis=0)]
    if len(rows):
        texts = [data[offsets[row] : offsets[row + 1]].strip(b" \t") for row in rows.tolist()]
        hashes = hashes.copy()
        hashes[rows] = hash_series(pl.Series(texts, dtype=pl.Binary))
    return hashes


def hash_series(series: pl.Series) -> Hashes:
    """`hash_text` of a polars Series."""
    kind = series.dtype
    if kind in (pl.String, pl.Binary):
        return hash_buffers(*buffers(series))
    if isinstance(kind, (pl.Categorical, pl.Enum)):
        return hash_buffers(*buffers(series.cast(pl.String)))
    if kind == pl.Boolean:
        false, true = hash_text(["false", "true"])
        values, known = without_nulls(series, False)
        return _blank(np.where(values, true, false), ~known)
    if kind.is_integer():
        values, known = without_nulls(series, 0)
        return _blank(_hash_integers(values), ~known)
    if kind.is_float():
        return _hash_floats(series)
    if kind == pl.Null:
        return np.zeros(len(series), dtype=np.uint64)
    if kind.is_temporal() or kind.is_decimal():
        return hash_buffers(*buffers(series.cast(pl.String)))
    raise TypeError(
        f"hash_text: values must be text, numbers, booleans or times, got {kind}; "
        "declare a column of lists as a bag, or cast it to text"
    )


def _blank(hashes: Any, missing: NDArray[np.bool_]) -> Hashes:
    out: Hashes = np.ascontiguousarray(hashes, dtype=np.uint64)
    return np.where(missing, np.uint64(0), out) if missing.any() else out


def _hash_integers(values: NDArray[Any]) -> Hashes:
    if _host is not None and values.dtype.kind in "iu":
        wide = values.astype(np.uint64 if values.dtype == np.uint64 else np.int64, copy=False)
        return np.asarray(_host.hash_integers(wide))
    return hash_buffers(*buffers(pl.Series(values).cast(pl.String)))


def _hash_floats(series: pl.Series) -> Hashes:
    values = series.to_numpy()  # a null is NaN
    missing = np.isnan(values)
    values = np.where(missing, np.zeros((), values.dtype), values)
    integral = (np.abs(values) < _LARGEST_EXACT) & (values == np.floor(values))
    hashes = _hash_integers(np.where(integral, values, 0).astype(np.int64))
    others = np.flatnonzero(~integral)
    if len(others):
        hashes = hashes.copy()
        hashes[others] = hash_buffers(*buffers(pl.Series(values[others]).cast(pl.String)))
    return _blank(hashes, missing)


def buffers(series: pl.Series) -> tuple[NDArray[np.int64], bytes]:
    """Arrow's form of a column of text or bytes: offsets [n + 1], int64, and all bytes; null as empty text."""
    if series.dtype == pl.Binary or len(series) <= _FEW:  # an expression of polars costs as much as many of Python
        parts = [part.encode() if isinstance(part, str) else part or b"" for part in series.to_list()]
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        data = b"".join(parts)
    else:
        lengths = without_nulls(series.str.len_bytes(), 0)[0].astype(np.int64)
        data = (series.str.join("").item() or "").encode() if len(series) else b""
    offsets = np.zeros(len(series) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets, data


def hash_buffers(offsets: NDArray[np.int64], data: Any) -> Hashes:
    """The hash of text i = data[offsets[i]:offsets[i + 1]], spellings made one; 0 for empty text.

    Args:
        offsets: [n + 1], int64, ascending, from 0 or above to at most len(data).
        data: bytes, or a contiguous array of uint8.
    """
    if _host is not None:
        return np.asarray(_host.hash_buffers(offsets, data))
    return _hash_buffers_python(offsets, data)


def _hash_buffers_python(offsets: NDArray[np.int64], data: Any) -> Hashes:
    """What `_host.hash_buffers` does: same arguments, same answer."""
    are_valid = offsets.ndim == 1 and len(offsets) >= 1 and offsets[0] >= 0 and offsets[-1] <= len(data)
    if not are_valid or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(
            f"hash_buffers: offsets must be [n + 1], ascending from 0 or above to at most the {len(data)} bytes of data"
        )
    starts, lengths = offsets[:-1], np.diff(offsets)
    padded = np.zeros(len(data) + 8, dtype=np.uint8)
    padded[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    words = np.ndarray((len(padded) - 7,), dtype="<u8", buffer=padded.data, strides=(1,))  # the word at each byte
    lengths = _one_spelling(starts, lengths, padded, words)
    hashes = lengths.astype(np.uint64) * _GOLDEN
    rows = np.flatnonzero(lengths > 0)
    done = 0
    while len(rows):
        left = np.minimum(lengths[rows] - done, 8).astype(np.uint64)
        word = words[starts[rows] + done]
        word &= np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - np.uint64(8) * left)
        hashes[rows] = mix(hashes[rows] ^ word)
        done += 8
        rows = rows[lengths[rows] > done]
    hashes[(hashes == 0) & (lengths > 0)] = _GOLDEN
    return hashes


def _one_spelling(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], padded: NDArray[np.uint8], words: Hashes
) -> NDArray[np.int64]:
    """Lengths without a final ".0" of an integer; writes the small letters of True and False into `padded`."""
    for text in (b"True", b"False"):
        rows = np.flatnonzero(lengths == len(text))
        word = np.uint64(int.from_bytes(text, "little"))
        mask = np.uint64((1 << 8 * len(text)) - 1)
        padded[starts[rows[(words[starts[rows]] & mask) == word]]] += 32
    rows = np.flatnonzero((lengths > 2) & (lengths < 20))
    ends = starts[rows] + lengths[rows]
    rows = rows[(padded[ends - 2] == ord(".")) & (padded[ends - 1] == ord("0"))]
    lengths = lengths.copy()
    for row in rows:
        if _INTEGRAL_FLOAT.fullmatch(padded[starts[row] : starts[row] + lengths[row]].tobytes()):
            lengths[row] -= 2
    return lengths


def mix(x: Hashes) -> Hashes:
    """The finaliser of splitmix64 (the module's formula), elementwise."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_bytes(text: bytes) -> int:
    """The hash of one text."""
    return int(hash_buffers(np.array([0, len(text)], dtype=np.int64), text)[0])


class VocabularyLike(Protocol):
    """What `Vocabulary()` returns."""

    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def count(self, hashes: Hashes, mask: NDArray[np.bool_] | None = None) -> None: ...
    def finish(self, min_count: int = 1, max_size: int | None = None) -> tuple[Hashes, NDArray[np.int64]]: ...
    def lookup(self, hashes: Hashes) -> NDArray[np.int32]: ...


class PythonVocabulary:
    """What `_host.Vocabulary` does, with sorted arrays: same methods, same answers."""

    def __init__(self, hashes: Any = None) -> None:
        self._keys = np.empty(0, dtype=np.uint64)
        self._counts = np.empty(0, dtype=np.int64)
        self._ids: NDArray[np.int32] | None = None
        if hashes is not None:
            given = np.ascontiguousarray(hashes, dtype=np.uint64)
            order = np.argsort(given, kind="stable")
            self._keys = given[order]
            self._ids = (order + 1).astype(np.int32)
            if len(given) > 1 and (self._keys[1:] == self._keys[:-1]).any():
                raise ValueError("Vocabulary: hashes must be distinct, got one twice; pass what finish() returned")

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._keys.nbytes + self._counts.nbytes

    def count(self, hashes: Hashes, mask: NDArray[np.bool_] | None = None) -> None:
        """Count each value, where `mask` is true."""
        if self._ids is not None:
            raise ValueError("Vocabulary.count: this one has its ids; count into a new Vocabulary()")
        hashes = np.asarray(hashes, dtype=np.uint64)
        if mask is not None:
            if np.shape(mask) != hashes.shape:
                raise ValueError(f"Vocabulary.count: mask must be {hashes.shape}, got {np.shape(mask)}")
            hashes = hashes[np.asarray(mask, dtype=np.bool_)]
        new, counts = np.unique(hashes, return_counts=True)
        keys, inverse = np.unique(np.concatenate([self._keys, new]), return_inverse=True)
        merged = np.zeros(len(keys), dtype=np.int64)
        np.add.at(merged, inverse, np.concatenate([self._counts, counts]))
        self._keys, self._counts = keys, merged

    def finish(self, min_count: int = 1, max_size: int | None = None) -> tuple[Hashes, NDArray[np.int64]]:
        """(hashes, counts) of the values counted at least `min_count` times, most frequent first, ties by hash."""
        keep = self._counts >= min_count
        keys, counts = self._keys[keep], self._counts[keep]
        order = np.lexsort((keys, -counts))[:max_size]
        return keys[order], counts[order]

    def lookup(self, hashes: Hashes) -> NDArray[np.int32]:
        """[n], int32: 1 + the position of each value among the hashes given at construction, 0 for another."""
        if self._ids is None:
            raise ValueError("Vocabulary.lookup: this one counts; make Vocabulary(hashes) of what finish() returned")
        hashes = np.asarray(hashes, dtype=np.uint64)
        if not len(self._keys):
            return np.zeros(len(hashes), dtype=np.int32)
        at = np.minimum(np.searchsorted(self._keys, hashes), len(self._keys) - 1)
        return np.where(self._keys[at] == hashes, self._ids[at], 0).astype(np.int32)


def Vocabulary(hashes: Hashes | Iterable[int] | None = None) -> VocabularyLike:
    """Distinct values and how often they occur, or their ids.

    `Vocabulary()` counts: `count(hashes, mask=None)` any number of times, then
    `finish(min_count, max_size) -> (hashes, counts)`, most frequent first, ties by hash. `Vocabulary(hashes)` of such
    (or saved) hashes looks up: `lookup(hashes) -> int32 ids`, 1 + position, 0 unknown. A missing value (0) is a value
    like others.

    Memory: 16 bytes a slot of a hash table that is 35 to 70% full, so 23 to 46 bytes a distinct value, and half as
    much again for a moment while it grows: 268 MB for ten million values, 403 MB while growing. `finish` takes 16
    bytes more for each value that it returns.
    """
    if _host is not None:
        made: VocabularyLike = _host.Vocabulary() if hashes is None else _host.Vocabulary(np.asarray(hashes, np.uint64))
        return made
    return PythonVocabulary(hashes)
