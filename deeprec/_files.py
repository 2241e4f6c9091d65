"""Files: no crash or full disk leaves half of one behind, no pipe hangs, and no damage goes unnamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: what a killed process left stays until it is deleted by hand
    fcntl = None  # type: ignore[assignment]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_MOST_LEVELS = 32  # of nested JSON, far beyond what is written here
_LOCK = "lock"
_REMEDIES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space in your quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EROFS: "choose another place, its disk is read-only",
    errno.EEXIST: "choose another name, a file is there",
    errno.EACCES: "make its folder writable",
    errno.EPERM: "make its folder writable",
    errno.ENOENT: "make its folder",
    errno.ENOTDIR: "choose another place, a part of its path is no folder",
    errno.EISDIR: "choose another name, it is a folder",
    errno.EIO: "check its disk",
}


class WriteError(OSError):
    """A file that could not be written: which one, why, and what to do.

    Attributes:
        path: of the file, or of the folder of files.
        errno: of the operating system.
    """

    errno: int

    def __init__(self, path: str | os.PathLike[str], error: OSError, then: str = "do it again") -> None:
        number = error.errno or 0
        reason, remedy = os.strerror(number), _REMEDIES.get(number, "check its disk and its folder")
        super().__init__(f"write: {path} must be written whole, got {reason!r}; {remedy}, then {then}")
        self.path, self.errno = Path(path), number
        self._cause = error

    def with_then(self, then: str) -> WriteError:
        """The same error with another last step."""
        return WriteError(self.path, self._cause, then)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], then: str = "do it again") -> Iterator[None]:
    """What is written inside belongs to `path`: an error of the operating system becomes a `WriteError`."""
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        cause = os_error(error)
        if cause is None:
            raise
        raise WriteError(path, cause, then) from error


def os_error(error: BaseException) -> OSError | None:
    """The numbered error of the operating system that `error` is, or that polars tells in words; None for another."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    number = re.search(r"\(os error ([0-9]+)\)", str(error))
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


@contextlib.contextmanager
def then_resume() -> Iterator[None]:
    """What is written inside belongs to a training run, which goes on from its last checkpoint."""
    try:
        yield
    except WriteError as error:
        raise error.with_then("go on with resume=True (--resume)") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, then rename it into place.

    Raises:
        WriteError: the folder cannot be written or the disk is full; `path` is then as it was.
    """
    write_pieces_atomically(path, (content,))


def write_pieces_atomically(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """`write_atomically` of content that comes in pieces."""
    with replacing(path) as file:
        for piece in pieces:
            file.write(piece)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of `path` at the end, or is removed after an error.

    What killed processes left of earlier attempts at `path` is removed first. Raises `WriteError` as
    `write_atomically` does.
    """
    path = Path(path)
    with writing(path):
        remove_unfinished(path.parent, path.name)
        file, temporary = _locked_file(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o644)
                if fcntl is not None:  # renamed while the lock is held, so that nobody takes it for a leftover
                    temporary.replace(path)
            if fcntl is None:
                temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _locked_file(path: Path) -> tuple[BinaryIO, Path]:
    """A new file beside `path` that is locked as long as it is open."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
        file = os.fdopen(handle, "wb")
        if fcntl is None:
            return file, Path(name)
        # Network file systems may have no locks; then nothing is ever taken for a leftover either.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if Path(name).exists():  # not removed by another process before it was locked
            return file, Path(name)
        file.close()


@contextlib.contextmanager
def unfinished_directory(directory: Path) -> Iterator[Path]:
    """A new folder beside `directory`, removed at the end unless it was renamed; also those of killed processes.

    An error of the operating system inside becomes a `WriteError` that names `directory`.
    """
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        for left in directory.parent.glob(f"{glob.escape(_prefix(directory))}*"):
            with contextlib.suppress(OSError), (left / _LOCK).open("wb") as lock:
                if fcntl is not None:  # a process that lives holds it
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
        unfinished = Path(tempfile.mkdtemp(dir=directory.parent, prefix=_prefix(directory)))
        try:
            with (unfinished / _LOCK).open("wb") as lock:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                yield unfinished
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def only_process(folder: Path, owner: str, remedy: str) -> Iterator[None]:
    """While inside, no other process is in `folder`; where files cannot be locked, that is not seen to.

    Args:
        owner, remedy: beginning and end of the message of an error.
    Raises:
        ValueError: another process is there.
    """
    with contextlib.ExitStack() as stack:
        with writing(folder):
            lock = stack.enter_context((folder / _LOCK).open("wb"))
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{owner} is in use by another process; {remedy}") from None
            except OSError:  # network file systems may have no locks
                pass
        yield


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """While inside, other processes wait that want to be here for the same folder; where it cannot be locked, not."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                handle = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def replace_directory(unfinished: Path, directory: Path) -> None:
    """Rename into place; a folder that is there is moved aside first and deleted last."""
    (unfinished / _LOCK).unlink(missing_ok=True)
    unfinished.chmod(0o755)
    if directory.exists():
        aside = unfinished.with_name(unfinished.name + "-old")
        directory.rename(aside)
        unfinished.rename(directory)
        shutil.rmtree(aside)
    else:
        unfinished.rename(directory)


def _prefix(path: Path) -> str:
    """How the names of unfinished files and folders for `path` begin."""
    return f".{path.name}.unfinished-"


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Remove the unfinished files for `folder / name` (None: for all of its files) that no living process holds."""
    if fcntl is None:
        return
    pattern = "*" if name is None else glob.escape(name)
    for left in folder.glob(_prefix(folder / pattern) + "*"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there; `WriteError` where that fails."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


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
        level = [part for node in level if isinstance(node, dict | list) for part in _parts(node)]
    if level:
        raise ValueError(f"{owner}: {path} nests more than {_MOST_LEVELS} levels deep; {remedy}")
    if not isinstance(values, dict):
        raise ValueError(f"{owner}: {path} must hold a JSON object, got {type(values).__name__}; {remedy}")
    return values


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
