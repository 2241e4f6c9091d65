"""What `sampled_linear_loss` means, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sampled_linear_loss.checks import (
    CROSS_ENTROPY,
    LOGISTIC,
    SIGMOID,
    SQUARED,
    TANH,
    SampledArguments,
    check,
)
from deeprec.kernels.sums import add_rows


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


def sampled_linear_loss_reference(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [], predictions [nnz], derivative of the loss by each z [nnz], gradient of hidden [B, H] or [0].

    Args:
        args: the fields of `SampledArguments`.
    """
    arguments = SampledArguments(*args)
    check(*arguments)
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
