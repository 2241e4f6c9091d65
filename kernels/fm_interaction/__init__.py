"""Second-order factorisation machine over field embeddings: all pairwise products of the fields in linear time.

`fm_interaction` is the scalar of factorisation machines and DeepFM, `bi_interaction` the vector that NFM feeds to its
layers. The backward pass computes the sum over fields again instead of storing it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels._autograd import differentiable, gradient_of, is_transformed
from deeprec.kernels.fm_interaction.reference import (
    bi_interaction_reference,
    fm_interaction_grad_reference,
    fm_interaction_reference,
    wide_dtype,
)
from deeprec.kernels.sums import running_sums

__all__ = ["bi_interaction", "fm_interaction"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _fm_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0])


def _bi_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2])


def _grad_fake(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


_library.define("fm_interaction(Tensor x) -> Tensor", fm_interaction_reference, _fm_fake)
_library.define("bi_interaction(Tensor x) -> Tensor", bi_interaction_reference, _bi_fake)
_library.define("fm_interaction_grad(Tensor grad, Tensor x) -> Tensor", fm_interaction_grad_reference, _grad_fake)
_library.implement_triton("fm_interaction", ("fm_interaction", "bi_interaction", "fm_interaction_grad"))


def _bi_composite(x: Tensor) -> Tensor:
    """The pairwise products, each field times the sum of those before it, in PyTorch's own operators; not rounded."""
    wide = x.to(wide_dtype(x.dtype))
    return (wide[:, 1:] * running_sums(wide, 1)[:, :-1]).sum(1)


def _fm_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(gradient_of(ctx, (grad,), lambda x: [_bi_composite(x).sum(1).to(x.dtype)], ctx.saved_tensors))


def _bi_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(gradient_of(ctx, (grad,), lambda x: [_bi_composite(x).to(x.dtype)], ctx.saved_tensors))


class _FMInteraction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        result: Tensor = torch.ops.deeprec.fm_interaction(x)
        return result

    @staticmethod
    @differentiable(_fm_again)
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = torch.ops.deeprec.fm_interaction_grad(grad, x)
        return result


class _BiInteraction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        result: Tensor = torch.ops.deeprec.bi_interaction(x)
        return result

    @staticmethod
    @differentiable(_bi_again)
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = torch.ops.deeprec.fm_interaction_grad(grad, x)
        return result


def _check(function: str, x: Tensor) -> None:
    if x.dim() != 3:
        raise ValueError(f"{function}: x must be [B, F, D], got {tuple(x.shape)}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"{function}: x must be float32, bfloat16, float16 or float64, got {x.dtype}")


def fm_interaction(x: Tensor) -> Tensor:
    """Sum of the pairwise dot products of the fields: sum_{f<g} x_f . x_g = 0.5 sum_d[(sum_f x)^2 - sum_f x^2].

    The products are added up one by one, so there is no difference of large numbers: one field gives exactly 0.
    Differentiable any number of times, forwards and through torch.func (outside torch.compile).

    Args:
        x: field embeddings, [B, F, D], float32, bfloat16, float16 or float64; any F and any strides (read in place
            where adjacent columns are adjacent in memory).
    Returns:
        [B], dtype of x; accumulated in float32 (float64 for float64).
    Raises:
        TypeError: x is not of a floating dtype listed above.
        ValueError: x is not three-dimensional.
    Reference: Rendle 2010, Factorization Machines, lemma 3.1; Guo et al. 2017 (arXiv 1703.04247), eq. 2.
    """
    _check("fm_interaction", x)
    if is_transformed():
        return _bi_composite(x).sum(1).to(x.dtype)
    if x.requires_grad and torch.is_grad_enabled():
        result: Tensor = _FMInteraction.apply(x)  # type: ignore[no-untyped-call]
        return result
    result = torch.ops.deeprec.fm_interaction(x)
    return result


def bi_interaction(x: Tensor) -> Tensor:
    """Bi-interaction pooling, the sum of the pairwise element-wise products: sum_{f<g} x_f * x_g.

    Args:
        x: as in `fm_interaction`.
    Returns:
        [B, D], dtype of x; accumulated in float32 (float64 for float64).
    Raises:
        TypeError, ValueError: as `fm_interaction`.
    Reference: He, Chua 2017 (arXiv 1708.05027), eq. 3 and 4.
    """
    _check("bi_interaction", x)
    if is_transformed():
        return _bi_composite(x).to(x.dtype)
    if x.requires_grad and torch.is_grad_enabled():
        result: Tensor = _BiInteraction.apply(x)  # type: ignore[no-untyped-call]
        return result
    result = torch.ops.deeprec.bi_interaction(x)
    return result
