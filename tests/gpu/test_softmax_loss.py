"""softmax_loss and its gradient, and the softmax over drawn negatives: dtypes, shapes, layouts, every option."""

from __future__ import annotations

import torch
from gpu_arguments import sampled_softmax_arguments, softmax_arguments
from gpu_parity import FLOATS, LAYOUTS, check, grid, laid_out, normal, on_gpu

FORWARD, BACKWARD = "_softmax_part_kernel", "_softmax_items_grad_kernel"
DRAWN = "_sampled_softmax_kernel"
# B, N, D.
SHAPES = [(7, 9, 5), (4, 70, 16), (33, 3, 1), (1, 1, 8), *on_gpu((300, 5000, 64), (65, 1001, 200), (16, 129, 300))]
# Scale, cosine, smoothing, positive in the denominator, correction of the positive.
OPTIONS = [(2.0, True, 0.1, True, False), (1.0, False, 0.0, False, True), (1.0, False, 0.0, True, True)]


@grid(shape=SHAPES, dtype=FLOATS, options=OPTIONS, has_extras=[True, False], layout=LAYOUTS)
def test_loss_and_gradients(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    options: tuple[float, bool, float, bool, bool],
    has_extras: bool,
    layout: str,
) -> None:
    queries, items, *rest = softmax_arguments(*shape, dtype, has_extras)
    arguments = (laid_out(queries, layout), laid_out(items, layout), *rest, *options)
    is_kernel = dtype != torch.float64
    terms = 512.0 + sum(shape)
    out = check("softmax_loss", *arguments, True, kernels=[FORWARD] if is_kernel else [], terms=terms)
    row_grads = normal(shape[0], dtype=out[0].dtype, seed=9)
    given = (*arguments, out[1], row_grads)
    check("softmax_loss_grad", *given, kernels=[BACKWARD] if is_kernel else [], terms=4 * terms)


@grid(
    shape=[(6, 40, 8), (1, 40, 300), *on_gpu((500, 3000, 64))],
    dtype=FLOATS,
    options=[(2.0, True, True, True), (1.0, False, False, False), (1.0, False, True, True)],
    has_extras=[True, False],
    layout=LAYOUTS,
)
def test_drawn_negatives(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    options: tuple[float, bool, bool, bool],
    has_extras: bool,
    layout: str,
) -> None:
    queries, items, *rest = sampled_softmax_arguments(*shape, dtype, has_extras)
    arguments = (laid_out(queries, layout), laid_out(items, layout), *rest, *options)
    kernels = [DRAWN] if dtype != torch.float64 else []
    out = check("sampled_softmax_loss", *arguments, True, kernels=kernels, terms=512.0 + shape[2])
    row_grads = normal(shape[0], dtype=out[0].dtype, seed=9)
    check("sampled_softmax_slopes", *arguments, out[1], row_grads, kernels=kernels, terms=512.0 + shape[2])
