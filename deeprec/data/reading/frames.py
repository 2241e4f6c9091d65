"""Any frame as a polars frame: of pandas or polars, lazy or of a subclass, whatever its columns hold.

A column of Python objects becomes what its values are:

    one type                        that type; whole numbers and others are one
    a list, tuple, set or array     a column of lists: a lone value beside them is a list of one, what is missing stays
    in some cell                    missing; a set is taken in ascending order of its texts
    text, numbers, times mixed      a column of objects, of which `plain_texts` makes text
    anything else                   a column of objects, which only who asks for it refuses

None, NaN, pandas.NA and NaT are missing. Intervals (of pandas.cut) and periods become their text.
"""

from __future__ import annotations

import datetime
import decimal
import numbers
import re
import uuid
from collections import Counter, deque
from collections.abc import Sequence
from itertools import chain
from pathlib import PurePath
from typing import Any

import numpy as np
import polars as pl

from deeprec.data.reading.arrays import require_pool

WRITTEN_LISTS = r"^\s*[\[{(].*[\])}]\s*$"  # what str() makes of lists, sets and tuples
_INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
_MISSING = ("NoneType", "NAType", "NaTType")
_LISTS = (list, tuple, set, frozenset, deque, np.ndarray, pl.Series)
# Types whose text is all of a value: those of Python, and by their names those of pandas.
_PLAIN = (str, bytes, numbers.Real, np.bool_, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta,
          uuid.UUID, PurePath)  # fmt: skip
_PLAIN_NAMES = ("Interval", "Period")


def is_frame(value: Any) -> bool:
    """Whether `frame_of` takes a value."""
    return isinstance(value, pl.DataFrame | pl.LazyFrame) or (hasattr(value, "iloc") and hasattr(value, "columns"))


def frame_of(frame: Any, function: str) -> pl.DataFrame:
    """A frame of polars or pandas as a polars frame, its columns as the module says; their names become text.

    Args:
        frame: a LazyFrame is collected.
        function: for messages.
    Raises:
        TypeError: not a frame. ValueError: two columns of one name.
    """
    if isinstance(frame, pl.LazyFrame):
        require_pool(f"{function}: collecting a LazyFrame")
        frame = frame.collect()
    if isinstance(frame, pl.DataFrame):
        if pl.Object not in frame.dtypes:
            return frame
        return table_of([series_of_values(c.to_list(), c.name) if c.dtype == pl.Object else c for c in frame])
    if not is_frame(frame):
        raise TypeError(
            f"{function}: a pandas or polars DataFrame is required, got {type(frame).__name__}; "
            "build one from your columns: polars.DataFrame({'user_id': ..., 'item_id': ...})"
        )
    names = [str(name) for name in frame.columns]
    check_names(names, f"{function}: each column of a frame", "rename them")
    return table_of([series_of(frame.iloc[:, at], name) for at, name in enumerate(names)])


def table_of(columns: list[pl.Series]) -> pl.DataFrame:
    """A frame of columns by their names, of which one may be ""."""
    return pl.DataFrame({column.name: column for column in columns})


def check_names(names: Sequence[str], whose: str, remedy: str) -> None:
    """Raise ValueError where two columns have one name.

    Args:
        whose: "read: each column of FILE".
    """
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"{whose} must have a name of its own, got {twice[:5]} more than once; {remedy}")


def is_index_name(name: str) -> bool:
    """Whether a column is an index without a name, as pandas writes it: "", "Unnamed: 0", "__index_level_0__"."""
    return _INDEX.fullmatch(name) is not None


def series_of(column: Any, name: str) -> pl.Series:
    """A column of pandas (or an index) as a polars Series."""
    if column.dtype == object:
        return series_of_values(column.tolist(), name)
    if hasattr(column.dtype, "subtype") and hasattr(column, "sparse"):
        column = column.sparse.to_dense()
    is_interval = "interval" in str(column.dtype) or "Interval" in str(getattr(column.dtype, "categories", ""))[:40]
    if is_interval or "period" in str(column.dtype):
        return plain_texts(series_of_values(column.tolist(), name))
    try:
        return pl.Series(name, pl.from_pandas(column))
    except ImportError as error:
        raise ImportError(f"read: pandas frames need pyarrow ({error}); pip install pyarrow") from None
    except Exception:  # pyarrow's own errors, which are not imported here, for a type that it does not know
        return series_of_values(column.tolist(), name)


