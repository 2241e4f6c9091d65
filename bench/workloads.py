"""Ids as recommenders see them, and float64 results on the touched rows only, so that no table is too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NUM_BATCHES = 8  # taken in turn, so that the rows a step reads have left the caches since the last time


def uniform_ids(num_rows: int, *shape: int) -> Tensor:
    """Every row is equally likely; int64."""
    return torch.randint(num_rows, shape)


def skewed_ids(num_rows: int, *shape: int) -> Tensor:
    """Log-uniform: P(id) falls as 1 / (id + 1), the long tail of categorical features; int64."""
    return torch.exp(torch.rand(shape, dtype=torch.float64) * math.log(num_rows + 1)).long().clamp_(1, num_rows) - 1


def distinct(ids: Tensor) -> int:
    """U, the distinct ids."""
    return int(ids.unique().numel())


def adagrad_rowwise(weight: Tensor, state: Tensor, grad: Tensor, lr: float, eps: float) -> Tensor:
    """One step of row-wise Adagrad on rows [U, D] with state [U], in place on the state: the new rows."""
    state += grad.square().mean(1)
    return weight - lr * grad / (state.sqrt() + eps).unsqueeze(1)


def compact(weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct rows [U] of the ids, their weights [U, D] in float64, and the ids as positions among them."""
    rows, inverse = ids.unique(return_inverse=True)
    return rows, weight[rows].double(), inverse


def per_table(function: Callable[[int], Tensor], num_tables: int) -> list[Tensor]:
    """One tensor for each table."""
    return [function(table) for table in range(num_tables)]


def touched(weights: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
    """The rows of each table that a step writes, as parity compares them."""
    return [weight.detach()[some] for weight, some in zip(weights, rows, strict=True)]
