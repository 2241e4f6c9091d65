"""Launcher of the CUDA kernel in csrc/cuda/sample_negatives.cu."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deeprec.kernels.faults import claim_of, number_of

_FIRST_CHECK = number_of("sample_negatives", "users")


def sample_negatives(users: Tensor, *rest: Any) -> Tensor:
    """Draw on the GPU without waiting for it; users without negatives are reported and get 0.

    Args:
        rest: of the operator, after users; what is left out has its default there.
    """
    rest += (None,) * (9 - len(rest))
    out: Tensor = torch.ops.deeprec._sample_negatives_cuda(users, *rest, claim_of(users.device), _FIRST_CHECK)
    return out
