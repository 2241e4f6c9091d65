"""What the operators of embedding_fm ask of their arguments; the C++ wrappers ask the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deeprec.kernels._checks import check_entries, check_layout, check_tables, require
from deeprec.kernels.embedding_bag.backward import Step
from deeprec.kernels.embedding_bag.checks import check_plan, check_step_numbers, check_update, num_bags
from deeprec.kernels.embedding_fm.backward import FMBackward
from deeprec.kernels.sparse_update.checks import wide_dtype


def check_call(
    function: str,
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    tables: Sequence[int],
    padding: Sequence[int],
) -> None:
    """What a lookup asks."""
    check_tables(function, weights)
    check_layout(function, ids, offsets, tables, padding, len(weights))
    first = weights[0]
    require(first.shape[1] >= 1, function, "weights must have at least one column", first)
    for weight in weights:
        require(weight.shape[1] == first.shape[1], function, f"weights must be of one D ({first.shape[1]})", weight)
    count = len(weights)
    require(len(linear) in (0, count), function, f"linear must be empty or have {count} tables", len(linear))
    for weight, mine in zip(weights, linear, strict=False):
        rows = weight.shape[0]
        has_shape = mine.shape in ((rows,), (rows, 1)) and mine.dtype == first.dtype
        require(has_shape, function, f"linear must be [{rows}] or [{rows}, 1] of {first.dtype}", mine)
    check_entries(function, "values", values, ids, first.dtype)


def _check_grads(function: str, weights: Sequence[Tensor], given: FMBackward) -> None:
    """What the gradients of a checked call must look like."""
    grad, sums, embeddings_grad, ids, offsets, *_ = given
    num_features = len(given.tables)
    batch = num_bags(ids, offsets, num_features)
    dtype, wide, dim = weights[0].dtype, wide_dtype(weights[0]), weights[0].shape[1]
    requirement = f"grad must be [{batch}] of {dtype}"
    require(grad.shape == (batch,) and grad.dtype == dtype, function, requirement, grad)
    requirement = f"sums must be the second result of embedding_fm, [{batch}, {dim}] of {wide}"
    require(sums.shape == (batch, dim) and sums.dtype == wide, function, requirement, sums)
    if embeddings_grad is not None:
        shape = (batch, num_features, dim)
        has_shape = embeddings_grad.shape == shape and embeddings_grad.dtype == dtype
        require(has_shape, function, f"embeddings_grad must be {list(shape)} of {dtype}", embeddings_grad)


def check_backward(function: str, weights: Sequence[Tensor], linear: Sequence[Tensor], given: FMBackward) -> None:
    """What a gradient with a plan asks."""
    check_call(function, weights, linear, given.ids, given.offsets, given.values, given.tables, given.padding)
    _check_grads(function, weights, given)
    check_plan(function, weights, given.ids, given.offsets, given.tables, given.plan)


def _check_embedding_fm(*args: Any) -> None:
    check_call("embedding_fm", *args[:-1])


def _check_grad(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> None:
    check_backward("embedding_fm_grad", weights, linear, FMBackward(*args))


def _check_dense_grad(weights: Sequence[Tensor], linear: Sequence[Tensor], *args: Any) -> None:
    op = "embedding_fm_dense_grad"
    check_call(op, weights, linear, *args[3:8])
    fields: list[Any] = [*args[:6], *[args[3]] * 5, *args[6:]]  # of the plan, which is not looked at
    _check_grads(op, weights, FMBackward(*fields))


def _check_update_call(
    weights: Sequence[Tensor], linear: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], *args: Any
) -> None:
    op, given, step = "embedding_fm_update_", FMBackward(*args[:-6]), Step(*args[-6:])
    check_update(op, [*weights, *(w.reshape(-1, 1) for w in linear)], first, second, step)
    check_backward(op, weights, linear, given)
    check_step_numbers(op, step)


CHECKS = {
    "embedding_fm": _check_embedding_fm,
    "embedding_fm_grad": _check_grad,
    "embedding_fm_dense_grad": _check_dense_grad,
    "embedding_fm_update_": _check_update_call,
}
