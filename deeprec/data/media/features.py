"""Features without training: a few hundred numbers of an image, a sound, a video or a text, by formula."""

from __future__ import annotations

import re
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from deeprec.data.media.decoders import AudioDecoder, Decoder, ImageDecoder, MediaBatch, TextDecoder, VideoDecoder
from deeprec.data.reading.hashing import hash_series

Vectors = NDArray[np.float32]

_GRID, _CELLS, _DIRECTIONS, _SHADES = 8, 4, 8, 4
_WINDOW, _HOP, _MELS, _LOUDNESS = 1024, 512, 40, 1e4
_WORD = re.compile(r"\w+")


class Encoder(Protocol):
    """What makes vectors of media.

    Attributes:
        name: of what it computes, with the hash of its weights if it has any: it names the vectors in a cache.
        width: numbers of a vector. decoder: of the media it takes.
    """

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def decoder(self) -> Decoder: ...

    def __call__(self, batch: MediaBatch) -> Vectors:
        """Vectors of a batch, float32 [B, width]."""


class ImageFeatures:
    """384 numbers of an image.

    64 shares of its pixels by colour, red, green and blue in four shades each; 192 means of squares of a grid of 8 x 8,
    in [0, 1], for red, then green and blue; 128 of its edges: the lengths of the gradients of brightness, summed over
    cells of 4 x 4 and 8 directions of half a turn, divided by the root of their sum of squares.

    Args:
        decoder: its sides must be multiples of 8.
    Reference: for the edges Dalal, Triggs 2005 (doi 10.1109/CVPR.2005.177), without blocks.
    """

    width = _SHADES**3 + 3 * _GRID**2 + _CELLS**2 * _DIRECTIONS

    def __init__(self, decoder: ImageDecoder | None = None) -> None:
        self.decoder = decoder or ImageDecoder()
        _check_grid(self.decoder.size)
        self.name = "image-features-1"

    def __call__(self, batch: MediaBatch) -> Vectors:
        return _picture(np.asarray(batch.values))


class VideoFeatures:
    """448 numbers of a video: the means over its frames of `ImageFeatures`, and 64 of motion.

    Motion is the mean difference in brightness of one frame and the next, without sign, in each square of a grid of
    8 x 8, in [0, 1]; 0 of a single frame.

    Args:
        decoder: its sides must be multiples of 8.
    """

    width = ImageFeatures.width + _GRID**2

    def __init__(self, decoder: VideoDecoder | None = None) -> None:
        self.decoder = decoder or VideoDecoder()
        _check_grid(self.decoder.size)
        self.name = "video-features-1"

    def __call__(self, batch: MediaBatch) -> Vectors:
        videos = np.asarray(batch.values)
        count, frames = videos.shape[:2]
        pictures = _picture(videos.reshape(-1, *videos.shape[2:])).reshape(count, frames, -1).mean(axis=1)
        grey = videos.mean(axis=2, dtype=np.float32) / 255
        moved = np.abs(np.diff(grey, axis=1)).sum(axis=1) / max(1, frames - 1)
        return np.concatenate([pictures, _squares(moved[:, None])], axis=1, dtype=np.float32)


class AudioFeatures:
    """120 numbers of a sound: mean, deviation and mean change, without sign, of 40 bands over its windows.

    A band is log(1 + 10,000 p), p the power in a triangle of the mel scale of HTK, of windows of 1,024 samples by Hann,
    512 apart; a sound shorter than a window is one, with zeros behind it.

    Args:
        decoder: at any rate from 8,000 samples a second on.
    """

    width = 3 * _MELS

    def __init__(self, decoder: AudioDecoder | None = None) -> None:
        self.decoder = decoder or AudioDecoder()
        if self.decoder.rate < 8_000:
            raise ValueError(f"AudioFeatures: rate must be >= 8,000, got {self.decoder.rate}; take a higher one")
        self.name = "audio-features-1"
        self._filters = _mel_filters(self.decoder.rate)
        hann = np.hanning(_WINDOW + 1)[:-1]
        self._window = (hann / hann.sum()).astype(np.float32)

    def __call__(self, batch: MediaBatch) -> Vectors:
        vectors = np.empty((len(batch.values), self.width), dtype=np.float32)
        for at, (wave, length) in enumerate(zip(batch.values, batch.lengths.tolist(), strict=True)):
            vectors[at] = self._bands(np.asarray(wave)[: max(1, length)])
        return vectors

    def _bands(self, wave: NDArray[Any]) -> Vectors:
        wave = np.pad(wave, (0, max(0, _WINDOW - len(wave))))
        windows = sliding_window_view(wave, _WINDOW)[::_HOP]
        power = np.abs(np.fft.rfft(windows * self._window)) ** 2
        bands = np.log1p(_LOUDNESS * (power @ self._filters))
        changes = np.abs(np.diff(bands, axis=0)) if len(bands) > 1 else np.zeros((1, _MELS))
        return np.concatenate([bands.mean(axis=0), bands.std(axis=0), changes.mean(axis=0)]).astype(np.float32)


