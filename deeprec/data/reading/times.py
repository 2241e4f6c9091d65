"""Times as whole numbers, later is larger: what is read, and what is refused rather than guessed.

numbers      as they are, in whatever unit: seconds, milli-, micro- or nanoseconds since 1970, ranks; with fractions
             they are multiplied by a million. Units mixed in a column are refused
dates        of polars, pandas and Python, with a zone or without, in microseconds since 1970
text         numbers; or ISO 8601: 2024-02-01, 2024-02-01T09:30, 2024-02-01 09:30:00.25, with Z, +01 or +01:00 after
             the time of day. Dates, local times and times with a zone are not mixed in a column
other text   by a format of strptime (`time_format="%d/%m/%Y"`): 01/02/2024 is a day in January to some writers and
             in February to others
"""

from __future__ import annotations

import re

import numpy as np
import polars as pl

from deeprec.data.reading.frames import plain_texts

EXPECTED = "a time"
REMEDY = (
    "epoch numbers and ISO 8601 such as 2024-02-01T09:30:00Z are read; say how others are written by "
    "time_format='%d/%m/%Y' (data.time_format=...)"
)
_DATE = r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
_CLOCK = r"[Tt ]\d{2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?"
# A text of one of these kinds, and no other, is a time.
_KINDS = {
    "a number": r"^[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?$",
    "a date": f"^{_DATE}$",
    "a local time": f"^{_DATE}{_CLOCK}$",
    "a time with a zone": f"^{_DATE}{_CLOCK} ?(?:[Zz]|[+-]\\d{{2}}(?::?\\d{{2}})?)$",
}
_LEAST_EPOCH = 1e8  # 1973 in seconds; the next unit begins at a thousand times as much
_WIDEST_STEP = 500.0  # between two neighbouring times of one unit: 1973 to 2040 is 22


def times_of(column: pl.Series, time_format: str | None = None) -> tuple[pl.Series, str]:
    """(Int64, null where a value is no time, or none of the kind that most are; what the others would have to be).

    Args:
        column: of any type.
        time_format: of strptime, for text.
    Raises:
        ValueError: a format for a column of times, or one that is none.
    """
    if column.dtype == pl.Object:
        column = plain_texts(column)
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    if time_format is not None:
        return _by_format(column, time_format), f"a time written as {time_format!r}"
    if column.dtype == pl.String:
        return _of_texts(column)
    if column.dtype == pl.Date or column.dtype == pl.Datetime:
        return column.cast(pl.Datetime("us")).cast(pl.Int64), EXPECTED
    if column.dtype.is_numeric():
        return _of_numbers(column)
    return pl.Series(column.name, [None] * len(column), dtype=pl.Int64), EXPECTED


def are_times(texts: pl.Series) -> bool:
    """Whether nearly all of a column of text are dates or times as ISO 8601 has them, with the year first."""
    stripped = texts.str.strip_chars()
    patterns = [pattern for kind, pattern in _KINDS.items() if kind != "a number"]
    return len(texts) > 0 and max(int(stripped.str.contains(pattern).sum()) for pattern in patterns) > 0.9 * len(texts)


def _of_texts(column: pl.Series) -> tuple[pl.Series, str]:
    texts = column.str.strip_chars()
    is_kind = {kind: texts.str.contains(pattern).fill_null(False) for kind, pattern in _KINDS.items()}
    kind = max(is_kind, key=lambda each: int(is_kind[each].sum()))  # of equally many the first
    is_mixed = bool(is_kind[kind].any()) and int(is_kind[kind].sum()) < len(texts) - texts.null_count()
    texts = texts.set(~is_kind[kind], None)
    if kind == "a number":
        whole = texts.cast(pl.Int64, strict=False)
        exact = whole.null_count() == texts.null_count()
        times, expected = _of_numbers(whole if exact else texts.cast(pl.Float64, strict=False))
    else:
        times, expected = _of_iso(texts, kind), EXPECTED
    return times, f"{kind}, as most of the column are" if is_mixed else expected


