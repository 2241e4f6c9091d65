"""Rows of ratings for the benches of the sparse autoencoder layers, and how its rivals would do the same work."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.workloads import scale

HIDDEN, BATCH = 500, 512
GATHER, ADDMM, DENSE, DENSE_COMPILED = (
    "F.embedding_bag + gather",
    "torch.sparse.sampled_addmm",
    "dense masked",
    "dense masked, torch.compile",
)


class Rows(NamedTuple):
    """A batch of rows in compressed form.

    Attributes:
        indptr: [B + 1]; indices: [nnz]; both int64.
        values: [nnz], float32.
        num_columns: N.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    num_columns: int

    @property
    def rows(self) -> Tensor:
        """The row of each entry, [nnz]."""
        every = torch.arange(len(self.indptr) - 1, device=self.indptr.device)
        return torch.repeat_interleave(every, self.indptr.diff())

    def here(self) -> Rows:
        """On the device where a case is set up."""
        return Rows(*(torch.as_tensor(part) for part in self[:3]), self.num_columns)

    @property
    def nnz(self) -> int:
        return len(self.indices)

    def csr(self) -> Tensor:
        """As torch's sparse tensor."""
        shape = (len(self.indptr) - 1, self.num_columns)
        return torch.sparse_csr_tensor(self.indptr, self.indices, self.values, shape, check_invariants=False)

    def dense(self) -> tuple[Tensor, Tensor]:
        """Values and mask, [B, N]."""
        x = self.values.new_zeros(len(self.indptr) - 1, self.num_columns)
        mask = torch.zeros_like(x)
        x[self.rows, self.indices], mask[self.rows, self.indices] = self.values, 1.0
        return x, mask


@cache
def movielens() -> tuple[Rows, ...]:
    """One epoch of I-AutoRec on MovieLens-1M: its items in random order, 512 a batch; columns are users.

    Raises:
        FileNotFoundError: the data set is not there; says where it is looked for.
    """
    from deeprec.data import load

    data = load("ml-1m")
    assert data.ratings is not None
    order = np.random.default_rng(0).permutation(data.num_items)
    items = order[data.items]
    by_row = np.lexsort((data.users, items))
    counts = np.bincount(items, minlength=data.num_items)
    indptr = torch.from_numpy(np.concatenate([[0], counts.cumsum()]))
    users = torch.from_numpy(data.users[by_row].astype(np.int64))
    ratings = torch.from_numpy(data.ratings[by_row].astype(np.float32))
    found = []
    for first in range(0, data.num_items, BATCH):
        bounds = indptr[first : first + BATCH + 1]
        low, high = int(bounds[0]), int(bounds[-1])
        found.append(Rows(bounds - low, users[low:high].clone(), ratings[low:high].clone(), data.num_users))
    return tuple(found)


def synthetic(num_columns: int, density: float, batch: int = BATCH, seed: int = 0) -> Rows:
    """Rows of equally many ratings at random columns."""
    draw = torch.Generator().manual_seed(seed)
    each = max(round(density * num_columns), 1)
    with torch.device("cpu"):  # the same rows for every device
        chosen = [torch.randperm(num_columns, generator=draw)[:each].sort().values for _ in range(batch)]
        values = torch.randint(1, 6, (batch * each,), generator=draw).float()
        return Rows(torch.arange(batch + 1) * each, torch.cat(chosen), values, num_columns)


ML_1M = (3706, 6040, 1_000_209)  # its items, users and ratings
WIDE, WIDE_DENSITY = 50_000, 0.005


class Workload(NamedTuple):
    """Rows to encode and decode, for the benches of three operators.

    Attributes:
        name: as cases are called; group: what it adds to the name of a group of cases.
        batches: makes the batches, on the device.
        scale: as a case says it.
        nnz: ratings of a batch, on average.
    """

    name: str
    group: str
    batches: Callable[[], list[Rows]]
    scale: str
    nnz: float


def ml_1m(device: str) -> list[Rows]:
    """An epoch of MovieLens-1M; on a GPU, where there may be no data, rows of its shape with equally many ratings."""
    if device == "cpu":
        return list(movielens())
    num_items, num_users, nnz = ML_1M
    sizes = [min(BATCH, num_items - first) for first in range(0, num_items, BATCH)]
    density = nnz / num_items / num_users
    return [synthetic(num_users, density, size, seed).here() for seed, size in enumerate(sizes)]


def workloads(device: str, num_wide: int) -> list[Workload]:
    """Batches of MovieLens-1M without the last, which is a small one; and `num_wide` batches of 50,000 columns."""
    batch = BATCH if device == "cpu" else 8 * BATCH
    alike = scale(device, "drawn evenly in the shape of ML-1M", "ML-1M")

    def wide() -> list[Rows]:
        return [synthetic(WIDE, WIDE_DENSITY, batch, seed).here() for seed in range(num_wide)]

    return [
        Workload(f"ML-1M, B {BATCH}", "", lambda: ml_1m(device)[:-1], alike, ML_1M[2] * BATCH / ML_1M[0]),
        Workload(
            f"50k columns, 0.5% dense, B {batch}",
            ", 50k columns",
            wide,
            scale(device, f"B {batch}", f"B {BATCH}"),
            batch * WIDE * WIDE_DENSITY,
        ),
    ]


def layers(num_columns: int, hidden: int = HIDDEN) -> list[Tensor]:
    """encoder [N, H], encoder_bias [H], decoder [N, H], decoder_bias [N] as AutoRec starts them."""
    return [
        torch.randn(num_columns, hidden) * 0.01,
        torch.randn(hidden) * 0.001,
        torch.randn(num_columns, hidden) * 0.01,
        torch.randn(num_columns) * 0.001,
    ]
