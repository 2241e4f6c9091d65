"""What `plan_check` means, in plain PyTorch: without a sort, a loop over entries or a wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeprec.kernels._checks import INDICES, check_layout, require


def _has_shape(ids: Tensor, offsets: Tensor | None, num_tables: int, plan: Sequence[Tensor]) -> bool:
    rows, row_offsets, order, bags, table_starts = plan
    return (
        all(part.is_contiguous() and part.device == ids.device for part in plan)
        and rows.dtype in INDICES
        and order.dtype in INDICES
        and order.dtype == row_offsets.dtype == bags.dtype
        and table_starts.dtype == torch.int64
        and row_offsets.numel() == rows.numel() + 1
        and table_starts.numel() == num_tables + 1
        and order.numel() <= ids.numel()
        and bags.numel() == (0 if offsets is None else ids.numel())
    )


class _Facts:
    """A plan, flat, and what its numbers are numbers of; look-ups are clamped so that any plan can be asked."""

    def __init__(
        self,
        ids: Tensor,
        offsets: Tensor | None,
        sizes: Sequence[int],
        tables: Sequence[int],
        plan: Sequence[Tensor],
    ) -> None:
        device, nnz = ids.device, ids.numel()
        self.rows, self.row_offsets, self.order, self.bags, self.table_starts = (part.reshape(-1) for part in plan)
        batch = ids.shape[1] if offsets is None else (offsets.shape[0] - 1) // max(len(tables), 1)
        self.bag = torch.arange(nnz, device=device)
        if offsets is not None:
            self.bag = torch.searchsorted(offsets.contiguous(), self.bag.to(offsets.dtype), right=True) - 1
        self.feature = (self.bag // max(batch, 1)).clamp(0, max(len(tables) - 1, 0))
        self.place = self.order.long().clamp(0, max(nnz - 1, 0))
        count, entries = self.rows.shape[0], self.order.shape[0]
        numbers = torch.arange(entries, device=device)
        self.row_of = (torch.searchsorted(self.row_offsets.long(), numbers, right=True) - 1).clamp(0, max(count - 1, 0))
        numbers = torch.arange(count, device=device)
        self.table_of = torch.searchsorted(self.table_starts, numbers, right=True) - 1
        self.table_of = self.table_of.clamp(0, max(len(sizes) - 1, 0))
        self.batch, self.sizes = batch, torch.tensor(sizes, dtype=torch.int64, device=device)
        self.table_of_feature = torch.tensor(tables, dtype=torch.int64, device=device)

    def is_safe(self) -> Tensor:
        """Whether every number of the plan lies where it belongs."""
        starts, offsets, rows, order = self.table_starts, self.row_offsets, self.rows, self.order
        holds = (offsets[0] == 0) & (offsets[-1] == order.shape[0]) & (offsets.diff() > 0).all()
        holds &= (starts[0] == 0) & (starts[-1] == rows.shape[0]) & (starts.diff() >= 0).all()
        holds &= (order >= 0).all() & (order < self.bag.shape[0]).all()
        if rows.shape[0] and self.sizes.shape[0]:
            holds &= ((rows >= 0) & (rows < self.sizes[self.table_of])).all()
            holds &= ((rows[1:] > rows[:-1]) | (self.table_of[1:] != self.table_of[:-1])).all()
        if self.bags.shape[0]:
            first = self.feature * self.batch
            holds &= ((self.bags >= first) & (self.bags < first + self.batch)).all()
        if order.shape[0] and rows.shape[0] and self.bag.shape[0]:
            holds &= (self.table_of_feature[self.feature[self.place]] == self.table_of[self.row_of]).all()
        return holds

    def is_of(self, ids: Tensor, padding: Sequence[int]) -> Tensor:
        """Whether a safe plan groups these ids."""
        holds = (self.bags == self.bag).all() if self.bags.shape[0] else torch.tensor(True, device=ids.device)
        if not self.bag.shape[0]:
            return holds
        flat, pads = ids.reshape(-1), torch.tensor(padding, dtype=torch.int64, device=ids.device)
        is_kept = flat != pads[self.feature]
        holds = holds & (is_kept.sum() == self.order.shape[0])
        if not self.rows.shape[0]:
            return holds
        holds &= (flat[self.place] == self.rows[self.row_of]).all() & is_kept[self.place].all()
        return holds & ((self.place[1:] > self.place[:-1]) | (self.row_of[1:] != self.row_of[:-1])).all()


def require_safe(
    function: str,
    ids: Tensor,
    offsets: Tensor | None,
    sizes: Sequence[int],
    tables: Sequence[int],
    plan: Sequence[Tensor],
) -> None:
    """Raise ValueError for a plan that leads out of its tensors (on the CPU); ids and offsets are checked already."""
    holds = _has_shape(ids, offsets, len(sizes), plan)
    if holds and ids.device.type == "cpu":
        holds = bool(_Facts(ids, offsets, sizes, tables, plan).is_safe())
    requirement = "plan must be the one of these ids and offsets; make it with embedding_bags_plan"
    require(holds, function, requirement, "one that names other entries, bags or rows")


def plan_check_reference(
    ids: Tensor,
    offsets: Tensor | None,
    num_embeddings: Sequence[int],
    tables: Sequence[int],
    padding: Sequence[int],
    rows: Tensor,
    row_offsets: Tensor,
    order: Tensor,
    bags: Tensor,
    table_starts: Tensor,
) -> Tensor:
    """Whether (rows, ...) is what `embedding_bags_plan` makes of ids [F, B], or [nnz] with offsets: a bool []."""
    check_layout("plan_check", ids, offsets, tables, padding, len(num_embeddings))
    plan = (rows, row_offsets, order, bags, table_starts)
    if rows.dtype != ids.dtype or not _has_shape(ids, offsets, len(num_embeddings), plan):
        return torch.tensor(False, device=ids.device)
    facts = _Facts(ids, offsets, num_embeddings, tables, plan)
    return facts.is_safe() & facts.is_of(ids, padding)
