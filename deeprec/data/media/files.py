"""Where media lie: a folder, or an uncompressed .tar whose members are found once and read in place."""

from __future__ import annotations

import functools
import io
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from deeprec._files import require_regular
from deeprec.data.media.errors import MediaError
from deeprec.data.reading.errors import did_you_mean

_IN_MEMORY = 1 << 24  # bytes; smaller files are read at once, as decoders seek a lot
_AGAIN = "get the file again, or take the key out of the table"


class MediaFiles:
    """Media by key: the path below a folder, or the name of a member of a .tar.

    No key leads out of the folder. It can be used by several threads at a time.

    Args:
        source: a folder ("": the current one), or an uncompressed .tar.
    Raises:
        FileNotFoundError: nothing is there. ValueError: an archive that is compressed or damaged.
    """

    def __init__(self, source: str | os.PathLike[str] = "") -> None:
        self.source = Path(source)
        self._members: dict[str, tuple[int, int]] | None = None
        if self.source.suffix == ".tar" and not self.source.is_dir():
            status = require_regular(self.source, "MediaFiles", "name a folder or a .tar").stat()
            self._members = _members(self.source.absolute(), status.st_mtime_ns, status.st_size)
        elif not self.source.is_dir():
            raise FileNotFoundError(f"MediaFiles: no folder or .tar {self.source}; name where the media lie")

    def names(self) -> list[str]:
        """The keys of all members of an archive, or of the files below a folder, in ascending order."""
        if self._members is not None:
            return sorted(self._members)
        files = (path for path in self.source.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.source).as_posix() for path in files)

    def __contains__(self, key: str) -> bool:
        if self._members is not None:
            return _normal(key) in self._members
        try:
            return self._path(key).is_file()
        except (MediaError, OSError, ValueError):  # a name too long, or with a zero byte
            return False

    def open(self, key: str) -> BinaryIO:
        """A medium as a file that can be read from any place; of one that is large little is in memory.

        Raises:
            MediaError: there is none, it is empty, or it is no regular file.
        """
        if self._members is not None:
            if _normal(key) not in self._members:
                hint = did_you_mean(key, self._members) if len(self._members) <= 1000 else ""
                raise MediaError(f"is not in {self.source.name}{hint}", _AGAIN, path=key)
            start, size = self._members[_normal(key)]
            path = self.source
        else:
            path, start = self._path(key), 0
            try:
                size = require_regular(path, "media", _AGAIN).stat().st_size
            except FileNotFoundError:
                raise MediaError("is not there", _AGAIN, path=key) from None
            except (OSError, ValueError):
                raise MediaError("is no regular file", _AGAIN, path=key) from None
        if not size:
            raise MediaError("is empty (0 bytes)", _AGAIN, path=key)
        try:
            part = _Part(path, start, size)
        except OSError as error:
            raise MediaError(f"cannot be read ({error.strerror})", "allow it (chmod)", path=key) from None
        if size > _IN_MEMORY:
            return io.BufferedReader(part, 1 << 16)
        with part:
            content = part.readall()
        if len(content) < size:
            raise MediaError(f"ends after {len(content):,} of {size:,} bytes", _AGAIN, path=key)
        return io.BytesIO(content)

    def _path(self, key: str) -> Path:
        """The path of a key; one that is absolute must lie in the folder."""
        path = PurePosixPath(key)
        if path.is_absolute():
            try:
                path = path.relative_to(self.source.absolute().as_posix())
            except ValueError:
                raise MediaError(
                    f"lies outside of {self.source}", f"name a folder that holds {key}", path=key
                ) from None
        if ".." in path.parts or "\0" in key:
            raise MediaError(f"leads out of {self.source}", "write the path below the folder", path=key)
        return self.source / path


class _Part(io.RawIOBase):
    """Some bytes of a file, as a file of their own."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view) or 0
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _normal(key: str) -> str:
    return key.removeprefix("./")


@functools.lru_cache(maxsize=8)
def _members(path: Path, changed: int, size: int) -> dict[str, tuple[int, int]]:
    """Where the content of each regular member of an archive begins, and how long it is.

    Args:
        changed, size: of the file; an archive that is another one by then is looked through again.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            return {_normal(each.name): (each.offset_data, each.size) for each in archive if each.isreg()}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"MediaFiles: {path} must be an uncompressed .tar, got one that cannot be read ({error}); unpack it"
        ) from None
