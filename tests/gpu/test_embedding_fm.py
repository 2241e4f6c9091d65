"""embedding_fm, its gradients and its update: dtypes, shapes, layouts, optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_arguments import Batch, batch_of, states_of, step_of
from gpu_parity import FLOATS, INDICES, LAYOUTS, check, grid, laid_out, normal, on_gpu
from torch import Tensor

from deeprec.kernels.embedding_bag.checks import ADAGRAD, ADAM, FTRL, ROWWISE_ADAGRAD, SGD
from deeprec.kernels.embedding_fm.reference import embedding_fm_reference

FORWARD, ROWS = "_embedding_fm_fwd_kernel", "_embedding_fm_rows_kernel"
TABLES = [[0], [0, 0, 1, 0], list(range(11)), *on_gpu(list(range(26)), [1] * 39)]
DIMS = [16, 5, 1, 260, *on_gpu(64, 300, 1027)]
SIZES = [(5, None), (4, 3), (1, None), (7, 2), (3, 0), (0, 4), (0, None), *on_gpu((4099, None), (700, 9))]


def linear_of(b: Batch) -> list[Tensor]:
    """Linear weights of a batch's tables, [R] and [R, 1] by turns."""
    return [normal(len(w), *((1,) * (i % 2)), dtype=w.dtype, seed=90 + i) for i, w in enumerate(b.weights)]


def terms_of(b: Batch) -> float:
    """Sums over the entries of a sample and of a row, and the columns."""
    return 64.0 + 8 * len(b.tables) + b.weights[0].shape[1] + b.ids.numel() / len(b.weights[0])


def check_all(b: Batch, linear: list[Tensor], need_embeddings: bool, grad: Tensor) -> None:
    """Forward, gradients and dense gradients of a batch."""
    features, call = (b.tables, b.padding), (b.ids, b.offsets, b.scale)
    batch, nnz = grad.shape[0], b.ids.numel()
    terms = terms_of(b)
    kernels = [FORWARD] if batch else []
    out = check("embedding_fm", b.weights, linear, *call, *features, need_embeddings, kernels=kernels, terms=terms)
    of_embeddings = normal(*out[2].shape, dtype=grad.dtype, seed=80) if need_embeddings else None
    given, has_scale = (grad, out[1], of_embeddings, *call), b.scale is not None
    rows: dict[str, Any] = {"kernels": [ROWS] if nnz and batch else [], "terms": 8 * terms}
    check("embedding_fm_grad", b.weights, linear, *given, *b.plan(), *features, has_scale, **rows)
    check("embedding_fm_dense_grad", b.weights, linear, *given, *features, has_scale, **rows)


@grid(
    tables=TABLES,
    size=SIZES,
    dim=DIMS,
    dtype=FLOATS,
    index=INDICES,
    scaled=[False, True],
    has_linear=[True, False],
    need_embeddings=[False, True],
)
def test_forward_and_gradients(
    tables: list[int],
    size: Any,
    dim: int,
    dtype: torch.dtype,
    index: torch.dtype,
    scaled: bool,
    has_linear: bool,
    need_embeddings: bool,
) -> None:
    if dim > 256 and size[0] > 1000:
        size = (301, size[1])  # enough of wide rows
    b = batch_of([dim] * (max(tables) + 1), tables, size, dtype, index, scaled=scaled, pad=3)
    grad = normal(size[0], dtype=dtype, seed=7)
    check_all(b, linear_of(b) if has_linear else [], need_embeddings, grad)


@grid(layout=LAYOUTS, of_ids=LAYOUTS, of_grad=["contiguous", "columns apart", "expanded"], dtype=FLOATS)
def test_any_layout(layout: str, of_ids: str, of_grad: str, dtype: torch.dtype) -> None:
    for size in ((6, None), (4, 3)):
        b = batch_of([8] * 3, [0, 1, 2], size, dtype, scaled=True)
        linear = [laid_out(w[:, None] if w.dim() == 1 else w, layout) for w in linear_of(b)]
        b = b._replace(
            weights=[laid_out(w, layout) for w in b.weights],
            ids=laid_out(b.ids, of_ids),
            scale=laid_out(b.scale, of_ids),
            offsets=None if b.offsets is None else laid_out(b.offsets, of_ids),
        )
        check_all(b, linear, size[1] is None, laid_out(normal(size[0], dtype=dtype, seed=7), of_grad))


@grid(count=[65, 80, *on_gpu(3000, 50_021)], dtype=[torch.float32, torch.bfloat16])
def test_a_row_hit_thousands_of_times(count: int, dtype: torch.dtype) -> None:
    b = batch_of([5], [0, 0], (count, None), dtype, scaled=True)
    b.ids[0] = 7
    check_all(b, linear_of(b), True, normal(count, dtype=dtype, seed=7))


@grid(
    rule=[-1, SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM, FTRL],
    kind=[(torch.float32, -1), (torch.bfloat16, 7), (torch.float64, -1), (torch.float16, -1), (torch.bfloat16, -1)],
    dim=[16, 3, 260, *on_gpu(1100)],
    size=[(4, None), (3, 2), *on_gpu((600, None))],
    max_norm=[0.5, 0.0],
)
def test_update(rule: int, kind: tuple[torch.dtype, int], dim: int, size: Any, max_norm: float) -> None:
    """Rule -1: SGD without momentum."""
    dtype, seed = kind
    b = batch_of([dim, dim], [0, 1, 0], size, dtype, scaled=True, pad=3, rows=20 + size[0])
    linear = linear_of(b)
    call = (b.ids, b.offsets, b.scale)
    _, sums, _ = embedding_fm_reference(b.weights, linear, *call, b.tables, b.padding, False)
    both = [*b.weights, *(w.view(-1, 1) for w in linear)]
    first, second = states_of(both, max(rule, 0)) if rule >= 0 else ([], [])
    given = (normal(size[0], dtype=dtype, seed=7), sums, None, *call, *b.plan(), b.tables, b.padding, True)
    tail = step_of(max(rule, 0), max_norm, seed)
    tensors = (b.weights, linear, first, second)
    check("embedding_fm_update_", *tensors, *given, *tail, kernels=[ROWS], terms=64 * terms_of(b))


@pytest.mark.parametrize("rule", [SGD, ADAM])
def test_update_with_nothing_to_do(rule: int) -> None:
    b = batch_of([8], [0], (0, None), torch.float32)
    both = [b.weights[0], *(w.view(-1, 1) for w in linear_of(b))]
    given = (torch.zeros(0), torch.zeros(0, 8), None, b.ids, None, None, *b.plan(), [0], [-1], False)
    check("embedding_fm_update_", b.weights, linear_of(b), *states_of(both, rule), *given, *step_of(rule))
