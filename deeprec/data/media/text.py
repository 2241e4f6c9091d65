"""Bytes to text."""

from __future__ import annotations

from deeprec.data.media.errors import MediaError
from deeprec.data.media.source import Source, opened

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


def read_text(source: Source, characters: int = 100_000) -> str:
    """The first characters of a text.

    A byte order mark says which Unicode it is; without one it is UTF-8. What is not is taken for Windows-1252 as a
    whole, where bytes without a meaning become U+FFFD.

    Args:
        source: a path, the bytes of a file, or an open file, which is closed at the end.
        characters: as many at most, >= 1; four bytes for each are read.
    Returns:
        the text, "" of a file of a byte order mark alone.
    Raises:
        MediaError: an empty file, or one with zero bytes, which is no text. ValueError: characters below 1.
    """
    if characters < 1:
        raise ValueError(f"read_text: characters must be >= 1, got {characters}")
    with opened(source) as file:
        content = file.read(4 * characters + 3)
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, errors="replace")[:characters]
    if b"\0" in content:
        raise MediaError("is no text, it has zero bytes", "name a text file in UTF-8")
    try:
        return content.decode("utf-8")[:characters]
    except UnicodeDecodeError as error:
        if error.start >= 4 * characters - 1:  # cut within a character
            return content[: error.start].decode("utf-8")[:characters]
        return content.decode("cp1252", errors="replace")[:characters]