class TextFeatures:
    """Words counted in 512 buckets: the sum over words of s log(1 + n), n how often the word is in the text.

    Bucket and sign s are bits of the word's hash; a word is a run of letters and digits, in small letters.
    `word_weights` makes TF-IDF of it.

    Reference: Weinberger et al. 2009 (arXiv 0902.2206), for the sign.
    """

    width = 512

    def __init__(self, decoder: TextDecoder | None = None) -> None:
        self.decoder = decoder or TextDecoder()
        self.name = "text-features-1"

    def __call__(self, batch: MediaBatch) -> Vectors:
        vectors = np.zeros((len(batch.values), self.width), dtype=np.float32)
        words = [_WORD.findall(str(text).lower()) for text in batch.values]
        rows = np.repeat(np.arange(len(words)), [len(each) for each in words])
        frame = pl.DataFrame({"row": rows, "word": pl.Series([w for each in words for w in each], dtype=pl.String)})
        counts = frame.group_by("row", "word", maintain_order=True).len()
        hashes = hash_series(counts.get_column("word"))
        sign = 1.0 - 2.0 * (hashes >> np.uint64(63)).astype(np.float64)
        place = (counts.get_column("row").to_numpy(), (hashes % np.uint64(self.width)).astype(np.int64))
        np.add.at(vectors, place, (sign * np.log1p(counts.get_column("len").to_numpy())).astype(np.float32))
        return vectors


FEATURES: dict[str, Any] = {
    "image": ImageFeatures,
    "audio": AudioFeatures,
    "video": VideoFeatures,
    "text": TextFeatures,
}


def word_weights(num_texts: int, num_with: NDArray[np.int64]) -> Vectors:
    """1 + ln((1 + n) / (1 + n_b)) for each bucket b, n texts of which n_b have a word in it, [width].

    Reference: as scikit-learn's TfidfVectorizer smooths it.
    """
    return np.asarray(1.0 + np.log((1.0 + num_texts) / (1.0 + num_with)), dtype=np.float32)


def weighted_words(vectors: Vectors, weights: Vectors) -> Vectors:
    """Rows times weights, of length 1; zeros stay."""
    weighted = vectors * weights
    lengths = np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)
    return np.asarray(weighted / lengths, dtype=np.float32)


def _check_grid(size: tuple[int, int]) -> None:
    if size[0] % _GRID or size[1] % _GRID:
        raise ValueError(
            f"features: sides must be multiples of {_GRID}, got {size[0]} x {size[1]}; choose another size"
        )


def _picture(images: NDArray[Any]) -> Vectors:
    """uint8 [B, 3, H, W] to [B, 384]."""
    count, _, height, width = images.shape
    shade = (images >> 6).astype(np.int64)
    colour = (shade[:, 0] * _SHADES + shade[:, 1]) * _SHADES + shade[:, 2]
    first = np.arange(count)[:, None, None]
    shares = np.bincount((first * _SHADES**3 + colour).ravel(), minlength=count * _SHADES**3)
    grey = images.mean(axis=1, dtype=np.float32) / 255
    down, across = np.zeros_like(grey), np.zeros_like(grey)
    down[:, 1:-1], across[:, :, 1:-1] = grey[:, 2:] - grey[:, :-2], grey[:, :, 2:] - grey[:, :, :-2]
    angle = np.arctan2(down, across)
    angle += np.float32(np.pi) * (angle < 0)  # half a turn is all that edges know
    direction = (angle * np.float32(_DIRECTIONS / np.pi)).astype(np.int64) % _DIRECTIONS
    rows, columns = np.arange(height) * _CELLS // height, np.arange(width) * _CELLS // width
    cell = rows[:, None] * _CELLS + columns
    bins = _CELLS**2 * _DIRECTIONS
    place = first * bins + cell * _DIRECTIONS + direction
    edges = np.bincount(place.ravel(), np.hypot(down, across).ravel(), count * bins).reshape(count, bins)
    edges = edges / np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-6)
    parts = (shares.reshape(count, -1) / (height * width), _squares(images) / 255, edges)
    return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")


def _squares(planes: NDArray[Any]) -> Vectors:
    """Means over a grid of 8 x 8 of [B, C, H, W], [B, C * 64]."""
    count, channels, height, width = planes.shape
    tiles = planes.reshape(count, channels, _GRID, height // _GRID, _GRID, width // _GRID)
    return np.asarray(tiles.mean(axis=(3, 5), dtype=np.float32)).reshape(count, -1)


def _mel_filters(rate: int) -> NDArray[np.float32]:
    """Triangles at even distances on the mel scale of HTK, 2595 log10(1 + f / 700), [513, 40], of sum 1 each.

    A triangle that is narrower than the distance of two frequencies is the frequency next to its centre.
    """
    frequencies = np.arange(_WINDOW // 2 + 1) * rate / _WINDOW
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), _MELS + 2) / 2595) - 1)
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    rises, falls = (frequencies[:, None] - low) / (centre - low), (high - frequencies[:, None]) / (high - centre)
    filters = np.maximum(0, np.minimum(rises, falls))
    nearest = np.abs(frequencies[:, None] - centre).argmin(axis=0)
    narrow = np.flatnonzero(filters.sum(axis=0) == 0)
    filters[nearest[narrow], narrow] = 1.0
    return np.asarray(filters / filters.sum(axis=0), dtype=np.float32)
