"""What the models of tags share: profiles of users and items, also of data without tags."""

from __future__ import annotations

import logging

import numpy as np

from deeprec.data import Folksonomy, Interactions, Terms
from deeprec.data.interactions.tags import Side

_log = logging.getLogger("deeprec")


def profiles(data: Interactions, side: Side) -> Terms:
    """Counts of the tags of each user or item, [n, num_tags]; without tags each item is its own, given by all who met
    it."""
    if isinstance(data, Folksonomy):
        return data.profiles(side)
    owners, count = (data.users, data.num_users) if side == "user" else (data.items, data.num_items)
    return Terms.of_entries(owners, data.items, None, count, data.num_items)


def num_tags(model: str, data: Interactions) -> int:
    """Columns of the profiles; says where these are no tags.

    Raises:
        ValueError: a folksonomy without a single tag.
    """
    if not isinstance(data, Folksonomy):
        _log.warning("%s: %s has no tags, so each item is its own tag; name their column by tag=", model, data.name)
        return data.num_items
    if not (data.tags >= 0).any():
        raise ValueError(f"{model}: rows must have tags, got none in {data.name}; pass data.pairs() to go without")
    return data.num_tags


def has_rows(data: Interactions, side: Side) -> np.ndarray:
    """Which users or items have a row, [n] bool."""
    return (data.user_counts() if side == "user" else data.item_counts()) > 0
