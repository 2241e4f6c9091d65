"""What `embedding_fm`, its gradients and its update mean, in plain PyTorch. Letters and the plan: embedding_bag."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag.backward import Step
from deeprec.kernels.embedding_bag.checks import check_update, num_bags
from deeprec.kernels.embedding_bag.reference import (
    Feature,
    check_ids,
    features_of,
    planned,
    touched_rows,
    update_rows,
    wide_dtype,
)
from deeprec.kernels.embedding_fm.backward import FMBackward
from deeprec.kernels.embedding_fm.checks import check_backward, check_call
from deeprec.kernels.sums import add_rows


class _Entries(NamedTuple):
    """The entries of one feature, in the accumulator's dtype; those of padding have x = 0.

    Attributes:
        feature: ids, numbers and bags.
        x: value of each entry, [nnz_f].
        v: row of each entry, [nnz_f, D].
        w: linear weight of each entry, [nnz_f]; None without a linear term.
    """

    feature: Feature
    x: Tensor
    v: Tensor
    w: Tensor | None


def _entries(
    function: str,
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    tables: Sequence[int],
    padding: Sequence[int],
) -> list[_Entries]:
    check_call(function, weights, linear, ids, offsets, values, tables, padding)
    wide = wide_dtype(weights[0].dtype)
    nothing = [0] * len(tables)
    features = features_of(ids, offsets, [w.shape[1] for w in weights], tables, nothing, padding)
    check_ids(function, features, [w.shape[0] for w in weights], tables)
    out = []
    for f, (feature, table) in enumerate(zip(features, tables, strict=True)):
        at = feature.ids.to(torch.int64)
        x = feature.keep.to(wide)
        if values is not None:
            mine = values[f] if offsets is None else values[feature.first : feature.first + at.shape[0]]
            x = torch.where(feature.keep, mine.to(wide), 0)
        w = linear[table].reshape(-1).index_select(0, at).to(wide) if linear else None
        out.append(_Entries(feature, x, weights[table].index_select(0, at).to(wide), w))
    return out


def embedding_fm_reference(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    tables: Sequence[int],
    padding: Sequence[int],
    need_embeddings: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """out [B], sums [B, D] in the accumulator's dtype, embeddings [B, F, D] (empty unless asked for)."""
    dtype, wide = weights[0].dtype, wide_dtype(weights[0].dtype)
    batch, dim = num_bags(ids, offsets, len(tables)), weights[0].shape[1]
    features = _entries("embedding_fm", weights, linear, ids, offsets, values, tables, padding)
    by_bag = weights[0].new_zeros(len(tables), batch, dim, dtype=wide)
    squares = weights[0].new_zeros(batch, dim, dtype=wide)
    out = weights[0].new_zeros(batch, dtype=wide)
    for f, (feature, x, v, w) in enumerate(features):
        scaled = v * x.unsqueeze(1)
        add_rows(by_bag[f], feature.bags, scaled)
        add_rows(squares, feature.bags, scaled.square())
        if w is not None:
            add_rows(out, feature.bags, x * w)
    sums = by_bag.sum(0)
    out += 0.5 * (sums.square() - squares).sum(1)
    embeddings = by_bag.transpose(0, 1).to(dtype, memory_format=torch.contiguous_format)
    return out.to(dtype), sums, embeddings.contiguous() if need_embeddings else weights[0].new_empty(0)


