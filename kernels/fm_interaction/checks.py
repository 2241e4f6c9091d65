"""What the operators of the FM interaction ask of their arguments; the C++ kernels ask the same."""

from __future__ import annotations

import functools

from torch import Tensor

from deeprec.kernels._checks import check_float, require


def check(function: str, x: Tensor) -> None:
    """Raise unless x is [B, F, D] of a floating dtype."""
    require(x.dim() == 3, function, "x must be [B, F, D]", x)
    check_float(function, "x", x)


def check_grad(grad: Tensor, x: Tensor) -> None:
    """What `fm_interaction_grad` asks."""
    check("fm_interaction_grad", x)
    batch, _, dim = x.shape
    requirement = f"grad must be [{batch}] or [{batch}, {dim}] of {x.dtype}"
    has_shape = grad.shape in ((batch,), (batch, dim)) and grad.dtype == x.dtype
    require(has_shape, "fm_interaction_grad", requirement, grad)


CHECKS = {
    "fm_interaction": functools.partial(check, "fm_interaction"),
    "bi_interaction": functools.partial(check, "bi_interaction"),
    "fm_interaction_grad": check_grad,
}
