"""Ids as recommenders see them, and float64 results on the touched rows only, so that no table is too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag import RowUpdate

NUM_BATCHES = 8  # taken in turn, so that the rows a step reads have left the caches since the last time


class Tables(NamedTuple):
    """Tables of one shape, and how many samples a batch has.

    Attributes:
        rows: of each table.
        batch: B.
        count: tables, one id a table in each sample.
        dim: D.
    """

    rows: int
    batch: int
    count: int = 26
    dim: int = 16

    @classmethod
    def on(cls, device: str) -> Tables:
        """As click models have them; on a GPU far beyond its L2 cache, with a batch of more than a launch's time."""
        return cls(100_000, 4096) if device == "cpu" else cls(500_000, 65_536)

    @property
    def nnz(self) -> int:
        """Ids of a batch."""
        return self.count * self.batch

    @property
    def all_rows(self) -> int:
        """Rows of all tables together."""
        return self.count * self.rows

    def __str__(self) -> str:
        return f"{self.rows:,} rows a table, B {self.batch:,}"


def scale(device: str, here: str, on_cpu: str) -> str:
    """What a case says of its size on a device where it is not the CPU's; "" on the CPU."""
    return "" if device == "cpu" else f"{here}; on the CPU {on_cpu}"


def row_update(
    rule: int, first: Sequence[Tensor], second: Sequence[Tensor], lr: float, options: Sequence[float]
) -> RowUpdate:
    """An optimizer's step inside the backward pass; its two numbers are where `RowUpdate` wants them."""
    rate = torch.tensor(lr, dtype=torch.float64, device="cpu")
    count = torch.zeros((), dtype=torch.int64, device="cpu")
    return RowUpdate(rule, list(first), list(second), rate, count, list(options))


def optimizer_of(make: Callable[[Sequence[Tensor]], Any], weights: Sequence[Tensor]) -> Any:
    """An optimizer as users make it: with the default device of torch, on which some count their steps."""
    with torch.device("cpu"):
        return make(weights)


def uniform_ids(num_rows: int, *shape: int) -> Tensor:
    """Every row is equally likely; int64."""
    return torch.randint(num_rows, shape)


def skewed_ids(num_rows: int, *shape: int) -> Tensor:
    """Log-uniform: P(id) falls as 1 / (id + 1), the long tail of categorical features; int64."""
    return torch.exp(torch.rand(shape, dtype=torch.float64) * math.log(num_rows + 1)).long().clamp_(1, num_rows) - 1


def distinct(ids: Tensor) -> int:
    """U, the distinct ids."""
    return int(ids.unique().numel())


class RowWiseAdagradReference:
    """sum <- sum + mean_d g^2; w <- w - lr g / (sqrt(sum) + eps), on rows [U, D] in float64."""

    def __init__(self, weight: Tensor, lr: float, eps: float) -> None:
        self.weight, self.lr, self.eps = weight, lr, eps
        self.sum = weight.new_zeros(len(weight))

    def step(self, grad: Tensor) -> None:
        self.sum += grad.square().mean(1)
        self.weight -= self.lr * grad / (self.sum.sqrt() + self.eps).unsqueeze(1)


class AdamReference:
    """Adam on rows [U, D] in float64; with a gradient in every step, lazy and dense Adam are one."""

    def __init__(self, weight: Tensor, lr: float, eps: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.weight, self.lr, self.eps, self.betas, self.steps = weight, lr, eps, betas, 0
        self.mean, self.square = torch.zeros_like(weight), torch.zeros_like(weight)

    def step(self, grad: Tensor) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        self.mean = beta1 * self.mean + (1 - beta1) * grad
        self.square = beta2 * self.square + (1 - beta2) * grad.square()
        root = (self.square / (1 - beta2**self.steps)).sqrt() + self.eps
        self.weight -= self.lr / (1 - beta1**self.steps) * self.mean / root


def compact(weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct rows [U] of the ids, their weights [U, D] in float64, and the ids as positions among them."""
    rows, inverse = ids.unique(return_inverse=True)
    return rows, weight[rows].double(), inverse


def stepped(reference: RowWiseAdagradReference | AdamReference, grad: Tensor, num_steps: int) -> Tensor:
    """The rows after steps with one and the same gradient."""
    for _ in range(num_steps):
        reference.step(grad)
    return reference.weight


def row_grad(grad: Tensor, inverse: Tensor, num_rows: int) -> Tensor:
    """Gradient of each distinct row, [U, D] in float64, from that of every looked-up one, [nnz, D]."""
    return grad.new_zeros(num_rows, grad.shape[1], dtype=torch.float64).index_add_(0, inverse, grad.double())


def touched(weights: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
    """The rows of each table that a step writes, as parity compares them."""
    return [weight.detach()[some] for weight, some in zip(weights, rows, strict=True)]
