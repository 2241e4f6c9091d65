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
    bounds = offsets[::batch].tolist() if batch else [0] * (len(tables) + 1)
    places = [f for f, mode in enumerate(modes) if mode == NONE]
    count = len(places)
    require(
        len(sequence_grads) == count,
        function,
        f"sequence_grads must be {count}, one for each unpooled feature",
        len(sequence_grads),
    )
    for f, mine in zip(places, sequence_grads, strict=True):
        shape = (bounds[f + 1] - bounds[f], dims[f])
        has_shape = mine.shape == shape and mine.dtype == dtype
        require(has_shape, function, f"the gradient of unpooled feature {f} must be {list(shape)} of {dtype}", mine)


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
        is_one = number.numel() == 1 and number.dtype == dtype and number.device.type == "cpu"
        require(is_one, function, f"{name} must be one {dtype} on the CPU", number)
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
