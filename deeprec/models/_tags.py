"""What the models of tags share: profiles of users and items, also of data without tags, and users known by tags."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from deeprec.data import Folksonomy, IdMap, Interactions, Terms
from deeprec.data.interactions.tags import Side
from deeprec.models.base import Recommender
from deeprec.serve.recommend_for_tags import recommend_for_tags

if TYPE_CHECKING:
    import polars as pl

_log = logging.getLogger("deeprec")


class TagRecommender(Recommender):
    """Base of the models that know users and items by their tags.

    Attributes:
        tag_ids: the tags, by the columns of the profiles; None: the data had none, and each item was its own tag.
    """

    reads_tags: ClassVar[bool] = True
    keeps: ClassVar[tuple[str, ...]] = (*Recommender.keeps, "tag_ids")
    tag_ids: IdMap | None = None

    def tag_rows(self, terms: Terms) -> tuple[Tensor, ...]:
        """The state of new users with these counts of tags, [b, num_tags]."""
        raise NotImplementedError

    def recommend_for_tags(
        self,
        tags: Mapping[Any, float] | Iterable[Any],
        k: int = 10,
        *,
        allow: Any = None,
        deny: Any = None,
        approximate: bool = False,
    ) -> pl.DataFrame:
        """The k best items for a user who used these tags: how often each, or a list; see
        `deeprec.serve.recommend_for_tags`. With `approximate` the index answers that `build_index` made."""
        index = self._index("recommend_for_tags", approximate)
        return recommend_for_tags(self, tags, k, allow=allow, deny=deny, index=index)


def tags_of(data: Interactions) -> IdMap | None:
    """The map of the tags; None for data without."""
    return data.tag_ids if isinstance(data, Folksonomy) else None


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


def fitted_idf(train: Interactions) -> np.ndarray:
    """Factors of tags by the items with a training row, [num_tags], float32."""
    return profiles(train, "item").idf(train.item_counts() > 0)
