"""Launcher of sparse_linear: the kernel of embedding_bags, and the rest by PyTorch."""

from __future__ import annotations

from torch import Tensor

from deeprec.kernels.embedding_bag.triton_kernels import embedding_bags
from deeprec.kernels.sampled_linear_loss import ONE_TABLE


def sparse_linear(
    indptr: Tensor, indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None, activation: int
) -> Tensor:
    """Rows are bags, their values the weights of its entries."""
    out = embedding_bags([weight], indices, indptr, values, *ONE_TABLE)[0]
    if bias is not None:
        out += bias
    if activation == 1:
        return out.sigmoid_()
    return out.tanh_() if activation == 2 else out
