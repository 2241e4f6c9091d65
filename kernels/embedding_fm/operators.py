"""The operators of embedding_fm: schemas, references, shape functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels.embedding_bag.checks import num_bags
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.embedding_fm.reference import (
    embedding_fm_dense_grad_reference,
    embedding_fm_grad_reference,
    embedding_fm_reference,
    embedding_fm_update_reference,
)


def _fm_fake(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    tables: Sequence[int],
    padding: Sequence[int],
    need_embeddings: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, dim = num_bags(ids, offsets, len(tables)), weights[0].shape[1]
    return (
        weights[0].new_empty(batch),
        weights[0].new_empty(batch, dim, dtype=wide_dtype(weights[0].dtype)),
        weights[0].new_empty((batch, len(tables), dim) if need_embeddings else (0,)),
    )


def _values_grad_fake(weights: Sequence[Tensor], values: Tensor | None, is_needed: bool) -> Tensor:
    if values is None or not is_needed:
        return weights[0].new_empty(0)
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _grad_fake(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    context = torch.library.get_ctx()
    counts = [context.new_dynamic_size() for _ in weights]
    grads = [w.new_empty(count, *w.shape[1:]) for w, count in zip(weights, counts, strict=True)]
    grads += [w.new_empty(count, *w.shape[1:]) for w, count in zip(linear, counts, strict=False)]
    return [*grads, _values_grad_fake(weights, args[5], args[-1])]


def _dense_grad_fake(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> list[Tensor]:
    grads = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in [*weights, *linear]]
    return [*grads, _values_grad_fake(weights, args[5], args[-1])]


def _update_fake(weights: Sequence[Tensor], linear: Any, first: Any, second: Any, *args: Any) -> Tensor:
    return _values_grad_fake(weights, args[5], args[13])


_INPUT = "Tensor ids, Tensor? offsets, Tensor? values"
_GRADS = "Tensor grad, Tensor sums, Tensor? embeddings_grad"
_PLAN = "Tensor rows, Tensor row_offsets, Tensor order, Tensor bags, Tensor table_starts"
_FEATURES = "int[] tables, int[] padding"
_library.define(
    f"embedding_fm(Tensor[] weights, Tensor[] linear, {_INPUT}, {_FEATURES}, bool need_embeddings) "
    "-> (Tensor out, Tensor sums, Tensor embeddings)",
    embedding_fm_reference,
    _fm_fake,
)
_library.define(
    f"embedding_fm_grad(Tensor[] weights, Tensor[] linear, {_GRADS}, {_INPUT}, {_PLAN}, {_FEATURES}, "
    "bool need_values_grad) -> Tensor[]",
    embedding_fm_grad_reference,
    _grad_fake,
)
_library.define(
    f"embedding_fm_dense_grad(Tensor[] weights, Tensor[] linear, {_GRADS}, {_INPUT}, {_FEATURES}, "
    "bool need_values_grad) -> Tensor[]",
    embedding_fm_dense_grad_reference,
    _dense_grad_fake,
)
_library.define(
    "embedding_fm_update_(Tensor(a!)[] weights, Tensor(b!)[] linear, Tensor(c!)[] first, Tensor(d!)[] second, "
    f"{_GRADS}, {_INPUT}, {_PLAN}, {_FEATURES}, bool need_values_grad, int rule, Tensor lr, Tensor(e!) step, "
    "float[] options, float max_norm, int seed) -> Tensor",
    embedding_fm_update_reference,
    _update_fake,
)
_library.implement_triton(
    "embedding_fm", ("embedding_fm", "embedding_fm_grad", "embedding_fm_dense_grad", "embedding_fm_update_")
)
