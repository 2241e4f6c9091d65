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

from deeprec.contract import SIMILAR_ITEMS, Schema, Seen, check_rows
from deeprec.data import Interactions
from deeprec.models.base import Recommender

_PAIRS_A_BLOCK = 1 << 22  # entries of a dense block: 32 MiB in float64
_SCORES_A_BLOCK = 1 << 22


class HistoryRecommender(Recommender):
    """Base of the models with weights between items; user rows are lists of items [b, L], int64, -1 where shorter."""

    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {SIMILAR_ITEMS}
    trains_by_gradient: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = frozenset()

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.register_buffer("history_offsets", torch.zeros(schema.num_users + 1, dtype=torch.int64))
        self.register_buffer("history_items", torch.zeros(0, dtype=torch.int32))
        self.history_offsets: Tensor
        self.history_items: Tensor
        self._build_weights(schema)

    def _build_weights(self, schema: Schema) -> None:
        raise NotImplementedError

    def _fit_weights(self, offsets: NDArray[np.int64], items: NDArray[np.int32]) -> None:
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
        self._fit_weights(offsets, items)

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
        self.require_built()
        users, items = torch.broadcast_tensors(users.long(), items.long())
        distinct, places = users.flatten().unique(return_inverse=True)
        scores = torch.empty(len(places), dtype=torch.float32, device=places.device)
        wanted = items.flatten()
        for start in range(0, len(distinct), self._users_a_block):
            block = self.score_items_from_rows(self.user_rows(distinct[start : start + self._users_a_block]))
            here = (places >= start) & (places < start + self._users_a_block)
            scores[here] = block[places[here] - start, wanted[here]].float()
        return scores.view(users.shape)

    @property
    def _users_a_block(self) -> int:
        num_items: int = self.require_built().num_items
        return max(1, _SCORES_A_BLOCK // num_items)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        self.require_built()
        first, end = self.history_offsets[users.long()], self.history_offsets[users.long() + 1]
        lengths = end - first
        columns = torch.arange(int(lengths.max()) if len(lengths) else 0, device=lengths.device)
        is_there = columns < lengths.unsqueeze(1)
        rows = torch.full(is_there.shape, -1, device=is_there.device)
        rows[is_there] = self.history_items[(first.unsqueeze(1) + columns)[is_there]].long()
        return (rows,)

    def rows_for_history(self, history: Tensor) -> tuple[Tensor, ...]:
        """The items [n] themselves."""
        return (history.long().view(1, -1),)

    def forward_rows(self, user_rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        return self.score_items_from_rows(user_rows).gather(1, items.long().view(-1, 1)).squeeze(1)

    @torch.no_grad()
    def score_items_from_rows(self, user_rows: tuple[Tensor, ...]) -> Tensor:
        (rows,) = user_rows
        is_there = rows >= 0
        counts = is_there.sum(1)
        return self._scores(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), rows[is_there])

    @torch.no_grad()
    def topk_from_rows(
        self, user_rows: tuple[Tensor, ...], k: int, seen: Seen | None, seen_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        (rows,) = user_rows
        device = rows.device
        wanted = torch.arange(len(rows), device=device) if seen_rows is None else seen_rows.long()
        hidden = None if seen is None else self.seen_tensors(seen)
        values, items = [torch.empty(0, k, device=device)], [torch.empty(0, k, dtype=torch.int64, device=device)]
        for some, lists in zip(rows.split(self._users_a_block), wanted.split(self._users_a_block), strict=True):
            scores = self.score_items_from_rows((some,))
            best = topk_of_scores(scores, k, hidden, lists)
            values.append(best[0])
            items.append(best[1])
        return torch.cat(values), torch.cat(items)


def topk_of_scores(
    scores: Tensor, k: int, seen: tuple[Tensor, Tensor] | None, seen_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """The k best items by scores [b, N], which are overwritten; the lower index first among equals.

    Args:
        seen: offsets [R + 1] and items [nnz] that are left out, as `Recommender.seen_tensors` gives them.
        seen_rows: [b], int64, the row of each user there.
    Returns:
        values [b, k] and items [b, k], int64: (-inf, -1) after the last candidate.
    """
    if seen is not None:
        offsets, hidden = seen
        start = offsets[seen_rows]
        counts = offsets[seen_rows + 1] - start
        total = int(counts.sum())  # the one look at what a device holds
        first = start - (counts.cumsum(0) - counts)
        owners = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), counts, output_size=total)
        places = torch.arange(total, device=scores.device) + first[owners]
        scores.index_put_((owners, hidden[places].long()), scores.new_full((), -torch.inf))
    width = min(k, scores.shape[1])
    if scores.is_cpu:
        values, items = scores.topk(min(width + 1, scores.shape[1]), dim=1)
        # topk leaves the order of equal scores open; only rows where that could show are sorted in full.
        is_unsure = (values[:, 1:] == values[:, :-1]).any(1)
        values, items = values[:, :width], items[:, :width].contiguous()
        if is_unsure.any():
            items[is_unsure] = scores[is_unsure].argsort(dim=1, descending=True, stable=True)[:, :width]
    else:  # asking which rows these are would wait for the device
        values, items = scores.sort(dim=1, descending=True, stable=True)
        values, items = values[:, :width], items[:, :width]
    items = torch.where(values == -torch.inf, -1, items)
    missing = (0, k - width)
    return (
        torch.nn.functional.pad(values, missing, value=-torch.inf),
        torch.nn.functional.pad(items, missing, value=-1),
    )


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
            some = users[entry:upto]
            row = np.searchsorted(bounds, np.arange(entry, upto), side="right") - 1 - start
            first = offsets[some] - (pairs[entry:upto] - pairs[entry])
            places = np.arange(pairs[upto] - pairs[entry]) + np.repeat(first, lengths[some])
            counts += np.bincount(np.repeat(row, lengths[some]) * num_items + items[places], minlength=len(counts))
            entry = upto
        yield start, counts.reshape(stop - start, num_items)
