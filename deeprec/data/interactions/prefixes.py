"""Sessions from a text of their prefixes: `item item ...<TAB>item`, what was met and the item that came next."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.reading.text import read_bytes

PATTERN = r"^\d+(?: \d+)*\t\d+$"


class PrefixRows(NamedTuple):
    """An event a row, session after session.

    Attributes:
        sessions: int64 [n], from 0.
        items: int64 [n], as in the file.
        places: int64 [n], from 1 within a session.
        lines: int64 [n], the line that says so, from 1.
        num_unlisted: events behind the first one of their session that no line has as its target.
    """

    sessions: NDArray[np.int64]
    items: NDArray[np.int64]
    places: NDArray[np.int64]
    lines: NDArray[np.int64]
    num_unlisted: int


def read_prefixes(path: Path) -> PrefixRows:
    """The sessions whose prefixes and next items the lines are.

    A session's longest prefix comes first, and each line after it that is the prefix of the line before, cut by one
    item, is of the same session: so SR-GNN's preparation writes them. Any other line begins a session.

    Raises:
        ValueError: a line of another form.
    """
    lines = pl.Series("line", read_bytes(path).decode("utf-8", "replace").splitlines())
    lines = lines.str.strip_chars_end(" \r")
    is_wrong = ~lines.str.contains(PATTERN) & (lines != "")
    if is_wrong.any():
        row = int(is_wrong.arg_max() or 0)
        raise ValueError(f"read: {path}, line {row + 1} must be 'item item ...<TAB>item' with whole numbers, got "
                         f"{lines[row]!r:.100}; correct it")  # fmt: skip
    numbers = (lines != "").arg_true()
    lines = lines.gather(numbers)
    prefixes = lines.str.split("\t").list.first()
    whole = lines.str.replace("\t", " ", literal=True)
    begins = (whole != prefixes.shift(1)).fill_null(True)
    first = begins.arg_true()
    if not len(first):
        raise ValueError(f"read: {path} must hold a line at least, got none; get it again")
    listed = whole.gather(first).str.split(" ").cast(pl.List(pl.Int64))
    lengths = listed.list.len().to_numpy().astype(np.int64)
    items = listed.explode().to_numpy().astype(np.int64)
    sessions = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    line_of = np.repeat(numbers.to_numpy().astype(np.int64)[first.to_numpy()] + 1, lengths)
    unlisted = int(lengths.sum()) - len(lengths) - len(lines)
    return PrefixRows(sessions, items, np.arange(len(items)) - starts + 1, line_of, unlisted)
