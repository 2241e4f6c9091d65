"""References and compiled kernels accept and refuse the same arguments, and give the same results for them.

A fast path that relies on an operator refusing an argument would otherwise be wrong without the compiled library. Every
operator is driven with the samples of its opcheck test, of which one argument at a time is spoiled: tensors of another
shape, dtype or layout, indices out of range, numbers without meaning. Whoever refuses has changed nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprec.kernels import _library

_REFUSALS = (ValueError, IndexError, TypeError, RuntimeError)


def _tensors(given: Tensor) -> Iterator[tuple[str, Any]]:
    yield "float64", given.double()
    yield "float16", given.half()
    yield "int64", given.long()
    yield "bool", given.bool()
    yield "a dimension more", given.unsqueeze(0)
    if given.dim():
        yield "one longer", torch.cat([given, given[:1] if given.shape[0] else given.new_zeros(1, *given.shape[1:])])
        yield "one shorter", given[:-1]
        yield "empty", given[:0]
        yield "flat", given.reshape(-1)
        yield "strided", torch.stack([given, given], -1)[..., 0]
        yield "reversed", given.flip(0)
    if given.dim() == 2:
        yield "one wider", torch.cat([given, given[:, :1]], 1)
        yield "one narrower", given[:, :-1]
        yield "transposed", given.t()
        yield "by columns", given.t().contiguous().t()
    if given.numel():
        numbers = [-1, 0, 1, 1000, 2**31 - 1] if not given.is_floating_point() else [math.nan, math.inf, -1.0]
        for number in numbers if given.dtype != torch.bool else ():
            spoiled = given.clone(memory_format=torch.contiguous_format)
            spoiled.view(-1)[spoiled.numel() // 2] = number
            yield f"{number} in the middle", spoiled
            spoiled = given.clone(memory_format=torch.contiguous_format)
            spoiled.view(-1)[-1] = number
            yield f"{number} at the end", spoiled


def _spoiled(given: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(given, Tensor):
        yield from _tensors(given)
    elif isinstance(given, (list, tuple)):
        yield "no entry", given[:0]
        yield "an entry more", [*given, *given[:1]]
        yield "an entry less", given[:-1]
        for place in {0, len(given) - 1} if given else ():
            for name, some in _spoiled(given[place]):
                if some is not None:
                    yield f"entry {place}: {name}", [*given[:place], some, *given[place + 1 :]]
    elif isinstance(given, bool):
        yield str(not given), not given
    elif isinstance(given, int):
        for number in (-(2**40), -2, -1, 0, 1, 3, 99, 2**31, 2**40):
            yield str(number), number
    elif isinstance(given, float):
        for value in (math.nan, math.inf, -math.inf, -1.0, 0.0, 1.0, 2.0):
            yield str(value), value


# Whose values mean nothing once they are spoiled, so that only acceptance is compared: a plan that does not group the
# ids, users' lists out of order.
_MEANINGLESS = {"rows", "row_offsets", "offsets", "order", "bags", "table_starts", "indices", "seen_indices"}


def _outcome(function: Callable[..., Any], arguments: list[Any]) -> tuple[Any, Exception | None, list[Any]]:
    """Result, refusal, and the arguments as they are afterwards."""
    mine = copy.deepcopy(arguments)
    try:
        return function(*mine), None, mine
    except _REFUSALS as error:
        return None, error, mine


def _is_close(mine: Any, other: Any) -> bool:
    if isinstance(mine, Tensor):
        has_shape = mine.shape == other.shape and mine.dtype == other.dtype
        return has_shape and torch.allclose(mine.double(), other.double(), rtol=1e-3, atol=1e-4, equal_nan=True)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(other) and all(map(_is_close, mine, other))
    return bool(mine == other or (mine != mine and other != other))


def _is_finite(given: Any) -> bool:
    if isinstance(given, Tensor):
        return bool(given.isfinite().all())
    if isinstance(given, (list, tuple)):
        return all(map(_is_finite, given))
    return not isinstance(given, float) or math.isfinite(given)


@pytest.mark.parametrize("operator", _library.operators(), ids=lambda operator: operator.name)
def test_reference_and_kernel_agree_on_spoiled_arguments(
    operator: _library.Operator, samples: dict[str, list[tuple[Any, ...]]]
) -> None:
    kernel = getattr(torch.ops.deeprec, operator.name)
    names = [argument.name for argument in kernel.default._schema.arguments]
    count = 0
    for sample in samples[operator.name]:
        for place, right in enumerate(sample):
            for how, spoiled in _spoiled(right):
                arguments = [*sample[:place], spoiled, *sample[place + 1 :]]
                mine, refused, after = _outcome(kernel, arguments)
                other, other_refused, other_after = _outcome(operator.reference, arguments)
                case = f"{operator.name}, {names[place]}: {how}: kernel {refused!r}, reference {other_refused!r}"
                assert (refused is None) == (other_refused is None), case
                if refused is not None:
                    assert _is_close(after, arguments), f"{case}: the kernel changed something first"
                    assert _is_close(other_after, arguments), f"{case}: the reference changed something first"
                elif names[place] not in _MEANINGLESS and _is_finite(spoiled):
                    assert _is_close(mine, other), case
                    assert _is_close(after, other_after), f"{case}: left other values behind"
                count += 1
    assert count > 20, f"no arguments of {operator.name} were spoiled"