def _of_iso(texts: pl.Series, kind: str) -> pl.Series:
    """Microseconds since 1970 of texts of one kind, null where there is no such day or time."""
    if kind == "a date":
        days = texts.str.to_date("%Y-%m-%d", strict=False)
        return days.cast(pl.Datetime("us")).cast(pl.Int64)
    parts = pl.DataFrame({"text": texts}).select(
        day=pl.col("text").str.slice(0, 10),
        clock=pl.col("text").str.extract(r"^.{11}(\d{2}:\d{2}(?::\d{2})?)"),
        fraction=pl.col("text").str.extract(r"[.,](\d+)"),
        sign=pl.col("text").str.extract(r"([+-])\d{2}:?(?:\d{2})?$"),
        hours=pl.col("text").str.extract(r"[+-](\d{2}):?(?:\d{2})?$"),
        minutes=pl.col("text").str.extract(r"[+-]\d{2}:?(\d{2})$"),
    )
    if kind == "a local time":  # its last "-dd" is that of the date where there are no seconds
        parts = parts.with_columns(sign=pl.lit(None, pl.String), hours=pl.lit(None, pl.String))
    whole = (
        pl.col("day")
        + " "
        + pl.col("clock")
        + pl.when(pl.col("clock").str.len_bytes() == 5).then(pl.lit(":00")).otherwise(pl.lit(""))
    )
    offset = 60 * pl.col("hours").cast(pl.Int64).fill_null(0) + pl.col("minutes").cast(pl.Int64).fill_null(0)
    offset = pl.when(pl.col("sign") == "-").then(-offset).when(pl.col("sign") == "+").then(offset).otherwise(0)
    micro = pl.col("fraction").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64).fill_null(0)
    times = whole.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False).cast(pl.Int64)
    return parts.select(times + micro - offset * 60_000_000).to_series().alias(texts.name)


def _of_numbers(column: pl.Series) -> tuple[pl.Series, str]:
    if column.dtype.is_integer():
        times = column.cast(pl.Int64, strict=False)
    else:
        numbers = column.cast(pl.Float64)
        numbers = numbers.set(~numbers.is_finite().fill_null(False), None)
        known = numbers.drop_nulls()
        scale = 1.0 if (known == known.floor()).all() else 1e6
        times = (numbers * scale).round().cast(pl.Int64, strict=False)
    return _of_one_unit(times)


def _of_one_unit(times: pl.Series) -> tuple[pl.Series, str]:
    """The times, null where they are in another unit of the epoch than most: seconds among milliseconds."""
    values = times.drop_nulls().to_numpy()
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low < _LEAST_EPOCH or high / low < _WIDEST_STEP:
        return times, EXPECTED
    ordered = np.unique(values).astype(np.float64)
    steps = ordered[1:] / ordered[:-1]
    at = int(steps.argmax())
    if steps[at] < _WIDEST_STEP:
        return times, EXPECTED
    is_later = times > int(ordered[at])
    is_odd = is_later if int(is_later.sum()) * 2 <= len(values) else ~is_later
    odd = is_odd.fill_null(False)
    return times.set(odd, None), "an epoch number in the unit of the others (seconds and milliseconds are mixed)"


def _by_format(column: pl.Series, time_format: str) -> pl.Series:
    if column.dtype.is_temporal():
        raise ValueError(
            f"time_format: it is for text, got {column.dtype} in {column.name!r}, which needs none; leave it out"
        )
    if not re.search(r"%[A-Za-z+]", time_format):
        raise ValueError(f"time_format: a format such as '%d/%m/%Y %H:%M' is required, got {time_format!r}")
    texts = column.cast(pl.String).str.strip_chars()
    try:
        if re.search(r"%[HIMSTRsfXc+.]", time_format):
            parsed = texts.str.strptime(pl.Datetime("us"), time_format, strict=False)
        else:
            parsed = texts.str.strptime(pl.Date, time_format, strict=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"time_format: {time_format!r} must be a format of strptime such as '%d/%m/%Y %H:%M', got {error}"
        ) from None
    return parsed.cast(pl.Datetime("us")).cast(pl.Int64)
