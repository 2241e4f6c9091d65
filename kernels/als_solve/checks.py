"""What `als_solve` asks of its arguments; the C++ kernel asks the same."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._checks import check_rows, require

MOST_STEPS = 1000  # of conjugate gradient


def check(
    indptr: Tensor,
    indices: Tensor,
    weights: Tensor,
    factors: Tensor,
    gram: Tensor,
    ridge: Tensor,
    start: Tensor | None,
    cg_steps: int,
) -> None:
    """Raise unless the arguments are what `als_solve` takes."""
    function = "als_solve"
    require(factors.dim() == 2, function, "factors must be [N, D]", factors)
    if factors.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{function}: factors must be float32 or float64, got {factors.dtype}")
    require(0 <= cg_steps <= MOST_STEPS, function, f"cg_steps must be in [0, {MOST_STEPS}]", cg_steps)
    require(indptr.dim() == 1 and indptr.numel() > 0, function, "indptr must be [B + 1]", indptr)
    batch, dim = indptr.shape[0] - 1, factors.shape[1]
    shapes = {"weights": (weights, (indices.numel(),)), "ridge": (ridge, (batch,)), "gram": (gram, (dim, dim))}
    if start is not None:
        shapes["start"] = (start, (batch, dim))
    for name, (given, shape) in shapes.items():
        is_right = given.shape == shape and given.dtype == factors.dtype
        require(is_right, function, f"{name} must be {list(shape)} of {factors.dtype}", given)
    check_rows(function, indptr, indices, batch, factors.shape[0])


CHECKS = {"als_solve": check}
