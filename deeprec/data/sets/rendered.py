"""Media of made-up items: images, sounds and videos that show what genres an item has, for tests and demonstrations."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._files import make_folder, writing
from deeprec._suggest import did_you_mean
from deeprec.data.media.errors import library
from deeprec.data.sets.synthetic import SyntheticInteractions

KINDS = ("image", "audio", "video")
_ENDINGS = {"image": "png", "audio": "wav", "video": "mp4"}
_SIZE, _RATE, _SECONDS, _FRAMES = 32, 8_000, 0.5, 8
_NOISE = 0.08
_STREAM = 3  # of the seed


def with_media(
    data: SyntheticInteractions, folder: str | Path, kinds: Sequence[str] = ("image",), *, seed: int = 0
) -> SyntheticInteractions:
    """The same interactions, with a file of each kind for every item, drawn from the genres that the truth says.

    A genre has a hue, a direction and a pitch; an item of two has both, by their shares, and noise of its own.
    Images are PNG of 32 x 32 with stripes in the genres' hues and directions; sounds are WAV, half a second at 8,000
    samples a second, with the genres' tones; videos are MP4 of 8 frames, whose stripes move.

    Args:
        data: of `synthetic` or `interactions_of_labels`.
        folder: where KIND/NUMBER.ENDING are written, made if it is not there.
        kinds: of image, audio and video.
        seed: of the noise and the phases.
    Returns:
        the data, whose items have the paths below `folder` as columns called by the kind.
    Raises:
        ValueError: data without a truth or a table of items, or an unknown kind.
        ImportError: the extra `content` is not installed.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(
                f"with_media: kinds must be of {', '.join(KINDS)}, got {kind!r}; {did_you_mean(kind, KINDS)}"
            )
    if data.truth is None or data.item_features is None:
        raise ValueError("with_media: data must have its truth and its items; take it from deeprec.data.synthetic")
    columns = {}
    for kind in kinds:
        make_folder(Path(folder) / kind)
        keys = []
        for number, shares in enumerate(data.truth.item_genres):
            draw = np.random.Generator(np.random.Philox((seed, _STREAM, KINDS.index(kind), number)))
            keys.append(f"{kind}/{number}.{_ENDINGS[kind]}")
            with writing(folder):
                (Path(folder) / keys[-1]).write_bytes(_RENDER[kind](shares, draw))
        columns[kind] = pl.Series(kind, keys)
    return replace(data, item_features=data.item_features.with_columns(**columns))


def _stripes(shares: NDArray[Any], draw: np.random.Generator, times: NDArray[Any]) -> NDArray[np.uint8]:
    """Frames [F, 32, 32, 3] at these times, in periods."""
    rows, columns = np.indices((_SIZE, _SIZE)) / _SIZE
    frames = np.full((len(times), _SIZE, _SIZE, 3), 0.1)
    for genre in np.flatnonzero(shares):
        angle = np.pi * genre / len(shares)
        along = rows * np.sin(angle) + columns * np.cos(angle)
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * (3 * along - times[:, None, None] + draw.random()))
        hue = np.array(colorsys.hsv_to_rgb(genre / len(shares), 0.8, 0.9))
        frames += shares[genre] * wave[..., None] * hue
    frames += _NOISE * draw.standard_normal(frames.shape)
    return np.asarray(np.round(255 * np.clip(frames, 0, 1)), dtype=np.uint8)


def _image(shares: NDArray[Any], draw: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    library("PIL.Image", "Pillow").fromarray(_stripes(shares, draw, np.zeros(1))[0]).save(buffer, "PNG")
    return buffer.getvalue()


def _audio(shares: NDArray[Any], draw: np.random.Generator) -> bytes:
    times = np.arange(round(_RATE * _SECONDS)) / _RATE
    wave = _NOISE * draw.standard_normal(len(times))
    for genre in np.flatnonzero(shares):
        hertz = 200 * 2 ** (4 * genre / len(shares))
        wave += 0.5 * shares[genre] * np.sin(2 * np.pi * (hertz * times + draw.random()))
    buffer = io.BytesIO()
    library("soundfile", "soundfile").write(buffer, np.clip(wave, -1, 1), _RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _video(shares: NDArray[Any], draw: np.random.Generator) -> bytes:
    av, buffer = library("av", "av (PyAV)"), io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        for pixels in _stripes(shares, draw, np.arange(_FRAMES) / _FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


_RENDER = {"image": _image, "audio": _audio, "video": _video}
