"""Rows of users whom a model never saw, fitted to their histories with every other weight frozen.

For models that learn from user rows and know no shorter way: logistic loss over the items and seeded negatives, from
the mean user, so that the same history gives the same row.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.contract import Schema
from deeprec.kernels.sample_negatives import sample_negatives

_STEPS = 100
_LR = 0.05
_NEGATIVES = 4
_USERS_OF_THE_MEAN = 1024


class LearnsFromRows(Protocol):
    """What is asked of the model."""

    def require_built(self) -> Schema:
        """Sizes."""

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        """Rows [b, D] of users [b], a tensor for each table."""

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        """Logits of items [n] for rows [n, D], differentiable in the rows."""


def fold_in(model: LearnsFromRows, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
    """User rows [b, D] for new users with items[offsets[j]:offsets[j + 1]], each item once.

    Args:
        offsets: [b + 1], int64, on the CPU.
        items: [nnz], int64, where the model is.
    """
    schema = model.require_built()
    sample = torch.arange(min(schema.num_users, _USERS_OF_THE_MEAN), device=items.device)
    mean = tuple(table.mean(0, keepdim=True).detach() for table in model.user_rows(sample))
    users = [_fitted(model, mean, items[a:b], schema.num_items) for a, b in pairwise(offsets.tolist())]
    return tuple(torch.cat([row[:0], *rows]) for row, *rows in zip(mean, *users, strict=True))


def _fitted(model: LearnsFromRows, mean: tuple[Tensor, ...], history: Tensor, num_items: int) -> tuple[Tensor, ...]:
    """Rows [1, D] of the user with the items `history` [n]."""
    if not 0 < len(history) < num_items:
        return mean  # nothing to learn from, or no negative
    device = history.device
    rows = tuple(row.clone().requires_grad_() for row in mean)
    # Those of all steps in one call: a look at the device, and they do not depend on how they are split.
    negatives = sample_negatives(
        torch.zeros(_STEPS * len(history), dtype=torch.int32, device=device),
        torch.arange(2, device=device) * len(history),
        history.to(torch.int32),
        num_items,
        _NEGATIVES,
        seed=0,
    ).view(_STEPS, -1)
    optimizer = torch.optim.Adam(rows, lr=_LR)
    with torch.enable_grad():
        for drawn in negatives.unbind():
            items = torch.cat([history, drawn.long()])
            labels = (torch.arange(len(items), device=device) < len(history)).float()
            logits = model.forward_rows(tuple(row.expand(len(items), -1) for row in rows), items)
            gradients = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, labels), rows)
            for row, gradient in zip(rows, gradients, strict=True):
                row.grad = gradient
            optimizer.step()
    return tuple(row.detach() for row in rows)
