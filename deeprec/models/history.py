"""What item-KNN and EASE share: weights between items, and users who are nothing but the items of their training rows.

A score is the sum, over the items of a user, of their weights for the scored item; users have no parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.contract import SIMILAR_ITEMS, Schema, check_rows
from deeprec.data import IdMap, Interactions
from deeprec.device import to_device
from deeprec.models.base import Recommender
from deeprec.nn.scoring import BlockScorer, rows_of

_PAIRS_A_BLOCK = 1 << 22  # entries of a dense block: 32 MiB in float64
_SCORES_A_BLOCK = 1 << 22


class HistoryRecommender(Recommender):
    """Base of the models with weights between items; all they know of users is their lists of items.

    A state is offsets [b + 1] on the CPU and items [nnz].
    """

    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {SIMILAR_ITEMS}
    trains_by_gradient: ClassVar[bool] = False
    trains_on_whole_rows: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset()

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.register_buffer("history_offsets", torch.zeros(schema.num_users + 1, dtype=torch.int64))
        self.register_buffer("history_items", torch.zeros(0, dtype=torch.int32))
        self.history_offsets: Tensor
        self.history_items: Tensor
        self._build_weights(schema)

    def _build_weights(self, schema: Schema) -> None:
        raise NotImplementedError

    def _fit_weights(self, offsets: NDArray[np.int64], items: NDArray[np.int32], item_ids: IdMap) -> None:
        raise NotImplementedError

    def _scores(self, offsets: Tensor, items: Tensor) -> Tensor:
        """Scores [b, num_items] of users with items[offsets[j]:offsets[j + 1]], both int64."""
        raise NotImplementedError

    def fit_directly(self, train: Interactions) -> None:
        """Weights between items from the users' items, each counted once; ratings are ignored."""
        offsets, items = train.csr()
        device = self.device
        self.history_offsets = torch.from_numpy(offsets.copy()).to(device)
        self.history_items = torch.from_numpy(items.copy()).to(device)
        self._fit_weights(offsets, items, train.item_ids)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the number of training rows is that of the file.

        Raises:
            ValueError: users' items that are none of the catalogue.
        """
        if {"history_items", "history_offsets"} <= set(state_dict):
            schema = self.require_built()
            offsets, items = (state_dict[f"history_{name}"].cpu().numpy() for name in ("offsets", "items"))
            check_rows(offsets, items, schema.num_users, schema.num_items)
            self.history_items = torch.empty_like(state_dict["history_items"], device=self.device)
        return super().load_state_dict(state_dict, strict, assign)

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast."""
        return pair_scores(self, users, items)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return rows_of((self.history_offsets, self.history_items), users)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        return offsets, items

    def scorer(self, state: tuple[Tensor, ...]) -> BlockScorer:
        offsets, items = state

        def scores(start: int, end: int) -> Tensor:
            first, last = int(offsets[start]), int(offsets[end])
            bounds = to_device(offsets[start : end + 1] - first, items.device)
            return self._scores(bounds, items[first:last].long())

        return BlockScorer(len(offsets) - 1, self.require_built().num_items, items.device, scores)


def pair_scores(model: Recommender, users: Tensor, items: Tensor) -> Tensor:
    """Scores of pairs of internal ids for a model that has a `BlockScorer`; shapes broadcast."""
    num_items = model.require_built().num_items
    users, items = torch.broadcast_tensors(users.long(), items.long())
    distinct, places = users.flatten().unique(return_inverse=True)
    asked, scores = items.flatten(), torch.empty(len(places), dtype=torch.float32, device=places.device)
    scorer = model.scorer(model.user_rows(distinct))
    assert isinstance(scorer, BlockScorer)
    step = max(1, _SCORES_A_BLOCK // num_items)
    for start in range(0, len(distinct), step):
        block = scorer.scores(start, min(start + step, len(distinct)))
        here = (places >= start) & (places < start + step)
        scores[here] = block[places[here] - start, asked[here]].float()
    return scores.view(users.shape)


def cooccurrences(
    offsets: NDArray[np.int64], items: NDArray[np.int32], num_items: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Rows of X^T X for binary X [users, items] in compressed rows: users who have both items.

    The work is the sum of the squared lengths of the rows; nothing larger than a block of rows is held.

    Yields:
        (first item, counts [b, num_items]).
    """
    lengths = np.diff(offsets)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    users = owners[np.argsort(items, kind="stable")]  # by item
    bounds = np.concatenate([[0], np.bincount(items, minlength=num_items).cumsum()])
    pairs = np.concatenate([[0], lengths[users].cumsum()])  # pairs before each entry
    step = max(1, _PAIRS_A_BLOCK // num_items)
    for start in range(0, num_items, step):
        stop = min(start + step, num_items)
        counts = np.zeros((stop - start) * num_items)
        entry, end = int(bounds[start]), int(bounds[stop])
        while entry < end:
            # As many entries as make a block of pairs, and one at least.
            upto = int(np.searchsorted(pairs, pairs[entry] + _PAIRS_A_BLOCK, side="right")) - 1
            upto = min(max(upto, entry + 1), end)
            owner = users[entry:upto]
            row = np.searchsorted(bounds, np.arange(entry, upto), side="right") - 1 - start
            first = offsets[owner] - (pairs[entry:upto] - pairs[entry])
            places = np.arange(pairs[upto] - pairs[entry]) + np.repeat(first, lengths[owner])
            counts += np.bincount(np.repeat(row, lengths[owner]) * num_items + items[places], minlength=len(counts))
            entry = upto
        yield start, counts.reshape(stop - start, num_items)
