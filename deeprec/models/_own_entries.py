"""Rows of `als_solve` whose right-hand side is given, for least squares around a prior or with targets of any value."""

from __future__ import annotations

import torch
from torch import Tensor


def owners(offsets: Tensor, count: int) -> Tensor:
    """The row of each of `count` entries, [count], int64."""
    every = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(every, offsets.diff(), output_size=count)


def with_own_entries(offsets: Tensor, indices: Tensor, num_others: int) -> tuple[Tensor, Tensor]:
    """Each row with one more entry behind its own: row b then also lists num_others + b.

    `als_solve` gives an entry of weight 0 no part in the matrix of its row, and adds its factor to the right-hand side.
    So a vector of the row's own, appended to the factors, is what is missing to the right-hand side that is asked for.

    Args:
        offsets: [b + 1], int64; indices: [nnz], int64, in [0, num_others).
    Returns:
        offsets [b + 1] and indices [nnz + b], int64.
    """
    rows = torch.arange(len(offsets), device=indices.device)
    places = torch.arange(len(indices), device=indices.device) + owners(offsets, len(indices))
    entries = torch.empty(len(indices) + len(rows) - 1, dtype=torch.int64, device=indices.device)
    entries[places] = indices
    entries[offsets[1:] + rows[:-1]] = num_others + rows[:-1]
    return offsets + rows, entries
