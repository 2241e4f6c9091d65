"""Nested (ragged) tensors as ids: their values in one piece, and rows in their form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor


def _compact(owner: str, nested: Tensor) -> Tensor:
    """A jagged tensor without holes between its parts."""
    if nested.lengths() is not None:  # type: ignore[attr-defined]
        nested = nested.contiguous()
    if not nested.is_contiguous():
        raise ValueError(
            f"{owner}: a nested tensor must be ragged in its second dimension, got one that is transposed; undo that"
        )
    return nested


def flat_nested(owner: str, name: str, nested: Tensor) -> tuple[Tensor, Tensor]:
    """The bags of a nested tensor.

    Args:
        owner, name: who asks and for what, for errors.
        nested: [B, ragged] in either layout.
    Returns:
        values [nnz] and offsets [B + 1], int64 on the device of nested.
    Raises:
        ValueError: nested has more dimensions, or is transposed.
    """
    if nested.dim() != 2:
        raise ValueError(f"{owner}: {name} must be nested in two dimensions, a part a bag, got {nested.dim()}")
    if nested.layout == torch.jagged:
        nested = _compact(owner, nested)
        return nested.values(), nested.offsets()  # type: ignore[attr-defined]
    parts = nested.unbind()
    bounds = [0, *accumulate(len(part) for part in parts)]
    return torch.cat(parts), torch.tensor(bounds, device=nested.device)


def flat_nested_pair(
    owner: str, name: str, ids: Tensor, values_name: str, values: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The bags of nested ids and of the numbers that go with them, nested alike.

    Returns:
        ids [nnz], offsets [B + 1], and values [nnz] or None.
    Raises:
        ValueError: values are not nested, or their parts have other lengths.
    """
    flat, offsets = flat_nested(owner, name, ids)
    if values is None:
        return flat, offsets, None
    if not values.is_nested:
        raise ValueError(f"{owner}: {values_name} must be nested like {name}, got {tuple(values.shape)}")
    numbers, bounds = flat_nested(owner, values_name, values)
    is_alike = numbers.shape == flat.shape and bounds.shape == offsets.shape
    if not is_alike or not (bounds is offsets or torch.compiler.is_compiling() or torch.equal(bounds, offsets)):
        raise ValueError(f"{owner}: {values_name} must have parts as long as those of {name}; nest both alike")
    return flat, offsets, numbers


def like_nested(owner: str, nested: Tensor, rows: Tensor) -> Tensor:
    """Rows [nnz, D] of the values of nested ids, or [nnz, ..., D] of jagged ones, nested as the ids are."""
    if nested.layout == torch.jagged:
        offsets = _compact(owner, nested).offsets()  # type: ignore[attr-defined]
        return torch.nested.nested_tensor_from_jagged(rows, offsets=offsets)
    parts = nested.unbind()
    pieces = rows.split([part.numel() for part in parts])
    shaped = [piece.reshape(*part.shape, rows.shape[-1]) for piece, part in zip(pieces, parts, strict=True)]
    return torch.nested.as_nested_tensor(shaped, layout=torch.strided)


def map_nested(owner: str, nested: Tensor, lookup: Callable[[Tensor], Tensor]) -> Tensor:
    """Rows of nested ids, nested alike.

    Args:
        owner: who asks, for errors.
        nested: [B, ragged, ...] (jagged layout), or parts of any shapes (strided).
        lookup: rows [*ids.shape, D] of plain ids.
    Returns:
        [B, ragged, ..., D], in the layout of nested.
    """
    if nested.layout == torch.jagged:
        nested = _compact(owner, nested)
        return like_nested(owner, nested, lookup(nested.values()))
    return like_nested(owner, nested, lookup(torch.cat([part.reshape(-1) for part in nested.unbind()])))
