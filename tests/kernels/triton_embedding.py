"""Triton kernels of the embedding family under the interpreter; run by test_triton.py."""

from __future__ import annotations

import pytest
import torch

from deeprec.kernels.embedding import embedding_plan, triton_kernels
from deeprec.kernels.embedding.reference import embedding_grad_reference

SHAPES = [(20, 37, 35), (7, 1, 40), (5, 123, 123), (9, 300, 12), (4, 16, 0), (1, 8, 5)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(("num_embeddings", "dim", "nnz"), SHAPES)
def test_lookup_is_exact(num_embeddings: int, dim: int, nnz: int, dtype: torch.dtype, index: torch.dtype) -> None:
    table = torch.randn(num_embeddings, 2 * dim).to(dtype)
    ids = torch.randint(0, num_embeddings, (nnz,), dtype=index)
    for weight in (table[:, :dim], table[:, ::2]):
        assert torch.equal(triton_kernels.embedding(weight, ids), weight[ids.long()])


def test_ids_of_more_dimensions_keep_their_shape() -> None:
    weight, ids = torch.randn(9, 5), torch.randint(0, 9, (3, 4, 2))
    assert torch.equal(triton_kernels.embedding(weight, ids), weight[ids])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_embeddings", "dim", "nnz"), SHAPES)
def test_grad_matches_reference(num_embeddings: int, dim: int, nnz: int, dtype: torch.dtype) -> None:
    plan = embedding_plan(torch.randint(0, num_embeddings, (nnz,)), num_embeddings)
    eps = torch.finfo(dtype).eps
    for grad in (torch.randn(nnz, dim).to(dtype), torch.randn(1, 1).to(dtype).expand(nnz, dim)):
        got = triton_kernels.embedding_grad(grad, *plan)
        want = embedding_grad_reference(grad.double(), *plan)
        # n terms added one after another err by at most n half-units of the sum of their sizes
        half_unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
        sizes = embedding_grad_reference(grad.double().abs(), *plan)
        allowed = half_unit * plan.offsets.diff()[:, None] * sizes + eps * want.abs()
        assert bool(((got.double() - want).abs() <= allowed).all())
