"""Columns of polars as NumPy arrays, by ways that a forked process can go.

Polars runs `DataFrame.select`, `filter` and `sort`, `LazyFrame.collect`, and every expression of more than one input
(`fill_null`, `fill_nan`, `clip`, `search_sorted`, `str.strip_chars`; also `arg_sort`, `n_unique`) in a pool of threads.
A process that is forked after the first such call has the pool without its threads, and waits in it forever. So what
serves a model calls none of them. Without the pool work, at any size, `gather`, `filter`, `drop_nulls`, `cast`, `==`,
`is_null`, `explode`, `str.len_bytes`, `str.join` of a Series, and `get_column`, `slice` and the constructor of frames
(tests/serve/test_processes.py forks for real). What cannot do without the pool, reading a Parquet file, calls
`require_pool` first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

_POOL_THREAD = re.compile(r"polars-\d+")
_had_pool = False  # when this process was about to fork
_lost_pool = False  # by being forked


def require_pool(action: str) -> None:
    """Raise RuntimeError, instead of waiting for ever, where a forked process has lost the pool of polars."""
    if _lost_pool:
        raise RuntimeError(
            f"{action} needs the threads of polars, which this process has lost: its parent had used them before it "
            "forked; do it before the fork, or start processes by spawn or forkserver"
        )


def _before_fork() -> None:
    global _had_pool
    _had_pool = False
    for task in Path("/proc/self/task").glob("*/comm"):  # elsewhere than on Linux there are none, and no fork is usual
        try:
            _had_pool = _had_pool or _POOL_THREAD.match(task.read_text()) is not None
        except OSError:  # a thread that has just ended
            continue


def _after_fork() -> None:
    global _lost_pool
    _lost_pool = _lost_pool or _had_pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def without_nulls(series: pl.Series, fill: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(values [n] with `fill` in place of a null, whether each is known [n]), in the type of the column."""
    known = series.is_not_null().to_numpy()
    if known.all():
        return series.to_numpy(), known
    kept = series.drop_nulls().to_numpy()
    values = np.full(len(series), fill, dtype=kept.dtype)
    values[known] = kept
    return values, known


def columns_of(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Some columns of a frame, as `frame.select(names)`."""
    return pl.DataFrame([frame.get_column(name) for name in names])


def rows_of(frame: pl.DataFrame, keep: NDArray[np.bool_]) -> pl.DataFrame:
    """The rows of a frame where `keep` [n] is true, as `frame.filter(keep)`."""
    mask = pl.Series(keep)
    return pl.DataFrame([column.filter(mask) for column in frame.get_columns()])
