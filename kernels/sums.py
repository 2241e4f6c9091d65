"""Sums by index that are the same bit for bit in every run, on the CPU and on an NVIDIA GPU.

On the CPU `index_add_`, `scatter_add` and `cumsum` add in the order of their input. On a GPU they use atomic
operations, or add as blocks come to an end (`torch.use_deterministic_algorithms` lists them); so do the gradients of
`index_select` and `gather`. There `index_put_(accumulate=True)` serves, which sorts the index, stable, and adds the
entries of a row one after the other. Its cost: a radix sort of the index (16 bytes an entry, a pass for every 8 bits
of the largest one), two reductions that check its range, no wait for the GPU, and the time of the longest row.
`torch.compile` makes atomic additions of it, unless `torch.use_deterministic_algorithms(True)` is set; references are
operators, which it calls as they are.

Whole numbers need none of this: their sums are exact in any order. Where a plan has sorted the index already, the
operator `embedding_grad` is faster.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


def _adds_in_order(x: Tensor) -> bool:
    """Whether torch's plain operators add in the order of their input where x lies."""
    return x.device.type == "cpu"


def add_rows(out: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """out[index[n]] += rows[n] in place, n ascending; returns out.

    Args:
        out: [R, ...].
        index: [N] in [0, R), int32 or int64, repetition allowed.
        rows: [N, ...], dtype of out.
    """
    if _adds_in_order(out):
        return out.index_add_(0, index, rows)
    return out.index_put_((index.long(),), rows, accumulate=True)


def sum_rows(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums of rows [N, D] by index [N] in [0, count), int64: [count, D]; differentiable any number of times."""
    zeros = rows.new_zeros(count, rows.shape[1])
    if _adds_in_order(rows):
        return zeros.scatter_add(0, index.unsqueeze(1).expand_as(rows), rows)
    return zeros.index_put((index,), rows, accumulate=True)


def take(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """x.index_select(dim, index), whose gradient is a sum of this kind; index [N], int64."""
    if _adds_in_order(x):
        return x.index_select(dim, index)
    before: list[Any] = [slice(None)] * dim
    return x[(*before, index)]


def take_by_column(x: Tensor, index: Tensor) -> Tensor:
    """x.gather(0, index), whose gradient is a sum of this kind: x [R, D], index [N, D], int64."""
    if _adds_in_order(x):
        return x.gather(0, index)
    return x[index, torch.arange(x.shape[1], device=x.device)]


def running_sums(x: Tensor, dim: int) -> Tensor:
    """x.cumsum(dim); off the CPU a call of the operator for each entry of that dimension."""
    if _adds_in_order(x) or not x.shape[dim]:
        return x.cumsum(dim)
    return torch.stack(list(accumulate(x.unbind(dim), torch.add)), dim)
