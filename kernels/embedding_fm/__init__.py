"""Factorisation machine over embedding tables: lookup, linear term and pairwise interactions in one pass.

The embeddings of a batch are never stored unless they are asked for, nor is a gradient of their size: the backward pass
goes by row and needs the row and the sums of its samples only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels._autograd import is_transformed, refuse_update
from deeprec.kernels.embedding_bag import BagPlan, GradStep, RowUpdate, require_bag_plan
from deeprec.kernels.embedding_bag.call import call_of, check_input
from deeprec.kernels.embedding_fm.composite import embedding_fm_composite
from deeprec.kernels.embedding_fm.functions import (
    dense_fm,
    forward,
    sparse_fm,
    sparse_fm_outside_graph,
    stepped_fm,
    updated_fm,
)

__all__ = ["embedding_fm"]


def _check(weights: Sequence[Tensor], linear: Sequence[Tensor], ids: Tensor, values: Tensor | None) -> None:
    function, first = "embedding_fm", weights[0]
    if any(w.shape[1] != first.shape[1] for w in weights):
        raise ValueError(f"{function}: all tables must have one D, got {[tuple(w.shape) for w in weights]}")
    if linear and len(linear) != len(weights):
        raise ValueError(f"{function}: linear must have one entry a table ({len(weights)}) or none, got {len(linear)}")
    for w, table in zip(linear, weights, strict=False):
        if w.shape not in ((table.shape[0],), (table.shape[0], 1)) or w.dtype != table.dtype:
            raise ValueError(
                f"{function}: linear must be [R] or [R, 1] beside each table, in its dtype; got {tuple(w.shape)} in "
                f"{w.dtype} beside {tuple(table.shape)} in {table.dtype}"
            )
    if values is not None and (values.shape != ids.shape or values.dtype != first.dtype):
        raise ValueError(
            f"{function}: values must be {tuple(ids.shape)} like ids, in {first.dtype}; got {tuple(values.shape)} in "
            f"{values.dtype}"
        )


def embedding_fm(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None = None,
    *,
    values: Tensor | None = None,
    tables: Sequence[int] | None = None,
    padding_idx: Sequence[int | None] | None = None,
    need_embeddings: bool = False,
    sparse_grad: bool = True,
    update: RowUpdate | GradStep | None = None,
    trigger: Tensor | None = None,
    plan: BagPlan | None = None,
    names: Sequence[str] = (),
) -> Any:
    """Factorisation machine of a sample's entries (id, x), each looked up in its feature's table.

        out[b] = sum_p x_p w_p + sum_{p<q} x_p x_q v_p . v_q
               = sum_p x_p w_p + 0.5 sum_d [(sum_p x_p v_pd)^2 - sum_p x_p^2 v_pd^2]

    Every entry is a feature of its own: entries of one bag interact too. The bias w_0 is the caller's.

    Gradients are coalesced `torch.sparse_coo` tensors, dense ones with sparse_grad=False; with `update` the step of
    rows and linear weights is taken in the backward pass, and the call compiles, as in `embedding_bags`. The backward
    pass reads the rows again: two calls on one table with `update` in one graph are an error. Differentiable any
    number of times, forwards and through torch.func as `embedding` is, but for the step that `update` takes.

    Args:
        weights: tables [R_t, D] of one D, dtype and device; float32, float64, bfloat16 or float16; D >= 1.
        linear: one [R_t] or [R_t, 1] a table, dtype of the tables; none: no linear term.
        ids: [F, B] of any strides (`ids.T` of [B, F] is read in place), or [nnz] feature after feature with offsets;
            int32 or int64.
        offsets: [F * B + 1], ascending from 0 to nnz; int32 or int64.
        values: x of each entry, shape of ids, dtype of the tables; default 1. Their gradient comes in the same pass.
        tables: the table of each feature; default: feature f has table f.
        padding_idx: one a feature, or None; such entries do not count and get no gradient.
        need_embeddings: also return the embeddings, [B, F, D]: sum of x v of each bag.
        sparse_grad: coalesced sparse gradients; dense ones otherwise.
        update: the optimizer's step to take in the backward pass, or what takes it, as in `embedding_bags`; tables
            and states are those of the vectors, then those of the linear weights.
        trigger: with update, any tensor that requires a gradient; it gets none. Made here where it is absent.
        plan: `embedding_bags_plan` of these ids and offsets, where calls share it; made in the backward pass otherwise.
        names: what to call the tables in errors.
    Returns:
        [B], dtype of the tables, accumulated in float32 (float64 for float64); with need_embeddings a pair of it and
        the embeddings.
    Raises:
        IndexError: an id is out of range; names the table, the value and the position (on a GPU at the
            next look: see `deeprec.kernels.faults`). Nothing has been changed then.
        TypeError, ValueError: as the message says.
    Reference: Rendle 2010, Factorization Machines, eq. 1 and lemma 3.1; Guo et al. 2017 (arXiv 1703.04247), eq. 2.
    """
    call = call_of("embedding_fm", len(weights), tables, "sum", padding_idx, names, False, offsets is not None)
    check_input("embedding_fm", weights, ids, offsets, None, len(call.tables))
    _check(weights, linear, ids, values)
    if offsets is not None and offsets.dtype != ids.dtype:
        offsets = offsets.to(ids.dtype)
    is_training = torch.is_grad_enabled()
    both = [*weights, *linear]
    if is_transformed():
        if update is not None and is_training:
            refuse_update("embedding_fm")
        out, embeddings = embedding_fm_composite(weights, linear, ids, offsets, values, call.tables, call.padding)
        return (out, embeddings) if need_embeddings else out
    if plan is not None:
        require_bag_plan("embedding_fm", plan, ids, offsets, weights, call)
    if update is not None and is_training:
        if trigger is None:
            trigger = torch.zeros((), device=ids.device, requires_grad=True)
        detached = [w.detach() for w in both]
        if not isinstance(update, RowUpdate):
            given = (ids, offsets, values, call, need_embeddings, len(weights), plan)
            return stepped_fm(trigger, update, *given, *detached)
        return updated_fm(
            trigger,
            ids,
            offsets,
            values,
            call,
            need_embeddings,
            (update.rule, update.options, update.max_norm, update.seed),
            (len(weights), len(linear), len(update.first)),
            plan,
            update.lr,
            update.step,
            *detached,
            *update.first,
            *update.second,
        )
    if is_training and any(t.requires_grad for t in [*both, *(() if values is None else (values,))]):
        arguments = (ids, offsets, values, call, need_embeddings, len(weights), plan, *both)
        if not sparse_grad:
            return dense_fm(*arguments)
        return (sparse_fm_outside_graph if torch.compiler.is_compiling() else sparse_fm)(*arguments)
    out, _, embeddings = forward(weights, linear, ids, offsets, values, call, need_embeddings)
    return (out, embeddings) if need_embeddings else out
