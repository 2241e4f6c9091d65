"""How the media of a column are decoded: arrays of one shape for all items, so that they can be stacked and kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deeprec.data.media.audio import read_audio
from deeprec.data.media.errors import MediaError
from deeprec.data.media.image import check_size, read_image
from deeprec.data.media.text import read_text
from deeprec.data.media.video import read_video

_VERSION = 1  # of what the readers make of a file


class Decoded(NamedTuple):
    """A medium.

    Attributes:
        values: of the decoder's shape and dtype; of a text itself.
        length: how many samples of a sound are its own, before the padding; 0 otherwise.
    """

    values: Any
    length: int = 0


class _Described:
    """What a decoder has besides its options."""

    kind: ClassVar[str]

    @property
    def identity(self) -> str:
        """Kind, options and version as text: two decoders with the same make the same of every file."""
        options = asdict(self)  # type: ignore[call-overload]
        return json.dumps({"kind": self.kind, "version": _VERSION, **options}, sort_keys=True)


@dataclass(frozen=True)
class ImageDecoder(_Described):
    """Images of uint8 [3, H, W], see `read_image`.

    Attributes:
        size: H and W, each in [1, 4096].
    """

    kind: ClassVar[str] = "image"
    dtype: ClassVar[type[Any]] = np.uint8

    size: tuple[int, int] = (64, 64)

    def __post_init__(self) -> None:
        check_size("ImageDecoder", self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, *self.size)

    def decode(self, file: BinaryIO) -> Decoded:
        """The content of a file."""
        return Decoded(read_image(file, self.size))


@dataclass(frozen=True)
class AudioDecoder(_Described):
    """Waveforms of float32 [T], T = round(rate * seconds), with zeros behind shorter ones, see `read_audio`.

    Attributes:
        rate: samples a second. seconds: of each sound, from its beginning.
    """

    kind: ClassVar[str] = "audio"
    dtype: ClassVar[type[Any]] = np.float32

    rate: int = 16_000
    seconds: float = 10.0

    @property
    def shape(self) -> tuple[int, ...]:
        return (max(1, round(self.rate * self.seconds)),)

    def decode(self, file: BinaryIO) -> Decoded:
        """The content of a file."""
        wave = read_audio(file, self.rate, self.seconds)
        padded = np.zeros(self.shape, dtype=np.float32)
        padded[: len(wave)] = wave
        return Decoded(padded, len(wave))


@dataclass(frozen=True)
class VideoDecoder(_Described):
    """Frames of uint8 [F, 3, H, W], see `read_video`.

    Attributes:
        frames: F, in [1, 256]. size: H and W, each in [1, 4096].
    """

    kind: ClassVar[str] = "video"
    dtype: ClassVar[type[Any]] = np.uint8

    frames: int = 8
    size: tuple[int, int] = (64, 64)

    def __post_init__(self) -> None:
        check_size("VideoDecoder", self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.frames, 3, *self.size)

    def decode(self, file: BinaryIO) -> Decoded:
        """The content of a file."""
        return Decoded(read_video(file, self.frames, self.size))


@dataclass(frozen=True)
class TextDecoder(_Described):
    """Texts, see `read_text`; one of blanks alone is a fault.

    Attributes:
        characters: the first so many, >= 1.
    """

    kind: ClassVar[str] = "text"

    characters: int = 100_000

    def decode(self, file: BinaryIO) -> Decoded:
        """The content of a file."""
        text = read_text(file, self.characters)
        if not text.strip():
            raise MediaError("is an empty text", "write one, or leave it out")
        return Decoded(text)


ArrayDecoder: TypeAlias = ImageDecoder | AudioDecoder | VideoDecoder
Decoder: TypeAlias = ArrayDecoder | TextDecoder
DECODERS: dict[str, type[Any]] = {each.kind: each for each in (ImageDecoder, AudioDecoder, VideoDecoder, TextDecoder)}


class MediaBatch(NamedTuple):
    """Media of one kind.

    Attributes:
        values: [B, ...] of the decoder's shape and dtype; of texts a list.
        lengths: int64 [B], samples of sounds; zeros of other media.
    """

    values: NDArray[Any] | list[str]
    lengths: NDArray[np.int64]
