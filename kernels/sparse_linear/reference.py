"""What `sparse_linear` means, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sampled_linear_loss.reference import activate
from deeprec.kernels.sparse_linear.checks import check_sparse_linear
from deeprec.kernels.sums import add_rows


def sparse_linear_reference(
    indptr: Tensor, indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None, activation: int
) -> Tensor:
    """activation(X weight + bias), [B, H]."""
    check_sparse_linear(indptr, indices, values, weight, bias, activation)
    batch = indptr.shape[0] - 1
    wide = wide_dtype(weight.dtype)
    rows = torch.repeat_interleave(torch.arange(batch, device=weight.device), indptr.diff().to(torch.int64))
    start = weight.new_zeros(weight.shape[1], dtype=wide) if bias is None else bias.reshape(-1).to(wide)
    sums = start.expand(batch, weight.shape[1]).clone()
    add_rows(sums, rows, weight[indices.to(torch.int64)].to(wide) * values.to(wide).unsqueeze(1))
    return activate(sums, activation)[0].to(weight.dtype)
