"""What the operators over several embedding tables mean, in plain PyTorch.

Letters: T tables, F features (columns of ids), B bags a feature, nnz entries. Bag `f * B + b` is bag b of feature f,
and its entries lie together: entry p = f * B + b itself without offsets (one id a bag), and offsets[bag] <= p <
offsets[bag + 1] with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels._checks import check_entries, outside, require
from deeprec.kernels.embedding_bag.backward import BagsBackward, Step
from deeprec.kernels.embedding_bag.checks import (
    ADAGRAD,
    FTRL,
    MAX,
    MEAN,
    NONE,
    ROWWISE_ADAGRAD,
    SGD,
    SUM,
    check_backward,
    check_call,
    check_plan_call,
    check_update,
    is_pooled,
    num_bags,
)
from deeprec.kernels.sparse_update import reference as sparse_update
from deeprec.kernels.sparse_update.checks import check_options
from deeprec.kernels.sparse_update.reference import rounding_seed
from deeprec.kernels.sums import add_rows


class Feature(NamedTuple):
    """Where the entries of one feature lie, and its place in the result.

    Attributes:
        ids: ids of the feature's entries, [nnz_f].
        first: number of the first entry.
        bags: bag of each entry in [0, B), [nnz_f], int64.
        keep: entries that are not padding, [nnz_f], bool.
        column: first column in the pooled result; -1 for mode NONE with offsets.
    """

    ids: Tensor
    first: int
    bags: Tensor
    keep: Tensor
    column: int


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in: float32, and float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def features_of(
    ids: Tensor,
    offsets: Tensor | None,
    dims: Sequence[int],
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
) -> list[Feature]:
    """The entries, feature by feature; dims are those of the tables."""
    batch = num_bags(ids, offsets, len(tables))
    out, column = [], 0
    for f, (table, mode, pad) in enumerate(zip(tables, modes, padding, strict=True)):
        if offsets is None:
            own, first, bags = ids[f], f * batch, torch.arange(batch, device=ids.device)
        else:
            bounds = offsets[f * batch : (f + 1) * batch + 1].to(torch.int64)
            first = int(bounds[0])
            own = ids[first : int(bounds[-1])]
            bags = torch.repeat_interleave(torch.arange(batch, device=ids.device), bounds.diff())
        place = column if is_pooled(mode, offsets) else -1
        column += dims[table] if place >= 0 else 0
        out.append(Feature(own, first, bags, own != pad, place))
    return out


def check_ids(function: str, features: Sequence[Feature], sizes: Sequence[int], tables: Sequence[int]) -> None:
    """Raise IndexError for the first entry out of range."""
    for feature, table in zip(features, tables, strict=True):
        bad = outside(feature.ids, sizes[table])
        if feature.ids.numel() and bool(bad.any()):
            position = int(bad.to(torch.uint8).argmax())
            raise IndexError(
                f"{function}: ids of table {table} must be in [0, {sizes[table]}), got {int(feature.ids[position])} "
                f"at position {feature.first + position}"
            )


def _counts(feature: Feature, batch: int) -> Tensor:
    counts = torch.zeros(batch, dtype=torch.int64, device=feature.ids.device)
    return counts.index_add_(0, feature.bags, feature.keep.long())


def _pool(rows: Tensor, feature: Feature, mode: int, scale: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
    """[B, D] in the dtype of rows [nnz_f, D], and for MAX the entry that each value came from (-1: none)."""
    out = rows.new_zeros(batch, rows.shape[1])
    if mode == MAX:
        bags = feature.bags[feature.keep]
        at = bags.unsqueeze(1).expand(-1, rows.shape[1])
        kept = rows[feature.keep]
        # As torch.nn.functional.embedding_bag: a NaN stays where it comes first in its bag, and loses elsewhere.
        is_first = torch.ones_like(bags, dtype=torch.bool)
        is_first[1:] = bags[1:] != bags[:-1]
        nan = torch.where(is_first.unsqueeze(1), torch.inf, -torch.inf)
        kept = torch.where(kept.isnan(), nan.to(kept.dtype), kept)
        out.fill_(-torch.inf).scatter_reduce_(0, at, kept, "amax")
        entries = torch.arange(rows.shape[0], device=rows.device)[feature.keep]
        is_max = kept == out[feature.bags[feature.keep]]
        number = torch.where(is_max, entries.unsqueeze(1), rows.shape[0])
        argmax = torch.full(out.shape, rows.shape[0], dtype=torch.int64, device=rows.device)
        argmax.scatter_reduce_(0, at, number, "amin")
        is_known = argmax < rows.shape[0]
        if rows.shape[0]:
            out = rows.gather(0, argmax.clamp(max=rows.shape[0] - 1))
        return torch.where(is_known, out, 0), torch.where(is_known, argmax + feature.first, -1)
    weighted = rows * feature.keep.unsqueeze(1)
    if scale is not None:
        weighted = weighted * scale.unsqueeze(1)
    add_rows(out, feature.bags, weighted)
    if mode == MEAN:
        out /= _counts(feature, batch).clamp(min=1).unsqueeze(1)
    return out, None


def _scale_of(per_sample_weights: Tensor | None, feature: Feature, f: int, is_2d: bool) -> Tensor | None:
    if per_sample_weights is None:
        return None
    if is_2d:
        return per_sample_weights[f]
    return per_sample_weights[feature.first : feature.first + feature.ids.shape[0]]


def embedding_bags_reference(
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
) -> list[Tensor]:
    """[pooled [B, sum D_f], argmax [B, sum D_f] (empty without MAX), one [nnz_f, D_f] for each unpooled feature]."""
    check_call("embedding_bags", weights, ids, offsets, per_sample_weights, tables, modes, padding)
    dtype, wide = weights[0].dtype, wide_dtype(weights[0].dtype)
    batch = num_bags(ids, offsets, len(tables))
    features = features_of(ids, offsets, [w.shape[1] for w in weights], tables, modes, padding)
    check_ids("embedding_bags", features, [w.shape[0] for w in weights], tables)
    width = sum(weights[t].shape[1] for t, f in zip(tables, features, strict=True) if f.column >= 0)
    pooled = weights[0].new_zeros(batch, width)
    has_max = MAX in modes and offsets is not None
    argmax = torch.full((batch, width) if has_max else (0,), -1, dtype=ids.dtype, device=ids.device)
    sequences = []
    for f, (feature, table, mode) in enumerate(zip(features, tables, modes, strict=True)):
        rows = weights[table].index_select(0, feature.ids.to(torch.int64))
        if feature.column < 0:
            sequences.append(rows)
            continue
        scale = _scale_of(per_sample_weights, feature, f, offsets is None)
        scale = None if scale is None else scale.to(wide)
        if mode == NONE:  # the row itself, padding or not
            feature = feature._replace(keep=torch.ones_like(feature.keep))
        out, where = _pool(rows.to(wide), feature, mode if offsets is not None else SUM, scale, batch)
        columns = slice(feature.column, feature.column + rows.shape[1])
        pooled[:, columns] = out.to(dtype)
        if where is not None:
            argmax[:, columns] = where.to(ids.dtype)
    return [pooled, argmax, *sequences]


def embedding_bag_reference(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: int,
    padding: int,
    include_last_offset: bool,
) -> Tensor:
    """`embedding_bags` of one table, its ids as torch.nn.EmbeddingBag takes them: [B, L], or [nnz] with offsets."""
    function = "embedding_bag"
    require(weight.dim() == 2, function, "weight must be [R, D]", weight)
    require(SUM <= mode <= MAX, function, "mode must be 0 (sum), 1 (mean) or 2 (max)", mode)
    require(-1 <= padding < weight.shape[0], function, "padding must be -1 or a row", padding)
    dims = 2 if offsets is None else 1
    require(ids.dim() == dims, function, "ids must be [B, L], or [nnz] with offsets", ids)
    require(per_sample_weights is None or mode == SUM, function, "per_sample_weights need mode 0 (sum)", mode)
    check_entries(function, "per_sample_weights", per_sample_weights, ids, weight.dtype)
    if offsets is None:
        batch, length = ids.shape
        offsets = torch.arange(batch + 1, dtype=ids.dtype, device=ids.device) * length
        ids = ids.reshape(-1)
        per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    elif not include_last_offset:
        require(offsets.dim() == 1 and offsets.dtype == ids.dtype, function, "offsets must be [B] like ids", offsets)
        offsets = torch.cat([offsets, offsets.new_tensor([ids.shape[0]])])
    pooled: Tensor = embedding_bags_reference([weight], ids, offsets, per_sample_weights, [0], [mode], [padding])[0]
    return pooled


def embedding_bags_plan_reference(
    ids: Tensor,
    offsets: Tensor | None,
    num_embeddings: Sequence[int],
    tables: Sequence[int],
    padding: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Stable sort of the entries by (table, row), padding left out, and run-length encoding."""
    nothing = [0] * len(tables)
    check_plan_call(ids, offsets, num_embeddings, tables, padding)
    features = features_of(ids, offsets, [0] * len(num_embeddings), tables, nothing, padding)
    check_ids("embedding_bags_plan", features, num_embeddings, tables)
    position = torch.int32 if ids.numel() < 2**31 else torch.int64
    batch = num_bags(ids, offsets, len(tables))
    rows, counts, order = [], [], []
    starts = [0]
    for table in range(len(num_embeddings)):
        mine = [f for f, t in zip(features, tables, strict=True) if t == table]
        keys = torch.cat([ids.new_empty(0), *(f.ids[f.keep] for f in mine)])
        entries = [(torch.arange(f.ids.shape[0], device=ids.device) + f.first)[f.keep] for f in mine]
        values, by_row = torch.sort(keys, stable=True)
        distinct, count = torch.unique_consecutive(values, return_counts=True)
        rows.append(distinct)
        counts.append(count)
        order.append(torch.cat([by_row.new_empty(0), *entries])[by_row])
        starts.append(starts[-1] + distinct.shape[0])
    all_rows = torch.cat(rows)
    row_offsets = torch.zeros(all_rows.shape[0] + 1, dtype=torch.int64, device=ids.device)
    torch.cumsum(torch.cat(counts), 0, out=row_offsets[1:])
    bags = ids.new_empty(0, dtype=position)
    if offsets is not None:
        bags = torch.cat([f.bags + k * batch for k, f in enumerate(features)]).to(position)
    table_starts = torch.tensor(starts, dtype=torch.int64, device=ids.device)
    return all_rows, row_offsets.to(position), torch.cat(order).to(position), bags, table_starts


