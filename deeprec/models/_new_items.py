"""Items that come after the training of a model: their ids, and how the model and its index take them in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deeprec.data import IdMap
from deeprec.nn.embedding import Embedding
from deeprec.serve.features import require_table
from deeprec.serve.folder import index_of
from deeprec.serve.index_models import fingerprint, require_index_of, side_of

if TYPE_CHECKING:
    import polars as pl


def require_new_items(model: Any, items: Any) -> tuple[pl.DataFrame, IdMap]:
    """The frame, and the ids of the model's items with those of the frame behind them.

    Raises:
        ValueError: a model without data, no column item_id, an id that is known or comes twice. TypeError: no frame.
    """
    model.require_built()
    frame = require_table("add_items", "items", items)
    if model.item_ids is None:
        raise ValueError(f"add_items: {model.name} has no id maps; call fit(data), or load one with deeprec.load(dir)")
    if "item_id" not in frame.columns:
        raise ValueError(f"add_items: items must have a column item_id, got {', '.join(frame.columns)}; rename it")
    known = model.item_ids
    grown = known.grown(frame["item_id"]) if len(frame) else known
    if len(grown) != len(known) + len(frame):
        raise ValueError(
            f"add_items: every item_id must be new and there once, got {len(frame)} rows with "
            f"{len(grown) - len(known)} new ones; drop the others"
        )
    return frame, grown


@contextmanager
def growing(model: Any, item_ids: IdMap, **sizes: int) -> Iterator[None]:
    """Within it the model gets rows for the last ids of a map that has grown; then it serves them, and so its index.

    Args:
        sizes: of the schema, that change besides the number of items.
    Raises:
        ValueError: an index of other vectors than the model's; nothing is changed then.
    """
    index, count = index_of(model), len(item_ids) - len(model.item_ids)
    if index is not None:
        require_index_of(model, index, side_of(model, 1))
    yield
    schema = model.require_built()
    model.schema = dataclasses.replace(schema, num_items=schema.num_items + count, **sizes)
    model.item_ids, model._fitted_on = item_ids, None
    if index is not None:
        side = side_of(model, 1)
        bias = None if side.item_bias is None else side.item_bias[-count:]
        index.add(item_ids.values[-count:], side.items[-count:], bias=bias)
        index.source, index.verified = fingerprint(side.items, side.item_bias, item_ids), None


@torch.no_grad()
def append_rows(table: Embedding, rows: Tensor) -> None:
    """Give a table of vectors more rows."""
    table.weight = nn.Parameter(torch.cat([table.weight.detach(), rows.to(table.weight)]))
    table.num_embeddings = len(table.weight)
