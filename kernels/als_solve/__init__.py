"""Half a sweep of alternating least squares on implicit feedback: the rows of one side, solved against the other's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deeprec.kernels._autograd import refuse_derivative
from deeprec.kernels._errors import translate
from deeprec.kernels._library import define, implement_triton
from deeprec.kernels.als_solve.reference import als_solve_reference

__all__ = ["Solved", "als_solve"]


class Solved(NamedTuple):
    """What `als_solve` returns.

    Attributes:
        rows: [B, D], dtype of the factors; 0 for a row without entries.
        losses: [B], the loss that each row is left with, its share of the regulariser included.
    """

    rows: Tensor
    losses: Tensor


def _fake(
    indptr: Tensor,
    indices: Tensor,
    weights: Tensor,
    factors: Tensor,
    gram: Tensor,
    ridge: Tensor,
    start: Tensor | None,
    cg_steps: int,
) -> tuple[Tensor, Tensor]:
    batch = indptr.shape[0] - 1
    return factors.new_empty(batch, factors.shape[1]), factors.new_empty(batch)


define(
    "als_solve(Tensor indptr, Tensor indices, Tensor weights, Tensor factors, Tensor gram, Tensor ridge, "
    "Tensor? start, int cg_steps) -> (Tensor, Tensor)",
    als_solve_reference,
    _fake,
)
implement_triton("als_solve", ("als_solve",))


def als_solve(
    indptr: Tensor,
    indices: Tensor,
    weights: Tensor,
    factors: Tensor,
    *,
    ridge: Tensor | float,
    gram: Tensor | None = None,
    start: Tensor | None = None,
    cg_steps: int = 0,
) -> Solved:
    """The rows x_b that minimise sum_j c_bj (p_bj - x_b . y_j)^2 + ridge_b |x_b|^2 over all items j.

    p_bj is 1 and c_bj is 1 + w_bj for the listed items of row b; p_bj is 0 and c_bj is 1 for all others. With
    G = sum_j y_j y_j' over all items the others cost nothing: (G + ridge_b I + sum_p w_p y_p y_p') x_b =
    sum_p (1 + w_p) y_p over the entries p of the row. The result is detached: no derivative goes through it.

    Args:
        indptr: [B + 1], ascending from 0 to nnz; indices: [nnz] items in [0, N); both int32 or both int64. Row b lists
            indices[indptr[b] : indptr[b + 1]]; it may be empty, and its solution is 0 then.
        weights: [nnz], w = c - 1 >= 0, dtype of factors.
        factors: [N, D], float32 or float64, D >= 1.
        ridge: [B] in the dtype of factors, or one number for all rows; > 0, or >= 0 where gram has full rank.
        gram: [D, D], G in the dtype of factors, symmetric; None computes it. Give it where rows come in several calls.
        start: [B, D], what conjugate gradient begins from, most often the rows of the last sweep; None: zeros.
        cg_steps: 0 solves exactly, by Cholesky; else as many steps of conjugate gradient, in [1, 1000]. From the last
            sweep's rows 3 are as good as an exact solution.
    Returns:
        `Solved`: rows [B, D] and losses [B]. Sums are in the dtype of factors.
    Raises:
        IndexError: an item is out of range.
        ValueError: shapes that do not fit, indptr that does not ascend, or, without cg_steps, a row whose matrix is not
            positive definite. On a GPU what values tell is raised at the next look (`deeprec.kernels.faults`); a row
            with an item out of range is 0, one without a solution NaN.
        TypeError: another dtype.
        RuntimeError: torch.func or forward mode asks for a derivative.
    Reference: Hu, Koren, Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets", eq. 4 and 5;
        conjugate gradient: Takacs, Pilaszy, Tikk 2011, "Applications of the Conjugate Gradient Method for Implicit
        Feedback Collaborative Filtering", algorithm 1.
    """
    refuse_derivative("als_solve")
    with torch.no_grad():
        if factors.dim() != 2:
            raise ValueError(f"als_solve: factors must be [N, D], got {tuple(factors.shape)}")
        if factors.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"als_solve: factors must be float32 or float64, got {factors.dtype}")
        if gram is None:
            gram = factors.T @ factors
        if not isinstance(ridge, Tensor):
            ridge = factors.new_full((max(indptr.numel() - 1, 0),), ridge)
        arguments = (indptr, indices, weights, factors, gram, ridge, start, cg_steps)
        if torch.compiler.is_compiling():
            return Solved(*torch.ops.deeprec.als_solve(*arguments))
        try:
            return Solved(*torch.ops.deeprec.als_solve(*arguments))
        except RuntimeError as error:
            raise translate(error) from None
