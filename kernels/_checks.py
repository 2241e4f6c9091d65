"""What references ask of their arguments: the same as the C++ kernels, so that both accept and refuse alike.

Values are looked at on the CPU only; elsewhere that would wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INDICES = (torch.int32, torch.int64)


def kind_of(given: object) -> str:
    """Shape and dtype of a tensor, or the thing itself, for an error."""
    return f"{list(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else repr(given)


def require(holds: bool, function: str, requirement: str, got: object) -> None:
    """Raise ValueError unless a requirement holds."""
    if not holds:
        raise ValueError(f"{function}: {requirement}, got {kind_of(got)}")


def check_float(function: str, name: str, given: Tensor) -> None:
    """Raise TypeError unless a tensor is of a floating kind that the kernels know."""
    if given.dtype not in FLOATS:
        raise TypeError(f"{function}: {name} must be float32, float64, bfloat16 or float16, got {given.dtype}")


def check_index(function: str, name: str, given: Tensor) -> None:
    """Raise TypeError unless a tensor is int32 or int64."""
    if given.dtype not in INDICES:
        raise TypeError(f"{function}: {name} must be int32 or int64, got {given.dtype}")


def outside(ids: Tensor, count: int) -> Tensor:
    """Where ids are not in [0, count); a count beyond what their dtype holds would wrap around in a comparison."""
    return (ids < 0) | (ids > min(count - 1, torch.iinfo(ids.dtype).max))


def check_offsets(function: str, ids: Tensor, offsets: Tensor | None) -> None:
    """Raise ValueError unless offsets ascend from 0 to the number of ids."""
    if offsets is None:
        return
    ends = (int(offsets[0]), int(offsets[-1])) if offsets.numel() else (0, 0)
    if ends != (0, ids.numel()) or not offsets.numel() or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(
            f"{function}: offsets must ascend from 0 to the number of ids ({ids.numel()}), got {ends[0]} to {ends[1]}"
        )


def check_layout(
    function: str, ids: Tensor, offsets: Tensor | None, tables: Sequence[int], padding: Sequence[int], num_tables: int
) -> None:
    """Raise unless ids are [F, B], or [nnz] with offsets [F * B + 1], and each feature names a table."""
    count = len(tables)
    require(len(padding) == count, function, f"padding must have one entry a feature ({count})", list(padding))
    for table in tables:
        require(0 <= table < num_tables, function, f"tables must be in [0, {num_tables})", table)
    check_index(function, "ids", ids)
    if offsets is None:
        require(ids.dim() == 2 and ids.shape[0] == count, function, f"ids must be [{count}, B]", ids)
        return
    require(ids.dim() == 1, function, "ids with offsets must have one dimension", ids)
    bounds = offsets.numel() - 1
    is_whole = bounds >= 0 and (bounds % count == 0 if count else bounds == 0)
    requirement = f"offsets must be [{count} * B + 1] in the dtype of ids"
    require(offsets.dim() == 1 and offsets.dtype == ids.dtype and is_whole, function, requirement, offsets)
    if offsets.device.type == "cpu":
        check_offsets(function, ids, offsets)


def check_tables(function: str, weights: Sequence[Tensor]) -> None:
    """Raise unless there is a table, and all are [R, D] of one dtype."""
    require(len(weights) > 0, function, "weights must hold at least one table", list(weights))
    check_float(function, "weights", weights[0])
    for weight in weights:
        is_table = weight.dim() == 2 and weight.dtype == weights[0].dtype
        require(is_table, function, f"weights must be [R, D] tables of {weights[0].dtype}", weight)


def check_entries(function: str, name: str, given: Tensor | None, ids: Tensor, dtype: torch.dtype) -> None:
    """Raise unless there is one number of a dtype for each id, or none at all."""
    if given is not None:
        requirement = f"{name} must be {list(ids.shape)} like ids, of {dtype}"
        require(given.shape == ids.shape and given.dtype == dtype, function, requirement, given)


def check_rows(function: str, indptr: Tensor, indices: Tensor, batch: int, num_columns: int) -> None:
    """Raise unless (indptr, indices) are `batch` compressed rows with columns in [0, num_columns)."""
    nnz = indices.numel()
    check_index(function, "indices", indices)
    has_shape = indices.dim() == 1 and indptr.shape == (batch + 1,) and indptr.dtype == indices.dtype
    require(has_shape, function, f"indptr must be [{batch + 1}] in the dtype of indices [nnz]", indptr)
    if indices.device.type != "cpu":
        return
    is_whole = int(indptr[0]) == 0 and int(indptr[-1]) == nnz and not bool((indptr[1:] < indptr[:-1]).any())
    require(is_whole, function, f"indptr must ascend from 0 to the number of indices ({nnz})", indptr.tolist()[:8])
    bad = outside(indices, num_columns)
    if nnz and bool(bad.any()):
        position = int(bad.to(torch.uint8).argmax())
        raise IndexError(
            f"{function}: indices must be in [0, {num_columns}), got {int(indices[position])} at position {position}"
        )
