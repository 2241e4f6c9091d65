"""Files: written so that no crash leaves half of one behind, read so that no pipe hangs and no damage goes unnamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_MOST_LEVELS = 32  # of nested JSON, far beyond what is written here


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, then rename it into place.

    Raises:
        OSError: the directory cannot be written or the disk is full; `path` is then as it was.
    """
    write_pieces_atomically(path, (content,))


def write_pieces_atomically(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """`write_atomically` of content that comes in pieces."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def sha256_of(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def require_regular(path: Path, owner: str, remedy: str) -> Path:
    """The path of a file that can be opened without a wait: no pipe and no device, which may never end.

    Args:
        owner, remedy: beginning and end of the message of an error.
    Raises:
        FileNotFoundError: nothing is there. ValueError: something that is no regular file.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        raise FileNotFoundError(f"{owner}: no file {path}; {remedy}") from None
    except OSError as error:  # a loop of links, or below a file instead of a folder
        raise ValueError(f"{owner}: {path} cannot be read ({error.strerror}); {remedy}") from None
    if kind != stat.S_IFREG:
        raise ValueError(f"{owner}: {path} must be a regular file, got {_KINDS.get(kind, 'something else')}; {remedy}")
    return path


def read_regular(path: Path, owner: str, remedy: str) -> bytes:
    """The content of a file that `require_regular` lets through; it raises ValueError also where it is not readable."""
    try:
        return require_regular(path, owner, remedy).read_bytes()
    except PermissionError as error:
        raise ValueError(f"{owner}: {path} cannot be read ({error.strerror}); {remedy}") from None


def read_json(path: Path, owner: str, remedy: str, *, allow_infinity: bool = False) -> dict[str, Any]:
    """The JSON object in a file, stricter than Python's reader: UTF-8, no key twice, no NaN.

    Args:
        owner, remedy: as in `read_regular`.
        allow_infinity: whether Infinity is a number here.
    Raises:
        FileNotFoundError. ValueError: anything else; names the file.
    """
    content = read_regular(path, owner, remedy)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
        return values

    def constant(word: str) -> float:
        if word == "NaN" or not allow_infinity:
            raise ValueError(f"{word} is no number")
        return float(word)

    try:
        values = json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{owner}: {path} must be JSON as deeprec writes it, got {error}; {remedy}") from None
    level: list[Any] = [values]
    for _ in range(_MOST_LEVELS):
        level = [part for some in level if isinstance(some, dict | list) for part in _parts(some)]
    if level:
        raise ValueError(f"{owner}: {path} nests more than {_MOST_LEVELS} levels deep; {remedy}")
    if not isinstance(values, dict):
        raise ValueError(f"{owner}: {path} must hold a JSON object, got {type(values).__name__}; {remedy}")
    return values


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
