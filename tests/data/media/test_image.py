"""Claims about images: files of every kind become the same picture, and what is none is a named fault."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deeprec.data.media.errors import MediaError
from deeprec.data.media.image import read_image

pillow = pytest.importorskip("PIL.Image")


def colours(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colours in the middle of the left and of the right half."""
    height, width = pixels.shape[1:]
    return pixels[:, height // 2, width // 4], pixels[:, height // 2, -width // 4]


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGB", "JPEG", {"quality": 95}),
        ("CMYK", "JPEG", {"quality": 95}),
        ("CMYK", "TIFF", {}),
        ("P", "GIF", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_files_of_every_kind_are_the_same_picture(made, mode: str, form: str, options: dict) -> None:
    pixels = read_image(made.picture(mode, form=form, **options), (16, 24))
    assert pixels.shape == (3, 16, 24)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    left, right = colours(pixels)
    assert np.abs(left.astype(int) - made.RED).max() <= 26  # the palette of the web has steps of 51
    assert right[2] > 180 > 80 > right[0]


def test_a_path_bytes_and_a_file_are_the_same(made, tmp_path: Path) -> None:
    content = made.picture()
    (tmp_path / "a.jpg").write_bytes(content)  # the ending says nothing
    expected = read_image(content, 8)
    assert (read_image(tmp_path / "a.jpg", 8) == expected).all()
    assert (read_image(str(tmp_path / "a.jpg"), 8) == expected).all()
    assert (read_image(io.BytesIO(content), 8) == expected).all()


def test_a_picture_of_its_own_size_is_not_changed(made) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    content = made.saved(pillow.fromarray(noise))
    assert (read_image(content, (20, 30)) == noise.transpose(2, 0, 1)).all()


def test_fine_patterns_do_not_alias(made) -> None:
    board = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = read_image(made.saved(pillow.fromarray(board)), 30)
    assert np.abs(pixels.astype(int) - 127).max() <= 3


def test_sixteen_bits_and_fractions_keep_their_order(made) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, axis=0)
    grey = read_image(made.saved(pillow.fromarray(ramp)), (8, 256))
    assert (grey[0, 0] == ramp[0] >> 8).all()
    fractions = made.saved(pillow.fromarray(ramp.astype(np.float32) * 1e-3 - 7), "TIFF")
    pixels = read_image(fractions, (8, 256))
    assert (np.diff(pixels[1, 0].astype(int)) >= 0).all()
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_what_is_transparent_is_white(made) -> None:
    clear = pillow.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (read_image(made.saved(clear), 8) == 255).all()
    palette = pillow.new("P", (8, 8), 0)
    palette.putpalette([9, 8, 7] * 256)
    assert (read_image(made.saved(palette, transparency=0), 4) == 255).all()
    assert read_image(made.saved(palette), 4)[:, 0, 0].tolist() == [9, 8, 7]


def test_of_an_animation_the_first_frame_counts(made) -> None:
    frames = [pillow.new("RGB", (16, 16), (shade, 0, 0)) for shade in (200, 10, 90)]
    for form in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        content = made.saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert abs(int(read_image(content, 4)[0, 0, 0]) - 200) <= 4, form


def test_a_turned_camera_is_followed(made) -> None:
    image = pillow.open(io.BytesIO(made.picture(size=(48, 32))))
    exif = pillow.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn to the left: what is left is up
    pixels = read_image(made.saved(image, "JPEG", exif=exif, quality=95), (48, 32))
    assert pixels[0, 8, 16] > 180
    assert pixels[2, 40, 16] > 180


def test_one_pixel_becomes_a_plane(made) -> None:
    assert np.ptp(read_image(made.saved(pillow.new("L", (1, 1), 77)), (5, 3)).astype(int)) == 0


def test_a_large_photograph_is_decoded_at_a_part_of_its_size(made) -> None:
    content = made.picture(size=(3000, 2000), form="JPEG")
    begin = time.process_time()
    left, _ = colours(read_image(content, 64))
    assert np.abs(left.astype(int) - made.RED).max() <= 6
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\); get the file again"),
        (b"\0" * 500, "is no whole image .*save it anew, as one of JPEG, PNG"),
        (b"<html>not found</html>", "is no whole image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(run me) show\n", "is no whole image"),
    ],
)
def test_what_is_no_image_is_a_fault(content: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        read_image(content, 8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about metadata
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_cut_or_damaged_image_is_a_fault_or_a_picture(made, form: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = made.saved(pillow.fromarray(noise), form)
    for cut in (1, 10, len(content) // 2):
        with pytest.raises(MediaError, match="is no whole image"):
            read_image(content[:cut], 8)
    draw = np.random.default_rng(2)
    for _ in range(20):
        damaged = bytearray(content)
        for place in draw.integers(0, len(content), 8):
            damaged[place] ^= int(draw.integers(1, 256))
        try:
            assert read_image(bytes(damaged), 8).shape == (3, 8, 8)
        except MediaError as error:
            assert error.remedy  # noqa: PT017 - either is right


def test_a_bomb_is_refused_before_it_is_decoded(made) -> None:
    for width, height in ((9_000, 9_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        begin = time.process_time()
        with pytest.raises(MediaError, match=r"beyond the limit of 64,000,000 pixels|is no whole image"):
            read_image(made.claimed_png(width, height), 8)
        assert time.process_time() - begin < 1
    with pytest.raises(MediaError, match=r"has 48 x 32 pixels, beyond the limit of 1,000 pixels"):
        read_image(made.picture(), 8, max_pixels=1000)


def test_paths_that_hold_no_file_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.png"):
        with pytest.raises(MediaError, match=rf"{path.name} is not there or no file; check the path"):
            read_image(path, 8)


def test_sizes_out_of_range_are_refused(made) -> None:
    for size in (0, (8, 5000)):
        with pytest.raises(ValueError, match=r"read_image: size must be in \[1, 4096\]"):
            read_image(made.picture(), size)


def test_a_missing_library_is_named_with_its_extra(made, monkeypatch) -> None:
    content = made.picture()
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"Pillow must be installed to decode media.*\[content\]"):
        read_image(content, 8)
