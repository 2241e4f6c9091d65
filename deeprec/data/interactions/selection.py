"""From ratings to likes: the rows rated well enough, of users and items with enough of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Interactions
from deeprec.data.interactions.tags import Folksonomy

SELECTION = ("min_rating", "min_interactions", "min_tag_uses")


def positives(
    data: Interactions, *, min_rating: float | None = None, min_interactions: int = 1, min_tag_uses: int = 0
) -> Interactions:
    """Binary interactions: rows rated `min_rating` or better become likes, all others are dropped.

    Then users and items with fewer than `min_interactions` rows go, again and again until none is left. What has no row
    is no longer in the id maps, so it is neither ranked nor recommended. An official split is left behind.

    Args:
        min_rating: least rating that counts as a like; None keeps every row, and its rating.
        min_interactions: least rows of a user and of an item, >= 1.
        min_tag_uses: of a `Folksonomy`, least rows of a tag among those that are rated well enough; with 1 or more,
            rows without a tag are dropped too. 0 keeps all.
    Returns:
        Interactions without ratings (with them where min_rating is None).
    Raises:
        ValueError: the data has no ratings or tags, a least number is out of range, or no row is left.
    Reference: Wu et al. 2016 (CDAE), section 5.1: 4 and 5; Xu et al. 2016 (DSPR), section 5: 15 uses of a tag.
    """
    if min_tag_uses < 0:
        raise ValueError(f"positives: min_tag_uses must be >= 0, got {min_tag_uses}")
    if min_tag_uses and not isinstance(data, Folksonomy):
        raise ValueError(f"positives: min_tag_uses needs tags, got {data.name} without; leave it out, or name their "
                         "column by tag=")  # fmt: skip
    if min_interactions < 1:
        raise ValueError(f"positives: min_interactions must be >= 1, got {min_interactions}")
    if min_rating is not None and data.ratings is None:
        raise ValueError(f"positives: min_rating needs ratings, got {data.name} without; leave min_rating out")
    keep = np.ones(len(data), dtype=np.bool_)
    if min_rating is not None and data.ratings is not None:
        keep = data.ratings >= min_rating
    if min_tag_uses and isinstance(data, Folksonomy):
        has_tag = keep & (data.tags >= 0)
        counts = np.bincount(data.tags[has_tag], minlength=data.num_tags + 1)  # with the place of none, -1
        keep = has_tag & (counts[data.tags] >= min_tag_uses)
    while True:
        users = np.bincount(data.users[keep], minlength=data.num_users)
        items = np.bincount(data.items[keep], minlength=data.num_items)
        fewer = keep & (users[data.users] >= min_interactions) & (items[data.items] >= min_interactions)
        if fewer.sum() == keep.sum():
            break
        keep = fewer
    if not keep.any():
        raise ValueError(
            f"positives: no row of {data.name} is left with min_rating={min_rating}, "
            f"min_interactions={min_interactions} and min_tag_uses={min_tag_uses}; lower them"
        )
    kept = data.take(keep)
    user_ids, users_kept, new_users = without_gaps(data.user_ids, kept.users)
    item_ids, items_kept, new_items = without_gaps(data.item_ids, kept.items)
    parts = [] if min_rating is None else [f"rating >= {min_rating:g}"]
    parts += [] if min_interactions == 1 else [f"{min_interactions}-core"]
    parts += [] if not min_tag_uses else [f"tags used {min_tag_uses} times or more"]
    return replace(
        _with_tags_in_use(kept) if isinstance(kept, Folksonomy) else kept,
        users=new_users,
        items=new_items,
        user_ids=user_ids,
        item_ids=item_ids,
        ratings=kept.ratings if min_rating is None else None,
        name=", ".join([data.name, *parts]),
        user_features=_rows(data.user_features, users_kept),
        item_features=_rows(data.item_features, items_kept),
    )


def _with_tags_in_use(data: Folksonomy) -> Folksonomy:
    """The rows with a map of the tags that they have."""
    has_tag = data.tags >= 0
    if not has_tag.any():
        return replace(data, tag_ids=IdMap(data.tag_ids.values.head(0), "tag"))
    tag_ids, _, tags = without_gaps(data.tag_ids, data.tags[has_tag])
    codes = np.full(len(data), -1, dtype=np.int32)
    codes[has_tag] = tags
    return replace(data, tags=codes, tag_ids=tag_ids)


def without_gaps(ids: IdMap, used: np.ndarray) -> tuple[IdMap, np.ndarray, np.ndarray]:
    """The id map of the ids in use, their old internal ids, and the rows in new ones; the order stays."""
    kept, renumbered = np.unique(used, return_inverse=True)
    return IdMap(ids.values.gather(kept), ids.name), kept, renumbered.astype(np.int32)


def _rows(features: pl.DataFrame | None, kept: np.ndarray) -> pl.DataFrame | None:
    return None if features is None else features[kept]
