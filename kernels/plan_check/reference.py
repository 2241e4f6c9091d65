"""What `plan_check` means, in plain PyTorch: without a sort, a loop or a wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeprec.kernels._checks import check_offsets

_INDEX = (torch.int32, torch.int64)


def _has_shape(ids: Tensor, offsets: Tensor | None, num_tables: int, plan: Sequence[Tensor]) -> bool:
    rows, row_offsets, order, bags, table_starts = plan
    return (
        all(some.dim() == 1 and some.is_contiguous() and some.device == ids.device for some in plan)
        and rows.dtype == ids.dtype
        and order.dtype in _INDEX
        and order.dtype == row_offsets.dtype == bags.dtype
        and table_starts.dtype == torch.int64
        and row_offsets.shape[0] == rows.shape[0] + 1
        and table_starts.shape[0] == num_tables + 1
        and order.shape[0] <= ids.numel()
        and bags.shape[0] == (0 if offsets is None else ids.numel())
    )


def _rises(bounds: Tensor, last: int, least_step: int) -> Tensor:
    """Whether bounds go from 0 to `last` by steps of `least_step` or more."""
    return (bounds[0] == 0) & (bounds[-1] == last) & (bounds.diff() >= least_step).all()


def plan_check_reference(
    ids: Tensor,
    offsets: Tensor | None,
    num_embeddings: Sequence[int],
    tables: Sequence[int],
    padding: Sequence[int],
    rows: Tensor,
    row_offsets: Tensor,
    order: Tensor,
    bags: Tensor,
    table_starts: Tensor,
) -> Tensor:
    """Whether (rows, ...) is what `embedding_bags_plan` makes of ids [F, B], or [nnz] with offsets: a bool []."""
    device, nnz, num_rows, entries = ids.device, ids.numel(), rows.shape[0], order.shape[0]
    if device.type == "cpu":
        check_offsets("plan_check", ids, offsets)
    if not _has_shape(ids, offsets, len(num_embeddings), (rows, row_offsets, order, bags, table_starts)):
        return torch.tensor(False, device=device)
    batch = ids.shape[1] if offsets is None else (offsets.shape[0] - 1) // max(len(tables), 1)
    # Clamped, so that the look-ups below stay within their tensors whatever the plan holds; `holds` tells it then.
    holds = _rises(row_offsets, entries, 1) & _rises(table_starts, num_rows, 0)
    entry_bags = torch.arange(nnz, device=device)
    if offsets is not None:
        entry_bags = torch.searchsorted(offsets, entry_bags.to(offsets.dtype), right=True) - 1
        holds &= (bags == entry_bags).all()
    if not nnz:
        return holds
    pads = torch.tensor(padding, dtype=ids.dtype, device=device)
    features = (entry_bags // max(batch, 1)).clamp(0, len(tables) - 1)
    flat = ids.reshape(-1)
    holds &= ((flat != pads[features]).sum() == entries) & (order >= 0).all() & (order < nnz).all()
    if not entries:
        return holds
    at = order.long().clamp(0, nnz - 1)
    table_of_feature = torch.tensor(tables, dtype=torch.int64, device=device)
    number = torch.arange(entries, device=device)
    row_of = (torch.searchsorted(row_offsets.long(), number, right=True) - 1).clamp(0, num_rows - 1)
    table_of_row = torch.searchsorted(table_starts, torch.arange(num_rows, device=device), right=True) - 1
    table_of_row = table_of_row.clamp(0, len(num_embeddings) - 1)
    sizes = torch.tensor(num_embeddings, dtype=torch.int64, device=device)
    holds &= (flat[at] == rows[row_of]).all() & (flat[at] != pads[features[at]]).all()
    holds &= (table_of_feature[features[at]] == table_of_row[row_of]).all()
    holds &= ((rows >= 0) & (rows < sizes[table_of_row])).all()
    holds &= ((rows[1:] > rows[:-1]) | (table_of_row[1:] != table_of_row[:-1])).all()
    return holds & ((at[1:] > at[:-1]) | (row_of[1:] != row_of[:-1])).all()
