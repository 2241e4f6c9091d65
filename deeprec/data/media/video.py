"""Videos to a few frames at even distances, by FFmpeg (PyAV)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec.data.media.errors import MediaError, decoding, library
from deeprec.data.media.image import Size, check_size
from deeprec.data.media.source import Source, opened

MAX_PIXELS = 34_000_000  # of a frame: 8K
_BUDGET = 1_200_000_000  # pixels decoded in turn of one video: 600 frames of 1080p, 6,500 of 640 x 288
_MOST_FRAMES = 3_000  # the same for small ones
_REMEDY = "save it anew, as MP4, WebM or Matroska"
# Containers that hold the video itself. Playlists and lists of files, which others are, could name files to be read.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,h264,hevc,m4v,mjpeg,aac"

Frame = NDArray[np.uint8]


def read_video(source: Source, frames: int, size: Size, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Frames in the middle of as many equal parts of a video, in red, green and blue, at a given size.

    A video of fewer frames repeats them. Of one that is longer than about 600 frames of 1080p, or 3,000 small ones, the
    key frame before each of these places is taken, so that hours cost no more than minutes; where its index does not
    lead there, or its length is not known, the frames are spread over what that many decoded frames hold.

    Args:
        source: a path, the bytes of a file, or an open file, which is closed at the end.
        frames: F, in [1, 256].
        size: height and width, or one number for both; as of `read_image`.
        max_pixels: videos with larger frames are refused before they are decoded.
    Returns:
        uint8 [F, 3, H, W].
    Raises:
        MediaError: no video of these formats, a damaged one, one without a picture, or frames too large.
        ValueError: an argument out of range. ImportError: PyAV is not installed.
    """
    height, width = check_size("read_video", size)
    if not 1 <= frames <= 256:
        raise ValueError(f"read_video: frames must be in [1, 256], got {frames}")
    av = library("av", "av (PyAV)")
    # An error later on is of the file, too: index and frames come one by one.
    with opened(source) as file, decoding("video", _REMEDY):
        options = {"format_whitelist": CONTAINERS}
        with av.open(file, mode="r", container_options=options, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise MediaError("has no picture, only sound or text", "name a video")
            stream = container.streams.video[0]
            codec = stream.codec_context
            pixels = codec.width * codec.height
            if pixels > max_pixels:
                raise MediaError(f"has frames of {codec.width:,} x {codec.height:,} pixels", "make it smaller first")
            codec.thread_type, codec.thread_count = "NONE", 1  # the items are what runs side by side
            clip = _Clip(container, stream, (height, width), max_pixels, av.video.reformatter.VideoReformatter())
            limit = min(_MOST_FRAMES, _BUDGET // max(1, pixels))
            taken = None
            if stream.frames > limit or clip.seconds * float(stream.average_rate or 0) > limit:
                taken = clip.key_frames(frames, av)
            elif stream.frames > 0:
                taken = clip.of_count(frames, stream.frames)
            if taken is None:
                taken = clip.spread(frames, max(frames, limit))
    if not taken:
        raise MediaError("has no frame", _REMEDY)
    return np.stack([taken[number * len(taken) // frames] for number in range(frames)])


class _Clip:
    """An open video."""

    def __init__(self, container: Any, stream: Any, size: tuple[int, int], max_pixels: int, reformatter: Any) -> None:
        self.container, self.stream, self.size, self.max_pixels = container, stream, size, max_pixels
        self.reformatter = reformatter  # one for all frames: to set it up takes longer than a frame does
        length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
        self.seconds = float(length)

    def of_count(self, frames: int, count: int) -> list[Frame] | None:
        """F frames of a video whose index says how many it has; None where it has fewer."""
        places = [(2 * number + 1) * count // (2 * frames) for number in range(frames)]
        taken: list[Frame] = []
        for at, frame in enumerate(self._decoded()):
            if at == places[len(taken)]:
                small = self._small(frame)
                while len(taken) < frames and places[len(taken)] == at:
                    taken.append(small)
            if len(taken) == frames:
                return taken
        self.container.seek(0)
        return None

    def key_frames(self, frames: int, av: Any) -> list[Frame] | None:
        """The key frames before F places in time; None where the index does not lead to them."""
        if self.seconds <= 0:
            return None
        taken = []
        self.stream.codec_context.skip_frame = "NONKEY"
        begin = self.stream.start_time or 0
        try:
            for number in range(frames):
                offset = begin + int((number + 0.5) / frames * self.seconds / float(self.stream.time_base))
                self.container.seek(offset, stream=self.stream, backward=True)
                taken.append(self._small(next(self._decoded())))
        except (av.FFmpegError, StopIteration):
            self.stream.codec_context.skip_frame = "DEFAULT"
            self.container.seek(0)
            return None
        return taken

    def spread(self, frames: int, limit: int) -> list[Frame]:
        """Frames at even distances of a video of unknown length, between F and 2 F if it has as many.

        Every frame is kept at first, then every second, fourth ..., whenever there would be more than 2 F.
        """
        kept: list[Frame] = []
        step = 1
        for at, frame in enumerate(self._decoded()):
            if at >= limit:
                break
            if at % step == 0:
                kept.append(self._small(frame))
                if len(kept) > 2 * frames:
                    kept, step = kept[::2], 2 * step
        return kept

    def _decoded(self) -> Iterator[Any]:
        """The frames from where the container stands."""
        for frame in self.container.decode(self.stream):
            if frame.width * frame.height > self.max_pixels:  # what the header says need not be true
                raise MediaError(f"has frames of {frame.width:,} x {frame.height:,} pixels", "make it smaller first")
            yield frame

    def _small(self, frame: Any) -> Frame:
        height, width = self.size
        small = self.reformatter.reformat(frame, width, height, "rgb24", interpolation="BICUBIC")
        return np.ascontiguousarray(small.to_ndarray().transpose(2, 0, 1))
