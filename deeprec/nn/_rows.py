"""What the embedding layers do to a table outside the kernels: catching up, clipping of norms, scaling by frequency."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from deeprec.kernels._autograd import is_transformed
from deeprec.kernels.embedding import embedding
from deeprec.kernels.embedding_bag import BagPlan, embedding_bags_plan
from deeprec.nn._bag_inputs import BagInputs


def catch_up(weight: Tensor, ids: Tensor) -> None:
    """Bring rows of `weight` up to date before they are read for training, where an optimizer asked for it.

    Adam in dense mode puts off the steps in which a row had no gradient, and leaves `_deeprec_catch_up` on the
    parameter for whoever reads rows.

    Args:
        weight: a table, [R, D].
        ids: rows about to be read, any shape, int32 or int64, repeated ids allowed.
    """
    hook = getattr(weight, "_deeprec_catch_up", None)
    if hook is not None:
        try:
            hook(ids)
        except RuntimeError as error:
            # Nothing has been changed; the lookup that follows says it with the name of the table and the position.
            if "rows must be in" not in str(error):
                raise


class WholeTables(nn.Module):
    """Base of modules whose tables are brought up to date where they are saved, loaded, copied or moved as a whole.

    What an optimizer has put off (see `catch_up`) must be done before: weights that are loaded would be moved by it
    later, and what is saved or copied would lack it.
    """

    def _finish_rows(self) -> None:
        for weight in self.parameters():
            hook = getattr(weight, "_deeprec_catch_up", None)
            if hook is not None:
                hook.finish()

    def _save_to_state_dict(self, *args: Any, **options: Any) -> None:
        self._finish_rows()
        super()._save_to_state_dict(*args, **options)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._finish_rows()
        super()._load_from_state_dict(*args, **options)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._finish_rows()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        self._finish_rows()
        return self.__dict__


def catch_up_tables(
    groups: Sequence[Sequence[Tensor]],
    tables: Sequence[int],
    padding: Sequence[int | None],
    inputs: BagInputs,
) -> BagPlan | None:
    """`catch_up` for the tables of several features, in one call where all tables ask for it on the CPU.

    Args:
        groups: lists of tables [R_t, D_t] that are read with the same ids: the vectors, the linear weights.
        tables: the table of each feature.
        padding: the padding id of each feature.
        inputs: the ids.
    Returns:
        the plan of the ids, if one was made on the way; the backward pass can use it.
    """
    weights = [weight for group in groups for weight in group]
    hooks = [getattr(weight, "_deeprec_catch_up", None) for weight in weights]
    if all(hook is None for hook in hooks):
        return None
    together = getattr(hooks[0], "together", None)
    if together is not None and None not in hooks and weights[0].is_cpu and not torch.compiler.is_compiling():
        sizes = [weight.shape[0] for weight in groups[0]]
        offsets = None if inputs.offsets is None else inputs.offsets.to(inputs.ids.dtype)
        try:
            plan = embedding_bags_plan(inputs.ids, offsets, sizes, tables=tables, padding_idx=padding)
        except (IndexError, RuntimeError, TypeError, ValueError):
            return None  # nothing has been changed; the lookup that follows says what is wrong
        rows = [plan.rows[first:last] for first, last in pairwise(plan.table_starts.tolist())]
        together(hooks, [touched for group in groups if group for touched in rows])
        return plan
    by_feature = inputs.by_feature()
    for group in groups:
        for table, ids in zip(tables, by_feature, strict=True) if group else ():
            catch_up(group[table], ids)
    return None


def clip_row_norms_(weight: Tensor, ids: Tensor, max_norm: float, norm_type: float, name: str = "") -> None:
    """Scale the rows of `weight` that are about to be read down to `max_norm`, in place.

    Args:
        weight: a table, [R, D].
        ids: any shape, int32 or int64, repeated ids allowed.
        max_norm: the largest norm a row may keep.
        norm_type: the p of the p-norm.
        name: what to call the table in an error.
    Raises:
        IndexError: an id is out of range; nothing has been changed then.
    """
    table, flat = weight.detach(), ids.reshape(-1)
    rows = embedding(table, flat, name=name)
    wide = rows if rows.dtype == torch.float64 else rows.float()
    norms = torch.linalg.vector_norm(wide, norm_type, dim=1, keepdim=True)
    clipped = torch.where(norms > max_norm, wide * (max_norm / (norms + 1e-7)), wide)
    table.index_put_((flat.long(),), clipped.to(table.dtype))  # repeated ids write the same row


def _divided(grad: Tensor, ids: Tensor) -> Tensor:
    """`grad`, dense or sparse, each row divided by the number of times that `ids` hold it."""
    flat = ids.reshape(-1).long()
    if not grad.is_sparse:
        counts = torch.zeros(grad.shape[0], dtype=torch.int64, device=grad.device)
        counts = counts.index_add(0, flat, torch.ones_like(flat))
        return grad / counts.clamp(min=1).to(grad.dtype).unsqueeze(1)
    grad = grad.coalesce()
    rows, values = grad.indices()[0], grad.values()
    distinct, every = torch.unique(flat, return_counts=True)
    counts = every[torch.searchsorted(distinct, rows)].to(values.dtype)
    return torch.sparse_coo_tensor(
        rows[None], values / counts.unsqueeze(1), grad.shape, is_coalesced=True, check_invariants=False
    )


class _DividedGradient(torch.autograd.Function):
    """`_divided`, which is no gradient of any function: backwards there is nothing to differentiate."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, ids: Tensor) -> Tensor:
        return _divided(grad, ids)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(
            "Embedding: gradients that scale_grad_by_freq has divided have no second derivative; leave it off"
        )

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return _divided(tangent, ctx.saved_tensors[0])


class _ScaleByFrequency(torch.autograd.Function):
    """The table itself; its gradient is divided row by row by the number of times the row was looked up."""

    @staticmethod
    def forward(weight: Tensor, ids: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        if torch.compiler.is_compiling():
            return _divided(grad, ids), None
        divided: Tensor = _DividedGradient.apply(grad, ids)  # type: ignore[no-untyped-call]
        return divided, None


class _TransformedScaleByFrequency(_ScaleByFrequency):
    """For torch.func and forward mode, whose rules torch.compile does not take."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return tangent.view_as(tangent)


def scale_grad_by_frequency(weight: Tensor, ids: Tensor) -> Tensor:
    """`weight`, its gradient divided row by row by the number of times `ids` hold the row."""
    function = _TransformedScaleByFrequency if is_transformed() else _ScaleByFrequency
    scaled: Tensor = function.apply(weight, ids)  # type: ignore[no-untyped-call]
    return scaled
