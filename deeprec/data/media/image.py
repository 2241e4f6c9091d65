"""Images to arrays of 8 bits, by Pillow."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deeprec.data.media.errors import MediaError, decoding, library
from deeprec.data.media.source import Source, opened

Size: TypeAlias = int | tuple[int, int]

MAX_PIXELS = 64_000_000  # of an image before it is made smaller: at most about 0.25 GB while it is decoded
# Formats whose readers are maintained, and start no program (as that of EPS does).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_REMEDY = f"save it anew, as one of {', '.join(FORMATS)}"


def read_image(source: Source, size: Size, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """An image in red, green and blue, at a given size.

    Of an animation the first frame counts; what the camera says of its position (EXIF) is followed; what is transparent
    is white. Of 16 bits the upper 8 are taken; images of 32 bits and of fractions go from their least value to their
    greatest. Grey, palette and CMYK become red, green and blue. The whole image is fitted to the size: its sides are
    not kept in proportion.

    Args:
        source: a path, the bytes of a file, or an open file, which is closed at the end.
        size: height and width, or one number for both, each in [1, 4096].
        max_pixels: larger images are refused before they are decoded.
    Returns:
        uint8 [3, H, W].
    Raises:
        MediaError: no image of these formats, a damaged or cut one, or one too large. ValueError: a size out of range.
        ImportError: Pillow is not installed.
    """
    height, width = check_size("read_image", size)
    pillow = library("PIL.Image", "Pillow")
    turn = library("PIL.ImageOps", "Pillow").exif_transpose
    with opened(source) as file, decoding("image", _REMEDY):
        try:
            image = pillow.open(file, formats=FORMATS)
        except pillow.DecompressionBombError:
            raise _too_large("", max_pixels) from None
        if image.width * image.height > max_pixels:
            raise _too_large(f"has {image.width:,} x {image.height:,} pixels, ", max_pixels)
        if image.format == "JPEG":  # decoded at a half, a quarter or an eighth, if that is still twice as fine
            image.draft("RGB", (2 * max(width, height), 2 * max(width, height)))
        image.load()
        image = _in_colour(turn(image), pillow)
        image = image.resize((width, height), pillow.Resampling.BICUBIC, reducing_gap=3.0)
        return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def check_size(owner: str, size: Size) -> tuple[int, int]:
    """Height and width; ValueError where one is out of range."""
    height, width = (size, size) if isinstance(size, int) else size
    if not (1 <= height <= 4096 and 1 <= width <= 4096):
        raise ValueError(f"{owner}: size must be in [1, 4096] on both sides, got {size}; images are scaled to it")
    return height, width


def _too_large(got: str, max_pixels: int) -> MediaError:
    return MediaError(f"{got or 'is '}beyond the limit of {max_pixels:,} pixels", "make it smaller first")


def _in_colour(image: Any, pillow: Any) -> Any:
    """Red, green and blue of 8 bits each of an image of any mode, on white."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint16)
        return pillow.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
        least = float(values.min())
        values = (values - least) / max(float(values.max()) - least, 1e-300)
        return pillow.fromarray(np.round(255 * values).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", over.size, (255, 255, 255, 255)), over).convert("RGB")
    return image.convert("RGB")
