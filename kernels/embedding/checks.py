"""What the operators of the embedding family ask of their arguments; the C++ kernels ask the same."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._checks import check_float, check_index, outside, require


def check_ids(function: str, ids: Tensor, num_embeddings: int) -> None:
    """Raise unless ids are int32 or int64 and, on the CPU, in [0, num_embeddings)."""
    check_index(function, "ids", ids)
    require(num_embeddings >= 0, function, "num_embeddings must be >= 0", num_embeddings)
    if ids.device.type == "cpu":
        check_range(function, ids, num_embeddings)


def check_range(function: str, ids: Tensor, num_embeddings: int) -> None:
    """Raise IndexError for the first id out of range; waits for the device."""
    if ids.numel() == 0:
        return
    bad = outside(ids, num_embeddings).flatten()
    if bool(bad.any()):
        position = int(bad.to(torch.uint8).argmax())
        value = int(ids.flatten()[position])
        raise IndexError(f"{function}: ids must be in [0, {num_embeddings}), got {value} at position {position}")


def check_lookup(weight: Tensor, ids: Tensor) -> None:
    """What `embedding` asks."""
    require(weight.dim() == 2, "embedding", "weight must be [R, D]", weight)
    check_ids("embedding", ids, weight.shape[0])


def check_grad(grad: Tensor, rows: Tensor, offsets: Tensor, order: Tensor) -> None:
    """What `embedding_grad` asks."""
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


CHECKS = {"embedding": check_lookup, "embedding_grad": check_grad}
