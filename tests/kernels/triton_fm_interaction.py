"""Triton kernels of the FM interaction under the interpreter; run by test_triton.py."""

from __future__ import annotations

import pytest
import torch

from deeprec.kernels.fm_interaction import triton_kernels
from deeprec.kernels.fm_interaction.reference import (
    bi_interaction_reference,
    fm_interaction_grad_reference,
    fm_interaction_reference,
)

SHAPES = [(40, 26, 16), (7, 5, 1), (5, 12, 123), (3, 4, 300), (9, 1, 33), (0, 3, 4), (3, 0, 4)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """One rounding to the dtype of a sum in float32 (float64) of terms around 1."""
    eps = torch.finfo(dtype).eps
    return {"rtol": eps, "atol": 1e-12 if dtype == torch.float64 else 1e-4}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "fields", "dim"), SHAPES)
def test_forward_matches_reference(batch: int, fields: int, dim: int, dtype: torch.dtype) -> None:
    base = torch.randn(fields, batch, 2 * dim).to(dtype).transpose(0, 1)
    for x in (base[:, :, :dim], base[:, :, ::2]):
        got = triton_kernels.fm_interaction(x)
        torch.testing.assert_close(got.double(), fm_interaction_reference(x.double()), **tolerance(dtype))
        got = triton_kernels.bi_interaction(x)
        torch.testing.assert_close(got.double(), bi_interaction_reference(x.double()), **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "fields", "dim"), SHAPES)
def test_grad_matches_reference(batch: int, fields: int, dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(batch, fields, dim).to(dtype)
    one = torch.ones((), dtype=dtype)
    for grad in (
        torch.randn(batch).to(dtype),
        torch.randn(batch, dim).to(dtype),
        torch.randn(dim, batch).to(dtype).t(),
        one.expand(batch, dim),
        one.expand(batch),
    ):
        got = triton_kernels.fm_interaction_grad(grad, x)
        want = fm_interaction_grad_reference(grad.double(), x.double())
        torch.testing.assert_close(got.double(), want, **tolerance(dtype))
