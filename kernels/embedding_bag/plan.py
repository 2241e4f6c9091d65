"""The entries of a batch grouped by table and row, made once for all calls that share the ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag.call import Call, call_of, raise_named
from deeprec.kernels.plan_check import PlanFacts, remember_source, require_plan


class BagPlan(NamedTuple):
    """The entries of a batch grouped by table and row; made by `embedding_bags_plan`.

    Attributes:
        rows: the distinct ids of each table in ascending order, table after table, [U], dtype of the ids.
        row_offsets: where each row's entries begin in `order`, [U + 1], int32 (int64 from 2^31 entries on).
        order: entries grouped by row, ascending within a row, padding left out, dtype of row_offsets.
        bags: the bag of each entry, [nnz], dtype of row_offsets; empty where each bag is one id.
        table_starts: where each table's rows begin in `rows`, [T + 1], int64.
    """

    rows: Tensor
    row_offsets: Tensor
    order: Tensor
    bags: Tensor
    table_starts: Tensor


def embedding_bags_plan(
    ids: Tensor,
    offsets: Tensor | None,
    num_embeddings: Sequence[int],
    *,
    tables: Sequence[int] | None = None,
    padding_idx: Sequence[int | None] | None = None,
    names: Sequence[str] = (),
) -> BagPlan:
    """Group the entries of a batch by table and row: one stable radix sort a table.

    Args:
        ids, offsets, tables, padding_idx, names: as in `embedding_bags`.
        num_embeddings: rows of each table.
    Returns:
        BagPlan; deterministic.
    Raises:
        IndexError: an id is out of range.
    """
    call = call_of("embedding_bags_plan", len(num_embeddings), tables, "sum", padding_idx, names, False, False)
    arguments = (ids, offsets, list(num_embeddings), list(call.tables), list(call.padding))
    if torch.compiler.is_compiling():
        return BagPlan(*torch.ops.deeprec.embedding_bags_plan(*arguments))
    try:
        plan = BagPlan(*torch.ops.deeprec.embedding_bags_plan(*arguments))
    except (RuntimeError, IndexError) as error:
        raise_named(error, names)
        raise
    remember_source(plan, ids, offsets, PlanFacts(tuple(num_embeddings), call.tables, call.padding))
    return plan


def plan_of_batch(
    given: BagPlan | None, weights: Sequence[Tensor], ids: Tensor, offsets: Tensor | None, call: Call
) -> tuple[Tensor, ...]:
    """The plan that was given with a checked call, or a new one."""
    if given is not None:
        return given
    sizes = [w.shape[0] for w in weights]
    plan: tuple[Tensor, ...] = torch.ops.deeprec.embedding_bags_plan(
        ids, offsets, sizes, list(call.tables), list(call.padding)
    )
    return plan


def rows_by_table(plan: Sequence[Tensor]) -> list[Tensor]:
    """The distinct rows of each table; waits for a GPU."""
    return [plan[0][first:last] for first, last in pairwise(plan[-1].tolist())]


def require_bag_plan(
    function: str, plan: BagPlan, ids: Tensor, offsets: Tensor | None, weights: Sequence[Tensor], call: Call
) -> None:
    """`require_plan` for what `embedding_bags_plan` returns.

    Raises:
        ValueError, TypeError: as `require_plan`.
    """
    facts = PlanFacts(tuple(weight.shape[0] for weight in weights), call.tables, call.padding)
    require_plan(function, "embedding_bags_plan", plan, ids, offsets, facts)
