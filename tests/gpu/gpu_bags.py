"""Batches of bags over several tables, for the tests of embedding_bags, embedding_fm and the layers over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from gpu_parity import normal
from torch import Tensor

from deeprec.kernels.embedding_bag.checks import ADAM, FTRL, ROWWISE_ADAGRAD
from deeprec.kernels.embedding_bag.reference import embedding_bags_plan_reference


class Batch(NamedTuple):
    """ids of the features of a batch: [F, B], or [nnz] with offsets [F * B + 1].

    Attributes:
        scale: a number for each id, or None.
        tables, padding: the table of each feature, and the id that does not count there (-1: none).
    """

    weights: list[Tensor]
    ids: Tensor
    offsets: Tensor | None
    scale: Tensor | None
    tables: list[int]
    padding: list[int]

    def plan(self) -> tuple[Tensor, ...]:
        """Of the reference."""
        sizes = [weight.shape[0] for weight in self.weights]
        return embedding_bags_plan_reference(self.ids, self.offsets, sizes, self.tables, self.padding)


def batch_of(
    dims: list[int],
    tables: list[int],
    size: tuple[int, int | None],
    dtype: torch.dtype,
    index: torch.dtype = torch.int64,
    *,
    scaled: bool = False,
    pad: int = -1,
    rows: int = 20,
    seed: int = 0,
) -> Batch:
    """A batch of `size`: B, and the most ids of a bag (None: one id a bag, without offsets)."""
    draw = torch.Generator().manual_seed(seed)
    weights = [normal(rows + i, dim, dtype=dtype, seed=seed + i) for i, dim in enumerate(dims)]
    count, length = size
    if length is None:
        ids = torch.stack([torch.randint(0, len(weights[t]), (count,), generator=draw) for t in tables])
        offsets = None
    else:
        lengths = torch.randint(0, length + 1, (len(tables), count), generator=draw)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)]).to(index)
        ids = torch.cat(
            [
                torch.randint(0, len(weights[t]), (int(n.sum()),), generator=draw)
                for t, n in zip(tables, lengths, strict=True)
            ]
        )
    scale = normal(*ids.shape, dtype=dtype, seed=seed + 50) if scaled else None
    return Batch(weights, ids.to(index), offsets, scale, tables, [pad] * len(tables))


def states_of(tables: list[Tensor], rule: int, seed: int = 5) -> tuple[list[Tensor], list[Tensor]]:
    """First and second states of an optimizer some way into training, for tables [R, D]."""
    wide = torch.float64 if tables[0].dtype == torch.float64 else torch.float32
    shapes = [w.shape[:1] if rule == ROWWISE_ADAGRAD else w.shape for w in tables]
    first = [normal(*shape, dtype=wide, seed=seed + i).square() for i, shape in enumerate(shapes)]
    second = [normal(*w.shape, dtype=wide, seed=seed + 20 + i).square() for i, w in enumerate(tables)]
    return first, second if rule in (ADAM, FTRL) else []


def options_of(rule: int) -> list[float]:
    """eps, weight_decay, beta1 and beta2; of FTRL beta, 0, l1 and l2."""
    return [1.0, 0.0, 0.05, 0.3] if rule == FTRL else [1e-8, 0.01, 0.9, 0.999]


def step_of(rule: int, max_norm: float = 0.0, seed: int = -1) -> tuple[int, Tensor, Tensor, list[float], float, int]:
    """The last arguments of an update: rule, rate, steps so far, options, largest norm, seed of the rounding."""
    return rule, torch.tensor(0.1, dtype=torch.float64), torch.tensor(3), options_of(rule), max_norm, seed
