"""Claims about videos and texts: frames at even distances, nothing that is not needed is read, faults are named."""

from __future__ import annotations

import time

import numpy as np
import pytest

from deeprec.data.media import video
from deeprec.data.media.errors import MediaError
from deeprec.data.media.text import read_text
from deeprec.data.media.video import read_video

av = pytest.importorskip("av")


def shades(frames: np.ndarray) -> list[int]:
    """The grey of each frame, as made in steps of 10."""
    assert np.ptp(frames.reshape(len(frames), -1).astype(int), axis=1).max() <= 6  # one shade a frame
    return [round(float(frame.mean()) / 10) for frame in frames]


@pytest.mark.parametrize(("form", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"),
                                             ("webm", "libvpx"), ("mpegts", "libx264")])  # fmt: skip
def test_frames_are_those_in_the_middle_of_equal_parts(made, form: str, codec: str) -> None:
    content = made.clip([10 * step for step in range(2, 22)], form=form, codec=codec)
    frames = read_video(content, 5, (24, 32))
    assert frames.shape == (5, 3, 24, 32)
    assert frames.dtype == np.uint8
    expected = [4, 8, 12, 16, 20]
    assert np.abs(np.subtract(shades(frames), expected)).max() <= (0 if form in ("mp4", "avi") else 2)


def test_a_short_video_repeats_its_frames(made) -> None:
    assert shades(read_video(made.clip([50, 90]), 4, 8)) == [5, 5, 9, 9]
    assert shades(read_video(made.clip([70]), 3, 8)) == [7, 7, 7]


def test_of_a_long_video_key_frames_are_taken(made, monkeypatch) -> None:
    monkeypatch.setattr(video, "_MOST_FRAMES", 30)
    content = made.clip([10 * (2 + second) for second in range(20) for _ in range(12)])
    frames = read_video(content, 10, 8)
    assert np.abs(np.subtract(shades(frames), range(3, 23, 2))).max() <= 1


def test_a_video_of_unknown_length_is_spread_over_what_is_decoded(made, monkeypatch) -> None:
    monkeypatch.setattr(video, "_MOST_FRAMES", 40)
    # A stream of H.264 without a container has no index, no length and no times.
    content = made.clip([5 * (step // 5 + 4) * 2 for step in range(100)], form="h264")
    begin = time.process_time()
    frames = read_video(content, 4, 8)
    assert time.process_time() - begin < 2
    got = shades(frames)
    assert got == sorted(got)
    assert got[0] <= 6
    assert 8 <= got[-1] <= 12  # of 40 frames, not of 100


def test_what_is_no_video_is_a_fault(made, tmp_path) -> None:
    whole = made.clip([10 * step for step in range(20)])
    (tmp_path / "secret.ts").write_bytes(made.clip([80] * 5, form="mpegts"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n"
    joined = f"ffconcat version 1.0\nfile {tmp_path}/secret.ts\n"
    for content, message in (
        (b"", r"is empty \(0 bytes\)"),
        (b"\0" * 2000, "is no whole video"),
        (made.sound(made.tone(440, seconds=0.1)), "is no whole video|has no picture"),
        (whole[: len(whole) // 2], "is no whole video"),  # its index is at the end
        (playlist.encode(), "is no whole video"),  # would name other files
        (joined.encode(), "is no whole video"),
    ):
        with pytest.raises(MediaError, match=message):
            read_video(content, 4, 8)
    with pytest.raises(MediaError, match=r"has frames of 64 x 48 pixels; make it smaller first"):
        read_video(whole, 4, 8, max_pixels=3000)


def test_a_video_without_a_frame_or_a_picture_is_a_fault(made, tmp_path) -> None:
    with av.open(tmp_path / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="has no picture, only sound or text; name a video"):
        read_video(tmp_path / "sound.mp4", 4, 8)
    with pytest.raises(MediaError):
        read_video(made.clip([]), 4, 8)


def test_damage_is_a_fault_or_a_video(made) -> None:
    content = made.clip([10 * step for step in range(20)])
    draw = np.random.default_rng(4)
    for _ in range(25):
        damaged = bytearray(content)
        for place in draw.integers(0, len(content), 10):
            damaged[place] ^= int(draw.integers(1, 256))
        begin = time.process_time()
        try:
            assert read_video(bytes(damaged), 4, 8).shape == (4, 3, 8, 8)
        except MediaError as error:
            assert error.remedy  # noqa: PT017 - either is right
        assert time.process_time() - begin < 2


def test_arguments_of_videos_out_of_range_are_refused(made) -> None:
    with pytest.raises(ValueError, match=r"read_video: frames must be in \[1, 256\], got 0"):
        read_video(made.clip([5]), 0, 8)


def test_texts_are_unicode_and_what_is_not_is_windows_1252() -> None:
    assert read_text("Zoë – ☃".encode()) == "Zoë – ☃"
    assert read_text(b"\xef\xbb\xbfZo\xc3\xab") == "Zoë"
    for encoding in ("utf-16-le", "utf-16-be"):
        assert read_text("\ufeffZoë".encode(encoding)) == "Zoë"
    assert read_text("Zoë – café".encode("cp1252")) == "Zoë – café"
    assert read_text(b"a\x81") == "a\ufffd"
    assert read_text(b"\xef\xbb\xbf") == ""
    for content, message in ((b"", "is empty"), (b"PK\x03\x04\0\0", "is no text, it has zero bytes")):
        with pytest.raises(MediaError, match=message):
            read_text(content)


def test_of_a_million_characters_the_first_are_read() -> None:
    assert read_text(b"x" * 1_000_000, 1000) == "x" * 1000
    for character in ("é", "☃", "😀"):  # a character may be cut by what is read
        assert read_text((character * 5000).encode(), 1000) == character * 1000
        assert read_text(("x" + character * 5000).encode(), 1001) == "x" + character * 1000
