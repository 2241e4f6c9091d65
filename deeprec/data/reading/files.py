"""Which files a path means: one, several with commas between, or those of a folder; and their parts by their names."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from deeprec._suggest import listed
from deeprec.data.reading.errors import check_file
from deeprec.data.reading.text import with_gz

_log = logging.getLogger("deeprec")

_WORDS = {
    "train": {"train", "training", "tr", "base"},
    "validation": {"validation", "valid", "val", "va", "dev"},
    "test": {"test", "testing", "te"},
}
_TABLES = (".csv", ".tsv", ".txt", ".dat", ".data", ".parquet", ".pq", ".jsonl", ".ndjson", ".libsvm", ".svm",
           ".libffm", ".ffm", ".libfm")  # fmt: skip


class Parts(NamedTuple):
    """Files of a data set: those to train on, whose rows follow each other, and perhaps those of other parts."""

    train: list[Path]
    validation: Path | None = None
    test: Path | None = None

    @property
    def is_one(self) -> bool:
        """Whether it is a single file."""
        return len(self.train) == 1 and self.validation is None and self.test is None


def parts_of(
    source: str | os.PathLike[str],
    validation: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
) -> Parts:
    """The files of a data set.

    Args:
        source: a file, files with commas between them, or a folder: its files called train, valid(ation) and test (in
            any part of their names), or else all its files of one kind.
        validation, test: files of their own; each goes before one that the folder has.
    Raises:
        FileNotFoundError: no such file. ValueError: a validation file without a test file, or a folder whose files do
            not say which they are.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if path.is_dir():
        inside = _parts_in(path)
        parts = Parts(inside.train, inside.validation, inside.test)
        if validation is None and test is None and not parts.is_one:
            _log.info("%s: %s", text, parts)
    elif os.path.lexists(path) or with_gz(path):
        parts = Parts([with_gz(path) or path])
    else:
        parts = Parts([_file(one) for one in text.split(",") if one])
    given = Parts(
        parts.train,
        parts.validation if validation is None else _file(validation),
        parts.test if test is None else _file(test),
    )
    if given.validation is not None and given.test is None:
        raise ValueError(f"load: a file of validation rows goes with one of test rows, got {given.validation} alone; "
                         "pass it as the test file, or both")  # fmt: skip
    return given


def is_there(source: str | os.PathLike[str]) -> bool:
    """Whether a path, one of several with commas between, or one with .gz behind it exists."""
    text = os.fspath(source)
    return any(os.path.lexists(one) or with_gz(one) is not None for one in map(Path, (text, *text.split(","))))


def has_parts(source: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder with a file to train on and one to test on."""
    path = Path(source).expanduser()
    try:
        return path.is_dir() and _parts_in(path).test is not None
    except ValueError:
        return False


def _file(path: str | os.PathLike[str]) -> Path:
    full = Path(path).expanduser()
    existing = with_gz(full)
    if existing is None:
        check_file(full, "load")
    return existing or full


def _parts_in(folder: Path) -> Parts:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    named = {role: _called(files, words) for role, words in _WORDS.items()}
    if named["train"]:
        several = {role: paths for role, paths in named.items() if len(paths) > 1}
        if several:
            role, paths = next(iter(several.items()))
            raise ValueError(f"load: {folder} must have one file for {role}, got {listed([p.name for p in paths])}; "
                             "name the files themselves")  # fmt: skip
        validation, test = (next(iter(named[role]), None) for role in ("validation", "test"))
        if test is None:
            validation, test = None, validation
        return Parts(named["train"], validation, test)
    tables = [path for path in files if _suffix(path) in _TABLES and not path.name.lower().startswith("readme")]
    if tables and len({_suffix(path) for path in tables}) == 1:
        return Parts(tables)
    raise ValueError(
        f"load: a folder must hold one known data set, files called train and test, or files of one kind, got {folder} "
        f"with {listed([path.name for path in files])}; name one of its files instead"
    )


def _called(files: list[Path], words: set[str]) -> list[Path]:
    """The files whose names have one of the words, of these the ones with the fewest other words."""
    tokens = {path: re.split(r"[^a-z0-9]+", path.name.removesuffix(".gz").lower()) for path in files}
    called = [path for path in files if words & set(tokens[path]) and path.suffix not in (".npy", ".mat", ".md")]
    fewest = min((len(tokens[path]) for path in called), default=0)
    return [path for path in called if len(tokens[path]) == fewest]


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()
