"""What the operators of `session_step` ask of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._checks import FLOATS, check_index, outside, require


def check_columns(ids: Tensor, num_embeddings: int) -> None:
    """Raise TypeError or ValueError for arguments of `session_columns` that do not fit; values are not read."""
    check_index("session_columns", "ids", ids)
    require(ids.dim() == 1, "session_columns", "ids must be [nnz]", ids)
    require(num_embeddings >= 0, "session_columns", "num_embeddings must be >= 0", num_embeddings)


def check_softmax(scores: Tensor, targets: Tensor, own: Tensor) -> None:
    """Raise ValueError for arguments of `session_softmax` that do not fit."""
    function = "session_softmax"
    is_right = scores.dim() == 2 and scores.dtype in FLOATS
    require(is_right, function, "scores must be [m, U] of a floating dtype", scores)
    lanes, width = scores.shape
    require(
        targets.shape == (lanes,) and targets.dtype == torch.int64,
        function,
        f"targets must be [{lanes}] int64",
        targets,
    )
    require(own.shape == (lanes,) and own.dtype == scores.dtype, function, f"own must be [{lanes}] {scores.dtype}", own)
    if targets.is_cpu:
        require(not bool(outside(targets, width).any()), function, f"targets must be in [0, {width})", targets)


def check_gates(function: str, before: Tensor, **wide: Tensor) -> None:
    """Raise ValueError unless before is [m, H] and the others [m, 3H], all of one dtype."""
    is_right = before.dim() == 2 and before.dtype in FLOATS
    require(is_right, function, "before must be [m, H] of a floating dtype", before)
    lanes, width = before.shape
    for name, given in wide.items():
        is_right = given.shape == (lanes, 3 * width) and given.dtype == before.dtype
        require(is_right, function, f"{name} must be [{lanes}, {3 * width}] {before.dtype}", given)


def check_gates_grad(grad: Tensor, gates: Tensor, recurrent: Tensor, before: Tensor) -> None:
    """Raise ValueError for arguments of `session_gates_grad` that do not fit."""
    check_gates("session_gates_grad", before, gates=gates, recurrent=recurrent)
    is_right = grad.shape == before.shape and grad.dtype == before.dtype
    require(is_right, "session_gates_grad", f"grad must be {list(before.shape)} {before.dtype}", grad)
