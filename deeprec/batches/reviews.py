"""Batches of ratings with what the user wrote of other items, and what other users wrote of the item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.device import to_device


class ReviewDocuments:
    """The reviews of each user, or of each item, one after the other, as compressed rows.

    Args:
        owners: [n], the user or item of each review, in [0, count).
        offsets: [n + 1], int64, and words: [nnz], >= 1: those of the reviews.
        count: users or items.
        order: [n], place of each review among those of its owner; None: as they come.
        length: most words of a document, >= 1.
    Attributes:
        offsets, words, reviews: row o is the document of owner o before it is cut: its words, and the review of each.
    """

    def __init__(
        self,
        owners: NDArray[np.int32],
        offsets: NDArray[np.int64],
        words: NDArray[np.int32],
        count: int,
        order: NDArray[np.int64] | None,
        length: int,
    ) -> None:
        sorting = np.lexsort((owners,) if order is None else (order, owners))
        lengths = np.diff(offsets)
        places = _ranges(offsets[:-1][sorting], lengths[sorting])
        self.words = words[places]
        self.reviews = np.repeat(sorting, lengths[sorting])
        sums = np.bincount(owners, lengths, minlength=count).astype(np.int64)
        self.offsets = np.concatenate([[0], sums.cumsum()]).astype(np.int64)
        self.lengths, self.length = lengths, length

    def batch(self, owners: NDArray[np.int64], without: NDArray[np.int64] | None = None) -> Tensor:
        """The documents of these owners.

        Args:
            without: [b], a review that each is to lack, -1: none; None: they lack none.
        Returns:
            [b, T], int64, T at most `length`: ids of words, then zeros.
        """
        starts, totals = self.offsets[owners], self.offsets[owners + 1] - self.offsets[owners]
        absent = np.full(len(owners), -1) if without is None else without
        own = np.where(absent >= 0, self.lengths[absent] if len(self.lengths) else 0, 0)
        lengths = np.minimum(totals, self.length + own)
        places = _ranges(starts, lengths)
        rows = np.repeat(np.arange(len(owners)), lengths)
        is_read = self.reviews[places] != absent[rows]
        places, rows = places[is_read], rows[is_read]
        counts = np.bincount(rows, minlength=len(owners))
        column = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
        is_read = column < self.length
        table = np.zeros((len(owners), min(int(counts.max(initial=0)), self.length)), dtype=np.int64)
        table[rows[is_read], column[is_read]] = self.words[places[is_read]]
        return torch.from_numpy(table)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """starts[0], starts[0] + 1, ..., starts[1], ...: as many from each start as its length."""
    before = lengths.cumsum() - lengths
    places: NDArray[np.int64] = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return places


@dataclass(frozen=True, slots=True)
class ReviewBatch:
    """Ratings and the documents of their users and items.

    Attributes:
        user_words: [b, T], int64, ids of words, then zeros; item_words: [b, S].
        ratings: [b], float32.
    """

    user_words: Tensor
    item_words: Tensor
    ratings: Tensor

    def __len__(self) -> int:
        return len(self.ratings)

    def to(self, device: torch.device) -> ReviewBatch:
        """The batch on a device; itself where it is there."""
        if self.ratings.device == device:
            return self
        return ReviewBatch(
            *(to_device(getattr(self, name), device) for name in ("user_words", "item_words", "ratings"))
        )


class ReviewBatches:
    """All ratings once in an epoch; the n-th review is what was written with the n-th rating.

    Args:
        users, items, ratings: [n].
        of_users, of_items: their documents.
        with_own: whether the documents of a rating hold the review written with it.
        batch_size: ratings a step, >= 1.
        seed: of the order.
        device: where batches go; None: the CPU.
    """

    def __init__(
        self,
        users: NDArray[np.int32],
        items: NDArray[np.int32],
        ratings: NDArray[np.float32],
        of_users: ReviewDocuments,
        of_items: ReviewDocuments,
        *,
        with_own: bool,
        batch_size: int,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        self.users, self.items, self.ratings = users, items, ratings
        self.of_users, self.of_items, self.with_own = of_users, of_items, with_own
        self.batch_size, self.seed = batch_size, seed
        self.device = torch.device("cpu") if device is None else device

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Ratings in an epoch."""
        return len(self.users)

    def epoch(self, number: int, skip: int = 0) -> Iterator[ReviewBatch]:
        """The batches of one epoch, without the first `skip`."""
        order = np.random.default_rng((self.seed, number)).permutation(len(self.users))
        for start in range(skip * self.batch_size, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            without = None if self.with_own else rows
            yield ReviewBatch(
                self.of_users.batch(self.users[rows].astype(np.int64), without),
                self.of_items.batch(self.items[rows].astype(np.int64), without),
                torch.from_numpy(self.ratings[rows]),
            ).to(self.device)
