"""What the backward operators over several tables take, in the order of their schemas.

The operators' arguments are flat; their references and launchers pass them on as these structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

# rows, row_offsets, order, bags, table_starts, see `BagPlan`.
Plan: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Step(NamedTuple):
    """An optimizer's step, the last six arguments of the update operators; see `RowUpdate`.

    Attributes:
        rule: 0 SGD, 1 Adagrad, 2 row-wise Adagrad, 3 Adam, 4 FTRL-proximal.
        lr: learning rate, one float64.
        step: steps taken so far, one int64; counted up by the update. Both on the CPU, or both on the device of the
            tables, where nobody looks at their values.
        options: eps, weight_decay, beta1 (rule 0: momentum), beta2; rule 4: beta, 0, l1, l2.
        max_norm: > 0: the gradient of all tables together is scaled down to this norm.
        seed: of the stochastic rounding of bfloat16 tables; -1: round to nearest.
    """

    rule: int
    lr: Tensor
    step: Tensor
    options: Sequence[float]
    max_norm: float
    seed: int


class BagsBackward(NamedTuple):
    """A backward pass of `embedding_bags`: the arguments of its gradient after the tables.

    Attributes:
        grad: of the pooled rows, [B, sum of D over the pooled features].
        sequence_grads: one [nnz_f, D_f] for each unpooled feature.
        argmax: second result of the lookup.
        ids, offsets, per_sample_weights, tables, modes, padding: of the lookup.
        rows, row_offsets, order, bags, table_starts: the plan, see `BagPlan`.
        need_weights_grad: whether the gradient of per_sample_weights is asked for.
    """

    grad: Tensor
    sequence_grads: Sequence[Tensor]
    argmax: Tensor
    ids: Tensor
    offsets: Tensor | None
    per_sample_weights: Tensor | None
    rows: Tensor
    row_offsets: Tensor
    order: Tensor
    bags: Tensor
    table_starts: Tensor
    tables: Sequence[int]
    modes: Sequence[int]
    padding: Sequence[int]
    need_weights_grad: bool

    @property
    def plan(self) -> Plan:
        """The plan's tensors in their order."""
        return self.rows, self.row_offsets, self.order, self.bags, self.table_starts
