"""Gradients by row, as the optimizers take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deeprec.kernels.embedding import embedding_plan
from deeprec.train._dense_step import state_dtype

_ops = torch.ops.deeprec


class RowGrad(NamedTuple):
    """The gradient of the touched rows of one parameter.

    Attributes:
        place: number of the parameter in its group.
        param: the table, [R, D].
        rows: [U].
        values: [U, D].
    """

    place: int
    param: Tensor
    rows: Tensor
    values: Tensor

    def coalesced(self) -> RowGrad:
        """The same with strictly ascending rows."""
        if bool((self.rows[1:] > self.rows[:-1]).all()):
            return self
        plan = embedding_plan(self.rows, self.param.shape[0])
        values = _ops.embedding_grad(self.values, plan.rows, plan.offsets, plan.order)
        return self._replace(rows=plan.rows, values=values)

    def square_sum(self) -> Tensor:
        """Sum of the squares, a scalar in float64."""
        return self.values.to(state_dtype(self.values)).square().sum(dtype=torch.float64)

    def scaled(self, factor: float) -> RowGrad:
        """The gradient times a factor."""
        values = self.values.to(state_dtype(self.values)) * factor
        return self._replace(values=values.to(self.values.dtype))


def clipped(grads: list[RowGrad], max_norm: float) -> list[RowGrad]:
    """Coalesced gradients whose norm together is at most max_norm."""
    grads = [grad.coalesced() for grad in grads]
    norm = sum(float(grad.square_sum()) for grad in grads) ** 0.5
    return [grad.scaled(max_norm / norm) for grad in grads] if norm > max_norm else grads
