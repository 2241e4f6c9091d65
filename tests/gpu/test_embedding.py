"""embedding, its plan and its gradients in every dtype, index dtype, shape and layout."""

from __future__ import annotations

import pytest
import torch
from gpu_parity import DEVICE, FLOATS, INDICES, LAYOUTS, check, grid, integers, laid_out, normal, on_gpu

from deeprec.kernels.embedding import embedding
from deeprec.kernels.embedding.reference import embedding_plan_reference

FORWARD, BACKWARD = "_embedding_fwd_kernel", "_embedding_grad_kernel"
# R, D, shape of ids: round and odd, one column, one row hit by all, wide rows, more dimensions.
SHAPES = [
    *[(20, 37, (35,)), (7, 1, (40,)), (5, 123, (123,)), (9, 300, (12,)), (1, 8, (5,)), (6, 1027, (3, 2)), (9, 6, (1,))],
    *[(17, 16, (2, 3, 4))],
    *on_gpu((1000, 64, (4096, 50)), (100_003, 16, (65_537,)), (13, 257, (9001,)), (1, 128, (20_000,))),
]


@grid(2, shape=SHAPES, dtype=FLOATS, index=INDICES, layout=LAYOUTS, of_ids=LAYOUTS)
def test_lookup(
    shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype, index: torch.dtype, layout: str, of_ids: str
) -> None:
    rows, dim, size = shape
    ids = laid_out(integers(rows, *size, dtype=index), of_ids)
    check("embedding", laid_out(normal(rows, dim, dtype=dtype), layout), ids, kernels=[FORWARD], terms=0)


@grid(2, shape=SHAPES, dtype=FLOATS, index=INDICES, layout=[*LAYOUTS, "expanded"])
def test_plan_and_gradients(
    shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype, index: torch.dtype, layout: str
) -> None:
    rows, dim, size = shape
    ids = integers(rows, *size, dtype=index)
    plan = check("embedding_plan", ids, rows)
    grad = laid_out(normal(ids.numel(), dim, dtype=dtype, seed=1), layout)
    terms = 8.0 * (64 + ids.numel() / rows)
    check("embedding_grad", grad, *plan, kernels=[BACKWARD], terms=terms)
    check("embedding_dense_grad", grad, ids, rows, kernels=[BACKWARD], terms=terms)


@grid(count=[300, *on_gpu(3000, 70_000)], dtype=FLOATS)
def test_a_row_hit_thousands_of_times(count: int, dtype: torch.dtype) -> None:
    ids = integers(40, count)
    ids[::2] = 7
    plan = embedding_plan_reference(ids, 40)
    check("embedding_grad", normal(count, 12, dtype=dtype), *plan, kernels=[BACKWARD], terms=float(count))


@pytest.mark.parametrize("index", INDICES)
def test_plan_of_a_table_beyond_int32(index: torch.dtype) -> None:
    check("embedding_plan", torch.tensor([2**31 - 1, 0, 2**31 - 1, 5]).to(index), 2**31)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "dim", "count"), [(4, 16, 0), (4, 0, 3), (0, 5, 0)])
def test_nothing_to_do(rows: int, dim: int, count: int, dtype: torch.dtype) -> None:
    ids = integers(max(rows, 1), count)
    check("embedding", normal(rows, dim, dtype=dtype), ids)
    plan = check("embedding_plan", ids, rows)
    check("embedding_grad", normal(count, dim, dtype=dtype), *plan)
    check("embedding_dense_grad", normal(count, dim, dtype=dtype), ids, rows)


@pytest.mark.gpu
def test_a_table_beyond_2_31_elements() -> None:
    rows, dim = 2**25 + 3, 64
    ids = torch.tensor([rows - 1, 0, 2**25, rows - 1], device=DEVICE)
    weight = torch.zeros(rows, dim, dtype=torch.bfloat16, device=DEVICE)
    weight[ids] = torch.arange(1, 5, device=DEVICE).to(weight.dtype)[:, None].expand(4, dim)
    weight.requires_grad_()
    out = embedding(weight, ids)
    assert torch.equal(out, weight.detach()[ids])
    (grad,) = torch.autograd.grad(out, weight, torch.ones_like(out))
    assert grad.coalesce().indices()[0].tolist() == [0, 2**25, rows - 1]
    assert grad.coalesce().values()[:, 0].tolist() == [1, 1, 2]
