"""`embedding_bags`: lookup and pooling over several tables in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeprec.kernels._autograd import is_transformed, refuse_update
from deeprec.kernels.embedding_bag.call import GradStep, RowUpdate, call_of, check_input
from deeprec.kernels.embedding_bag.composite import embedding_bags_composite
from deeprec.kernels.embedding_bag.functions import (
    dense_bags,
    lookup,
    sparse_bags,
    sparse_bags_outside_graph,
    stepped_bags,
    updated_bags,
)
from deeprec.kernels.embedding_bag.plan import BagPlan, require_bag_plan


def embedding_bags(
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None = None,
    *,
    per_sample_weights: Tensor | None = None,
    tables: Sequence[int] | None = None,
    modes: str | Sequence[str] = "sum",
    padding_idx: Sequence[int | None] | None = None,
    sparse_grad: bool = True,
    update: RowUpdate | GradStep | None = None,
    trigger: Tensor | None = None,
    plan: BagPlan | None = None,
    names: Sequence[str] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Rows of T tables, pooled by bag, for F features at once.

    Bag b of feature f is ids[f, b], or with offsets the ids from offsets[f * B + b] up to offsets[f * B + b + 1].

        sum   out[b, columns of f] = sum_p x_p weight[ids[p]]        x: per_sample_weights, or 1
        mean  the sum divided by the number of ids; max: the largest of each column
        none  not pooled: the rows themselves

    An empty bag gives zeros. Entries equal to the feature's padding_idx count in no bag and get no gradient.

    The gradients of the tables are coalesced `torch.sparse_coo` tensors (see `embedding` for torch.compile), dense ones
    with sparse_grad=False; with `update` the step is taken in the backward pass, the tables get no gradient, and the
    call compiles. Differentiable any number of times, forwards and through torch.func as `embedding` is, but for the
    step that `update` takes.

    Args:
        weights: tables [R_t, D_t], one dtype and device; float32, float64, bfloat16 or float16; any D_t >= 1.
        ids: [F, B], or [nnz] feature after feature with offsets; int32 or int64.
        offsets: [F * B + 1], ascending from 0 to nnz; int32 or int64.
        per_sample_weights: shape of ids, dtype of the tables; mode "sum" only. Their gradient comes in the same pass.
        tables: the table of each feature; default: feature f has table f.
        modes: "sum", "mean", "max" or "none", one for all or one a feature.
        padding_idx: one a feature, or None.
        sparse_grad: coalesced sparse gradients; dense ones otherwise.
        update: the optimizer's step to take in the backward pass; or what takes it: a callable that is given the
            distinct rows [U_t] and their gradients [U_t, D_t] of every table (it does not pass torch.compile).
        trigger: with update, any tensor that requires a gradient; it gets none. Made here where it is absent.
        plan: `embedding_bags_plan` of these ids and offsets, where calls share it; made in the backward pass otherwise.
        names: what to call the tables in errors.
    Returns:
        pooled [B, sum of D over the pooled features] and one [nnz_f, D_f] for each feature of mode "none" (without
        offsets such a feature is pooled: its bags are single rows).
    Raises:
        IndexError: an id is out of range; names the table, the value and the position (on a GPU at the
            next look: see `deeprec.kernels.faults`). Nothing has been changed then.
        TypeError, ValueError: as the message says.
    """
    function = "embedding_bags"
    has_offsets = offsets is not None
    call = call_of(
        function, len(weights), tables, modes, padding_idx, names, per_sample_weights is not None, has_offsets
    )
    check_input(function, weights, ids, offsets, per_sample_weights, len(call.tables))
    if offsets is not None and offsets.dtype != ids.dtype:
        offsets = offsets.to(ids.dtype)
    scale = per_sample_weights
    is_training = torch.is_grad_enabled()
    if is_transformed():
        if update is not None and is_training:
            refuse_update(function)
        pooled, *sequences = embedding_bags_composite(weights, ids, offsets, scale, *call.features())
        return pooled, sequences
    if plan is not None:
        require_bag_plan(function, plan, ids, offsets, weights, call)
    if update is not None and is_training:
        if trigger is None:
            trigger = torch.zeros((), device=ids.device, requires_grad=True)
        given, detached = (trigger, ids, offsets, scale, call, plan), [w.detach() for w in weights]
        if isinstance(update, RowUpdate):
            constants = (update.rule, update.options, update.max_norm, update.seed)
            counts = (len(update.first), len(update.second))
            out = updated_bags(
                *given, constants, update.lr, update.step, *counts, *detached, *update.first, *update.second
            )
        else:
            out = stepped_bags(*given, update, *detached)
    elif is_training and (any(w.requires_grad for w in weights) or (scale is not None and scale.requires_grad)):
        arguments = (ids, offsets, scale, call, plan, *weights)
        if not sparse_grad:
            out = dense_bags(*arguments)
        elif torch.compiler.is_compiling():
            out = sparse_bags_outside_graph(*arguments)
        else:
            out = sparse_bags(*arguments)
    else:
        out = lookup(weights, ids, offsets, scale, call)
        return out[0], list(out[2:])
    return out[0], list(out[1:])
