"""What users had done before they are asked for their next item, and models that read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from deeprec.contract import Queries, Scorable
from deeprec.device import to_device
from deeprec.nn.scoring import Lists, rows_of, score_items

if TYPE_CHECKING:
    from deeprec.data import Split

_USERS_A_BLOCK = 64  # whose scores of all items are held at a time, where pairs are asked for


def histories_before(split: Split, part: Literal["validation", "test"]) -> Lists:
    """The items of each user before those of a part, in order: of the training part, for the test of validation too.

    Nothing is in it that came after the first item of the user in the part, whichever way the rows were held out.
    Equal times: training before validation, and within a part by row, which is the order of the file.

    Returns:
        offsets [num_users + 1] and items [nnz], int64, on the CPU.
    Raises:
        ValueError: the data has no order.
    """
    asked = getattr(split, part)
    parts = [split.train] if part == "validation" else [split.train, split.validation]
    if asked.order is None or any(earlier.order is None for earlier in parts):
        raise ValueError(f"evaluate: histories need the order of the interactions, got {asked.name} without timestamps")
    users, items, order = (
        np.concatenate([getattr(earlier, column) for earlier in parts]).astype(np.int64)
        for column in ("users", "items", "order")
    )
    first = np.full(asked.num_users, np.iinfo(np.int64).max)
    np.minimum.at(first, asked.users, asked.order)
    rows = np.flatnonzero(order <= first[users])
    rows = rows[np.lexsort((order[rows], users[rows]))]  # stable
    offsets = np.zeros(asked.num_users + 1, dtype=np.int64)
    np.cumsum(np.bincount(users[rows], minlength=asked.num_users), out=offsets[1:])
    return torch.from_numpy(offsets), torch.from_numpy(items[rows])


class HistoryScorer:
    """The `Scorer` of a model that reads histories: it is asked with those that it is given, and not as it was trained.

    Args:
        model: see `deeprec.contract.Scorable`.
        histories: of all users, see `histories_before`.
        device: where the model is; the users that are asked for come on the CPU.
    """

    def __init__(self, model: Scorable, histories: Lists, device: torch.device) -> None:
        self._model, self._histories, self._device = model, histories, device

    def score_items(self, users: Tensor) -> Tensor:
        """Scores [b, num_items], on the model's device, for users int64 [b]."""
        queries = Queries(to_device(users, self._device), rows_of(self._histories, users))
        return score_items(self._model.scorer(self._model.encode(queries)))

    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [n] of pairs, both int64 [n] on the CPU, on the model's device; each history is read once."""
        distinct, rows = users.unique(return_inverse=True)
        scores = torch.empty(len(users), dtype=torch.float32, device=self._device)
        for start in range(0, len(distinct), _USERS_A_BLOCK):
            here = ((rows >= start) & (rows < start + _USERS_A_BLOCK)).nonzero().flatten()
            of_all = self.score_items(distinct[start : start + _USERS_A_BLOCK])
            pairs, places, asked = (to_device(each, self._device) for each in (here, rows[here] - start, items[here]))
            scores[pairs] = of_all[places, asked].float()
        return scores
