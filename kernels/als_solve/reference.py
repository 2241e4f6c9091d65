"""What `als_solve` means, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels.als_solve.checks import check
from deeprec.kernels.sums import add_rows


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
    x, is_bad = solved(matrices, rhs)
    if rhs.device.type == "cpu" and bool(is_bad.any()):  # elsewhere to look would be to wait for the device
        raise ValueError(
            f"als_solve: gram + ridge + the weighted products of row {int(is_bad.to(torch.uint8).argmax())} must be "
            "positive definite; give ridge > 0, finite weights >= 0 and finite factors"
        )
    return x


def solved(matrices: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions [B, D] for positive definite matrices [B, D, D], and which matrices [B] are not: NaN is their row."""
    lower, info = torch.linalg.cholesky_ex(matrices)
    is_bad = (info > 0) | ~lower.diagonal(dim1=1, dim2=2).isfinite().all(1)
    x = torch.cholesky_solve(rhs.unsqueeze(2), lower).squeeze(2)
    return x.masked_fill(is_bad.unsqueeze(1), torch.nan), is_bad


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
