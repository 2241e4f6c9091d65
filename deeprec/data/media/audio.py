"""Sounds to waveforms of one channel at one rate, by libsndfile (soundfile), FFmpeg (PyAV) and libsoxr."""

from __future__ import annotations

import importlib
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deeprec.data.media.errors import MediaError, decoding, library
from deeprec.data.media.source import Source, opened
from deeprec.data.media.video import CONTAINERS

Wave: TypeAlias = NDArray[np.float32]

_FRAMES = 1 << 14  # read at a time: what is in memory does not grow with the channels of hours
_RATES = (1_000, 768_000)
_MOST_CHANNELS = 64
_REMEDY = "save it anew, as WAV, FLAC, Ogg or MP3"


def read_audio(source: Source, rate: int, seconds: float, *, start: float = 0.0) -> NDArray[np.float32]:
    """The first seconds of a sound, as the mean of its channels, resampled without aliasing.

    Samples beyond [-1, 1], which files of fractions may have, are held to it. Only what is needed is read, so an hour
    costs what a minute does. What libsndfile does not know, such as AAC and the sound of a video, FFmpeg reads; there
    the sound must reach `start`, and what lies before is decoded.

    Args:
        source: a path, the bytes of a file, or an open file, which is closed at the end.
        rate: samples a second of the result, in [1,000, 768,000].
        seconds: as many at most, > 0.
        start: where to begin, in seconds, >= 0; a sound that ends before it is read from its first sample on.
    Returns:
        float32 [T], 1 <= T <= round(rate * seconds), fewer where the sound is shorter; silence is zeros.
    Raises:
        MediaError: no sound of these formats, a damaged one, one without samples, or with samples that are no numbers.
        ValueError: an argument out of range. ImportError: soundfile or soxr is not installed.
    """
    if not _RATES[0] <= rate <= _RATES[1] or not 0 < seconds < 86_400 or not start >= 0:
        raise ValueError(
            f"read_audio: rate must be in [{_RATES[0]:,}, {_RATES[1]:,}], seconds in (0, 86,400) and start >= 0, got "
            f"{rate}, {seconds} and {start}"
        )
    soundfile, soxr = library("soundfile", "soundfile"), library("soxr", "soxr")
    with opened(source) as file, decoding("sound", _REMEDY):
        try:
            with soundfile.SoundFile(file) as sound:
                wave, own = _by_sndfile(sound, start, seconds)
        except soundfile.LibsndfileError as error:
            file.seek(0)
            wave, own = _by_ffmpeg(file, start, seconds, error)
    if not np.isfinite(wave).all():
        raise MediaError("has samples that are no numbers", _REMEDY)
    wave = np.clip(wave, -1.0, 1.0)
    if own != rate:
        wave = np.clip(soxr.resample(wave, own, rate, quality="HQ"), -1.0, 1.0)
    most = max(1, round(rate * seconds))
    # A few samples may become none at a lower rate.
    return np.ascontiguousarray(wave[:most] if len(wave) else np.zeros(1), dtype=np.float32)


def _by_sndfile(sound: Any, start: float, seconds: float) -> tuple[Wave, int]:
    """The mean of the channels, at the file's own rate."""
    own = int(sound.samplerate)
    _check(own, sound.channels)
    if sound.frames <= 0:
        raise MediaError("has no samples", "take a longer recording")
    first, left = int(start * own), int(np.ceil(seconds * own)) + 1
    if 0 < first < sound.frames:
        sound.seek(first)
    parts = []
    while left > 0 and len(part := sound.read(min(left, _FRAMES), dtype="float32", always_2d=True)):
        parts.append(part.mean(axis=1, dtype=np.float32))
        left -= len(part)
    if not parts:
        raise MediaError(f"has none of the {sound.frames:,} samples that it names", "get the file again")
    return np.concatenate(parts), own


def _by_ffmpeg(file: BinaryIO, start: float, seconds: float, error: Exception) -> tuple[Wave, int]:
    """The same of the sound in a video, or of AAC; `error` is what the other reader says of the file."""
    try:
        av = importlib.import_module("av")
        container = av.open(file, mode="r", container_options={"format_whitelist": CONTAINERS})
    except (ImportError, OSError, ValueError):  # FFmpeg's errors are of these
        raise error from None
    with container:
        if not container.streams.audio:
            raise MediaError("has no sound, only a picture or text", "name a sound")
        stream = container.streams.audio[0]
        own = int(stream.codec_context.sample_rate)
        _check(own, stream.codec_context.channels)
        first, last, at = int(start * own), int(np.ceil((start + seconds) * own)) + 1, 0
        resampler, parts = av.AudioResampler(format="fltp", rate=own), []
        for frame in container.decode(stream):
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray().mean(axis=0, dtype=np.float32)
                if at < last and (at + len(samples) > first or not first):
                    parts.append(samples[max(0, first - at) : last - at])
                at += len(samples)
            if at >= last:
                break
    if not parts:
        raise MediaError("has no samples there", "take a longer recording, or an earlier start")
    return np.concatenate(parts), own


def _check(own: int, channels: int) -> None:
    if not _RATES[0] <= own <= _RATES[1] or channels > _MOST_CHANNELS:
        raise MediaError(f"has {own:,} samples a second in {channels} channels", _REMEDY)
