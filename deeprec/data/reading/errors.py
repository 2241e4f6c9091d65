"""What goes wrong when files are read, in words: every reader's errors name the file, what it is, and what to do."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from deeprec._files import os_error

START_BYTES = 1 << 20  # read to see what a file is
_AGAIN = "copy or download it again"
_UNPACK = "unpack it first"
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# First bytes of what is taken for a table by mistake: what it is, and the remedy.
_KINDS = (
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"PAR1", "a Parquet file", "let its name end in .parquet"),
    (b"\x1f\x8b", "a gzip file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (b"BZh91AY&SY", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ\0", "an xz file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database", "export a table as CSV or Parquet"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "export a sheet as CSV"),
    (b"<!DOCTYPE", "a web page", "download the file itself"),
    (b"<!doctype", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' for the closest of `known`, or nothing."""
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), list(lowered), n=1, cutoff=0.5)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""


def check_file(path: Path, function: str = "read") -> None:
    """Raises unless `path` is a regular file with something in it; opens nothing, so that a named pipe cannot hang.

    Raises:
        FileNotFoundError: names the close names in the folder. IsADirectoryError, ValueError, OSError: something else
            is there, or it cannot be looked at.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name with a zero byte
        if path.is_symlink():
            remedy = "set the link anew or copy the file itself"
            raise FileNotFoundError(
                f"{function}: {path} must be a file, got a link to {path.readlink()}, which is not there; {remedy}"
            ) from None
        raise FileNotFoundError(f"{function}: no file {path}{did_you_mean(path.name, _siblings(path))}") from None
    except OSError as error:
        raise _refused(path, error, function) from None
    if stat.S_ISDIR(status.st_mode):
        files = ", ".join(sorted(_siblings(path / "x"))[:5])
        raise IsADirectoryError(
            f"{function}: {path} must be a file, got a folder; name a file" + (f" in it, such as {files}" * bool(files))
        )
    if not stat.S_ISREG(status.st_mode):
        kind = "a named pipe" if stat.S_ISFIFO(status.st_mode) else "a device or socket"
        raise ValueError(f"{function}: {path} must be a regular file, got {kind}; write its content to a file first")
    if not status.st_size:
        raise ValueError(f"{function}: {path} is empty (0 bytes); {_AGAIN}")


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return []


@contextmanager
def reading(
    path: str | os.PathLike[str], expected: str = "a whole file", *, function: str = "read", remedy: str = _AGAIN
) -> Iterator[None]:
    """What is read inside is the file `path`: errors of polars, of decompression, of decoding and of the operating
    system name it, what it must be and, where its first bytes tell, what it is.

    Raises:
        ValueError: it is damaged or something else. OSError: the operating system refuses, of the same kind.
    """
    path = Path(path)
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        refused = os_error(error)
        if refused is not None:
            raise _refused(path, refused, function) from None
        raise _damaged(path, expected, error, function, remedy) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{function}: {path} must be a whole gzip file, got one that ends early or is damaged "
            f"({_line(error)}); {_AGAIN}"
        ) from None
    except (UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise _damaged(path, expected, error, function, remedy) from None
    except OSError as error:
        if error.errno is None:
            raise
        raise _refused(path, error, function) from None


@contextmanager
def naming(name: object) -> Iterator[None]:
    """What is checked inside comes from the file `name`: a ValueError or TypeError that lacks it says so at its end."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if str(name) in str(error):
            raise
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{error} (in {name})") from None


def _damaged(path: Path, expected: str, error: BaseException, function: str, remedy: str) -> ValueError:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        start = b""
    kind, other_remedy = kind_of(start)
    if kind and kind.split()[1] not in expected:
        return ValueError(f"{function}: {path} must be {expected}, got {kind}; {other_remedy}")
    return ValueError(f"{function}: {path} must be {expected}, got one that is damaged ({_line(error)}); {remedy}")


def _refused(path: Path, error: OSError, function: str) -> OSError:
    remedies = {PermissionError: "allow it (chmod) or copy it", FileNotFoundError: "check the path"}
    remedy = remedies.get(type(error), "check its disk and its path")
    return type(error)(f"{function}: {path} must be readable, got {error.strerror!r}; {remedy}")


def _line(error: BaseException) -> str:
    """The first line of a foreign message, not too long."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def kind_of(start: bytes) -> tuple[str, str]:
    """(what a file with these first bytes is, what to do), or two empty texts."""
    return next(((kind, remedy) for magic, kind, remedy in _KINDS if start.startswith(magic)), ("", ""))


def text_start(path: Path, start: bytes, function: str = "read") -> bytes:
    """The first bytes of a text without a byte order mark.

    Raises:
        ValueError: nothing but space, UTF-16, or bytes that are no text.
    """
    if not start.strip():
        raise ValueError(f"{function}: {path} is empty ({len(start)} bytes of text); {_AGAIN}")
    if start.startswith(_UTF16):
        raise ValueError(
            f"{function}: {path} must be UTF-8, got the first bytes of UTF-16; convert it (iconv -t UTF-8)"
        )
    place = start.find(b"\0", 0, START_BYTES)
    if place >= 0 or start.startswith((b"<!", b"<html")):
        kind, remedy = kind_of(start)
        if place >= 0 and not kind:
            line = start.count(b"\n", 0, place) + 1
            kind, remedy = f"a zero byte in line {line}", "convert it to UTF-8 if it is UTF-16, or " + _AGAIN
        if kind:
            raise ValueError(f"{function}: {path} must be text, got {kind}; {remedy}")
    return start.removeprefix(_BOM)


def checksum(path: Path) -> str:
    """SHA-256 of a file as it lies on the disk."""
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
