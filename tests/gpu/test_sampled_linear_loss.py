"""The sparse layers of autoencoders, sampled_linear_loss and sparse_linear: losses, dtypes, widths, layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_arguments import loss_arguments
from gpu_parity import FLOATS, INDICES, LAYOUTS, check, grid, laid_out, normal, on_gpu
from torch import Tensor

from deeprec.kernels.sampled_linear_loss import ACTIVATIONS, LOSSES

LOSS, PIECES, GRAD = "_sampled_linear_loss_kernel", "_sampled_pieces_kernel", "_sampled_linear_grad_kernel"
KINDS = [(a, k) for a in range(len(ACTIVATIONS)) for k, name in enumerate(LOSSES) if name != "cross_entropy" or a == 1]
# Rows of no entry, of one piece, of several; repeated columns.
ROWS = [[3, 0, 64, 1, 130, 0], [3, 0, 70], [5, 1], [1], [200]]
ROWS += on_gpu([40] * 700, [3, 0, 64, 1, 13_000], [0] * 999 + [9])
DIMS = [20, 1, 7, 12, 33, 300, *on_gpu(64, 128, 257, 500, 515, 1030)]


def check_loss(arguments: list[Any], kind: tuple[int, int], need_grad: bool) -> None:
    nnz, rows = arguments[4].numel(), arguments[0].shape[0]
    kernels = [PIECES, LOSS, *([GRAD] if need_grad else [])] if nnz and rows else []
    check("sampled_linear_loss", *arguments, *kind, need_grad, kernels=kernels, terms=64.0 + nnz)


@grid(kind=KINDS, lengths=ROWS, dim=DIMS, dtype=FLOATS, index=INDICES, need_grad=[True, False], bare=[False, True])
def test_loss(
    kind: tuple[int, int],
    lengths: list[int],
    dim: int,
    dtype: torch.dtype,
    index: torch.dtype,
    need_grad: bool,
    bare: bool,
) -> None:
    """`bare`: without bias and weights of the entries."""
    arguments = loss_arguments(lengths, dim, dtype, index)
    if bare:
        arguments[2] = arguments[6] = None
    check_loss(arguments, kind, need_grad)


@grid(layout=LAYOUTS, of_entries=["contiguous", "columns apart", "part of wider rows"], dtype=FLOATS)
def test_any_layout(layout: str, of_entries: str, dtype: torch.dtype) -> None:
    given = loss_arguments([5, 70], 16, dtype)
    layouts = [layout, layout, *[of_entries] * 5]
    check_loss([laid_out(x, of) for x, of in zip(given, layouts, strict=True)], (1, 0), True)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_nothing_to_do(lengths: list[int]) -> None:
    for dtype in FLOATS:
        check_loss(loss_arguments(lengths, 8, dtype), (1, 1), True)


@grid(activation=range(len(ACTIVATIONS)), lengths=ROWS, dim=DIMS, dtype=FLOATS, index=INDICES, has_bias=[True, False])
def test_encoder(
    activation: int, lengths: list[int], dim: int, dtype: torch.dtype, index: torch.dtype, has_bias: bool
) -> None:
    _, weight, _, indptr, indices, *_ = loss_arguments(lengths, dim, dtype, index)
    bias = normal(dim, dtype=dtype, seed=8) if has_bias else None
    values: Tensor = normal(len(indices), dtype=dtype, seed=9)
    given = (indptr, indices, values, weight, bias, activation)
    check("sparse_linear", *given, kernels=["_bags_pool_kernel"], terms=64.0 + max(lengths))


@grid(layout=LAYOUTS, of_entries=["contiguous", "columns apart", "part of wider rows"], dtype=FLOATS)
def test_encoder_of_any_layout(layout: str, of_entries: str, dtype: torch.dtype) -> None:
    _, weight, _, *positions = loss_arguments([5, 0, 70], 16, dtype)
    indptr, indices = (laid_out(x, of_entries) for x in positions[:2])
    values = laid_out(normal(75, dtype=dtype, seed=9), of_entries)
    check("sparse_linear", indptr, indices, values, laid_out(weight, layout), None, 1, terms=150.0)
