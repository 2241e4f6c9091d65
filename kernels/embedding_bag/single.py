"""`embedding_bag`: one table, the call of `torch.nn.functional.embedding_bag`."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._autograd import is_transformed
from deeprec.kernels.embedding_bag.call import MODES
from deeprec.kernels.embedding_bag.composite import equal_bags_composite
from deeprec.kernels.embedding_bag.operators import pool_one
from deeprec.kernels.embedding_bag.several import embedding_bags

_NUMBERS = {mode: number for number, mode in enumerate(MODES[:3])}


def flat_bags(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: int | None,
    include_last_offset: bool,
) -> tuple[Tensor, Tensor, Tensor | None, int | None]:
    """ids [nnz], offsets [B + 1], per_sample_weights [nnz] and padding_idx >= 0 from the arguments of `embedding_bag`.

    Raises:
        ValueError: their shapes do not go together.
    """
    if mode not in MODES[:3]:
        raise ValueError(f"embedding_bag: mode must be sum, mean or max, got {mode!r}")
    if weight.dim() != 2:
        raise ValueError(f"embedding_bag: weight must be [R, D], got {tuple(weight.shape)}")
    if padding_idx is not None:
        if not -weight.shape[0] <= padding_idx < weight.shape[0]:
            raise ValueError(f"embedding_bag: padding_idx must be in [0, {weight.shape[0]}), got {padding_idx}")
        padding_idx %= weight.shape[0]
    if per_sample_weights is not None and (per_sample_weights.shape != ids.shape or mode != "sum"):
        raise ValueError(
            f"embedding_bag: per_sample_weights must be {tuple(ids.shape)} like ids, with mode 'sum'; got "
            f"{tuple(per_sample_weights.shape)} with mode {mode!r}"
        )
    if ids.dim() == 2:
        if offsets is not None:
            raise ValueError("embedding_bag: offsets must be None where ids are [B, L], a bag a row")
        batch, length = ids.shape
        if length and not torch.compiler.is_compiling():  # one operation instead of two
            bounds = torch.arange(0, batch * length + 1, length, dtype=ids.dtype, device=ids.device)
        else:
            bounds = torch.arange(batch + 1, dtype=ids.dtype, device=ids.device) * length
        ids = ids.reshape(-1)
        per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    elif offsets is None or ids.dim() != 1:
        raise ValueError(
            f"embedding_bag: ids must be [B, L], or [nnz] with offsets, got {tuple(ids.shape)} "
            f"{'without' if offsets is None else 'with'} offsets"
        )
    elif offsets.dim() != 1:
        raise ValueError(f"embedding_bag: offsets must have one dimension, got {tuple(offsets.shape)}")
    elif include_last_offset:
        bounds = offsets
    elif torch.compiler.is_compiling():  # ONNX export knows no padding with a size
        bounds = torch.cat([offsets, offsets.new_full((1,), ids.shape[0])])
    else:
        bounds = torch.constant_pad_nd(offsets, (0, 1), ids.shape[0])
    return ids, bounds, per_sample_weights, padding_idx


def embedding_bag(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor | None = None,
    *,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    padding_idx: int | None = None,
    include_last_offset: bool = False,
    sparse_grad: bool = True,
    name: str = "",
) -> Tensor:
    """Pooled rows of one table: the call of `torch.nn.functional.embedding_bag`.

    Args:
        weight: [R, D], float32, float64, bfloat16 or float16; any D >= 1.
        ids: [B, L], a bag a row, or [nnz] with offsets; int32 or int64.
        offsets: where each bag begins, [B], the first 0; the last bag ends at nnz. With include_last_offset [B + 1].
        mode: "sum", "mean" or "max".
        per_sample_weights: shape of ids, dtype of weight; mode "sum" only.
        padding_idx: an id that counts in no bag; negative ones count from the end.
        include_last_offset: offsets end with nnz.
        sparse_grad: give weight a coalesced sparse gradient; a dense one otherwise.
        name: what to call the table in an error.
    Returns:
        [B, D], dtype of weight; an empty bag gives zeros.
    Raises:
        IndexError, TypeError, ValueError: as in `embedding_bags`.
    """
    needs_grad = torch.is_grad_enabled() and (
        weight.requires_grad or (per_sample_weights is not None and per_sample_weights.requires_grad)
    )
    is_plain = padding_idx is None or padding_idx >= 0
    is_traced = torch.compiler.is_compiling() or is_transformed()
    if not needs_grad and is_plain and weight.is_cpu and mode in _NUMBERS and not is_traced:
        padding = -1 if padding_idx is None else padding_idx
        try:
            return pool_one(weight, ids, offsets, per_sample_weights, _NUMBERS[mode], padding, include_last_offset)
        except (IndexError, RuntimeError, TypeError, ValueError):
            pass  # said below in full, or made right there: offsets in another dtype
    flat, bounds, scale, padding_idx = flat_bags(
        weight, ids, offsets, mode, per_sample_weights, padding_idx, include_last_offset
    )
    if offsets is None and is_transformed():
        return equal_bags_composite(weight, ids, per_sample_weights, _NUMBERS[mode], padding_idx)
    pooled, _ = embedding_bags(
        [weight],
        flat,
        bounds,
        per_sample_weights=scale,
        modes=mode,
        padding_idx=[padding_idx],
        sparse_grad=sparse_grad,
        names=(name,),
    )
    return pooled
