"""Lists of items for somebody of whom nothing is known but tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from deeprec.contract import AnyModel
from deeprec.data import Terms
from deeprec.nn.scoring import topk
from deeprec.serve.arguments import codes_of, require_k
from deeprec.serve.index import ItemIndex
from deeprec.serve.recommend import by_index, id_maps, item_filter, ranked_columns
from deeprec.surroundings import served


@served
def recommend_for_tags(
    model: AnyModel,
    tags: Mapping[Any, float] | Iterable[Any],
    k: int = 10,
    *,
    allow: Any = None,
    deny: Any = None,
    index: ItemIndex | None = None,
) -> pl.DataFrame:
    """The k best items for a user who used these tags.

    Args:
        tags: how often each was used, > 0, by the tag as the data had it; or tags, counted as often as they come.
        k: list length, >= 1.
        allow: external ids of the only items that may come; None: all.
        deny: external ids of items that may not come; they win over `allow`.
        index: as of `recommend`.
    Returns:
        rank (from 1), item_id, score; fewer than k rows where fewer items are left.
    Raises:
        ValueError: no tag, one that the model does not know, a number that is not > 0, k < 1, or a model of data
            without tags. TypeError: tags of another type than the data's.
    """
    name = "recommend_for_tags"
    items_map = id_maps(model)[1]
    if model.tag_ids is None:
        raise ValueError(f"{name}: {model.name} was fitted on data without tags; name their column by tag= and fit it")
    k = min(require_k(name, k), len(items_map))
    counts = dict(tags) if isinstance(tags, Mapping) else None
    given = list(counts) if counts is not None else [tags] if isinstance(tags, str) else list(tags)
    if not given:
        raise ValueError(f"{name}: tags must be at least one, got none; try popularity")
    weights = None if counts is None else np.array([float(count) for count in counts.values()])
    if weights is not None and not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"{name}: numbers of uses must be > 0, got {counts}; leave the tag out")
    codes = codes_of(name, "tags", given, model.tag_ids)
    terms = Terms.of_entries(np.zeros(len(codes), dtype=np.int64), codes, weights, 1, len(model.tag_ids))
    only, never = item_filter(name, "allow", allow, items_map), item_filter(name, "deny", deny, items_map)
    scorer = model.scorer(model.tag_rows(terms))
    if index is None:
        best = topk(scorer, k, allow=only, deny=never)
    else:
        best, items_map = by_index(model, index, scorer, k, None, allow=only, deny=never), index.ids
    return pl.DataFrame(ranked_columns([best], k, items_map, "item_id")[1])
