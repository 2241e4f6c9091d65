"""What `sampled_linear_loss` means, in plain PyTorch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels._checks import check_float, check_rows, require
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sums import add_rows

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


def activate(z: Tensor, activation: int) -> tuple[Tensor, Tensor]:
    """The activation and its derivative."""
    if activation == SIGMOID:
        a = torch.sigmoid(z)
        return a, a * (1 - a)
    if activation == TANH:
        a = torch.tanh(z)
        return a, 1 - a * a
    return z, torch.ones_like(z)


def entry_losses(z: Tensor, y: Tensor, activation: int, loss: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each entry, prediction, and the derivative of the loss by z."""
    a, inner = activate(z, activation)
    if loss == SQUARED:
        return (a - y) ** 2, a, 2 * (a - y) * inner
    if loss == CROSS_ENTROPY:
        return F.softplus(z) - z * y, a, a - y
    if loss == LOGISTIC:
        return F.softplus(-y * a), a, -y * torch.sigmoid(-y * a) * inner
    margin = 1 - y * a
    return margin.clamp(min=0), a, torch.where(margin > 0, -y * inner, 0)


def _check(arguments: SampledArguments) -> None:
    hidden, weight, bias, indptr, indices, targets, entry_weights, activation, loss, _ = arguments
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


def sampled_linear_loss_reference(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [], predictions [nnz], derivative of the loss by each z [nnz], gradient of hidden [B, H] or [0].

    Args:
        args: the fields of `SampledArguments`.
    """
    arguments = SampledArguments(*args)
    _check(arguments)
    hidden, weight, bias, indptr, indices, targets, entry_weights, activation, loss, need_grad = arguments
    wide = wide_dtype(hidden.dtype)
    counts = indptr.diff().to(torch.int64)
    rows = torch.repeat_interleave(torch.arange(hidden.shape[0], device=hidden.device), counts)
    columns = indices.to(torch.int64)
    layer_rows = weight[columns].to(wide)
    z = (hidden.to(wide)[rows] * layer_rows).sum(1)
    if bias is not None:
        z = z + bias.reshape(-1)[columns].to(wide)
    losses, predictions, slopes = entry_losses(z, targets, activation, loss)
    if entry_weights is not None:
        losses, slopes = losses * entry_weights, slopes * entry_weights
    total = losses.sum(dtype=torch.float64).to(wide)
    if not need_grad:
        return total, predictions.clone(), slopes, hidden.new_empty(0)
    grad = torch.zeros(hidden.shape, dtype=wide, device=hidden.device)
    add_rows(grad, rows, layer_rows * slopes.unsqueeze(1))
    return total, predictions.clone(), slopes, grad.to(hidden.dtype)
