"""Items that come after the training of two towers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deeprec.batches.contents import ItemContents
from deeprec.data.columns.rows import join
from deeprec.models._new_items import growing, require_new_items
from deeprec.nn.tower import TermBatch, TermRows
from deeprec.surroundings import trained

if TYPE_CHECKING:
    from deeprec.data import IdMap
    from deeprec.models._tower_model import TowerModel


@trained
@torch.no_grad()
def add_items(model: TowerModel, items: Any) -> TowerModel:
    """See `TowerModel.add_items`."""
    new = new_items(model, items)
    if new is not None:
        item_ids, rows = new
        append_items(model, item_ids, model._scored(model.embed_new_items(rows)))
    return model


def new_items(model: Any, items: Any) -> tuple[IdMap, TermBatch] | None:
    """The ids of a model's items with the new ones of a frame behind them, and what towers read; None: no rows.

    Raises:
        ValueError: columns are no input of the model, one is missing, an id is known or comes twice.
    """
    frame, grown = require_new_items(model, items)
    if model.item_encoder is None:
        raise ValueError(
            f"add_items: {model.name} makes vectors of new items from their columns, got item_inputs "
            f"{model.config.item_inputs}; train it with 'features' in item_inputs"
        )
    if not len(frame):
        return None
    rows = join(list(model.item_encoder.stream(frame)))
    batch = TermRows(model.new_item_terms(len(frame), rows), model.device).whole()
    if model.item_encoders is None:
        return grown, batch
    contents = ItemContents(model.item_encoder, rows, model.item_encoders.names, frame["item_id"].to_list())
    was_training = model.training
    model.eval()
    batch = model.item_encoders.with_vectors(batch, contents, torch.arange(len(frame)))
    model.train(was_training)
    return grown, batch


def append_items(model: TowerModel, item_ids: IdMap, vectors: Tensor) -> None:
    """Let the last ids of a map that has grown have these vectors, as they are scored."""
    with growing(model, item_ids, added_items=model.require_built().added_items + len(vectors)):
        model.vectors_of_items = torch.cat([model._vectors()[1], vectors])
        model.forget_training()