def refuse_written_lists(source: Any, columns: list[str]) -> None:
    """Raise ValueError where a column of bags of a `Source` holds lists that were written as text, each one value."""
    table = source.head() if columns else pl.DataFrame()
    for column in columns:
        series = table.get_column(column)
        texts = series.drop_nulls() if series.dtype == pl.String else series.clear()
        if len(texts) and texts.str.contains(WRITTEN_LISTS).all():
            raise ValueError(
                f"read: column {column!r} of {source.name} must hold lists, or values between separators, got "
                f"lists written as text such as {texts[0]!r:.60}; join their values by the separator, or write Parquet"
            )


def first_odd(series: pl.Series) -> int | None:
    """The first row of a column of objects whose value is no plain text, number or time, or None."""
    return next((row for row, value in enumerate(series.to_list()) if value is not None and not _is_plain(value)), None)


def first_mixed(series: pl.Series) -> int:
    """The first row of a column of objects whose value is of another type than those before it."""
    known = [(row, _kind(type(value))) for row, value in enumerate(series.to_list()) if value is not None]
    return next((row for row, kind in known if kind != known[0][1]), known[0][0] if known else 0)


def plain_texts(series: pl.Series) -> pl.Series:
    """A column of objects as text, where each is a plain value (see `first_odd`); another column as it is."""
    if series.dtype != pl.Object or first_odd(series) is not None:
        return series
    texts = [None if value is None else _text(value) for value in series.to_list()]
    return pl.Series(series.name, texts, dtype=pl.String)


def series_of_values(values: list[Any], name: str) -> pl.Series:
    """Python values as a Series, as the module says."""
    values, kinds = _known(values)
    if not kinds:
        return pl.Series(name, values, dtype=pl.Null)
    if "list" in kinds:
        return _of_lists(values, name)
    if len(kinds) == 1:
        try:
            return pl.Series(name, values, strict=False)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            pass
    return pl.Series(name, values, dtype=pl.Object)


def _of_lists(values: list[Any], name: str) -> pl.Series:
    rows = [None if value is None else _entries(value) for value in values]
    lengths = np.array([len(row or ()) for row in rows])
    entries = series_of_values(list(chain.from_iterable(row for row in rows if row)), name)
    entries = plain_texts(entries)
    if entries.dtype == pl.Object:
        return pl.Series(name, values, dtype=pl.Object)
    listed, ends = entries.to_list(), np.cumsum(lengths).tolist()
    parts = [
        None if row is None else listed[end - length : end]
        for row, end, length in zip(rows, ends, lengths.tolist(), strict=True)
    ]
    return pl.Series(name, parts, dtype=pl.List(entries.dtype))


def _known(values: list[Any]) -> tuple[list[Any], set[str]]:
    """The values, None where they are missing, scalars of NumPy as Python's; and which kinds there are."""
    types = set(map(type, values))
    kinds = {each: _kind(each) for each in types}
    found = set(kinds.values()) - {"missing"}
    if any(issubclass(each, np.generic) for each in types):
        values = [value.item() if isinstance(value, np.generic) else value for value in values]
    if "missing" in kinds.values():
        values = [None if kinds.get(type(value)) == "missing" else value for value in values]
    if "number" in found and len(found) > 1:  # pandas puts NaN where there is nothing
        values = [None if isinstance(value, float) and value != value else value for value in values]
        if not any(_kind(type(value)) == "number" for value in values):
            found.discard("number")
    if found == {"time"}:
        found = {"time" if value.tzinfo is None else "time with a zone" for value in values if value is not None}
    return values, found


def _kind(kind: type) -> str:
    """What counts as one type."""
    if kind.__name__ in _MISSING:
        return "missing"
    if issubclass(kind, _LISTS) or (hasattr(kind, "tolist") and hasattr(kind, "__len__")):
        return "list"
    if issubclass(kind, bool | np.bool_):
        return "boolean"
    if issubclass(kind, numbers.Real):
        return "number"
    if issubclass(kind, datetime.datetime):
        return "time"
    return next((plain.__name__ for plain in _PLAIN if issubclass(kind, plain)), kind.__name__)


def _entries(value: Any) -> list[Any]:
    """What a bag holds: the entries of a list, or a lone value."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return [value.item()]
    if _kind(type(value)) == "list":
        return value.tolist() if hasattr(value, "tolist") else list(value)
    return [value]


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or type(value).__name__ in _PLAIN_NAMES


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
