"""A first draft of a feature schema from data, with its reasons, to be printed and corrected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from deeprec._suggest import did_you_mean
from deeprec.data.columns.guesses import Guess, guess
from deeprec.data.columns.kinds import Bag
from deeprec.data.columns.schema import FeatureSchema, columns_of
from deeprec.data.reading.chunks import Source
from deeprec.data.reading.errors import naming
from deeprec.data.reading.frames import frame_of, is_frame, is_index_name, plain_texts, table_of
from deeprec.data.reading.sources import open_source

_FRAME_ROWS = 1_000_000
_SOURCE_ROWS = 20_000


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

    Text, booleans, and whole numbers that are codes become categorical; amounts numeric (the logarithm where they are
    skewed); lists, and text where a separator stands between values that come again, bags. What is code and what is
    amount, `deeprec.data.columns.guesses` says; whole numbers of which that cannot be told become both. Left out are
    constant columns, dates and times, an index without a name, what is another value in nearly each row, and what holds
    no values. Each choice stands in the schema's notes.

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
    guesses = {column.name: _guess(column) for column in table.get_columns() if column.name != label}
    for name in weighted:
        if name in guesses and guesses[name].features:
            note = f"{guesses[name].note}, each with a weight"
            guesses[name] = Guess((Bag(name, weight_separator=":", pooling="sum"),), note)
    features = tuple(
        feature
        for name, made in guesses.items()
        for feature in made.features
        if feature.name == name or feature.name not in table.columns
    )
    left_out = {name: f"left out, {made.note}" for name, made in guesses.items() if not made.features}
    if not features:
        raise ValueError(f"infer: at least one column to learn from is required, got {left_out or 'the label alone'}")
    notes = {feature.name: f"{columns_of(feature)[0]} as amounts" for feature in features}
    notes |= {name: made.note for name, made in guesses.items() if made.features}
    return FeatureSchema(features, label, positive_from, positive_values, group, notes | left_out)


def _guess(column: pl.Series) -> Guess:
    if is_index_name(column.name):
        return Guess((), "an index without a name, as pandas writes it")
    return guess(column)


def _head(source: Any, rows: int | None) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """The first rows, and which columns are bags with weights."""
    if is_frame(source):
        head = frame_of(source.head(rows or _FRAME_ROWS), "infer")
        return table_of([plain_texts(column) for column in head.get_columns()]), ()
    opened = open_source(source)
    return opened.head(rows or _SOURCE_ROWS), tuple(opened.weighted)


def _check_label(column: pl.Series) -> None:
    if column.dtype == pl.Object or column.dtype.is_nested():
        raise ValueError(f"infer: label {column.name!r} must be 0 or 1, got {column.dtype}; name another column")
    values = column.drop_nulls().unique().sort().head(4)
    if not column.dtype.is_numeric() and column.dtype != pl.Boolean:
        raise ValueError(
            f"infer: label {column.name!r} must be 0 or 1, got text such as {values.to_list()}; pass "
            f"positive_values={values.to_list()[-1:]}, the texts that mean 1"
        )
    numbers = set(values.cast(pl.Float64).to_list())
    if not (numbers <= {0.0, 1.0} or numbers <= {-1.0, 1.0}):
        raise ValueError(
            f"infer: label {column.name!r} must be 0 or 1, got {values.to_list()}; pass positive_from=the smallest "
            "number that means 1"
        )
