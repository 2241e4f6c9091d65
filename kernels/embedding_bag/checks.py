"""What the operators over several tables ask of their arguments; the C++ wrappers ask the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels._checks import check_entries, check_layout, check_tables, require
from deeprec.kernels.embedding_bag.backward import BagsBackward, Step
from deeprec.kernels.plan_check.reference import require_safe
from deeprec.kernels.sparse_update.checks import check_options

SUM, MEAN, MAX, NONE = range(4)
SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM, FTRL = range(5)


def num_bags(ids: Tensor, offsets: Tensor | None, num_features: int) -> int:
    """B, from the shape of ids [F, B] or of offsets [F * B + 1]."""
    return ids.shape[1] if offsets is None else (offsets.shape[0] - 1) // max(num_features, 1)


def is_pooled(mode: int, offsets: Tensor | None) -> bool:
    """Whether a feature has columns in the pooled result; without offsets a bag is one id, and all features have."""
    return mode != NONE or offsets is None


def check_call(
    function: str,
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    scale: Tensor | None,
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
) -> None:
    """What a lookup asks."""
    check_tables(function, weights)
    check_layout(function, ids, offsets, tables, padding, len(weights))
    require(len(modes) == len(tables), function, f"modes must have one entry a feature ({len(tables)})", list(modes))
    for mode in modes:
        require(0 <= mode <= NONE, function, "modes must be 0 (sum), 1 (mean), 2 (max) or 3 (none)", mode)
        require(scale is None or mode != NONE, function, "per_sample_weights go with pooled features only", mode)
    check_entries(function, "per_sample_weights", scale, ids, weights[0].dtype)


def check_grads(function: str, weights: Sequence[Tensor], given: BagsBackward) -> None:
    """What the gradients of a checked call must look like."""
    grad, sequence_grads, argmax, ids, offsets, *_ = given
    tables, modes = given.tables, given.modes
    batch, dtype = num_bags(ids, offsets, len(tables)), weights[0].dtype
    dims = [weights[table].shape[1] for table in tables]
    width = sum(dim for dim, mode in zip(dims, modes, strict=True) if is_pooled(mode, offsets))
    has_shape = grad.shape == (batch, width) and grad.dtype == dtype
    require(has_shape, function, f"grad must be [{batch}, {width}] of {dtype}", grad)
    if offsets is None:
        return
    if MAX in modes:
        has_shape = argmax.shape == (batch, width) and argmax.dtype == ids.dtype
        require(has_shape, function, "argmax must be the second result of embedding_bags", argmax)
    places = [f for f, mode in enumerate(modes) if mode == NONE]
    count = len(places)
    require(
        len(sequence_grads) == count,
        function,
        f"sequence_grads must be {count}, one for each unpooled feature",
        len(sequence_grads),
    )
    lengths = _unpooled_lengths(given, batch, sequence_grads, places)
    for f, length, mine in zip(places, lengths, sequence_grads, strict=True):
        has_shape = mine.shape == (length, dims[f]) and mine.dtype == dtype
        requirement = f"the gradient of unpooled feature {f} must be [{length}, {dims[f]}] of {dtype}"
        require(has_shape, function, requirement, mine)


def _unpooled_lengths(
    given: BagsBackward, batch: int, sequence_grads: Sequence[Tensor], places: Sequence[int]
) -> list[int]:
    """Entries of each unpooled feature; on a GPU, where only the offsets know, what the gradients say of several."""
    assert given.offsets is not None
    if len(given.tables) == 1:
        return [given.ids.shape[0]] * len(places)
    if given.offsets.device.type != "cpu":
        return [mine.shape[0] if mine.dim() else 0 for mine in sequence_grads]
    bounds = given.offsets[::batch].tolist() if batch else [0] * (len(given.tables) + 1)
    return [bounds[f + 1] - bounds[f] for f in places]


def check_plan(
    function: str,
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    tables: Sequence[int],
    plan: Sequence[Tensor],
) -> None:
    """A plan leads nowhere but into the tensors of a checked call."""
    require_safe(function, ids, offsets, [weight.shape[0] for weight in weights], tables, plan)


def check_update(
    function: str,
    tables: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    given: Step,
) -> None:
    """What an optimizer's step asks of its states and options; `tables` are [R, D], of linear weights [R, 1]."""
    rule, options = given.rule, given.options
    require(
        SGD <= rule <= FTRL,
        function,
        "rule must be 0 (SGD), 1 (Adagrad), 2 (row-wise Adagrad), 3 (Adam) or 4 (FTRL)",
        rule,
    )
    for name, number, dtype in (("lr", given.lr, torch.float64), ("step", given.step, torch.int64)):
        is_one = number.numel() == 1 and number.dtype == dtype
        require(is_one, function, f"{name} must be one {dtype}", number)
    where = "on the CPU, or both on the device of the tables"
    require(given.lr.device.type == given.step.device.type, function, f"lr and step must be {where}", given.step.device)
    require(len(options) == 4, function, "options must be eps, weight_decay, beta1 and beta2", list(options))
    count = len(tables)
    num_first = count if rule != SGD or first else 0
    num_second = count if rule in (ADAM, FTRL) else 0
    require(
        (len(first), len(second)) == (num_first, num_second),
        function,
        f"this rule needs {num_first} and {num_second} states for {count} tables",
        (len(first), len(second)),
    )
    for states in (first, second):
        for table, state in zip(tables, states, strict=False):
            wide = torch.float64 if table.dtype == torch.float64 else torch.float32
            numel = table.shape[0] if rule == ROWWISE_ADAGRAD and states is first else table.numel()
            has_shape = state.numel() == numel and state.dtype == wide and state.is_contiguous()
            require(has_shape, function, f"a state of {list(table.shape)} must be {numel} numbers of {wide}", state)
    for table in tables:
        require(table.is_contiguous(), function, "tables must be contiguous", table.stride())


