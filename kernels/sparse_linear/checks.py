"""What `sparse_linear` asks of its arguments; the C++ wrapper asks the same."""

from __future__ import annotations

from torch import Tensor

from deeprec.kernels._checks import check_float, check_rows, require
from deeprec.kernels.sampled_linear_loss.reference import check_activation, check_bias


def check_sparse_linear(
    indptr: Tensor, indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None, activation: int
) -> None:
    """The arguments of the operator."""
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


CHECKS = {"sparse_linear": check_sparse_linear}
