"""What the readers of media take: a path, bytes, or an open file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, TypeAlias

from deeprec.data.media.errors import MediaError

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO


def opened(source: Source) -> BinaryIO:
    """A source as a file; one without a byte is refused.

    Raises:
        MediaError: it is empty, or there is no such file.
    """
    if isinstance(source, bytes):
        if not source:
            raise MediaError("is empty (0 bytes)", "get the file again")
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise MediaError("is not there or no file", "check the path", path=str(path))
        if not path.stat().st_size:
            raise MediaError("is empty (0 bytes)", "get the file again", path=str(path))
        return path.open("rb")
    return source
