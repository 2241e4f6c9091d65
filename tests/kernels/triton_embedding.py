"""Triton kernels of the embedding family under the interpreter; run by test_triton.py."""

from __future__ import annotations

import pytest
import torch

from deeprec.kernels.embedding import triton_kernels


@pytest.mark.parametrize("bad", [-1, 9])
def test_id_out_of_range_is_an_assertion(bad: int) -> None:
    with pytest.raises(RuntimeError, match="ids must be in"):
        triton_kernels.embedding(torch.randn(9, 5), torch.tensor([3, bad]))
