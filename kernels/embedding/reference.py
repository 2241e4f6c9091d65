"""What `embedding_plan`, `embedding` and `embedding_grad` mean, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._checks import outside
from deeprec.kernels.embedding.checks import check_grad, check_ids, check_lookup, check_range
from deeprec.kernels.faults import raise_faults, report_where
from deeprec.kernels.sums import add_rows


def embedding_plan_reference(ids: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stable sort of the flattened ids, then run-length encoding."""
    check_ids("embedding_plan", ids, num_embeddings)
    if ids.device.type != "cpu":  # the sort below waits for the device anyway
        check_range("embedding_plan", ids, num_embeddings)
        raise_faults(ids.device)
    position = torch.int32 if ids.numel() < 2**31 else torch.int64
    values, order = torch.sort(ids.flatten(), stable=True)
    rows, counts = torch.unique_consecutive(values, return_counts=True)
    offsets = torch.zeros(rows.numel() + 1, dtype=torch.int64, device=ids.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return rows, offsets.to(position), order.to(position)


def embedding_reference(weight: Tensor, ids: Tensor) -> Tensor:
    """weight[ids]."""
    check_lookup(weight, ids)
    if ids.device.type != "cpu":
        message = f"embedding: ids must be in [0, {weight.shape[0]}), got another"
        report_where(outside(ids, weight.shape[0]), IndexError, message)
    return weight.index_select(0, ids.flatten().to(torch.int64)).reshape(*ids.shape, weight.shape[1])


def embedding_grad_reference(grad: Tensor, rows: Tensor, offsets: Tensor, order: Tensor) -> Tensor:
    """out[u] = sum of grad[order[j]] for offsets[u] <= j < offsets[u + 1], in float32 (float64 for float64)."""
    check_grad(grad, rows, offsets, order)
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    offsets, order = offsets.reshape(-1), order.reshape(-1)
    counts = (offsets[1:] - offsets[:-1]).to(torch.int64)
    row_of = torch.repeat_interleave(torch.arange(rows.numel(), device=grad.device), counts, output_size=order.numel())
    out = torch.zeros(rows.numel(), grad.shape[1], dtype=wide, device=grad.device)
    return add_rows(out, row_of, grad.index_select(0, order.to(torch.int64)).to(wide)).to(grad.dtype)
