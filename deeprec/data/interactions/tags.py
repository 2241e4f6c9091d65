"""Folksonomies: interactions whose rows are assignments of a tag, and the profiles of users and items they make."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.columns.terms import Terms
from deeprec.data.interactions.ids import IdMap, Int32Array
from deeprec.data.interactions.interactions import Int64Array, Interactions, OfficialSplit, digest_of

Side = Literal["user", "item"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Folksonomy(Interactions):
    """Who gave which tag to what: a row an assignment (user, item, tag).

    A user and an item that met have as many rows as the user gave the item tags, or one row without a tag. What knows
    no tags counts each of these rows; give it `pairs()` where they are to count once.

    Args:
        tags: int32 [n], indices of `tag_ids`, -1 for a row without a tag.
        tag_ids: the tags as the data has them: names, or numbers.
    Raises:
        ValueError: columns of unequal length, ids out of range.
    """

    row_columns: ClassVar[tuple[str, ...]] = (*Interactions.row_columns, "tags")

    tags: Int32Array
    tag_ids: IdMap

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tags.dtype != np.int32 or self.tags.shape != self.users.shape:
            raise ValueError(
                f"Folksonomy: tags must be int32 [{len(self)}], got {self.tags.dtype} {list(self.tags.shape)}"
            )
        if len(self) and not -1 <= self.tags.min() <= self.tags.max() < self.num_tags:
            raise ValueError(
                f"Folksonomy: tags must be in [0, {self.num_tags}), or -1 for none, got {self.tags.min()} to "
                f"{self.tags.max()}"
            )

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.num_tags:,} tags)".replace("Interactions", "Folksonomy", 1)

    @property
    def num_tags(self) -> int:
        """Tags in the id map; a part of a split counts all of them."""
        return len(self.tag_ids)

    @cached_property
    def sha256(self) -> str:
        """Hash of ids, rows, tags, ratings and order; the same whatever kind of file they came from."""
        before = f"{super().sha256} {self.tag_ids.sha256()}".encode()
        return digest_of(np.frombuffer(before, dtype=np.uint8), self.tags)

    def row_keys(self) -> Int64Array:
        """One int64 per row, equal where user, item and tag are."""
        pairs = np.unique(self.pair_keys(), return_inverse=True)[1].astype(np.int64)
        return pairs * (self.num_tags + 1) + self.tags + 1

    def of_pairs(self, users: Int32Array, items: Int32Array) -> Folksonomy:
        """As of `Interactions`, without a tag."""
        unknown: dict[str, Any] = {"ratings": None, "order": None, "order_kind": None, "official": None}
        return replace(self, users=users, items=items, tags=np.full(len(users), -1, dtype=np.int32), **unknown)

    def canonical(self) -> Folksonomy:
        """As of `Interactions`; tags ascend too, and the rows of a user, an item and a time."""
        tag_ids, new_tags = self.tag_ids.ascending()
        moved = replace(self, tags=np.append(new_tags, np.int32(-1))[self.tags], tag_ids=tag_ids)
        ordered = Interactions.canonical(moved)
        assert isinstance(ordered, Folksonomy)
        return ordered

    def _last_keys(self) -> tuple[NDArray[Any], ...]:
        return (self.tags, self.items)

    def to_frame(self) -> pl.DataFrame:
        """As of `Interactions`, with tag, missing where a row has none."""
        places = pl.Series(self.tags.astype(np.int64))
        return super().to_frame().with_columns(tag=self.tag_ids.values.gather(places.set(places < 0, None)))

    def tag_counts(self) -> Int64Array:
        """Rows of each tag, int64 [num_tags]."""
        return np.bincount(self.tags[self.tags >= 0], minlength=self.num_tags).astype(np.int64)

    def profiles(self, side: Side) -> Terms:
        """x of each user or item: how often the user used each tag, or the item was given it, [n, num_tags].

        A user or an item without a tag has an empty row.

        Raises:
            ValueError: another side.
        Reference: Xu et al. 2016 (DSPR), section 2.
        """
        if side not in ("user", "item"):
            raise ValueError(f"Folksonomy.profiles: side must be 'user' or 'item', got {side!r}")
        owners, count = (self.users, self.num_users) if side == "user" else (self.items, self.num_items)
        has_tag = self.tags >= 0
        return Terms.of_entries(owners[has_tag], self.tags[has_tag], None, count, self.num_tags)

    def pairs(self) -> Interactions:
        """Each user and item that met once, in the order of their first rows, without tags; the id maps stay.

        Of a published split a pair is in the part of its first row.
        """
        _, first, pair_of = np.unique(self.pair_keys(), return_index=True, return_inverse=True)
        rows = np.sort(first)
        place_of = np.searchsorted(rows, first)[pair_of]  # of the pair of each row
        kept = self.take(rows)
        official = self.official and _of_pairs(self.official, place_of, rows)
        columns = {field.name: getattr(kept, field.name) for field in fields(Interactions)}
        return Interactions(**{**columns, "official": official})


def _of_pairs(official: OfficialSplit, place_of: Int64Array, first: Int64Array) -> OfficialSplit:
    """The split of rows as one of pairs: those whose first row is in a part, in the order of the part."""
    is_first = np.zeros(len(place_of), dtype=np.bool_)
    is_first[first] = True

    def those(rows: Int64Array) -> Int64Array:
        places: Int64Array = place_of[rows[is_first[rows]]]
        return places

    negatives = official.test_negatives
    kept = None if negatives is None else negatives[is_first[official.test_index]]
    validation = None if official.validation_index is None else those(official.validation_index)
    return OfficialSplit(those(official.train_index), those(official.test_index), kept, official.source, validation)
