"""Files that serving writes: frames as Parquet, CSV, TSV or JSON lines, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import polars as pl

from deeprec._files import replacing

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")


def require_writable(function: str, output: str | Path) -> Path:
    """The path of a file that can be written.

    Raises:
        ValueError: another kind of file, or a folder that there is not; the message begins with `function`.
    """
    path = Path(output)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{function}: output must end in {', '.join(SUFFIXES)}, got {path.name}")
    if not path.parent.is_dir():
        raise ValueError(f"{function}: output must lie in a folder there is, got {path.parent}; make it first")
    return path


def write_frame(frame: pl.DataFrame, path: Path, *, header: bool = True) -> None:
    """The whole file of one of `SUFFIXES`, or what was there before.

    Args:
        header: whether a separated text begins with the names of its columns.
    """
    with replacing(path) as file:
        _write(frame, file, path.suffix, header)


def _write(frame: pl.DataFrame, file: IO[bytes], suffix: str, header: bool) -> None:
    if suffix == ".parquet":
        frame.write_parquet(file)
    elif suffix == ".jsonl":
        frame.write_ndjson(file)
    else:
        frame.write_csv(file, separator="\t" if suffix == ".tsv" else ",", include_header=header)
