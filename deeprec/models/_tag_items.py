"""Items that come after the training of a model of tags, known by their tags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from deeprec.data import IdMap, Terms
from deeprec.models._tower_items import append_items
from deeprec.serve.arguments import codes_of
from deeprec.serve.features import require_table
from deeprec.surroundings import trained

if TYPE_CHECKING:
    from deeprec.models.dspr import DSPR


@trained
@torch.no_grad()
def add_tagged_items(model: DSPR, items: Any) -> None:
    """See `DSPR.add_items`."""
    model.require_built()
    frame = require_table("add_items", "items", items)
    if model.tag_ids is None or model.item_ids is None:
        raise ValueError(
            f"add_items: {model.name} was fitted on data without tags; name their column by tag= and fit it"
        )
    for column in ("item_id", "tag"):
        if column not in frame.columns:
            raise ValueError(f"add_items: items must have a column {column}, got {', '.join(frame.columns)}; rename it")
    if not len(frame):
        return
    new = IdMap.from_values(frame["item_id"], "item")
    grown = model.item_ids.grown(new.values)
    if len(grown) != len(model.item_ids) + len(new):
        known = model.item_ids.encode(new.values, unknown=-1)
        raise ValueError(
            f"add_items: every item_id must be new, got {new.values[int((known >= 0).argmax())]!r}, which is known; "
            "leave it out, or call fit_more with all rows"
        )
    tags = codes_of("add_items", "tag", frame["tag"], model.tag_ids)
    terms = Terms.of_entries(new.encode(frame["item_id"]), tags, None, len(new), len(model.tag_ids))
    append_items(model, grown, model.tag_rows(terms)[0])
