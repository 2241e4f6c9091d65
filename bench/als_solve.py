"""Rows of alternating least squares against the items of MovieLens-1M: `python -m bench als_solve`.

Rows of users are solved against the factors of all items, exactly and by three steps of conjugate gradient.
Beside it stands the same formula in torch, in blocks of users, and under torch.compile. Whole models stand beside
implicit in `python -m bench.als`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.harness import Case, Contender, Target, Trial, no_grad, rotating
from bench.rivals import compiled
from bench.workloads import scale
from deeprec.kernels.als_solve import als_solve

ALPHA, RIDGE, CG_STEPS = 10.0, 40.0, 3
TURNS = 2
EAGER, COMPILED, BATCHED = "torch, eager", "torch.compile", "torch.linalg, padded"
GROUPS = ("Cholesky", "conjugate gradient")
TARGETS = tuple(
    Target(f"als_solve, {group}", group, rival, 1.0, device=device)
    for device in ("cpu", "cuda")
    for group, rivals in zip(GROUPS, ((BATCHED, COMPILED), (EAGER, COMPILED)), strict=True)
    for rival in rivals
)


class Size(NamedTuple):
    """Users to be solved, items, and items that a user has."""

    users: int
    items: int
    each: int

    @classmethod
    def on(cls, device: str) -> Size:
        """On a GPU as many rows as fill it."""
        return cls(2_048, 3_706, 165) if device == "cpu" else cls(65_536, 200_000, 165)

    def __str__(self) -> str:
        return f"{self.users:,} users, {self.items:,} items, {self.each} each"


class Rows(NamedTuple):
    """Entries of all users, as many for each: indptr [B + 1], indices [nnz], weights [nnz]."""

    indptr: Tensor
    indices: Tensor
    weights: Tensor

    @classmethod
    def draw(cls, size: Size) -> Rows:
        nnz = size.users * size.each
        indices = torch.randint(size.items, (size.users, size.each)).sort(1).values
        return cls(torch.arange(size.users + 1) * size.each, indices.flatten(), torch.full((nnz,), ALPHA))


def plain_cholesky(indices: Tensor, weights: Tensor, factors: Tensor, gram: Tensor) -> Tensor:
    """Every user's matrix by a batched product, [B, D, D], then torch's Cholesky; indices and weights [B, L]."""
    rows = factors[indices]  # [B, L, D]
    weighted = rows * weights.unsqueeze(2)
    ridge = RIDGE * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    matrices = gram + ridge + weighted.transpose(1, 2) @ rows
    right = (rows + weighted).sum(1).unsqueeze(2)
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrices)).squeeze(2)


def plain_steps(indices: Tensor, weights: Tensor, factors: Tensor, gram: Tensor) -> Tensor:
    """Conjugate gradient from zero, without a matrix; indices and weights [B, L]."""
    rows = factors[indices]

    def product(x: Tensor) -> Tensor:
        shares = weights * (rows @ x.unsqueeze(2)).squeeze(2)
        return x @ gram + RIDGE * x + (shares.unsqueeze(1) @ rows).squeeze(1)

    residual = (rows * (1 + weights).unsqueeze(2)).sum(1)
    x, direction, squares = torch.zeros_like(residual), residual, residual.square().sum(1, keepdim=True)
    for _ in range(CG_STEPS):
        along = product(direction)
        length = squares / (direction * along).sum(1, keepdim=True)
        x, residual = x + length * direction, residual - length * along
        left = residual.square().sum(1, keepdim=True)
        direction, squares = residual + left / squares * direction, left
    return x


def _in_blocks(solve: Callable[..., Tensor], block: int) -> Callable[..., Tensor]:
    """Of a rival that holds [block, L, D] or [block, D, D] at a time."""

    def run(indices: Tensor, weights: Tensor, factors: Tensor, gram: Tensor) -> Tensor:
        parts = zip(indices.split(block), weights.split(block), strict=True)
        return torch.cat([solve(*part, factors, gram) for part in parts])

    return run


def _trial(size: Size, dim: int, cg_steps: int) -> Trial:
    factors = torch.randn(size.items, dim) / dim**0.5
    gram, batches = factors.T @ factors, [Rows.draw(size) for _ in range(TURNS)]
    plain = plain_steps if cg_steps else plain_cholesky
    block = 512 if factors.device.type == "cpu" else 4096

    def two_dimensional(rows: Rows) -> tuple[Tensor, Tensor]:
        return rows.indices.view(-1, size.each), rows.weights.view(-1, size.each)

    indices, weights = two_dimensional(batches[0])
    wide = factors.double()
    expected = _in_blocks(plain, block)(indices, weights.double(), wide, wide.T @ wide)
    trial = Trial([expected], tolerance=2e-4)

    def enter(name: str, run: Callable[[Rows], Tensor]) -> Contender:
        run = no_grad(run)
        return Contender(name, rotating(run, batches), lambda: [run(batches[0])])

    def ours(rows: Rows) -> Tensor:
        return als_solve(*rows, factors, ridge=RIDGE, gram=gram, cg_steps=cg_steps).rows

    def of(solve: Callable[..., Tensor]) -> Callable[[Rows], Tensor]:
        whole = _in_blocks(solve, block)
        return lambda rows: whole(*two_dimensional(rows), factors, gram)

    trial.contenders.append(enter("deeprec", ours))
    name = EAGER if cg_steps else BATCHED
    trial.add_rival(name, lambda: enter(name, of(plain)))
    trial.add_rival(COMPILED, lambda: enter(COMPILED, of(compiled(plain))))
    return trial


def cases(device: str = "cpu") -> list[Case]:
    """Exact and iterated, at two widths; compute-bound, so flops are shown."""
    size, found = Size.on(device), []
    nnz = size.users * size.each
    for dim in (64, 128):
        exact = 2.0 * nnz * dim * dim + size.users * dim**3 / 3
        iterated = CG_STEPS * (4.0 * nnz * dim + 2.0 * size.users * dim * dim) + 2.0 * nnz * dim
        for group, steps, flops in zip(GROUPS, (0, CG_STEPS), (exact, iterated), strict=True):
            found.append(
                Case(
                    f"als_solve, {group}, D {dim}, {size.users:,} users",
                    group,
                    partial(_trial, size, dim, steps),
                    0.0,
                    flops,
                    scale=scale(device, str(size), str(Size.on("cpu"))),
                    turns=TURNS,
                )
            )
    return found
