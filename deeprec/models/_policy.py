"""Weights of policy gradients on logged events."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def top_k_factor(log_pi: Tensor, k: int) -> Tensor:
    """lambda_K = K (1 - pi)^(K - 1), the derivative of 1 - (1 - pi)^K, the chance to be among K draws.

    Reference: Chen et al. 2019 (arXiv 1812.02353), section 4.3.
    """
    return k * (1 - log_pi.exp()).clamp(min=0.0) ** (k - 1)


@torch.no_grad()
def policy_weights(
    log_pi: Tensor, log_beta: Tensor | None, *, top_k: int = 1, cap: float = math.inf, mask: Tensor | None = None
) -> Tensor:
    """What the gradient of log pi is weighted with, beside the return: min(pi / beta, c) lambda_K, [n].

    Args:
        log_pi: [n], of the logged actions under the policy that learns.
        log_beta: [n], under the one that was logged; None: no correction, the ratio is 1.
        top_k: K, >= 1.
        cap: c, > 0.
        mask: [n], 1.0 for the events over which the ratios are divided by their mean; None: as they are.
    """
    ratio = torch.ones_like(log_pi)
    if log_beta is not None:
        ratio = (log_pi - log_beta.to(log_pi.dtype)).clamp(max=math.log(cap)).exp()  # in logs, so that none overflows
        if mask is not None:
            mean = (ratio * mask).sum() / mask.sum().clamp(min=1.0)
            ratio = ratio / mean.clamp(min=torch.finfo(ratio.dtype).tiny)
    return ratio * top_k_factor(log_pi, top_k)
