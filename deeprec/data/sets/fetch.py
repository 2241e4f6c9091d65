"""Download a data set from its publisher: checked, resumed, all or nothing. Runs only when asked."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deeprec._files import WriteError, replace_directory, unfinished_directory, writing
from deeprec.data.reading.errors import did_you_mean
from deeprec.data.sets.datasets import cache_dir, info
from deeprec.data.sets.publishers import SOURCES, Source

_log = logging.getLogger("deeprec")

Progress = Callable[[str, int, int | None], None]  # (file, bytes so far, bytes in all where known)

_CHUNK = 1 << 18
_SAFE = re.compile(r"https://|http://(127\.0\.0\.1|localhost)[:/]")
_TIMEOUT = 30.0  # seconds without a byte


def fetch(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    sha256: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    sources: tuple[Source, ...] | None = None,
) -> list[Path]:
    """Download `name` from its publisher into `data_dir` (default: the user's cache, which `load` searches).

    A download that broke off leaves `<file>.part`, and the next call resumes it (HTTP Range). Every file is checked
    against a checksum before it gets its name; a wrong one is deleted.

    Args:
        name: one of `SOURCES`.
        sha256: for a data set of one file: check against this instead of the publisher's checksum.
        force: download again what is there already.
        progress: called as the bytes come.
        sources: other addresses than the publisher's (a mirror), with their checksums.
    Returns:
        the files or folders that are now there.
    Raises:
        ValueError: an unknown name, or one that cannot be fetched; a checksum that does not agree.
        OSError: the network, the disk or the folder refuses; what to do is said.
    """
    entry = info(name)
    sources = sources if sources is not None else SOURCES.get(name)
    if not sources:
        raise ValueError(
            f"fetch: one of {sorted(SOURCES)} is required, got {name!r}, which is not published as files with a "
            f"checksum{did_you_mean(name.removeprefix('ncf-'), SOURCES)}; get it from {entry.homepage}"
        )
    if sha256 is not None:
        zips = [source for source in sources if source.unpack] or list(sources)
        if len(zips) != 1 or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise ValueError(f"fetch: sha256 must be 64 hexadecimal digits for one file, got {sha256!r} for {name}")
        sources = tuple(replace(item, sha256=sha256.lower()) if item == zips[0] else item for item in sources)
    root = Path(data_dir).expanduser() if data_dir else cache_dir()
    done = []
    for source in sources:
        target = root / source.folder if source.unpack else root / source.folder / source.file
        if target.exists() and not force:
            _log.info("fetch: %s is there already", target)
        else:
            _fetch_file(source, root, target, progress)
        done.append(target)
    return done


def _fetch_file(source: Source, root: Path, target: Path, progress: Progress | None) -> None:
    part = root / f"{source.file}.part" if source.unpack else target.with_name(f"{source.file}.part")
    try:
        kind, digest = _expected(source)
        _download(source, part, progress)
        got = _digest(part, kind)
        if got != digest:
            part.unlink()
            raise ValueError(
                f"fetch: {source.url} must have the {kind} {digest}, got {got}; the download was deleted: fetch "
                "again, and if it stays so the file was changed at its source"
            )
        if source.unpack:
            _unpack(part, target, source)
        else:
            part.replace(target)
    except WriteError:
        raise
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise OSError(f"fetch: {root} must be a folder one can write to, got {error}; pass another data_dir") from None
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"fetch: {source.url} was not fetched ({getattr(error, 'reason', error)}); check the connection and the "
            f"free space and fetch again (it resumes), or put the files at {target} yourself"
        ) from None


def _expected(source: Source) -> tuple[str, str]:
    """(algorithm, hexadecimal digest) the file must have."""
    if source.sha256:
        return "sha256", source.sha256
    if source.md5_url is None:
        raise ValueError(f"fetch: a checksum is required for {source.url}, got none; pass sha256=...")
    with _open(source.md5_url) as answer:
        text = answer.read(4096).decode("ascii", "replace")
    match = re.search(r"\b[0-9a-fA-F]{32}\b", text)
    if not match:
        raise ValueError(f"fetch: {source.md5_url} must hold an MD5, got {text[:80]!r}; pass sha256=...")
    return "md5", match.group().lower()


def _open(url: str, start: int = 0) -> Any:
    if not _SAFE.match(url):
        raise ValueError(f"fetch: https is required, got {url}")
    headers = {"User-Agent": "deeprec", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(url, headers=headers)
    answer: Any = urllib.request.urlopen(request, timeout=_TIMEOUT)
    if not _SAFE.match(answer.geturl()):
        answer.close()
        raise ValueError(f"fetch: https is required, got a redirection to {answer.geturl()}")
    return answer


def _download(source: Source, part: Path, progress: Progress | None) -> None:
    """Bring `part` to the whole file, starting from what it has."""
    start = part.stat().st_size if part.exists() else 0
    try:
        answer = _open(source.url, start)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing beyond `start`: the part is whole, or the checksum will say that it is not
            return
        raise
    with answer:
        resumes = getattr(answer, "status", 200) == 206
        resumes &= str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-")
        size = start if resumes else 0
        length = answer.headers.get("Content-Length")
        total = size + int(length) if length else None
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab" if resumes else "wb") as out:
            while chunk := answer.read(_CHUNK):
                with writing(part, "fetch again (it resumes), or pass another data_dir"):
                    out.write(chunk)
                    out.flush()
                size += len(chunk)
                if progress:
                    progress(source.file, size, total)
    if total is not None and size < total:
        raise OSError(f"it has {total:,} bytes and broke off after {size:,}")


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack(archive: Path, target: Path, source: Source) -> None:
    """The zip's top folder as `target`, renamed into place when whole; the zip is removed."""
    with unfinished_directory(target) as folder:
        try:
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)  # strips absolute paths and ".." itself
                names = sorted({name.partition("/")[0] for name in packed.namelist()})
        except zipfile.BadZipFile as error:
            archive.unlink()
            raise ValueError(f"fetch: {source.url} must be a zip file ({error}); the address serves another") from None
        inner = folder / source.folder
        if not inner.is_dir():
            archive.unlink()
            raise ValueError(f"fetch: {source.url} must hold a folder {source.folder}, got {names[:5]}")
        replace_directory(inner, target)
    archive.unlink()
