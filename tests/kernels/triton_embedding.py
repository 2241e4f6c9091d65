"""Triton kernels of the embedding family under the interpreter; run by test_triton.py."""

from __future__ import annotations

import pytest
import torch

from deeprec.kernels.embedding import triton_kernels
from deeprec.kernels.faults import raise_faults


@pytest.mark.parametrize("bad", [-1, 9])
def test_id_out_of_range_is_named(bad: int) -> None:
    triton_kernels.embedding(torch.randn(9, 5), torch.tensor([3, bad]))
    with pytest.raises(IndexError, match=rf"ids must be in \[0, 9\), got {bad} at position 1"):
        raise_faults()
