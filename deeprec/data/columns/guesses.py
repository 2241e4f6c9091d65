"""What a column is likely to mean, by its type, its name and its values: code or amount, bag, key, date.

Whole numbers, text of them beside missing values, and floats that are all whole (what pandas makes of whole numbers
once one is missing) are told apart by the first of these that holds:

    another value in nearly each row            a key, left out, but for the name of an amount
    at most 32 different ones, each often       a code
    the last word of the name                   "..._id" and "zip" are codes, "age" and "..._count" amounts
    from 2^31 on                                a code: a hash or a long id
    all of as many digits, four or more         a code, such as a postcode or a year
    500 and more, hardly a gap between them     a code: numbers given one after the other
    neighbours are about as frequent            an amount
    each occurs five times and more             both: as a code, and as an amount
    otherwise                                   an amount

Text with leading zeros, or with more digits than 64 bits hold, is a code.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from deeprec.data.columns.kinds import Bag, Categorical, Feature, Numeric
from deeprec.data.reading.frames import WRITTEN_LISTS
from deeprec.data.reading.tables import typed
from deeprec.data.reading.times import are_times

_FEW = 32  # more different whole numbers than this may be amounts
_OFTEN = 5  # rows for each value, from which on a code can be learned from
_MANY_VALUES = 1000  # from here on a vocabulary drops the rare ones
_KEY_SHARE = 0.95  # different values of all rows
_LARGE = 2.0**31
_CONSECUTIVE = 500
_ROUGH = 0.7  # of the differences between the frequencies of neighbours in random order
_AGAIN = 1.25  # how often a value of a bag occurs on average, at least
_COMMA_NUMBER = r"^[+-]?\d+(,\d{3})*$|^[+-]?\d+,\d+$"  # 1,234,567 or 12,5
# Cells with the separator in them that make a column a bag. What separates words separates values only where these
# come again in other cells.
_SEPARATORS = {"|": 0.05, ";": 0.2, ",": 0.2, " ": 0.5}

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _WORD.findall(text))


_CODES = _words("""
    id ids uid iid user item code codes zip zipcode postcode postal city country state region category cat brand type
    class kind group segment channel campaign ad site app page device browser os model version slot position hour
    weekday dow month ip isp sku asin product movie artist publisher advertiser creative hash key gender sex
    occupation status flag language lang currency store shop cluster bucket index domain
""")
_AMOUNTS = _words("""
    age price cost amount amt count counts cnt num total sum qty quantity score length duration size weight height width
    distance days minutes seconds hours views clicks sales income salary revenue rate ratio percent pct avg mean min max
    std gain loss budget popularity
