"""From the columns of users and items whom a model never saw to lists and vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from deeprec.contract import AnyModel
from deeprec.data.reading.frames import frame_of, is_frame
from deeprec.device import device_of
from deeprec.nn.scoring import Lists, as_sets, topk
from deeprec.serve.arguments import codes_of, require_k
from deeprec.serve.index import ItemIndex
from deeprec.serve.recommend import by_index, id_maps, item_filter, ranked_columns
from deeprec.surroundings import served


@served
def recommend_for_features(
    model: AnyModel,
    users: Any,
    k: int = 10,
    *,
    histories: Any = None,
    allow: Any = None,
    deny: Any = None,
    index: ItemIndex | None = None,
) -> pl.DataFrame:
    """The k best items for users whom the model never saw, from their columns.

    Args:
        users: polars or pandas frame with the columns of the user table that the model was trained with; what is
            missing or unknown in it is unknown. Other columns are passed over, but for user_id, which names the lists.
        k: list length, >= 1.
        histories: external ids of the items that each user met, a list for each row, where the model reads histories;
            they are not recommended. None: nothing is known.
        allow: external ids of the only items that may come; None: all.
        deny: external ids of items that may not come; they win over `allow`.
        index: as of `recommend`.
    Returns:
        user_id or, without such a column, row (from 0); rank (from 1), item_id, score.
    Raises:
        ValueError: a column that is missing, an unknown item, another number of histories than users, or k < 1.
        TypeError: users that are no frame.
    """
    name = "recommend_for_features"
    _, items_map = id_maps(model)
    k = min(require_k(name, k), len(items_map))
    frame = require_table(name, "users", users)
    offsets, items = _histories(name, histories, len(frame), items_map)
    only, never = item_filter(name, "allow", allow, items_map), item_filter(name, "deny", deny, items_map)
    device = device_of(model)
    scorer = model.scorer(model.feature_rows(frame, offsets, items.to(device)))
    if index is None:
        seen: Lists = offsets.to(device), items.to(device, torch.int32)
        best = topk(scorer, k, seen=seen, allow=only, deny=never)
    else:
        best = by_index(model, index, scorer, k, (offsets, items.int()), allow=only, deny=never)
        items_map = index.ids
    places, columns = ranked_columns([best], k, items_map, "item_id")
    owners = frame["user_id"] if "user_id" in frame.columns else pl.Series("row", np.arange(len(frame)))
    return pl.DataFrame([owners.gather(places), *columns])


def _histories(function: str, histories: Any, count: int, items_map: Any) -> tuple[Tensor, Tensor]:
    """Offsets [count + 1] and items [nnz] on the CPU, each item of a row once and ascending."""
    lists = [[]] * count if histories is None else list(histories)
    if len(lists) != count:
        raise ValueError(
            f"{function}: histories must be one list of items for each of the {count} users, got {len(lists)}; pass [] "
            "for a user without one"
        )
    codes = [codes_of(function, "histories", each, items_map) if len(each) else np.empty(0, np.int32) for each in lists]
    offsets = torch.from_numpy(np.cumsum([0, *map(len, codes)]).astype(np.int64))
    items = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *codes]).astype(np.int64))
    bounds, sets, _ = as_sets(offsets, items)
    return bounds, sets


def require_table(function: str, argument: str, table: Any) -> pl.DataFrame:
    """A frame of polars or pandas as one of polars; TypeError for anything else."""
    if not is_frame(table):
        raise TypeError(
            f"{function}: {argument} must be a polars or pandas frame, got {type(table).__name__}; pass one"
        )
    return frame_of(table, function)
