"""Small media, made here."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

RED = (230, 20, 30)


def picture(mode: str = "RGB", size: tuple[int, int] = (48, 32), *, form: str = "PNG", **options: Any) -> bytes:
    """An image with a red left and a blue right half."""
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.new("RGB", size, RED)
    image.paste((20, 30, 230), (size[0] // 2, 0, size[0], size[1]))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def saved(image: Any, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tone(hertz: float, rate: int = 16_000, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    """A tone of amplitude 0.5, [samples, channels]."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def sound(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    pytest.importorskip("soundfile").write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def clip(
    greys: Sequence[int], size: tuple[int, int] = (64, 48), form: str = "mp4", codec: str = "libx264", gop: int = 12
) -> bytes:
    """A video whose frame i is of one grey, greys[i], at 12 frames a second."""
    av, buffer = pytest.importorskip("av"), io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        for grey in greys:
            pixels = np.full((size[1], size[0], 3), grey, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """What makes media; a test is skipped without the libraries that decode them."""
    for name in ("PIL.Image", "soundfile", "soxr", "av"):
        pytest.importorskip(name)
    makers = (picture, saved, claimed_png, tone, sound, clip)
    return SimpleNamespace(RED=RED, **{make.__name__: make for make in makers})
