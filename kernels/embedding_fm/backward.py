"""What the backward operators of embedding_fm take, in the order of their schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from deeprec.kernels.embedding_bag.backward import Plan


class FMBackward(NamedTuple):
    """A backward pass of `embedding_fm`: the arguments of its gradient after the tables.

    Attributes:
        grad: of the result, [B].
        sums: second result of the forward operator, [B, D].
        embeddings_grad: of the embeddings, [B, F, D], where they were asked for.
        ids, offsets, values, tables, padding: of the forward pass.
        rows, row_offsets, order, bags, table_starts: the plan, see `BagPlan`.
        need_values_grad: whether the gradient of values is asked for.
    """

    grad: Tensor
    sums: Tensor
    embeddings_grad: Tensor | None
    ids: Tensor
    offsets: Tensor | None
    values: Tensor | None
    rows: Tensor
    row_offsets: Tensor
    order: Tensor
    bags: Tensor
    table_starts: Tensor
    tables: Sequence[int]
    padding: Sequence[int]
    need_values_grad: bool

    @property
    def plan(self) -> Plan:
        """The plan's tensors in their order."""
        return self.rows, self.row_offsets, self.order, self.bags, self.table_starts