def check_numbers(function: str, **numbers: Any) -> None:
    """Raise ValueError for a number that is NaN or infinite."""
    for name, number in numbers.items():
        require(math.isfinite(number), function, f"{name} must be finite", number)


def check_plan_call(
    ids: Tensor, offsets: Tensor | None, num_embeddings: Sequence[int], tables: Sequence[int], padding: Sequence[int]
) -> None:
    """What embedding_bags_plan asks."""
    for size in num_embeddings:
        require(size >= 0, "embedding_bags_plan", "num_embeddings must be >= 0", size)
    check_layout("embedding_bags_plan", ids, offsets, tables, padding, len(num_embeddings))


def check_backward(function: str, weights: Sequence[Tensor], given: BagsBackward) -> None:
    """What a gradient with a plan asks."""
    ids, offsets, scale = given.ids, given.offsets, given.per_sample_weights
    check_call(function, weights, ids, offsets, scale, given.tables, given.modes, given.padding)
    check_grads(function, weights, given)
    check_plan(function, weights, ids, offsets, given.tables, given.plan)


def check_step_numbers(function: str, given: Step) -> None:
    """The numbers of the step after `given.step`; those on a GPU are taken as they are."""
    if given.lr.device.type == "cpu":
        check_options(function, given.rule, float(given.lr), int(given.step) + 1, given.options)
    else:
        check_options(function, given.rule, 1.0, 1, given.options)


def _check_embedding_bags(*args: Any) -> None:
    check_call("embedding_bags", *args)


def _check_grad(weights: Sequence[Tensor], *args: Any) -> None:
    check_backward("embedding_bags_grad", weights, BagsBackward(*args))


def _check_dense_grad(weights: Sequence[Tensor], *args: Any) -> None:
    op = "embedding_bags_dense_grad"
    check_call(op, weights, *args[3:9])
    fields: list[Any] = [*args[:6], *[args[3]] * 5, *args[6:]]  # of the plan, which is not looked at
    check_grads(op, weights, BagsBackward(*fields))


def _check_update_call(
    weights: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], *args: Any
) -> None:
    op, given, step = "embedding_bags_update_", BagsBackward(*args[:-6]), Step(*args[-6:])
    check_update(op, weights, first, second, step)
    check_backward(op, weights, given)
    check_step_numbers(op, step)


CHECKS = {
    "embedding_bags": _check_embedding_bags,
    "embedding_bags_plan": check_plan_call,
    "embedding_bags_grad": _check_grad,
    "embedding_bags_dense_grad": _check_dense_grad,
    "embedding_bags_update_": _check_update_call,
}
