"""A linear layer over the rows of a sparse matrix: the encoder of an autoencoder on observed entries.

It is `embedding_bag` with the entries as per-sample weights, and calls its kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag import BagPlan, GradStep, RowUpdate, embedding_bags
from deeprec.kernels.sampled_linear_loss import ACTIVATIONS

__all__ = ["sparse_linear"]


def sparse_linear(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "identity",
    sparse_grad: bool = True,
    plan: BagPlan | None = None,
    update: RowUpdate | GradStep | None = None,
) -> Tensor:
    """activation(X weight + bias) for X [B, N] in compressed rows: row b holds values[p] at column indices[p].

    Gradients go to values, weight and bias; that of weight is coalesced `torch.sparse_coo`, dense with
    sparse_grad=False, and with `update` the optimizer's step on weight is taken in the backward pass.

    Args:
        indptr: [B + 1], ascending from 0 to nnz; indices: [nnz] columns in [0, N); both int32 or both int64.
            A column listed twice in a row counts twice; a row may be empty.
        values: [nnz], dtype of weight.
        weight: [N, H], float32, float64, bfloat16 or float16; H >= 1.
        bias: [H], or None.
        activation: "identity", "sigmoid" or "tanh".
        sparse_grad: sparse gradient of weight; dense otherwise.
        plan: `csr_plan(indptr, indices, N)`, where several calls share it; made in the backward pass otherwise.
        update: as in `embedding_bags`.
    Returns:
        [B, H], dtype of weight; sums in float32 (float64 for float64).
    Raises:
        IndexError: a column is out of range.
        TypeError, ValueError: as the message says.
    Reference: Sedhain et al. 2015 (AutoRec), eq. 1: g(V r + mu).
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"sparse_linear: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if indices.dim() != 1 or indptr.dim() != 1 or values.shape != indices.shape:
        raise ValueError(
            f"sparse_linear: indptr must be [B + 1], indices and values [nnz], got {tuple(indptr.shape)}, "
            f"{tuple(indices.shape)} and {tuple(values.shape)}"
        )
    out, _ = embedding_bags(
        [weight], indices, indptr, per_sample_weights=values, sparse_grad=sparse_grad, plan=plan, update=update
    )
    if bias is not None:
        out = out + bias
    if activation == "sigmoid":
        return torch.sigmoid(out)
    return torch.tanh(out) if activation == "tanh" else out