def _entry_grad(
    grad: Tensor,
    sequence_grad: Tensor | None,
    argmax: Tensor,
    feature: Feature,
    mode: int,
    dim: int,
    scale: Tensor | None,
) -> Tensor:
    """Gradient of each looked-up row of a feature, [nnz_f, D], before per-sample weights reach the table."""
    if sequence_grad is not None:
        return sequence_grad
    columns = slice(feature.column, feature.column + dim)
    of_bags = grad[:, columns].index_select(0, feature.bags)
    if mode == MAX:
        entries = torch.arange(feature.ids.shape[0], device=grad.device) + feature.first
        return torch.where(argmax[:, columns].index_select(0, feature.bags) == entries.unsqueeze(1), of_bags, 0)
    if mode == MEAN:
        counts = _counts(feature, grad.shape[0]).clamp(min=1)
        return of_bags / counts.index_select(0, feature.bags).unsqueeze(1)
    return of_bags if scale is None else of_bags * scale.unsqueeze(1)


def planned(
    features: Sequence[Feature], tables: Sequence[int], plan: Sequence[Tensor]
) -> Iterator[tuple[Feature, Tensor, Tensor]]:
    """Each feature with its entries that the plan names, [n] positions, and where their rows stand in the table's."""
    _, row_offsets, order, _, table_starts = (part.reshape(-1).to(torch.int64) for part in plan)
    counts, starts = row_offsets.diff(), table_starts.tolist()
    row_of = torch.repeat_interleave(torch.arange(counts.shape[0], device=order.device), counts)
    for feature, table in zip(features, tables, strict=True):
        mine = ((order >= feature.first) & (order < feature.first + feature.ids.shape[0])).nonzero()[:, 0]
        yield feature, order[mine] - feature.first, row_of[mine] - starts[table]