def embedding_fm_grad_reference(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """[values [U_t, D] a table, [U_t] or [U_t, 1] a linear table, gradient of `values` (empty unless asked for)].

    v: sum_p g x (S - x v) + x e;  w: sum_p g x;  x: g (w + v . S - x |v|^2) + v . e.

    Args:
        args: the fields of `FMBackward`.
    """
    function, given, wide = "embedding_fm_grad", FMBackward(*args), wide_dtype(weights[0].dtype)
    grad, sums, embeddings_grad, ids, offsets, values, *_ = given
    tables, padding, plan = given.tables, given.padding, given.plan
    check_backward(function, weights, linear, given)
    touched = touched_rows(given.rows, given.table_starts)
    grads = [w.new_zeros(r.shape[0], w.shape[1], dtype=wide) for w, r in zip(weights, touched, strict=True)]
    linear_grads = [w.new_zeros(r.shape[0], dtype=wide) for w, r in zip(linear, touched, strict=False)]
    values_grad = weights[0].new_zeros(0)
    if given.need_values_grad and values is not None:
        values_grad = torch.zeros_like(values, memory_format=torch.contiguous_format)
    features = features_of(ids, offsets, [w.shape[1] for w in weights], tables, [0] * len(tables), padding)
    for f, (feature, named, place) in enumerate(planned(features, tables, plan)):
        table, bag = tables[f], feature.bags[named]
        at, first, end = touched[table][place].long(), feature.first, feature.first + feature.ids.shape[0]
        v, w = weights[table][at].to(wide), linear[table].reshape(-1)[at].to(wide) if linear else None
        x = torch.ones_like(place, dtype=wide)
        if values is not None:
            x = (values[f] if offsets is None else values[first:end])[named].to(wide)
        g, total = grad.to(wide)[bag], sums.to(wide)[bag]
        of_v = (g * x).unsqueeze(1) * (total - x.unsqueeze(1) * v)
        of_x = g * ((v * total).sum(1) - x * v.square().sum(1) + (0 if w is None else w))
        if embeddings_grad is not None:
            e = embeddings_grad[:, f].to(wide)[bag]
            of_v = of_v + x.unsqueeze(1) * e
            of_x = of_x + (v * e).sum(1)
        add_rows(grads[table], place, of_v)
        if linear:
            add_rows(linear_grads[table], place, g * x)
        if values_grad.numel():
            target = values_grad[f] if offsets is None else values_grad[first:end]
            target[named] = of_x.to(target.dtype)
    out = [g.to(w.dtype) for g, w in zip(grads, weights, strict=True)]
    out += [g.to(w.dtype).reshape(-1, *w.shape[1:]) for g, w in zip(linear_grads, linear, strict=True)]
    return [*out, values_grad]


def embedding_fm_dense_grad_reference(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """[gradient of each table, of each linear table, of `values` (empty unless asked for)].

    Args:
        args: the fields of `FMBackward` but for the plan.
    """
    (ids, offsets, values), (tables, padding, _) = args[3:6], args[6:]
    check_call("embedding_fm_dense_grad", weights, linear, ids, offsets, values, tables, padding)
    sizes = [w.shape[0] for w in weights]
    plan = torch.ops.deeprec.embedding_bags_plan(ids, offsets, sizes, tables, padding)
    *grads, values_grad = torch.ops.deeprec.embedding_fm_grad(weights, linear, *args[:6], *plan, *args[6:])
    bounds = list(pairwise(plan[-1].tolist()))
    out = []
    for weight, value, (begin, end) in zip([*weights, *linear], grads, bounds * (2 if linear else 1), strict=True):
        dense = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        dense[plan[0][begin:end].to(torch.int64)] = value
        out.append(dense)
    return [*out, values_grad]


def embedding_fm_update_reference(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    *args: Any,
) -> Tensor:
    """The gradient and one optimizer step; returns the gradient of `values` (empty unless asked for).

    Args:
        first, second: the states of the tables, then those of the linear weights.
        args: the fields of `FMBackward`, then those of `Step`.
    """
    op, given, step = "embedding_fm_update_", FMBackward(*args[:-6]), Step(*args[-6:])
    both = [*weights, *(w.view(-1, 1) for w in linear)]
    check_update(op, both, first, second, step)
    *grads, values_grad = torch.ops.deeprec.embedding_fm_grad(weights, linear, *given)
    touched = touched_rows(given.rows, given.table_starts) * (2 if linear else 1)
    grads = [value.reshape(-1, w.shape[1]) for value, w in zip(grads, both, strict=True)]
    update_rows(op, both, first, second, touched, grads, step)
    out: Tensor = values_grad
    return out
