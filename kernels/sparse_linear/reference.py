"""What `sparse_linear` means, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._checks import check_float, check_rows, require
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sampled_linear_loss.reference import activate, check_activation, check_bias
from deeprec.kernels.sums import add_rows


def sparse_linear_reference(
    indptr: Tensor, indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None, activation: int
) -> Tensor:
    """activation(X weight + bias), [B, H]."""
    function = "sparse_linear"
    require(weight.dim() == 2, function, "weight must be [N, H]", weight)
    check_float(function, "weight", weight)
    require(indptr.dim() == 1 and indptr.numel() > 0, function, "indptr must be [B + 1]", indptr)
    check_activation(function, activation)
    batch = indptr.shape[0] - 1
    check_rows(function, indptr, indices, batch, weight.shape[0])
    has_shape = values.shape == indices.shape and values.dtype == weight.dtype
    require(has_shape, function, f"values must be {list(indices.shape)} of {weight.dtype}", values)
    check_bias(function, bias, weight.shape[1], weight.dtype)
    wide = wide_dtype(weight.dtype)
    rows = torch.repeat_interleave(torch.arange(batch, device=weight.device), indptr.diff().to(torch.int64))
    start = weight.new_zeros(weight.shape[1], dtype=wide) if bias is None else bias.reshape(-1).to(wide)
    sums = start.expand(batch, weight.shape[1]).clone()
    add_rows(sums, rows, weight[indices.to(torch.int64)].to(wide) * values.to(wide).unsqueeze(1))
    return activate(sums, activation)[0].to(weight.dtype)
