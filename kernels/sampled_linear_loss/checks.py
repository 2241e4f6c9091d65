"""What `sampled_linear_loss` takes, and asks of it; the C++ kernel asks the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels._checks import check_float, check_rows, require
from deeprec.kernels.embedding_bag.reference import wide_dtype

IDENTITY, SIGMOID, TANH = range(3)
SQUARED, CROSS_ENTROPY, LOGISTIC, HINGE = range(4)


class SampledArguments(NamedTuple):
    """What the operator takes, in the order of its schema; see `sampled_linear_loss`.

    Attributes:
        activation, loss: places in `ACTIVATIONS` and `LOSSES`.
        need_grad: whether the gradient of hidden is asked for.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    indptr: Tensor
    indices: Tensor
    targets: Tensor
    entry_weights: Tensor | None
    activation: int
    loss: int
    need_grad: bool = False


def check(*args: Any) -> None:
    """What the operator asks.

    Args:
        args: the fields of `SampledArguments`.
    """
    hidden, weight, bias, indptr, indices, targets, entry_weights, activation, loss, _ = SampledArguments(*args)
    function, dtype = "sampled_linear_loss", hidden.dtype
    check_float(function, "hidden", hidden)
    require(hidden.dim() == 2, function, "hidden must be [B, H]", hidden)
    has_shape = weight.dim() == 2 and weight.shape[1] == hidden.shape[1] and weight.dtype == dtype
    require(has_shape, function, f"weight must be [N, {hidden.shape[1]}] of {dtype}", weight)
    check_activation(function, activation)
    has_loss = SQUARED <= loss <= HINGE and (loss != CROSS_ENTROPY or activation == SIGMOID)
    require(has_loss, function, "loss must be 0 to 3, and 1 goes with activation 1", loss)
    check_rows(function, indptr, indices, hidden.shape[0], weight.shape[0])
    check_bias(function, bias, weight.shape[0], dtype)
    wide = wide_dtype(dtype)
    for name, given in (("targets", targets), ("entry_weights", entry_weights)):
        if given is not None:
            has_shape = given.shape == indices.shape and given.dtype == wide
            require(has_shape, function, f"{name} must be {list(indices.shape)} of {wide}", given)


def check_activation(function: str, activation: int) -> None:
    """Raise unless an activation has this number."""
    requirement = "activation must be 0 (identity), 1 (sigmoid) or 2 (tanh)"
    require(IDENTITY <= activation <= TANH, function, requirement, activation)


def check_bias(function: str, bias: Tensor | None, size: int, dtype: torch.dtype) -> None:
    """Raise unless a bias has one number for each output, or there is none."""
    if bias is not None:
        has_shape = bias.numel() == size and bias.dtype == dtype
        require(has_shape, function, f"bias must be [{size}] of {dtype}", bias)


CHECKS = {"sampled_linear_loss": check}
