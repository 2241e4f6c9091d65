"""What `fm_interaction`, `bi_interaction` and their gradient mean, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels.fm_interaction.checks import check, check_grad


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def bi_interaction_reference(x: Tensor) -> Tensor:
    """0.5 [(sum_f x)^2 - sum_f x^2], [B, D]."""
    check("bi_interaction", x)
    wide = x.to(wide_dtype(x.dtype))
    return (0.5 * (wide.sum(1).square() - wide.square().sum(1))).to(x.dtype)


def fm_interaction_reference(x: Tensor) -> Tensor:
    """bi_interaction summed over d before it is rounded, [B]."""
    check("fm_interaction", x)
    return bi_interaction_reference(x.to(wide_dtype(x.dtype))).sum(1).to(x.dtype)


def fm_interaction_grad_reference(grad: Tensor, x: Tensor) -> Tensor:
    """grad (sum_f x - x), [B, F, D], for grad [B] or [B, D]."""
    check_grad(grad, x)
    wide = x.to(wide_dtype(x.dtype))
    grad = grad.reshape(*grad.shape, *(1,) * (2 - grad.dim())).unsqueeze(1).to(wide.dtype)  # [B, 1, D or 1]
    return (grad * (wide.sum(1, keepdim=True) - wide)).to(x.dtype).contiguous()
