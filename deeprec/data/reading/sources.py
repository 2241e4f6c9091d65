"""A click log of any form by what it is: a file by its name or first row, a frame, or a list of these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deeprec._suggest import did_you_mean
from deeprec.data.reading.chunks import BLOCK_BYTES, CRITEO_COLUMNS, Files, Source
from deeprec.data.reading.frame_source import FrameSource, ParquetSource
from deeprec.data.reading.frames import is_frame
from deeprec.data.reading.layout import told
from deeprec.data.reading.pair_source import PairSource
from deeprec.data.reading.record_source import RecordSource
from deeprec.data.reading.text import OnBad, check_on_bad
from deeprec.data.reading.text_source import SeparatedSource, guess_format

# Format by the end of a file's name, without .gz.
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".libsvm": "libsvm",
    ".svm": "libsvm",
    ".libffm": "libffm",
    ".ffm": "libffm",
    ".libfm": "libfm",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
FORMATS = ("csv", "tsv", "criteo", "libsvm", "libffm", "libfm", "jsonl", "mind", "parquet")


def open_source(
    source: Any,
    *,
    format: str | None = None,
    columns: Sequence[str] | str | None = None,
    separator: str | None = None,
    quote: str | None = '"',
    missing: Sequence[str] | str = (),
    header: bool | None = None,
    comment: str | None = None,
    skip_lines: int = 0,
    codes: Mapping[str, Mapping[str, float]] | None = None,
    on_bad: OnBad = "raise",
    threads: int = 2,
    block_bytes: int = BLOCK_BYTES,
) -> Source:
    """A click log of any form.

    Args:
        source: path of a file (text plain or gzip), a polars or pandas frame, or a list of such with the same columns.
        format: None: by the name of the file, or else by its first row.
            "csv", "tsv": separated text, quoted as RFC 4180 says. What its options leave open its first rows tell.
            "criteo": label, I1..I13, C1..C26 between tabs, no header, no quoting; without a label where rows have 39
            fields.
            "libsvm": rows "label index:value ...": columns "label" (-1 is 0) and "features", a weighted bag.
            "libffm": rows "label field:index:value ...": a column "field_N" for each field N, in the first MiB or in
            `columns`: a weighted bag; or categorical, where each row has at most one entry and its value is 1; or
            numeric (the value), where each row has at most one.
            "libfm": rows of libsvm that have as many entries each: a column "field_N" for the Nth place, from 0.
            "jsonl": an object a line, its keys the columns; columns of lists are bags or sequences.
            "mind": MIND's impressions, a row for each item shown: columns user, time, item, label, history (a list).
            "parquet".
        columns, separator, quote, missing, header, comment, skip_lines: of a csv or tsv, see `TextOptions`; columns
            without a header are called "0", "1", ...; missing also of frames, and in a column of bags it is no bag.
            Where numbers stand, NA, null, \\N, ? and the like are missing too (`deeprec.data.reading.missing`).
        codes: numeric columns that are written as texts, and the number of each: {"income": {"<=50K": 0, ">50K": 1}}.
        on_bad: rows with another number of fields, or with text or infinity in a numeric column: "raise" names the
            first one, "skip" leaves them out and counts them in `Source.bad`.
        threads: that parse, >= 1; another one reads and unpacks. The result does not depend on it.
        block_bytes: that are read at once, >= 1.
    Raises:
        FileNotFoundError, ValueError: no such file, an empty or damaged one, an unknown format, no names of its own.
        TypeError: neither path nor frame.
    """
    check_on_bad(on_bad)
    if threads < 1 or block_bytes < 1:
        raise ValueError(f"open_source: threads and block_bytes must be >= 1, got {threads} and {block_bytes}")
    options: dict[str, Any] = {"on_bad": on_bad, "threads": threads, "block_bytes": block_bytes}
    text = told(
        separator=separator,
        quote=quote,
        missing=missing,
        header=header,
        comment=comment,
        skip_lines=skip_lines,
        columns=columns,
    )
    values: dict[str, Any] = {"missing": text.missing, "codes": codes or {}}
    if isinstance(source, Source):
        return source
    if isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("open_source: a list of files must hold at least one, got []")
        same = {**asdict(text), "format": format, "codes": codes}
        return Files([open_source(one, **same, **options) for one in source], on_bad)
    if is_frame(source):
        return FrameSource(source, **values, **options)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            "open_source: source must be a path, a polars or pandas frame or a list of these, "
            f"got {type(source).__name__}"
        )
    path = Path(source)
    kind = format_of(path, format)
    if kind == "parquet":
        return ParquetSource(path, **values, **options)
    if kind in ("jsonl", "mind"):
        return RecordSource(path, kind, **values, **options)
    if kind in ("libsvm", "libffm", "libfm"):
        return PairSource(path, kind, columns=text.columns, **options)
    if kind == "criteo":
        text = replace(text, columns=text.columns or CRITEO_COLUMNS, separator="\t", quote=None)
    return SeparatedSource(path, text=text, codes=codes, default="\t" if kind == "tsv" else None, **options)


def format_of(source: str | Path, given: str | None = None) -> str:
    """One of `FORMATS` by a file's name, or else by its first row; ValueError where neither tells."""
    path = Path(source)
    if given is not None and given not in FORMATS:
        raise ValueError(f"open_source: format must be known, got {given!r}; {did_you_mean(given, FORMATS)}")
    known = given or SUFFIXES.get(Path(path.name.removesuffix(".gz")).suffix) or guess_format(path)
    if known is None:
        raise ValueError(
            f"open_source: {path} must end in one of {', '.join(SUFFIXES)} (and .gz) or hold rows of fields; "
            f"pass format= one of {', '.join(FORMATS)}"
        )
    return known
