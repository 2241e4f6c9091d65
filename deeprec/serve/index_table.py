"""The columns of items by which an index filters: `where`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean
from deeprec.data import IdMap
from deeprec.data.reading.arrays import require_pool, without_nulls
from deeprec.serve.arguments import codes_of

_SEVERAL = (list, tuple, set, frozenset, np.ndarray, pl.Series)

Where = pl.Expr | Mapping[str, Any]


def item_table(function: str, items: Any, ids: IdMap) -> pl.DataFrame:
    """The rows of a frame in the order of `ids`, a column item_id first; items without a row have nulls.

    Args:
        items: a polars or pandas frame with a column item_id, each item once; rows of items that there are not are
            passed over.
    Raises:
        TypeError: no frame. ValueError: no column item_id, or an item twice.
    """
    frame = items
    if not isinstance(items, pl.DataFrame):
        if not hasattr(items, "columns") or not hasattr(items, "to_dict"):
            raise TypeError(
                f"{function}: items must be a frame with a column item_id, got {type(items).__name__}; pass one of "
                "polars or pandas"
            )
        frame = pl.from_pandas(items)
    if "item_id" not in frame.columns:
        raise ValueError(f"{function}: items must have a column item_id, got {frame.columns[:8]}; rename it")
    codes = codes_of(function, "items", frame.get_column("item_id"), ids, unknown=-1)
    known = np.flatnonzero(codes >= 0)
    if len(np.unique(codes[known])) < len(known):
        counts = np.bincount(codes[known])
        raise ValueError(
            f"{function}: items must have one row for each item, got {counts.max()} of "
            f"{ids.decode([int(counts.argmax())])[0]!r}; keep one"
        )
    rows = np.full(len(ids), -1, dtype=np.int64)
    rows[codes[known]] = known
    places = pl.Series([None if row < 0 else row for row in rows.tolist()], dtype=pl.UInt32)
    columns = [frame.get_column(name).gather(places) for name in frame.columns if name != "item_id"]
    return pl.DataFrame([ids.values.alias("item_id"), *columns])


def rows_where(function: str, table: pl.DataFrame | None, where: Where) -> NDArray[np.bool_]:
    """Whether each item [N] meets a condition; a null does not.

    Args:
        where: a polars expression that is true or false for each row, or a value or several for each column.
    Raises:
        ValueError: no table, unknown columns, or an expression that is not such. TypeError: neither of them.
    """
    if table is None:
        raise ValueError(
            f"{function}: where needs the columns of the items, got an index without; pass items=FRAME when it is built"
        )
    if isinstance(where, Mapping):
        return _rows_with(function, table, where)
    if not isinstance(where, pl.Expr):
        raise TypeError(
            f"{function}: where must be a polars expression or a mapping of columns to values, got {where!r:.60}; pass "
            "{'genre': 'Drama'} or pl.col('year') > 1990"
        )
    require_pool(f"{function}: where=EXPRESSION")
    try:
        chosen = table.select(where)
    except pl.exceptions.PolarsError as error:
        words = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{function}: where must be an expression over the columns {', '.join(table.columns[:8])}, got an error of "
            f"polars ({words}); correct it"
        ) from None
    if chosen.shape != (len(table), 1) or chosen.dtypes != [pl.Boolean]:
        raise ValueError(
            f"{function}: where must give true or false for each of the {len(table)} items, got {chosen.shape[1]} "
            f"columns of {', '.join(map(str, chosen.dtypes))} with {len(chosen)} rows; compare a column with something"
        )
    return _true(chosen.to_series())


def _rows_with(function: str, table: pl.DataFrame, where: Mapping[str, Any]) -> NDArray[np.bool_]:
    """By what a forked process can do, too."""
    rows = np.ones(len(table), dtype=bool)
    for name, values in where.items():
        if name not in table.columns:
            raise ValueError(
                f"{function}: where must name columns of the items, got {name!r}; "
                f"{did_you_mean(str(name), table.columns)}"
            )
        column, several = table.get_column(name), isinstance(values, _SEVERAL)
        matches = np.zeros(len(table), dtype=bool)
        for value in values if several else (values,):
            try:
                equal = column.is_null() if value is None else column == value
            except (pl.exceptions.PolarsError, TypeError, ValueError):
                equal = None
            if not isinstance(equal, pl.Series) or equal.dtype != pl.Boolean:
                raise ValueError(
                    f"{function}: where: {name} holds {column.dtype}, got {value!r:.60}; pass values of that type, or "
                    "a polars expression"
                )
            matches |= _true(equal)
        rows &= matches
    return rows


def _true(column: pl.Series) -> NDArray[np.bool_]:
    """Where it is true and no null."""
    return without_nulls(column, False)[0].astype(bool)
