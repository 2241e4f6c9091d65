"""What the operators of `session_step` mean, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels.embedding.reference import embedding_plan_reference
from deeprec.kernels.session_step.checks import check_columns, check_gates, check_gates_grad, check_softmax


def session_columns_reference(ids: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct ids, the place of each id among them, and how often each occurs."""
    check_columns(ids, num_embeddings)
    rows, offsets, order = embedding_plan_reference(ids, num_embeddings)
    counts = offsets.diff().long()
    places = torch.empty(len(ids), dtype=torch.int64, device=ids.device)
    return rows, places.scatter_(0, order.long(), torch.repeat_interleave(counts, output_size=len(ids))), counts


def session_softmax_reference(scores: Tensor, targets: Tensor, own: Tensor, is_masked: bool) -> tuple[Tensor, Tensor]:
    """sum_b -log(exp(own score) / sum_u exp(scores)), and its gradient by the scores."""
    check_softmax(scores, targets, own)
    is_target, own = torch.arange(scores.shape[1], device=scores.device) == targets.unsqueeze(1), own.unsqueeze(1)
    own_scores = scores.gather(1, targets.unsqueeze(1)) + own
    if is_masked:
        scores = torch.where(is_target, own_scores, scores)
    loss = (scores.logsumexp(1, keepdim=True) - own_scores).sum()
    return loss, scores.softmax(1) - is_target.to(scores.dtype)


def session_gates_reference(given: Tensor, recurrent: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """n + z (h - n) with r, z = sigma(given + recurrent) and n = tanh(given + r recurrent); and r, z and n."""
    check_gates("session_gates", before, given=given, recurrent=recurrent)
    width = before.shape[1]
    gates = torch.empty_like(given, memory_format=torch.contiguous_format)
    torch.sigmoid(given[:, : 2 * width] + recurrent[:, : 2 * width], out=gates[:, : 2 * width])
    reset, update, new = gates.split(width, 1)
    torch.tanh(torch.addcmul(given[:, 2 * width :], reset, recurrent[:, 2 * width :]), out=new)
    return torch.addcmul(new, update, before - new), gates


def session_gates_grad_reference(
    grad: Tensor, gates: Tensor, recurrent: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients by given and by recurrent, [m, 3H]."""
    check_gates_grad(grad, gates, recurrent, before)
    width = grad.shape[1]
    reset, update, new = gates.split(width, 1)
    by_new = grad * (1 - update) * (1 - new * new)
    by_reset = by_new * recurrent[:, 2 * width :] * reset * (1 - reset)
    by_update = grad * (before - new) * update * (1 - update)
    return torch.cat([by_reset, by_update, by_new], 1), torch.cat([by_reset, by_update, by_new * reset], 1)