def _wide_grads(function: str, weights: Sequence[Tensor], given: BagsBackward) -> list[Tensor]:
    """As embedding_bags_grad_reference, the values not yet rounded to the dtype of the tables."""
    grad, sequence_grads, argmax, ids, offsets, per_sample_weights, *_ = given
    tables, modes, padding = given.tables, given.modes, given.padding
    check_backward(function, weights, given)
    wide = wide_dtype(weights[0].dtype)
    dims = [w.shape[1] for w in weights]
    features = features_of(ids, offsets, dims, tables, modes, padding)
    touched = touched_rows(given.rows, given.table_starts)
    values = [w.new_zeros(r.shape[0], w.shape[1], dtype=wide) for w, r in zip(weights, touched, strict=True)]
    weights_grad = grad.new_zeros(0)
    if given.need_weights_grad and per_sample_weights is not None:
        weights_grad = torch.zeros_like(per_sample_weights)
    sequences = iter(sequence_grads)
    for f, (feature, named, place) in enumerate(planned(features, tables, given.plan)):
        table, mode = tables[f], modes[f]
        sequence_grad = next(sequences).to(wide) if feature.column < 0 else None
        scale = _scale_of(per_sample_weights, feature, f, offsets is None)
        scale = None if scale is None else scale.to(wide)
        mode = mode if offsets is not None else SUM
        entry = _entry_grad(grad.to(wide), sequence_grad, argmax, feature, mode, dims[table], scale)
        add_rows(values[table], place, entry[named])
        if weights_grad.numel():
            plain = _entry_grad(grad.to(wide), None, argmax, feature, SUM, dims[table], None)
            looked_up = weights[table].index_select(0, touched[table][place].to(torch.int64)).to(wide)
            end = feature.first + feature.ids.shape[0]
            target = weights_grad[f] if offsets is None else weights_grad[feature.first : end]
            target[named] = (plain[named] * looked_up).sum(1).to(target.dtype)
    return [*values, weights_grad]


