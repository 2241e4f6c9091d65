"""Reviews: interactions whose rows have a text, what a user wrote of an item."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import polars as pl

from deeprec.data.interactions.features import features_sha256
from deeprec.data.interactions.ids import Int32Array
from deeprec.data.interactions.interactions import Interactions, digest_of


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Reviews(Interactions):
    """Who wrote what of which item: a text for each row, or none.

    Args:
        reviews: int32 [n], rows of `texts`, -1 for a row without a text.
        texts: what was written, String; a part of a split has those of all rows.
    Raises:
        ValueError: columns of unequal length, rows out of range.
    """

    row_columns: ClassVar[tuple[str, ...]] = (*Interactions.row_columns, "reviews")

    reviews: Int32Array
    texts: pl.Series

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reviews.dtype != np.int32 or self.reviews.shape != self.users.shape:
            raise ValueError(
                f"Reviews: reviews must be int32 [{len(self)}], got {self.reviews.dtype} {list(self.reviews.shape)}"
            )
        if len(self) and not -1 <= self.reviews.min() <= self.reviews.max() < len(self.texts):
            raise ValueError(
                f"Reviews: reviews must be in [0, {len(self.texts)}), or -1 for none, got {self.reviews.min()} to "
                f"{self.reviews.max()}"
            )

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, reviews)".replace("Interactions", "Reviews", 1)

    @classmethod
    def of_texts(cls, texts: pl.Series, **columns: Any) -> Reviews:
        """From the texts [n] of the rows; those that are missing or blank are none. `columns` as of `Interactions`."""
        is_text = (texts.str.strip_chars() != "").fill_null(False).to_numpy()
        rows = np.where(is_text, np.arange(len(texts)), -1).astype(np.int32)
        return cls(**columns, reviews=rows, texts=texts)

    @cached_property
    def sha256(self) -> str:
        """Hash of ids, rows, texts, ratings and order; the same whatever kind of file they came from."""
        before = f"{super().sha256} {features_sha256(self.row_texts().to_frame())}".encode()
        return digest_of(np.frombuffer(before, dtype=np.uint8))

    def of_pairs(self, users: Int32Array, items: Int32Array) -> Reviews:
        """As of `Interactions`, without texts."""
        unknown: dict[str, Any] = {"ratings": None, "order": None, "order_kind": None, "official": None}
        return replace(self, users=users, items=items, reviews=np.full(len(users), -1, dtype=np.int32), **unknown)

    def row_texts(self) -> pl.Series:
        """The text of each row, [n], missing where there is none."""
        places = pl.Series(self.reviews.astype(np.int64))
        return self.texts.gather(places.set(places < 0, None)).alias("review")

    def to_frame(self) -> pl.DataFrame:
        """As of `Interactions`, with review, missing where a row has none."""
        return super().to_frame().with_columns(self.row_texts())
