"""A first draft of a feature schema from data, with its reasons, to be printed and corrected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deeprec._suggest import did_you_mean
from deeprec.data.columns.kinds import Bag, Categorical, Feature, Numeric
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.reading.chunks import Source
from deeprec.data.reading.errors import naming
from deeprec.data.reading.sources import open_source

_FRAME_ROWS = 1_000_000
_SOURCE_ROWS = 20_000
_FEW_INTEGERS = 32  # more distinct integers than this are amounts rather than codes
_MANY_VALUES = 1000  # from here on a vocabulary drops the rare ones
_SHARE_OF_BAGS = 0.05  # text cells with the separator in them that make a column a bag
_CODE_NAMES = {"id", "user", "item", "code", "zip", "city", "country", "category", "brand", "type"}


def infer(
    source: Any,
    label: str = "label",
    *,
    positive_from: float | None = None,
    positive_values: Iterable[str] = (),
    group: str | None = None,
    rows: int | None = None,
) -> FeatureSchema:
    """A schema for a log whose columns are not declared yet; `print` it, correct it, save it as YAML.

    Text, booleans, integers with at most 32 different values and integers named like an id become categorical, other
    numbers numeric (the logarithm where they are skewed), lists and text with "|" bags. Constant columns, dates and
    text or integers that are another value in each row are left out. Each choice stands in the schema's notes.

    Args:
        source: polars or pandas frame, or another source that `open_source` takes or returned.
        label, positive_from, positive_values, group: as of the `FeatureSchema`.
        rows: so many first rows are looked at, >= 1; None: a million of a frame, 20,000 of another source.
    Raises:
        ValueError: no such column, no rows, a label that has other values than 0 and 1, or nothing left to learn from.
    """
    with naming(_name(source)):
        return _inferred(*_head(source, rows), label, positive_from, tuple(positive_values), group)


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return source.name if isinstance(source, Source) else "the frame"


def _inferred(
    table: pl.DataFrame,
    weighted: tuple[str, ...],
    label: str,
    positive_from: float | None,
    positive_values: tuple[str, ...],
    group: str | None,
) -> FeatureSchema:
    for option, name in (("label", label), ("group", group)):
        if name is not None and name not in table.columns:
            raise ValueError(f"infer: no column {name!r} for {option}; {did_you_mean(name, table.columns)}")
    if not table.height:
        raise ValueError("infer: at least one row is required, got none")
    if positive_from is None and not positive_values:
        _check_label(table.get_column(label))
    features: list[Feature] = []
    notes: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for column in table.get_columns():
        if column.name == label:
            continue
        feature, note = _feature(column)
        if isinstance(feature, Bag) and column.name in weighted:
            feature, note = Bag(column.name, weight_separator=":", pooling="sum"), f"{note}, each with a weight"
        if feature is None:
            left_out[column.name] = f"left out, {note}"
        else:
            features.append(feature)
            notes[column.name] = note
    if not features:
        raise ValueError(f"infer: at least one column to learn from is required, got {left_out or 'the label alone'}")
    notes.update(left_out)
    return FeatureSchema(tuple(features), label, positive_from, positive_values, group, notes)


def _head(source: Any, rows: int | None) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """The first rows, and which columns are bags with weights."""
    if isinstance(source, pl.LazyFrame):
        return source.head(rows or _FRAME_ROWS).collect(), ()
    if isinstance(source, pl.DataFrame):
        return source.head(rows or _FRAME_ROWS), ()
    if hasattr(source, "iloc"):
        return pl.from_pandas(source.head(rows or _FRAME_ROWS)), ()
    opened = open_source(source)
    return opened.head(rows or _SOURCE_ROWS), tuple(opened.weighted)


def _check_label(column: pl.Series) -> None:
    values = column.drop_nulls().unique().sort().head(4)
    if not column.dtype.is_numeric() and column.dtype != pl.Boolean:
        raise ValueError(
            f"infer: label {column.name!r} must be 0 or 1, got text such as {values.to_list()}; pass "
            f"positive_values=[{values.to_list()[-1]!r}], the texts that mean 1"
        )
    numbers = set(values.cast(pl.Float64).to_list())
    if not (numbers <= {0.0, 1.0} or numbers <= {-1.0, 1.0}):
        raise ValueError(
            f"infer: label {column.name!r} must be 0 or 1, got {values.to_list()}; pass positive_from=the smallest "
            "number that means 1"
        )


def _feature(column: pl.Series) -> tuple[Feature | None, str]:
    """The feature and why, or None and why not."""
    dtype = column.dtype
    present = column.drop_nulls()
    if isinstance(dtype, (pl.List, pl.Array)):
        return _list_bag(column)
    if dtype.is_temporal():
        return None, f"it is a {dtype}: derive the hour, the weekday or an age from it"
    is_text = dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum))
    if not (is_text or dtype.is_numeric() or dtype == pl.Boolean):
        return None, f"values of type {dtype} are no feature: make text, numbers or lists of them"
    distinct = present.n_unique()
    if distinct + (present.len() < column.len()) <= 1:
        return None, f"the same value in every row: {present.head(1).to_list()}"
    if dtype.is_float():
        return _number(column.name, present)
    if distinct == column.len() and distinct > 10:
        return None, _as_key(present, is_text)
    if is_text:
        text = present.cast(pl.String)
        share = float(text.str.contains("|", literal=True).mean() or 0)  # type: ignore[arg-type]
        if share >= _SHARE_OF_BAGS:
            return Bag(column.name), f"{share:.0%} of the cells hold several values separated by |"
        return _categorical(column.name, present, distinct, "text")
    if dtype == pl.Boolean:
        return _categorical(column.name, present, distinct, "true or false")
    words = set(column.name.lower().replace("-", "_").split("_"))
    if distinct <= _FEW_INTEGERS or words & _CODE_NAMES or column.name.endswith(("Id", "ID")):
        return _categorical(column.name, present, distinct, "integers; make it numeric if they are amounts")
    feature, note = _number(column.name, present)
    return feature, f"{distinct:,} different integers; make it categorical if they are codes; {note}"


def _as_key(present: pl.Series, is_text: bool) -> str:
    note = f"another value in each of {present.len():,} rows: a row number or a key says nothing about new rows"
    spaces = present.cast(pl.String).str.count_matches(" ", literal=True).mean() if is_text else 0
    if isinstance(spaces, (int, float)) and spaces >= 1:
        note += f"; `text: {present.name}` makes tokens of it, for a model that takes texts"
    return note


def _categorical(name: str, present: pl.Series, distinct: int, what: str) -> tuple[Feature, str]:
    if distinct <= _MANY_VALUES:
        return Categorical(name), f"{distinct:,} different values, {what}"
    counts = present.value_counts().get_column("count")
    min_count = 10 if present.len() >= 1_000_000 else 2
    kept = int((counts >= min_count).sum())
    return (
        Categorical(name, min_count=min_count),
        f"{distinct:,} different values in {present.len():,} rows, {what}; "
        f"{kept:,} of them in {min_count} rows or more, the others count as unknown",
    )


def _number(name: str, present: pl.Series) -> tuple[Feature, str]:
    values = present.cast(pl.Float64)
    values = values.filter(values.is_finite())
    numbers, skew = values.to_numpy(), values.skew()
    is_skewed = skew is not None and abs(skew) > 3
    feature = Numeric(name, transform="log-standardise" if is_skewed else "standardise")
    return feature, f"numbers from {numbers.min(initial=np.inf):g} to {numbers.max(initial=-np.inf):g}" + (
        f", skewed ({skew:.1f}): logarithm first" if is_skewed else ""
    )


def _list_bag(column: pl.Series) -> tuple[Feature | None, str]:
    inner = column.dtype.inner  # type: ignore[attr-defined]
    lists = column if isinstance(column.dtype, pl.List) else column.arr.to_list()
    lengths = lists.list.len().fill_null(0).to_numpy()
    known = lengths[column.is_not_null().to_numpy()]
    if inner.is_float() and len(known) and known.min() == known.max() > 0:
        return None, (
            f"a list of {known[0]} numbers: declare `vector: {column.name}` with `width: {known[0]}` for a model that "
            "takes vectors"
        )
    if not (inner == pl.String or inner.is_integer() or isinstance(inner, (pl.Categorical, pl.Enum))):
        return None, f"a list of {inner}: only lists of text or integers are bags"
    return Bag(column.name), (
        f"lists of {lengths.mean():.1f} values on average, at most {lengths.max()}; `sequence: {column.name}` keeps "
        "their order, for a model that takes sequences"
    )
