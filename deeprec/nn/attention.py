"""Attention over the pairs of fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deeprec.kernels._autograd import differentiable, gradient_of, is_transformed
from deeprec.kernels.sums import take
from deeprec.nn.layer import layer_forward

# Rows at a time: their pairs, a few hundred thousand numbers, stay in the cache.
_CHUNK = 1 << 18


class PairAttention(nn.Module):
    """Weighted sum of the pairwise element-wise products of the fields, the weights learnt.

        out = sum_{i<j} a_ij (x_i * x_j),   a = softmax over all pairs of  h . relu(W (x_i * x_j) + b)

    The products of a batch are not stored: the backward pass makes them again for a few rows at a time (4096 rows of 39
    fields with D 16 would hold 194 MB of them, and as much for each layer over them).

    Parameters: `weight` W [A, D], `bias` b [A], `h` [A]. At first W and b are N(0, 2 / (A + D)) and h is N(0, 1), as in
    the authors' code.

    Args:
        dim: D, >= 1.
        attention_factor: A, >= 1.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: a size is below 1.
    Reference: Xiao et al. 2017, AFM (arXiv 1708.04617), eq. 4 and 5.
    """

    def __init__(self, dim: int, attention_factor: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim < 1 or attention_factor < 1:
            raise ValueError(f"PairAttention: dim and attention_factor must be >= 1, got {dim} and {attention_factor}")
        self.weight = nn.Parameter(torch.empty(attention_factor, dim))
        self.bias = nn.Parameter(torch.empty(attention_factor))
        self.h = nn.Parameter(torch.empty(attention_factor))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The initial weights that the class names."""
        std = (2 / sum(self.weight.shape)) ** 0.5
        self.weight.normal_(0.0, std, generator=generator)
        self.bias.normal_(0.0, std, generator=generator)
        self.h.normal_(0.0, 1.0, generator=generator)

    @layer_forward
    def forward(self, x: Tensor) -> Tensor:
        """The pooled pairs.

        Args:
            x: field embeddings, [B, F, D], F >= 2, dtype of the parameters.
        Returns:
            [B, D].
        Raises:
            ValueError: x is not of that shape.
        """
        if x.dim() != 3 or x.shape[1] < 2 or x.shape[2] != self.weight.shape[1]:
            raise ValueError(
                f"PairAttention: x must be [B, F, {self.weight.shape[1]}] with F >= 2, got {tuple(x.shape)}"
            )
        pool = _pooled if torch.compiler.is_compiling() or is_transformed() else _pair_attention
        return pool(x, self.weight, self.bias, self.h)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"dim={self.weight.shape[1]}, attention_factor={self.weight.shape[0]}"


def _pooled(x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
    left, right = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    pairs = take(x, 1, left) * take(x, 1, right)  # [B, P, D]
    scores = torch.relu(torch.nn.functional.linear(pairs, weight, bias)) @ h  # [B, P]
    return torch.einsum("bp,bpd->bd", scores.softmax(1), pairs)


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    num_pairs = x.shape[1] * (x.shape[1] - 1) // 2
    chunks: tuple[Tensor, ...] = x.split(max(1, _CHUNK // (num_pairs * x.shape[2])))
    return chunks


def _again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(gradient_of(ctx, (grad,), lambda *inputs: [_pooled(*inputs)], ctx.saved_tensors))


class _PairAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, h)
        return torch.cat([_pooled(chunk, weight, bias, h) for chunk in _chunks(x)])

    @staticmethod
    @differentiable(_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x: Tensor
        x, *parameters = ctx.saved_tensors
        parameters = [p.detach().requires_grad_() for p in parameters]
        of_x, totals = [], [torch.zeros_like(p) for p in parameters]
        done = 0
        for chunk in _chunks(x):
            chunk = chunk.detach().requires_grad_()
            with torch.enable_grad():
                out = _pooled(chunk, *parameters)
            first, *rest = torch.autograd.grad(out, [chunk, *parameters], grad[done : done + len(chunk)])
            done += len(chunk)
            of_x.append(first)
            for total, part in zip(totals, rest, strict=True):
                total.add_(part)
        return (torch.cat(of_x), *totals)


# The name by which mypy, which knows no types of torch.autograd.Function, sees it.
_pair_attention: Callable[..., Tensor] = _PairAttention.apply
