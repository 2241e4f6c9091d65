"""What is in the columns of a table of users or items, as `Terms`: for models that read content by name of column."""

from __future__ import annotations

from typing import Any

import polars as pl

from deeprec._suggest import did_you_mean
from deeprec.data import (
    Bag,
    Categorical,
    DataSchema,
    FeatureSchema,
    IdMap,
    Interactions,
    Numeric,
    Terms,
    Text,
    Vector,
    encode_tables,
)
from deeprec.data.interactions.features import feature_matrix

_TABLES = {"user": "user_features", "item": "item_features"}


def content_terms(
    model: str, option: str, data: Interactions, side: str, names: tuple[str, ...], vocabulary: int
) -> Terms:
    """Rows of all users or items: words of texts, values of lists, categories, as terms; numbers and vectors as values.

    Args:
        model, option: for messages.
        side: "user" or "item".
        names: columns, one at least.
        vocabulary: most terms of each column, the most frequent.
    Raises:
        ValueError: a column that is not there or of another kind, or a number that is missing.
    """
    frame: pl.DataFrame | None = getattr(data, _TABLES[side])
    columns: list[Any] = []
    for name in names:
        if frame is None or name not in frame.columns:
            known = f"no table of {side}s" if frame is None else f"columns {', '.join(frame.columns)}"
            near = "" if frame is None else f"; {did_you_mean(name, frame.columns)}"
            raise ValueError(f"{model}: {option} must be columns of the {side} table, got {name!r} and {known}{near}")
        columns.append(_feature(model, option, name, frame.get_column(name), vocabulary, data, side))
    schema = FeatureSchema(tuple(columns), label=None)
    of_users = side == "user"
    tables = encode_tables(data, DataSchema(users=schema) if of_users else DataSchema(items=schema))
    table = tables.users if of_users else tables.items
    assert table is not None
    return Terms.of_table(table)


def _feature(
    model: str, option: str, name: str, values: pl.Series, vocabulary: int, data: Interactions, side: str
) -> Any:
    dtype = values.dtype
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    if dtype.is_float() or (inner is not None and inner.is_float()):
        ids: IdMap = getattr(data, f"{side}_ids")
        width = feature_matrix(getattr(data, _TABLES[side]), (name,), ids).shape[1]  # says what is missing
        return (
            Numeric(name, transform="none", missing="raise") if inner is None else Vector(name, width, missing="raise")
        )
    if dtype == pl.String:
        return Text(name, max_size=vocabulary)
    if isinstance(dtype, pl.List) and inner is not None and (inner == pl.String or inner.is_integer()):
        return Bag(name, max_size=vocabulary)
    if dtype.is_integer() or dtype in (pl.Boolean, pl.Categorical, pl.Enum):
        return Categorical(name, max_size=vocabulary)
    raise ValueError(
        f"{model}: {option} must be columns of texts, lists, categories or numbers, got {name!r} of {dtype}"
    )
