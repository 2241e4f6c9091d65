"""Texts to the hashes of their tokens: words, letter trigrams or characters; whole columns at once."""

from __future__ import annotations

import unicodedata

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.reading.hashing import hash_buffers
from deeprec.data.reading.separated import BagChunk

_MARK = np.uint32(ord("#"))
_BATCH = 1 << 22  # characters at a time: some ten bytes each, and eight times that for trigrams

Points = NDArray[np.uint32]


def token_hashes(texts: pl.Series, tokens: str) -> BagChunk:
    """The hashes of the tokens of each text, in their order.

    Args:
        texts: of type String; a null is an empty text.
        tokens: "words", "trigrams" or "characters", as of a `Text` column.
    """
    small = [(text or "").lower() for text in texts.to_list()]
    lengths = np.fromiter(map(len, small), dtype=np.int64, count=len(small))
    batch = np.cumsum(lengths) // _BATCH
    parts = [
        _tokens("".join(small[start:stop]), lengths[start:stop], tokens)
        for start, stop in zip(*_runs(batch), strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    counts = [np.diff(part.offsets) for part in parts]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *counts]))])
    return BagChunk(offsets.astype(np.int64), np.concatenate([np.empty(0, np.uint64), *(p.hashes for p in parts)]))


def _runs(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last + 1 of each run of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    return starts, np.append(starts[1:], len(values))[: len(starts)]


def _tokens(text: str, lengths: NDArray[np.int64], tokens: str) -> BagChunk:
    points: Points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint32)
    row = np.repeat(np.arange(len(lengths)), lengths)
    if tokens == "characters":
        starts, ends = np.arange(len(points)), np.arange(1, len(points) + 1)
    else:
        starts, ends = _words(points, row)
        if tokens == "trigrams":
            points, starts, ends, row = _trigrams(points, starts, ends, row)
    counts = np.bincount(row[starts], minlength=len(lengths))
    hashes = _hashes(points, starts, ends)
    return BagChunk(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), hashes)


def _words(points: Points, row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where runs of letters, their marks and digits begin and end, each within a row."""
    distinct, place = np.unique(points, return_inverse=True)
    is_word = np.array([unicodedata.category(chr(point))[0] in "LMN" for point in distinct.tolist()], dtype=np.bool_)
    inside = is_word[place.ravel()] if len(points) else np.empty(0, np.bool_)
    follows = np.zeros(len(points), dtype=np.bool_)  # on the character before, in the same word
    follows[1:] = inside[1:] & inside[:-1] & (row[1:] == row[:-1])
    starts = np.flatnonzero(inside & ~follows)
    ends = np.flatnonzero(inside & ~np.append(follows[1:], False)[: len(points)]) + 1
    return starts, ends


def _trigrams(
    points: Points, starts: NDArray[np.int64], ends: NDArray[np.int64], row: NDArray[np.int64]
) -> tuple[Points, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The trigrams of "#word#" one after the other, where each begins and ends, and the row of each character."""
    lengths = ends - starts
    word = np.repeat(np.arange(len(starts)), lengths)  # a trigram has its middle in each character of a word
    middle = np.arange(len(word)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    grams = np.empty((len(word), 3), dtype=np.uint32)
    grams[:, 1] = points[middle]
    grams[:, 0] = np.where(middle > starts[word], points[middle - 1], _MARK)
    grams[:, 2] = np.where(middle + 1 < ends[word], points[np.minimum(middle + 1, len(points) - 1)], _MARK)
    begin = 3 * np.arange(len(word))
    return grams.ravel(), begin, begin + 3, np.repeat(row[middle], 3)


def _hashes(points: Points, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The hash of the text of points[starts[i]:ends[i]]; they ascend and do not overlap."""
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    place = np.concatenate([[0], np.cumsum(widths)])
    offsets = np.stack([place[starts], place[ends]], axis=1).ravel()  # what lies between tokens is hashed in vain
    data = points.astype("<u4").tobytes().decode("utf-32-le").encode()
    return hash_buffers(np.append(offsets, place[-1:]).astype(np.int64), data)[: 2 * len(starts) : 2]
