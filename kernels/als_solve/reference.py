"""What `als_solve` means, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._checks import check_rows, require
from deeprec.kernels.sums import add_rows

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


def als_solve_reference(
    indptr: Tensor,
    indices: Tensor,
    weights: Tensor,
    factors: Tensor,
    gram: Tensor,
    ridge: Tensor,
    start: Tensor | None,
    cg_steps: int,
) -> tuple[Tensor, Tensor]:
    """Solutions [B, D] and losses [B]; see `als_solve`."""
    check(indptr, indices, weights, factors, gram, ridge, start, cg_steps)
    batch, dim = indptr.shape[0] - 1, factors.shape[1]
    every = torch.arange(batch, device=factors.device)
    owners = torch.repeat_interleave(every, indptr.diff(), output_size=indices.numel())
    rows = factors[indices.to(torch.int64)]  # [nnz, D]
    rhs = add_rows(factors.new_zeros(batch, dim), owners, rows * (1 + weights).unsqueeze(1))
    if cg_steps:
        x = _conjugate_gradient(owners, rows, weights, gram, ridge, start, rhs, cg_steps)
    else:
        x = _cholesky(owners, rows, weights, gram, ridge, rhs)
    is_empty = (indptr.diff() == 0).unsqueeze(1)
    x = x.masked_fill(is_empty, 0.0)
    scores = (x[owners] * rows).sum(1)
    errors = (1 + weights) * (1 - scores).square() - scores.square()
    loss = (x * (x @ gram)).sum(1) + ridge * x.square().sum(1)
    return x, add_rows(loss, owners, errors)


def _cholesky(owners: Tensor, rows: Tensor, weights: Tensor, gram: Tensor, ridge: Tensor, rhs: Tensor) -> Tensor:
    batch, dim = rhs.shape
    diagonal = torch.eye(dim, dtype=rhs.dtype, device=rhs.device) * ridge.reshape(-1, 1, 1)
    products = (rows * weights.unsqueeze(1)).unsqueeze(2) * rows.unsqueeze(1)  # [nnz, D, D]
    matrices = add_rows(gram.triu() + gram.triu(1).T + diagonal, owners, products)
    is_used = torch.zeros(batch, dtype=torch.bool, device=rhs.device)
    is_used[owners] = True
    identity = torch.eye(dim, dtype=rhs.dtype, device=rhs.device)
    matrices = torch.where(is_used.reshape(-1, 1, 1), matrices, identity)  # an empty row need not have a solution
    return solved(matrices, rhs)


def solved(matrices: Tensor, rhs: Tensor) -> Tensor:
    """Solutions [B, D] of positive definite matrices [B, D, D].

    Raises:
        ValueError: on the CPU, where a matrix is not positive definite; elsewhere, where to look would be to wait for
            the device, such a row is NaN.
    """
    lower, info = torch.linalg.cholesky_ex(matrices)
    is_bad = (info > 0) | ~lower.diagonal(dim1=1, dim2=2).isfinite().all(1)
    if rhs.device.type == "cpu" and bool(is_bad.any()):
        raise ValueError(
            f"als_solve: gram + ridge + the weighted products of row {int(is_bad.to(torch.uint8).argmax())} must be "
            "positive definite; give ridge > 0, finite weights >= 0 and finite factors"
        )
    x = torch.cholesky_solve(rhs.unsqueeze(2), lower).squeeze(2)
    return x.masked_fill(is_bad.unsqueeze(1), torch.nan)


def _conjugate_gradient(
    owners: Tensor,
    rows: Tensor,
    weights: Tensor,
    gram: Tensor,
    ridge: Tensor,
    start: Tensor | None,
    rhs: Tensor,
    steps: int,
) -> Tensor:
    def product(x: Tensor) -> Tensor:
        shares = weights * (x[owners] * rows).sum(1)
        return add_rows(x @ gram + ridge.unsqueeze(1) * x, owners, rows * shares.unsqueeze(1))

    x = torch.zeros_like(rhs) if start is None else start.clone()
    residual = rhs - product(x)
    direction, squares = residual, residual.square().sum(1)
    for _ in range(steps):
        of_direction = product(direction)
        curvature = (direction * of_direction).sum(1)
        is_going = (squares > 0) & (curvature > 0)  # the others have arrived
        length = torch.where(is_going, squares / curvature, 0.0).unsqueeze(1)
        x = torch.where(is_going.unsqueeze(1), x + length * direction, x)
        residual = residual - length * of_direction
        left = torch.where(is_going, residual.square().sum(1), 0.0)
        direction = residual + torch.where(is_going, left / squares, 0.0).unsqueeze(1) * direction
        squares = left
    return x
