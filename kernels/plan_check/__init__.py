"""Whether a plan that a caller gives is the plan of the ids it is given with.

The backward kernels follow a plan into the gradient and into the table, so a plan of other ids means gradients on wrong
rows. The kernels themselves look only whether a plan stays within its tensors; what it means is looked at here, where
it enters, in one pass without a sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels.faults import report_where
from deeprec.kernels.plan_check.reference import plan_check_reference

__all__ = ["PlanFacts", "is_remembered", "remember_source", "require_plan"]


class PlanFacts(NamedTuple):
    """What a plan depends on beside ids and offsets.

    Attributes:
        num_embeddings: rows of each table.
        tables: the table of each feature.
        padding: the padding id of each feature, -1 for none.
    """

    num_embeddings: tuple[int, ...]
    tables: tuple[int, ...]
    padding: tuple[int, ...]


def _fake(ids: Tensor, *args: object) -> Tensor:
    return ids.new_empty((), dtype=torch.bool)


_library.define(
    "plan_check(Tensor ids, Tensor? offsets, int[] num_embeddings, int[] tables, int[] padding, Tensor rows, "
    "Tensor row_offsets, Tensor order, Tensor bags, Tensor table_starts) -> Tensor",
    plan_check_reference,
    _fake,
)


def remember_source(plan: Sequence[Tensor], ids: Tensor, offsets: Tensor | None, facts: object) -> None:
    """Leave word on a new plan of which tensors it was made from, so that it need not be looked at in their company.

    Args:
        plan: its tensors; ids, offsets: what it was made from; facts: what else, compared by ==.
    """
    tensors = [*plan, ids, *(() if offsets is None else (offsets,))]
    if not any(part.is_inference() for part in tensors):  # those count no versions
        plan[0]._deeprec_plan_of = (  # type: ignore[attr-defined]
            (*plan[1:], ids, offsets),
            [part._version for part in tensors],
            facts,
        )


def is_remembered(plan: Sequence[Tensor], ids: Tensor, offsets: Tensor | None, facts: object) -> bool:
    """Whether nothing has changed since `remember_source` was called with the same tensors and facts."""
    word = getattr(plan[0], "_deeprec_plan_of", None)
    if word is None:
        return False
    parts, versions, known = word
    given = (*plan[1:], ids, offsets)
    return (
        len(parts) == len(given)
        and all(mine is theirs for mine, theirs in zip(parts, given, strict=True))
        and versions == [part._version for part in (plan[0], *given) if part is not None]
        and known == facts
    )


def require_plan(
    function: str,
    maker: str,
    plan: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    facts: PlanFacts,
    *,
    name: str = "plan",
) -> None:
    """Raise unless `plan` groups these ids; inside a graph of torch.compile it is taken on trust.

    Args:
        function, maker, name: who asks, who makes such plans, and what the argument is called, for the error.
        plan: the five tensors of a `BagPlan`.
        ids: [F, B], or [nnz] with offsets [F * B + 1]; checked already.
        facts: the tables and the features.
    Raises:
        ValueError: the plan is not theirs (on a GPU at the next look, so as not to wait for it: see `kernels/faults`).
        TypeError: it is no plan.
    """
    if torch.compiler.is_compiling():
        return
    if len(plan) != 5 or not all(isinstance(part, Tensor) for part in plan):
        raise TypeError(f"{function}: {name} must be what {maker} returns, got {type(plan).__name__} of {len(plan)}")
    if is_remembered(plan, ids, offsets, facts):
        return
    is_theirs = torch.ops.deeprec.plan_check(ids, offsets, *facts, *plan)
    message = f"{function}: {name} must be made from these ids, got the plan of others or a changed one; call {maker}"
    if ids.device.type != "cpu":
        report_where(~is_theirs, ValueError, message)
    elif not is_theirs:
        raise ValueError(message)
