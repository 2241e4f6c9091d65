"""Schemas and shape functions of the operators, each declared with its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels.embedding_bag.checks import MAX, is_pooled, num_bags
from deeprec.kernels.embedding_bag.reference import (
    embedding_bag_reference,
    embedding_bags_dense_grad_reference,
    embedding_bags_grad_reference,
    embedding_bags_plan_reference,
    embedding_bags_reference,
    embedding_bags_update_reference,
)


def _bags_fake(
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
) -> list[Tensor]:
    batch = num_bags(ids, offsets, len(tables))
    width = sum(weights[t].shape[1] for t, m in zip(tables, modes, strict=True) if is_pooled(m, offsets))
    has_max = MAX in modes and offsets is not None
    out = [weights[0].new_empty(batch, width), ids.new_empty((batch, width) if has_max else (0,))]
    for table, mode in zip(tables, modes, strict=True):
        if not is_pooled(mode, offsets):
            # A lone unpooled feature has all ids; of several, each has as many as the offsets say.
            length = ids.shape[0] if len(tables) == 1 else torch.library.get_ctx().new_dynamic_size()
            out.append(weights[0].new_empty(length, weights[table].shape[1]))
    return out


def _plan_fake(
    ids: Tensor, offsets: Tensor | None, num_embeddings: Sequence[int], tables: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    rows = context.new_dynamic_size()
    position = torch.int32  # a traced batch of 2^31 ids is out of reach; the real operator switches by itself
    entries = context.new_dynamic_size() if any(pad >= 0 for pad in padding) else ids.numel()
    return (
        ids.new_empty(rows),
        ids.new_empty(rows + 1, dtype=position),
        ids.new_empty(entries, dtype=position),
        ids.new_empty(0 if offsets is None else ids.numel(), dtype=position),
        ids.new_empty(len(num_embeddings) + 1, dtype=torch.int64),
    )


def _scale_grad_fake(weights: Sequence[Tensor], per_sample_weights: Tensor | None, is_needed: bool) -> Tensor:
    if per_sample_weights is None or not is_needed:
        return weights[0].new_empty(0)
    return torch.empty_like(per_sample_weights, memory_format=torch.contiguous_format)


def _grad_fake(weights: Sequence[Tensor], *args: Any) -> list[Tensor]:
    per_sample_weights, is_needed = args[5], args[-1]
    context = torch.library.get_ctx()
    values = [w.new_empty(context.new_dynamic_size(), w.shape[1]) for w in weights]
    return [*values, _scale_grad_fake(weights, per_sample_weights, is_needed)]


def _dense_grad_fake(weights: Sequence[Tensor], *args: Any) -> list[Tensor]:
    per_sample_weights, is_needed = args[5], args[-1]
    values = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
    return [*values, _scale_grad_fake(weights, per_sample_weights, is_needed)]


def _update_fake(weights: Sequence[Tensor], first: Any, second: Any, *args: Any) -> Tensor:
    return _scale_grad_fake(weights, args[5], args[14])


def _bag_fake(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: int,
    padding: int,
    include_last_offset: bool,
) -> Tensor:
    batch = ids.shape[0] if offsets is None else offsets.shape[0] - int(include_last_offset)
    return weight.new_empty(batch, weight.shape[1])


_FEATURES = "int[] tables, int[] modes, int[] padding"
_INPUT = "Tensor ids, Tensor? offsets, Tensor? per_sample_weights"
_GRADS = "Tensor grad, Tensor[] sequence_grads, Tensor argmax"
_PLAN = "Tensor rows, Tensor row_offsets, Tensor order, Tensor bags, Tensor table_starts"
_RULE = "int rule, Tensor lr, Tensor(d!) step, float[] options, float max_norm, int seed"
_library.define(
    f"embedding_bags(Tensor[] weights, {_INPUT}, {_FEATURES}) -> Tensor[]", embedding_bags_reference, _bags_fake
)
_library.define(
    f"embedding_bag(Tensor weight, {_INPUT}, int mode, int padding, bool include_last_offset) -> Tensor",
    embedding_bag_reference,
    _bag_fake,
)
_library.define(
    "embedding_bags_plan(Tensor ids, Tensor? offsets, int[] num_embeddings, int[] tables, int[] padding) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    embedding_bags_plan_reference,
    _plan_fake,
)
_library.define(
    f"embedding_bags_grad(Tensor[] weights, {_GRADS}, {_INPUT}, {_PLAN}, {_FEATURES}, bool need_weights_grad) "
    "-> Tensor[]",
    embedding_bags_grad_reference,
    _grad_fake,
)
_library.define(
    f"embedding_bags_dense_grad(Tensor[] weights, {_GRADS}, {_INPUT}, {_FEATURES}, bool need_weights_grad) -> Tensor[]",
    embedding_bags_dense_grad_reference,
    _dense_grad_fake,
)
_library.define(
    f"embedding_bags_update_(Tensor(a!)[] weights, Tensor(b!)[] first, Tensor(c!)[] second, {_GRADS}, {_INPUT}, "
    f"{_PLAN}, {_FEATURES}, bool need_weights_grad, {_RULE}) -> Tensor",
    embedding_bags_update_reference,
    _update_fake,
)
_library.implement_triton(
    "embedding_bag",
    (
        "embedding_bags",
        "embedding_bags_plan",
        "embedding_bags_grad",
        "embedding_bags_dense_grad",
        "embedding_bags_update_",
    ),
)

# Of one table: lists of tables, and what a gradient needs, cost more than short bags.
pool_one: Callable[..., Tensor] = torch.ops.deeprec.embedding_bag.default
