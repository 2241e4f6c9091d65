"""What lies between the matrix products of a step of GRU4Rec: the distinct items, the gates and the softmax.

For a training step that takes its gradients by hand (the gradient of session-parallel mini-batches runs through one
step): nothing here is differentiable. The kernels on the CPU are for float32; references serve the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels.embedding import raise_out_of_range
from deeprec.kernels.session_step.reference import (
    session_columns_reference,
    session_gates_grad_reference,
    session_gates_reference,
    session_softmax_reference,
)

__all__ = ["session_columns", "session_gates", "session_gates_grad", "session_softmax"]


def _columns_fake(ids: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = torch.library.get_ctx().new_dynamic_size()
    places = ids.new_empty(ids.shape, dtype=torch.int64)
    return ids.new_empty(num_rows), places, ids.new_empty(num_rows, dtype=torch.int64)


def _softmax_fake(scores: Tensor, targets: Tensor, own: Tensor, is_masked: bool) -> tuple[Tensor, Tensor]:
    return scores.new_empty(()), scores.new_empty(scores.shape)


def _gates_fake(given: Tensor, recurrent: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    return before.new_empty(before.shape), given.new_empty(given.shape)


def _gates_grad_fake(grad: Tensor, gates: Tensor, recurrent: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    return gates.new_empty(gates.shape), gates.new_empty(gates.shape)


_library.define(
    "session_columns(Tensor ids, int num_embeddings) -> (Tensor rows, Tensor places, Tensor counts)",
    session_columns_reference,
    _columns_fake,
)
_library.define(
    "session_softmax(Tensor scores, Tensor targets, Tensor own, bool is_masked) -> (Tensor loss, Tensor slopes)",
    session_softmax_reference,
    _softmax_fake,
)
_library.define(
    "session_gates(Tensor given, Tensor recurrent, Tensor before) -> (Tensor after, Tensor gates)",
    session_gates_reference,
    _gates_fake,
)
_library.define(
    "session_gates_grad(Tensor grad, Tensor gates, Tensor recurrent, Tensor before) -> "
    "(Tensor d_given, Tensor d_recurrent)",
    session_gates_grad_reference,
    _gates_grad_fake,
)


def _serving(operator: Callable[..., Any], reference: Callable[..., Any], x: Tensor) -> Callable[..., Any]:
    return reference if x.dtype != torch.float32 and x.device.type == "cpu" else operator


def session_columns(ids: Tensor, num_embeddings: int, *, name: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """The distinct ids, the place of each id among them, and how often each occurs.

    Args:
        ids: [nnz], int32 or int64, in [0, num_embeddings).
        num_embeddings: rows of the table, >= 0.
        name: what to call the table in an error.
    Returns:
        rows [U], ascending, dtype of ids; places [nnz], int64, in [0, U); counts [U], int64, >= 1.
    Raises:
        IndexError: an id is out of range.
    """
    try:
        columns: tuple[Tensor, Tensor, Tensor] = torch.ops.deeprec.session_columns(ids, num_embeddings)
        return columns
    except (RuntimeError, IndexError) as error:
        raise_out_of_range("session_columns", ids, num_embeddings, name, error)
        raise


def session_softmax(scores: Tensor, targets: Tensor, own: Tensor, *, is_masked: bool = False) -> tuple[Tensor, Tensor]:
    """The sum over the lanes of the softmax cross-entropy of merged candidates, and its gradient.

    A column stands for all candidates that are the same item: its score is theirs plus the logarithm of their number.

        loss = sum_b log(sum_u exp(scores[b, u])) - (scores[b, t] + own[b]),  t = targets[b]

    Args:
        scores: [m, U], floating.
        targets: [m], int64, in [0, U), the column of each lane's target.
        own: [m], dtype of scores, what makes the score of a target's column the target's own: -log of their number.
        is_masked: the others of a target's column are no candidates of its lane: its score is the own one in the sum
            as well.
    Returns:
        The loss, a scalar summed in float64, and slopes [m, U], its gradient by the scores; dtype of scores.
    Reference: Hidasi & Karatzoglou 2018 (arXiv 1706.03847), section 3.1, without the merging.
    """
    run = _serving(torch.ops.deeprec.session_softmax, session_softmax_reference, scores)
    result: tuple[Tensor, Tensor] = run(scores, targets, own, is_masked)
    return result


def session_gates(given: Tensor, recurrent: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The states of a GRU after a step, n + z (h - n), as `torch.gru_cell` has them.

    With r, z = sigma(given + recurrent) and n = tanh(given + r recurrent).

    Args:
        given: W x + b of r, z and n, [m, 3H], floating.
        recurrent: U h + b of r, z and n, [m, 3H], dtype of given.
        before: h, [m, H], dtype of given.
    Returns:
        The states [m, H], and r, z and n [m, 3H], which `session_gates_grad` takes.
    """
    run = _serving(torch.ops.deeprec.session_gates, session_gates_reference, given)
    result: tuple[Tensor, Tensor] = run(given, recurrent, before)
    return result


def session_gates_grad(grad: Tensor, gates: Tensor, recurrent: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `session_gates` by given and by recurrent, [m, 3H] each; none by the states before.

    Args:
        grad: by the states after the step, [m, H].
        gates: r, z and n, [m, 3H].
        recurrent, before: as they were.
    """
    run = _serving(torch.ops.deeprec.session_gates_grad, session_gates_grad_reference, grad)
    result: tuple[Tensor, Tensor] = run(grad, gates, recurrent, before)
    return result