def touched_rows(rows: Tensor, table_starts: Tensor) -> list[Tensor]:
    """The rows of a plan, table by table."""
    return [rows.reshape(-1)[begin:end] for begin, end in pairwise(table_starts.reshape(-1).tolist())]


def embedding_bags_grad_reference(weights: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """[values [U_t, D_t] for each table, gradient of per_sample_weights (empty unless asked for)].

    Args:
        args: the fields of `BagsBackward`.
    """
    grads = _wide_grads("embedding_bags_grad", weights, BagsBackward(*args))
    return [grad.to(weights[0].dtype) for grad in grads]


def embedding_bags_dense_grad_reference(weights: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """[gradient [R_t, D_t] of each table, gradient of per_sample_weights (empty unless asked for)].

    Args:
        args: the fields of `BagsBackward` but for the plan.
    """
    (ids, offsets, per_sample_weights), (tables, modes, padding, _) = args[3:6], args[6:]
    check_call("embedding_bags_dense_grad", weights, ids, offsets, per_sample_weights, tables, modes, padding)
    plan = embedding_bags_plan_reference(ids, offsets, [w.shape[0] for w in weights], tables, padding)
    *values, weights_grad = embedding_bags_grad_reference(weights, *args[:6], *plan, *args[6:])
    out = []
    for weight, value, (begin, end) in zip(weights, values, pairwise(plan[-1].tolist()), strict=True):
        dense = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        dense[plan[0][begin:end].to(torch.int64)] = value
        out.append(dense)
    return [*out, weights_grad]


def update_rows(
    op: str,
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    rows: Sequence[Tensor],
    values: Sequence[Tensor],
    given: Step,
) -> None:
    """One step on rows [U_t] of each table with gradients values [U_t, D_t]; counts the step."""
    rule, max_norm = given.rule, given.max_norm
    count, rate = int(given.step) + 1, float(given.lr)
    check_options(op, rule, rate, count, given.options)
    given.step.fill_(count)
    eps, decay, beta1, beta2 = given.options
    if max_norm > 0:
        squares = [v.to(torch.float64).square().sum() for v in values]
        norm = float(torch.stack(squares).sum().sqrt())
        if norm > max_norm:
            values = [v * (max_norm / norm) for v in values]
    for t, (weight, touched, grads) in enumerate(zip(weights, rows, values, strict=True)):
        salt = rounding_seed(given.seed, count, t)
        if rule == SGD:
            buffer = first[t] if first else None
            sparse_update.sgd_update_reference(weight, buffer, touched, grads, rate, beta1, decay, salt)
        elif rule == ADAGRAD:
            sparse_update.adagrad_update_reference(weight, first[t], touched, grads, rate, eps, decay, salt)
        elif rule == ROWWISE_ADAGRAD:
            sparse_update.rowwise_adagrad_update_reference(weight, first[t], touched, grads, rate, eps, decay, salt)
        elif rule == FTRL:
            states = (first[t], second[t])
            sparse_update.ftrl_update_reference(weight, *states, touched, grads, rate, beta1, beta2, eps, salt)
        else:
            moments = (first[t], second[t])
            sparse_update.adam_update_reference(
                weight, *moments, touched, grads, count, rate, beta1, beta2, eps, decay, salt
            )


def embedding_bags_update_reference(
    weights: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], *args: Any
) -> Tensor:
    """The gradient and one optimizer step; returns the gradient of per_sample_weights (empty unless asked for).

    Args:
        args: the fields of `BagsBackward`, then those of `Step`.
    """
    op, given, step = "embedding_bags_update_", BagsBackward(*args[:-6]), Step(*args[-6:])
    check_update(op, weights, first, second, step)
    *values, weights_grad = _wide_grads(op, weights, given)
    update_rows(op, weights, first, second, touched_rows(given.rows, given.table_starts), values, step)
    return weights_grad
