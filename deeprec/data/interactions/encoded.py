"""The tables of users and items of interactions, encoded by their internal ids for towers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.columns.data_schema import DataSchema
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.table import EncodedTable
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Interactions


class EncodedTables(NamedTuple):
    """Row i of each table describes internal id i; None where the schema has no columns of these."""

    users: EncodedTable | None
    items: EncodedTable | None


def encode_tables(data: Interactions, schema: DataSchema, train: Interactions | None = None) -> EncodedTables:
    """The columns of users and items of `data`, by encoders fitted on the users and items that `train` has rows of.

    An id whose columns are all missing is one without a row: nothing is known of it.

    Args:
        data: with the tables that the schema describes, see `with_features`.
        train: rows with the same id maps; None: all users and items are for training.
    Raises:
        ValueError: a table that is not there, a column that it lacks, no train row with columns.
    """
    users = None if train is None else np.bincount(train.users, minlength=data.num_users) > 0
    items = None if train is None else np.bincount(train.items, minlength=data.num_items) > 0
    return EncodedTables(
        _encode(data.user_features, data.user_ids, schema.users, users),
        _encode(data.item_features, data.item_ids, schema.items, items),
    )


def _encode(
    frame: pl.DataFrame | None, ids: IdMap, schema: FeatureSchema | None, train: NDArray[np.bool_] | None
) -> EncodedTable | None:
    if schema is None:
        return None
    if frame is None or len(frame) != len(ids):
        got = "none" if frame is None else f"one of {len(frame)} rows"
        raise ValueError(
            f"encode_tables: the data must have a table of its {len(ids)} {ids.name}s, got {got}; pass one with "
            "deeprec.data.with_features"
        )
    described = [column for column in frame.columns if column != f"{ids.name}_id"]
    has_row = ~frame.select(pl.all_horizontal(pl.col(described).is_null())).to_series().to_numpy()
    numbers = np.where(has_row, np.arange(len(ids)), -1)
    return EncodedTable.fit(schema, frame, numbers=numbers, size=len(ids), train=train)