""")
_TIMES = _words("time timestamp ts date datetime epoch created updated")
_DAYS = r"^\s*(\d{1,4}[/.-]\d{1,2}|\d{1,2}[/. -][A-Za-z]{3,9}\.?|[A-Za-z]{3,9}\.? \d{1,2},?)[/. -]\d{2,4}(\D.*)?$"


class Guess(NamedTuple):
    """The features that a column is drafted as, none where it is left out, and why."""

    features: tuple[Feature, ...]
    note: str


def guess(column: pl.Series) -> Guess:
    """What a column is likely to mean.

    Args:
        column: its first rows; its name counts.
    """
    dtype, present = column.dtype, column.drop_nulls()
    if isinstance(dtype, pl.List | pl.Array):
        return _of_lists(column)
    if dtype.is_temporal():
        return Guess((), f"it is a {dtype}: derive the hour, the weekday or an age from it")
    is_text = isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
    if not (is_text or dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
        return Guess((), f"values of type {dtype} are no feature: make text, numbers or lists of them")
    distinct = present.n_unique()
    if distinct + (present.len() < column.len()) <= 1:
        return Guess((), f"the same value in every row: {present.head(1).to_list()}")
    if dtype == pl.Boolean:
        return _categorical(column.name, present, "true or false")
    if is_text:
        return _of_texts(column.cast(pl.String))
    return _of_numbers(column)


def _of_texts(column: pl.Series) -> Guess:
    present = column.drop_nulls()
    numbers = typed(column.to_frame()).to_series()
    if numbers.dtype.is_float() or (numbers.dtype == pl.Int64 and numbers.null_count() > column.null_count()):
        return _of_numbers(numbers)
    if are_times(present) or float(present.str.contains(_DAYS).mean() or 0) > 0.9:  # type: ignore[arg-type]
        return Guess((), f"dates or times such as {present[0]!r}: derive the hour, the weekday or an age from them")
    if present.str.contains(WRITTEN_LISTS).all():
        return Guess((), f"lists written as text, such as {present[0]!r:.60}: join their values by | or write Parquet")
    for separator, least in _SEPARATORS.items():
        share = float(present.str.contains(separator, literal=True).mean() or 0)  # type: ignore[arg-type]
        if share >= least and (separator == "|" or _is_plain(present, separator)):
            name = {" ": "a space"}.get(separator, separator)
            note = f"{share:.0%} of the cells hold several values separated by {name}"
            return Guess((Bag(column.name, separator),), note)
    if present.n_unique() >= _KEY_SHARE * len(column) and present.n_unique() > 10:
        return Guess((), _as_key(present, True))
    return _categorical(column.name, present, "text")


def _is_plain(present: pl.Series, separator: str) -> bool:
    """Whether what stands between separators are values that come again in other cells, and neither the words of a
    sentence nor the digits of a number."""
    cells = present.unique()
    if separator == "," and cells.str.contains(_COMMA_NUMBER).all():
        return False
    values = cells.str.split(separator).explode().str.strip_chars()
    values = values.filter(values != "")
    if separator == " " and int(values.str.contains(r"\d").sum()) < 0.9 * len(values):
        return False
    has_words = int(values.str.contains(" ", literal=True).sum()) > 0.2 * len(values)
    return not has_words and _AGAIN * values.n_unique() <= len(values)


def _of_numbers(column: pl.Series) -> Guess:
    present = column.drop_nulls()
    if column.dtype.is_float():
        present = present.filter(present.is_finite())
    values = np.unique(present.cast(pl.Float64).to_numpy())
    missing = 1 - len(present) / len(column)
    if column.dtype == pl.Decimal or (values != np.floor(values)).any():
        return _numeric(column.name, present, missing)
    distinct = present.n_unique()
    what = "whole numbers" if not column.dtype.is_float() else "whole numbers written as fractions"
    means = _meaning(column.name)
    if means != "amount" and _is_epoch(column.name, values):
        return Guess((), "times since 1970: derive the hour, the weekday or an age from them")
    if means != "amount" and distinct >= _KEY_SHARE * len(column) and distinct > 10:
        return Guess((), _as_key(present, False))
    reason = _why_code(column.name, present, values)
    if reason:
        return _categorical(column.name, present, f"{what}, {reason}")
    if means != "amount" and len(present) >= _OFTEN * distinct and _is_rough(present):
        note = f"{what} that may be codes or amounts, so both; drop the one they are not"
        code = _categorical(column.name, present, note)
        amount = _numeric(column.name, present, missing, f"{column.name}_amount")
        return Guess((*code.features, *amount.features), code.note)
    made = _numeric(column.name, present, missing)
    return Guess(made.features, f"{distinct:,} different {what}; make it categorical if they are codes; {made.note}")


def _why_code(name: str, present: pl.Series, values: Any) -> str:
    """Why whole numbers are codes, or "" where they may be amounts."""
    if len(values) <= _FEW and len(present) >= _OFTEN * len(values):
        return "few; make it numeric if they are amounts"
    means = _meaning(name)
    if means:
        return "codes by the name" if means == "code" else ""
    low, high = float(values[0]), float(values[-1])
    if max(-low, high) >= _LARGE:
        has_lost = present.dtype.is_float() and high >= 2**53
        return "too large for amounts" + (", whose last digits are lost: read them as text" if has_lost else "")
    if low >= 1000 and len(str(int(low))) == len(str(int(high))):
        return f"all of {len(str(int(low)))} digits"
    if len(values) >= _CONSECUTIVE and len(values) >= 0.7 * (high - low + 1):
        return "numbered one after the other"
    return ""


def _is_epoch(name: str, values: Any) -> bool:
    """Whether numbers are times: of the years 2000 to 2039 in one of the units, or of 1973 and later by their name."""
    if len(values) <= _FEW:
        return False
    low, high = float(values[0]), float(values[-1])
    words = _words(name)
    is_recent = any(9.4e8 * unit <= low <= high <= 2.2e9 * unit for unit in (1, 1e3, 1e6, 1e9))
    return is_recent or (bool(words & _TIMES) and low >= 1e8)


def _is_rough(present: pl.Series) -> bool:
    """Whether the frequencies of neighbouring numbers differ as if the numbers stood in any order, as codes do."""
    _, counts = np.unique(present.to_numpy(), return_counts=True)
    order = np.random.default_rng(0).permuted(np.tile(counts, (16, 1)), axis=1)
    by_chance = np.abs(np.diff(order, axis=1)).sum(axis=1).mean()
    return bool(np.abs(np.diff(counts)).sum() >= _ROUGH * by_chance)


def _meaning(name: str) -> str:
    """ "code" or "amount" by the last word of a name that says it, or ""."""
    words = _WORD.findall(name)
    for word in reversed([word.lower() for word in words]):
        if word in _CODES or word in _AMOUNTS:
            return "code" if word in _CODES else "amount"
    return ""


def _as_key(present: pl.Series, is_text: bool) -> str:
    each = "each" if present.n_unique() == len(present) else "nearly each"
    note = f"another value in {each} of {present.len():,} rows: a row number or a key says nothing about new rows"
    spaces = present.cast(pl.String).str.count_matches(" ", literal=True).mean() if is_text else 0
    if isinstance(spaces, int | float) and spaces >= 1:
        note += f"; `text: {present.name}` makes tokens of it, for a model that takes texts"
    return note


def _categorical(name: str, present: pl.Series, what: str) -> Guess:
    distinct = present.n_unique()
    if distinct <= _MANY_VALUES:
        return Guess((Categorical(name),), f"{distinct:,} different values, {what}")
    counts = present.value_counts().get_column("count")
    min_count = 10 if present.len() >= 1_000_000 else 2
    kept = int((counts >= min_count).sum())
    return Guess(
        (Categorical(name, min_count=min_count),),
        f"{distinct:,} different values in {present.len():,} rows, {what}; "
        f"{kept:,} of them in {min_count} rows or more, the others count as unknown",
    )


def _numeric(column: str, present: pl.Series, missing: float, name: str = "") -> Guess:
    values = present.cast(pl.Float64)
    numbers, skew = values.to_numpy(), values.skew()
    is_skewed = skew is not None and abs(skew) > 3
    feature = Numeric(
        name or column,
        transform="log-standardise" if is_skewed else "standardise",
        column=column,
    )
    note = f"numbers from {numbers.min(initial=np.inf):g} to {numbers.max(initial=-np.inf):g}"
    note += f", skewed ({skew:.1f}): logarithm first" if is_skewed else ""
    return Guess((feature,), note + (f", {missing:.1%} missing" if missing else ""))


def _of_lists(column: pl.Series) -> Guess:
    inner = column.dtype.inner  # type: ignore[attr-defined]
    lists = column if isinstance(column.dtype, pl.List) else column.arr.to_list()
    lengths = lists.list.len().fill_null(0).to_numpy()
    known = lengths[column.is_not_null().to_numpy()]
    if inner.is_float() and len(known) and known.min() == known.max() > 0:
        return Guess((), (
            f"a list of {known[0]} numbers: declare `vector: {column.name}` with `width: {known[0]}` for a model that "
            "takes vectors"
        ))  # fmt: skip
    if not (isinstance(inner, pl.String | pl.Categorical | pl.Enum) or inner.is_integer()):
        return Guess((), f"a list of {inner}: only lists of text or whole numbers are bags")
    note = (
        f"lists of {lengths.mean():.1f} values on average, at most {lengths.max()}; `sequence: {column.name}` keeps "
        "their order, and with `vocabulary: COLUMN` click models weigh them by the value of that column"
    )
    return Guess((Bag(column.name),), note)
