"""What `embedding_plan`, `embedding` and `embedding_grad` mean, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._checks import check_float, check_index, outside, require
from deeprec.kernels.sums import add_rows


def _check_ids(function: str, ids: Tensor, num_embeddings: int) -> None:
    check_index(function, "ids", ids)
    require(num_embeddings >= 0, function, "num_embeddings must be >= 0", num_embeddings)
    if ids.device.type == "cpu":
        _check_range(function, ids, num_embeddings)


def _check_range(function: str, ids: Tensor, num_embeddings: int) -> None:
    if ids.numel() == 0:
        return
    bad = outside(ids, num_embeddings).flatten()
    if bool(bad.any()):
        position = int(bad.to(torch.uint8).argmax())
        value = int(ids.flatten()[position])
        raise IndexError(f"{function}: ids must be in [0, {num_embeddings}), got {value} at position {position}")


def embedding_plan_reference(ids: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stable sort of the flattened ids, then run-length encoding."""
    _check_ids("embedding_plan", ids, num_embeddings)
    if ids.device.type != "cpu":  # the sort below waits for the device anyway
        _check_range("embedding_plan", ids, num_embeddings)
    position = torch.int32 if ids.numel() < 2**31 else torch.int64
    values, order = torch.sort(ids.flatten(), stable=True)
    rows, counts = torch.unique_consecutive(values, return_counts=True)
    offsets = torch.zeros(rows.numel() + 1, dtype=torch.int64, device=ids.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return rows, offsets.to(position), order.to(position)


def embedding_reference(weight: Tensor, ids: Tensor) -> Tensor:
    """weight[ids]."""
    require(weight.dim() == 2, "embedding", "weight must be [R, D]", weight)
    _check_ids("embedding", ids, weight.shape[0])
    if ids.device.type != "cpu":
        low_enough = ids.numel() == 0 or ~outside(ids, weight.shape[0]).any()
        torch._assert_async(torch.as_tensor(low_enough), "embedding: ids must be in [0, num_embeddings)")
    return weight.index_select(0, ids.flatten().to(torch.int64)).reshape(*ids.shape, weight.shape[1])


def _check_grad(grad: Tensor, rows: Tensor, offsets: Tensor, order: Tensor) -> None:
    function = "embedding_grad"
    require(grad.dim() == 2, function, "grad must be [nnz, D]", grad)
    check_float(function, "grad", grad)
    check_index(function, "order", order)
    nnz, requirement = grad.shape[0], "rows, offsets and order must come from embedding_plan of ids, one a row of grad"
    has_shape = offsets.numel() == rows.numel() + 1 and order.numel() == nnz and offsets.dtype == order.dtype
    require(has_shape and offsets.is_contiguous() and order.is_contiguous(), function, requirement, order)
    if grad.device.type == "cpu":
        bounds = offsets.reshape(-1)
        rises = int(bounds[0]) == 0 and int(bounds[-1]) == nnz and bool((bounds[1:] > bounds[:-1]).all())
        require(rises, function, f"offsets must rise from 0 to {nnz}", bounds.tolist()[:8])
        is_there = bool(((order >= 0) & (order < nnz)).all())
        require(is_there, function, f"order must be in [0, {nnz})", order.reshape(-1).tolist()[:8])


def embedding_grad_reference(grad: Tensor, rows: Tensor, offsets: Tensor, order: Tensor) -> Tensor:
    """out[u] = sum of grad[order[j]] for offsets[u] <= j < offsets[u + 1], in float32 (float64 for float64)."""
    _check_grad(grad, rows, offsets, order)
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    offsets, order = offsets.reshape(-1), order.reshape(-1)
    counts = (offsets[1:] - offsets[:-1]).to(torch.int64)
    row_of = torch.repeat_interleave(torch.arange(rows.numel(), device=grad.device), counts, output_size=order.numel())
    out = torch.zeros(rows.numel(), grad.shape[1], dtype=wide, device=grad.device)
    return add_rows(out, row_of, grad.index_select(0, order.to(torch.int64)).to(wide)).to(grad.dtype)
