"""fm_interaction, bi_interaction and their gradient in every dtype, shape and layout."""

from __future__ import annotations

import pytest
import torch
from gpu_parity import FLOATS, LAYOUTS, check, grid, laid_out, normal, on_gpu

FORWARD, BACKWARD = "_fm_interaction_fwd_kernel", "_fm_interaction_grad_kernel"
SHAPES = [
    *[(40, 26, 16), (7, 5, 1), (5, 12, 123), (3, 4, 300), (9, 1, 33), (2, 3, 1027), (1, 2, 6)],
    *on_gpu((4096, 26, 16), (131, 39, 10), (16387, 3, 64), (513, 7, 257)),
]
EMPTY = [(0, 3, 4), (3, 0, 4), (3, 4, 0)]


@grid(2, shape=SHAPES, dtype=FLOATS, layout=LAYOUTS)
def test_forward(shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> None:
    x = laid_out(normal(*shape, dtype=dtype), layout)
    terms = 8.0 * shape[1]
    check("bi_interaction", x, kernels=[FORWARD], terms=terms)
    check("fm_interaction", x, kernels=[FORWARD], terms=terms)


@grid(2, shape=SHAPES, dtype=FLOATS, layout=LAYOUTS, of_grad=[*LAYOUTS, "expanded"], columns=[True, False])
def test_gradient(shape: tuple[int, int, int], dtype: torch.dtype, layout: str, of_grad: str, columns: bool) -> None:
    batch, fields, dim = shape
    x = laid_out(normal(*shape, dtype=dtype), layout)
    grad = normal(batch, dim, dtype=dtype, seed=1)
    grad = laid_out(grad, of_grad) if columns else laid_out(grad, of_grad)[:, 0]
    check("fm_interaction_grad", grad, x, kernels=[BACKWARD], terms=8.0 * fields)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", EMPTY)
def test_nothing_to_do(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = normal(*shape, dtype=dtype)
    check("fm_interaction", x)
    check("bi_interaction", x)
    check("fm_interaction_grad", normal(shape[0], dtype=dtype), x)
    check("fm_interaction_grad", normal(shape[0], shape[2], dtype=dtype), x)


def test_a_gradient_of_one_number_for_all() -> None:
    x = normal(33, 6, 20)
    check("fm_interaction_grad", torch.ones(()).expand(33), x, kernels=[BACKWARD])
    check("fm_interaction_grad", torch.ones(()).expand(33, 20), x, kernels=[BACKWARD])
