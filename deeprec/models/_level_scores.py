"""Scores of the levels of ratings at listed entries, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels._autograd import differentiable, gradient_of, sparse_rows
from deeprec.kernels.embedding import coalesced_grad
from deeprec.kernels.sampled_linear_loss import column_grads, csr_plan, dense_column_grads
from deeprec.kernels.sums import take

_ops = torch.ops.deeprec


def _composite(hidden: Tensor, weight: Tensor, bias: Tensor, indptr: Tensor, indices: Tensor, *_: Any) -> Tensor:
    """The outputs in PyTorch's own operators."""
    every = torch.arange(len(hidden), device=hidden.device)
    rows = take(hidden, 0, torch.repeat_interleave(every, indptr.diff(), output_size=len(indices)))
    columns = indices.long()
    return (rows * take(weight, 0, columns)).sum(1) + take(bias.unsqueeze(1), 0, columns).squeeze(1)


def _again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, indptr, indices = ctx.saved_tensors
    inputs = (hidden, weight, bias, indptr, indices, None)
    grads = gradient_of(ctx, (grad,), lambda *given: (_composite(*given),), inputs)
    if ctx.sparse_grad and grads[1] is not None:
        grads[1] = sparse_rows(grads[1], csr_plan(indptr, indices, len(weight)).rows)
    return tuple(grads)


class _SampledLinear(torch.autograd.Function):
    """The linear layer of `sampled_linear_loss` alone: its loss may be any function of the outputs."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, indptr: Tensor, indices: Tensor, sparse_grad: bool
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, indptr, indices)
        ctx.sparse_grad = sparse_grad
        targets = hidden.new_zeros(len(indices))
        outputs: Tensor = _ops.sampled_linear_loss(hidden, weight, bias, indptr, indices, targets, None, 0, 0, False)[1]
        return outputs

    @staticmethod
    @differentiable(_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, _, indptr, indices = ctx.saved_tensors
        grad, positions, column = grad.contiguous(), (indptr, indices), weight.new_empty(len(weight), 1)
        d_hidden = _ops.sparse_linear(indptr, indices, grad, weight, None, 0) if ctx.needs_input_grad[0] else None
        d_bias, _ = dense_column_grads(column, hidden.new_ones(()).expand(len(hidden), 1), grad, positions)
        if not ctx.sparse_grad:
            d_weight, _ = dense_column_grads(weight, hidden, grad, positions)
        else:
            plan = csr_plan(indptr, indices, len(weight))
            of_columns, _ = column_grads(weight, hidden, grad, positions, plan)
            d_weight = coalesced_grad(plan.rows.long().unsqueeze(0), of_columns, len(weight))
        return d_hidden, d_weight, d_bias.squeeze(1), None, None, None


# The name by which mypy, which knows no types of torch.autograd.Function, sees it.
sampled_linear: Callable[..., Tensor] = _SampledLinear.apply


def level_lookups(columns: Tensor, num_levels: int) -> Tensor:
    """Rows [n * K] of a table with K rows a column, for the columns [n]: all K of each."""
    every = torch.arange(num_levels, device=columns.device)
    return (columns.unsqueeze(1) * num_levels + every).flatten()


def lookups_up_to(
    offsets: Tensor, columns: Tensor, levels: Tensor, num_levels: int, total: int
) -> tuple[Tensor, Tensor]:
    """Rows of a table with K rows a column: of each entry those from level 0 to its own.

    Args:
        offsets: [b + 1]; columns, levels: [n], int64.
        total: sum of levels + 1, which the host knows.
    Returns:
        offsets [b + 1] and rows [total].
    """
    counts = levels + 1
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    shift = torch.repeat_interleave(columns * num_levels - ends[:-1], counts, output_size=total)
    return ends[offsets], torch.arange(total, device=columns.device) + shift


def level_costs(scores: Tensor, levels: Tensor, ordinal: float) -> Tensor:
    """(1 - ordinal) C_reg + ordinal C_ord of CF-NADE, [n], for scores [n, K] and levels [n].

    C_reg = -log softmax(scores)[level]. C_ord = -sum over j <= level of log softmax(scores[: j + 1])[j] - sum over
    j >= level of log softmax(scores[j:])[j]: level is the best of those up to it, that below it the best of those up to
    that, and so on, and the same upwards.

    Reference: Zheng et al. 2016, the section on the ordinal cost.
    """
    every = torch.arange(scores.shape[1], device=scores.device)
    is_own = (levels.unsqueeze(1) == every).to(scores.dtype)
    own = (scores * is_own).sum(1)
    regular = scores.logsumexp(1) - own
    if not ordinal:
        return regular
    # Sums over the levels up to each, and from each; of these, the cost of level k has the former up to k, the latter
    # from k on, and with each the score itself.
    is_up_to = every <= every.unsqueeze(1)
    is_in = torch.cat([is_up_to, is_up_to.T])
    sums = scores.unsqueeze(1).masked_fill(~is_in, -torch.inf).logsumexp(2)  # [n, 2 K]
    is_counted = torch.cat([is_up_to, is_up_to.T], 1).to(scores.dtype)  # [K, 2 K]
    cost = (sums * is_counted[levels]).sum(1) - scores.sum(1) - own
    return cost if ordinal == 1 else torch.lerp(regular, cost, ordinal)
