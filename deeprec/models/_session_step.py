"""One step of GRU4Rec's lanes and its gradients by hand.

The gradient runs through one step, so there is no graph to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.embedding import coalesced_grad, embedding_plan
from deeprec.kernels.session_step import session_gates, session_gates_grad
from deeprec.nn.embedding import Embedding


class Cell(NamedTuple):
    """A step of a GRU layer, as its gradient needs it.

    Attributes:
        inputs: [m, D], x.
        before: [m, H], the states h before it.
        recurrent: [m, 3H], U h + b.
        gates: [m, 3H], r, z and n.
    """

    inputs: Tensor
    before: Tensor
    recurrent: Tensor
    gates: Tensor


def cell_step(inputs: Tensor, before: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Cell]:
    """The states [m, H] after a step of a layer, and what `add_cell_gradients` takes.

    Args:
        inputs: [m, D].
        before: [m, H].
        weights: W [3H, D], U [3H, H] and their biases [3H], as `torch.gru_cell` takes them.
    """
    of_inputs, of_states, bias, state_bias = weights
    recurrent = torch.addmm(state_bias, before, of_states.T)
    after, gates = session_gates(torch.addmm(bias, inputs, of_inputs.T), recurrent, before)
    return after, Cell(inputs, before, recurrent, gates)


def add_cell_gradients(cell: Cell, grad: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Add the gradients of the weights that are trained to those that they have.

    Args:
        grad: by the states after the step, [m, H].
        weights: as `cell_step` takes them.
    Returns:
        the gradient by the inputs, [m, D].
    """
    by_given, by_recurrent = session_gates_grad(grad, cell.gates, cell.recurrent, cell.before)
    of_inputs, of_states, bias, state_bias = weights
    for weight, values, factors in ((of_inputs, by_given, cell.inputs), (of_states, by_recurrent, cell.before)):
        if weight.requires_grad:
            _add_grad(weight, values.T @ factors)
    for weight, values in ((bias, by_given), (state_bias, by_recurrent)):
        if weight.requires_grad:
            _add_grad(weight, values.sum(0))
    return by_given @ of_inputs


def _add_grad(weight: Tensor, grad: Tensor) -> None:
    weight.grad = grad if weight.grad is None else weight.grad + grad


def dropped(values: Tensor, share: float) -> tuple[Tensor, Tensor | None]:
    """`F.dropout` of values, and what it multiplied them with; None: nothing."""
    if not share:
        return values, None
    mask = F.dropout(torch.ones_like(values), share)
    return values * mask, mask


def add_row_grad(table: Embedding, rows: Tensor, grads: Tensor) -> None:
    """Add the gradients [U, D] of rows [U], int64, strictly ascending, to those of a table."""
    grad = coalesced_grad(rows.unsqueeze(0), grads, table.num_embeddings)
    _add_grad(table.weight, grad)


def add_repeated_grad(table: Embedding, ids: Tensor, grads: Tensor) -> None:
    """Add the gradients [n, D] of the rows `ids` [n], int64, of which some may be the same, to those of a table."""
    plan = embedding_plan(ids, table.num_embeddings, name=table.name)
    add_row_grad(table, plan.rows, torch.ops.deeprec.embedding_grad(grads, *plan))
