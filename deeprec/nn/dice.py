"""Dice: an activation whose turning point follows the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.nn.layer import check_floating, layer_forward


class Dice(nn.Module):
    """f(s) = p(s) s + (1 - p(s)) alpha s,  p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + eps)), for each feature.

    E and Var are those of the batch in training and moving averages in evaluation; the variance of a batch is the
    biased one, as in batch normalisation. A batch of one row or none takes the moving averages in training too.

    Parameters: `alpha` [H], which starts as 0. Buffers: `running_mean` [H], `running_var` [H].

    Args:
        num_features: H, >= 1.
        eps: > 0.
        momentum: weight of a batch in the moving averages, in (0, 1].
    Raises:
        ValueError: an argument is out of range.
    Reference: Zhou et al. 2018, Deep Interest Network (arXiv 1706.06978), eq. 3; eps and the start of alpha are those
        of the authors' code.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        if num_features < 1 or not eps > 0 or not 0 < momentum <= 1:
            raise ValueError(
                f"Dice: num_features must be >= 1, eps > 0 and momentum in (0, 1], got {num_features}, {eps} and "
                f"{momentum}"
            )
        self.eps, self.momentum = eps, momentum
        self.alpha = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def reset_parameters(self) -> None:
        """alpha 0, and no batch seen."""
        with torch.no_grad():
            self.alpha.zero_()
            self.running_mean.zero_()
            self.running_var.fill_(1)

    @layer_forward
    def forward(self, x: Tensor) -> Tensor:
        """The activation.

        Args:
            x: [B, H], dtype of the parameters or, with float32 ones, bfloat16; statistics are float32 then.
        Returns:
            [B, H], dtype of x.
        Raises:
            TypeError: x is not of a floating-point dtype.
            ValueError: x is not of that width.
        """
        if x.dim() != 2 or x.shape[1] != len(self.alpha):
            raise ValueError(f"Dice: x must be [B, {len(self.alpha)}], got {tuple(x.shape)}")
        check_floating("Dice", x)
        of_batch = self.training and x.shape[0] > 1
        normal = F.batch_norm(
            x, self.running_mean, self.running_var, None, None, of_batch, self.momentum if of_batch else 0.0, self.eps
        )
        alpha = self.alpha.to(x.dtype)
        return x * (alpha + torch.sigmoid(normal) * (1 - alpha))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{len(self.alpha)}, eps={self.eps}, momentum={self.momentum}"
