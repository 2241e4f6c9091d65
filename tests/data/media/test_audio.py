"""Claims about sounds: every kind of file is the same waveform at one rate, and hours cost no more than seconds."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from deeprec.data.media.audio import read_audio
from deeprec.data.media.errors import MediaError

RATE = 16_000


def loudest(wave: np.ndarray, rate: int = RATE) -> float:
    """The frequency with the most power, in Hz."""
    return float(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * rate / len(wave))


@pytest.mark.parametrize(
    ("rate", "channels", "form", "subtype"),
    [
        (16_000, 1, "WAV", "PCM_16"),
        (8_000, 1, "WAV", "PCM_U8"),
        (96_000, 2, "WAV", "PCM_24"),
        (48_000, 6, "WAV", "PCM_16"),  # 5.1
        (44_100, 2, "FLAC", "PCM_16"),
        (22_050, 2, "OGG", "VORBIS"),
        (44_100, 1, "MP3", "MPEG_LAYER_III"),
        (16_000, 1, "WAV", "FLOAT"),
        (11_025, 1, "AIFF", "PCM_16"),
    ],
)
def test_files_of_every_kind_are_the_same_tone(made, rate: int, channels: int, form: str, subtype: str) -> None:
    wave = read_audio(made.sound(made.tone(440, rate, 1.0, channels), rate, form, subtype), RATE, 2.0)
    assert wave.dtype == np.float32
    assert abs(len(wave) - RATE) <= (RATE // 10 if form == "MP3" else 2)  # an MP3 begins and ends with padding
    assert abs(loudest(wave) - 440) < 3
    lost = 0.06 if form == "MP3" else 0.02
    assert abs(float(wave[RATE // 4 : RATE // 2].std()) - 0.5 / 2**0.5) < lost


def test_channels_are_averaged(made) -> None:
    samples = made.tone(440, channels=2)
    samples[:, 1] *= -1
    assert np.abs(read_audio(made.sound(samples, subtype="FLOAT"), RATE, 1.0)).max() < 1e-6


def test_what_the_lower_rate_cannot_hold_is_gone_and_does_not_alias(made) -> None:
    content = made.sound(made.tone(7_000, 48_000), 48_000)
    wave = read_audio(content, 8_000, 1.0)
    assert np.abs(wave[400:-400]).max() < 1e-3
    assert abs(loudest(read_audio(content, 16_000, 1.0)) - 7_000) < 3


def test_a_signal_of_the_same_rate_is_not_changed(made) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (5000, 1)).astype(np.float32)
    content = made.sound(noise, subtype="FLOAT")
    assert (read_audio(content, RATE, 1.0) == noise[:, 0]).all()
    assert (read_audio(content, RATE, 0.1) == noise[:1600, 0]).all()
    assert (read_audio(content, RATE, 0.1, start=0.2) == noise[3200:4800, 0]).all()
    assert (read_audio(content, RATE, 0.1, start=9.0) == noise[:1600, 0]).all()


def test_silence_and_single_samples_are_sounds(made) -> None:
    silent = read_audio(made.sound(np.zeros((800, 1))), RATE, 1.0)
    assert len(silent) == 800
    assert not silent.any()
    for rate in (RATE, 96_000):
        assert 1 <= len(read_audio(made.sound(np.zeros((1, 1)), rate), RATE, 1.0)) <= 2


def test_of_an_hour_only_what_is_needed_is_read(made, tmp_path) -> None:
    path = tmp_path / "hour.wav"
    path.write_bytes(made.sound(np.zeros((3600 * 8_000, 1), dtype=np.int16), 8_000))
    tracemalloc.start()
    begin = time.process_time()
    wave = read_audio(path, RATE, 3.0)
    assert time.process_time() - begin < 1
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    assert len(wave) == 48_000


def test_samples_beyond_one_are_held_and_what_is_no_number_is_a_fault(made) -> None:
    loud = np.array([[3.0], [-2.0], [0.25]], dtype=np.float32)
    assert read_audio(made.sound(loud, subtype="FLOAT"), RATE, 1.0).tolist() == [1.0, -1.0, 0.25]
    loud[1] = np.nan
    with pytest.raises(MediaError, match="has samples that are no numbers; save it anew, as WAV, FLAC"):
        read_audio(made.sound(loud, subtype="FLOAT"), RATE, 1.0)


def test_the_sound_of_a_video_and_aac_are_sounds(made, tmp_path) -> None:
    av = pytest.importorskip("av")
    samples = made.tone(440, 44_100, 2.0)[:, 0]
    with av.open(tmp_path / "sound.m4a", "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100)
        for at in range(0, len(samples), 1024):
            both = np.stack([samples[at : at + 1024], -0.5 * samples[at : at + 1024]])
            frame = av.AudioFrame.from_ndarray(both, format="fltp", layout="stereo")
            frame.sample_rate = 44_100
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    wave = read_audio(tmp_path / "sound.m4a", RATE, 1.0)
    assert len(wave) == RATE
    assert abs(loudest(wave) - 440) < 3
    assert abs(float(wave[4000:8000].std()) - 0.125 / 2**0.5) < 0.02
    later = read_audio(tmp_path / "sound.m4a", RATE, 1.0, start=1.5)
    assert abs(len(later) - RATE // 2) < 1200  # frames of AAC have 1,024 samples
    with pytest.raises(MediaError, match="has no sound, only a picture or text; name a sound"):
        read_audio(made.clip([50]), RATE, 1.0)


def test_what_is_no_sound_is_a_fault(made) -> None:
    whole = made.sound(made.tone(440))
    for content, message in (
        (b"", r"is empty \(0 bytes\)"),
        (b"\0" * 999, "is no whole sound"),
        (made.picture(), "is no whole sound"),
        (whole[:20], "is no whole sound"),
        (made.sound(np.zeros((0, 1))), "has no samples; take a longer recording"),
        (made.sound(made.tone(440, 1000, 0.1), 400), "has 400 samples a second in 1 channels"),
    ):
        with pytest.raises(MediaError, match=message):
            read_audio(content, RATE, 1.0)
    assert 0 < len(read_audio(whole[: len(whole) // 2], RATE, 9.0)) <= RATE // 2  # what is there is a sound
    draw = np.random.default_rng(3)
    for form in ("FLAC", "OGG", "MP3"):
        content = made.sound(made.tone(440, seconds=0.3), form=form)
        for _ in range(15):
            damaged = bytearray(content)
            for place in draw.integers(0, len(content), 6):
                damaged[place] ^= int(draw.integers(1, 256))
            try:
                wave = read_audio(bytes(damaged), RATE, 1.0)
            except MediaError:
                continue
            assert np.isfinite(wave).all()
            assert np.abs(wave).max() <= 1


def test_arguments_out_of_range_are_refused(made) -> None:
    content = made.sound(made.tone(440))
    for rate, seconds, start in ((0, 1, 0), (RATE, 0, 0), (RATE, 1, -1), (RATE, float("nan"), 0)):
        with pytest.raises(ValueError, match=r"read_audio: rate must be in \[1,000, 768,000\]"):
            read_audio(content, rate, seconds, start=start)
