"""Where the tests of this folder run, and how an operator is compared there with what it means.

The place is a GPU, or its stand-in: tensors on the CPU and Triton's interpreter, in a process of its own that
`tests/kernels/test_triton.py` starts with TRITON_INTERPRET=1. There no C++ kernel is loaded, and the Triton launchers
serve the CPU as they serve a GPU; so the same bodies run in both places, on fewer and smaller cases in the stand-in.

Needs torch, numpy and pytest, nothing else.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

HAS_GPU = torch.cuda.is_available()
STANDS_IN = not HAS_GPU and os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
# Which cases of a grid run: "each" (value), the stand-in's; "pairs" (of values), a GPU's; or "full", all of them, many
# minutes on a GPU and hours in the stand-in.
GRID = os.environ.get("DEEPREC_GPU_GRID") or ("pairs" if HAS_GPU else "each")

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INDICES = [torch.int64, torch.int32]


def _stand_in() -> None:
    """Load the operators as a GPU has them, but for the CPU."""

    def refuse(path: str) -> None:
        raise OSError("the stand-in for a GPU has no C++ kernels")

    # What implement_triton asks for before it registers launchers.
    with mock.patch.object(torch.ops, "load_library", refuse), mock.patch.object(torch.version, "cuda", "interpreter"):
        from deeprec.kernels import _library

        implement = _library.implement

        def implement_here(name: str, device: str, kernel: Callable[..., Any], kind: str = "triton") -> None:
            for each in (device, "cpu"):
                implement(name, each, kernel, kind)

        with mock.patch.object(_library, "implement", implement_here):
            _import_operators()


def _import_operators() -> None:
    import deeprec.kernels

    for package in pkgutil.iter_modules(deeprec.kernels.__path__):
        if package.ispkg:
            importlib.import_module(f"deeprec.kernels.{package.name}")


if STANDS_IN:
    from quick_interpreter import make_quick

    make_quick()
    _stand_in()
else:
    _import_operators()

from deeprec.kernels import _door, _library  # noqa: E402

OPERATORS = {operator.name: operator for operator in _library.operators()}


def on_gpu(*values: Any) -> list[Any]:
    """Values of a parameter that only a GPU is given: too large for the interpreter."""
    return list(values) if HAS_GPU else []


def grid(whole: int = 1, /, **axes: Sequence[Any]) -> Callable[..., Any]:
    """Parametrise by cases of which GRID says how many: each value of each axis, each pair of values, or all.

    Args:
        whole: so many first axes are combined in full where GRID is "each".
    """
    lists = [list(axis) for axis in axes.values()]
    if GRID == "full":
        cases = list(itertools.product(*lists))
    elif GRID == "pairs" and len(lists) > 1:
        cases = _each_pair(lists)
    else:
        cases = _each_value(lists, whole)
    return pytest.mark.parametrize(list(axes), cases, ids=lambda value: str(value).removeprefix("torch.")[:40])


def _each_value(lists: list[list[Any]], whole: int) -> list[tuple[Any, ...]]:
    """The first axes combined; the values of the others come by turns."""
    first = list(itertools.product(*lists[:whole]))
    longest = max(len(first), *map(len, lists))
    # Shifted by one at each turn, so that axes of one length do not always meet in the same pairs.
    turns = [[a[(i + n * (i // len(a))) % len(a)] for n, a in enumerate(lists[whole:])] for i in range(longest)]
    return [(*first[i % len(first)], *turn) for i, turn in enumerate(turns)]


def _each_pair(lists: list[list[Any]]) -> list[tuple[Any, ...]]:
    """Cases in which each value of an axis meets each value of every other axis; about as many as two axes make."""
    sizes = [range(len(axis)) for axis in lists]
    missing = {
        (i, a, j, b) for i, j in itertools.combinations(range(len(lists)), 2) for a in sizes[i] for b in sizes[j]
    }
    cases, used = [], Counter[tuple[int, int]]()
    while missing:
        i, a, j, b = min(missing)
        case = {i: a, j: b}
        for axis in range(len(lists)):
            if axis not in case:
                fresh = {
                    value: sum(_pair(axis, value, k, v) in missing for k, v in case.items()) for value in sizes[axis]
                }
                case[axis] = max(sizes[axis], key=lambda value: (fresh[value], -used[axis, value], -value))
        used.update(case.items())
        missing -= {_pair(k, v, n, w) for (k, v), (n, w) in itertools.combinations(case.items(), 2)}
        cases.append(tuple(lists[axis][case[axis]] for axis in range(len(lists))))
    return cases


def _pair(i: int, a: int, j: int, b: int) -> tuple[int, int, int, int]:
    return (i, a, j, b) if i < j else (j, b, i, a)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, drawn in float64, in a dtype."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(high: int, *shape: int, dtype: torch.dtype = torch.int64, seed: int = 0) -> Tensor:
    """Numbers in [0, high)."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


LAYOUTS = ["contiguous", "columns apart", "part of wider rows", "transposed"]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers in memory of another layout: one of LAYOUTS, or "expanded" (the first row for all)."""
    if layout == "contiguous" or x.dim() == 0:
        return x
    if layout == "transposed":
        return x.T.contiguous().T if x.dim() == 2 else x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded":
        return x[:1].expand(x.shape)
    wider = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 3), 77)
    place = wider[..., 1 : 2 * x.shape[-1] + 1 : 2] if layout == "columns apart" else wider[..., 3 : 3 + x.shape[-1]]
    return place.copy_(x)


def moved(value: Any, device: torch.device | str = DEVICE) -> Any:
    """A copy of a tensor on a device with the memory around it, in the same layout; of all tensors of lists, too.

    A single number stays on the CPU: optimizers give their steps and rates so.
    """
    if isinstance(value, Tensor):
        if value.dim() == 0:
            return value.clone()
        count = value.untyped_storage().nbytes() // value.element_size()
        memory = value.detach().as_strided((count,), (1,), 0).to(device, copy=True)
        return memory.as_strided(value.shape, value.stride(), value.storage_offset())
    if isinstance(value, (list, tuple)):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def wide(value: Any) -> Any:
    """Its floating tensors in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value.clone()
    return [wide(part) for part in value] if isinstance(value, (list, tuple)) else value


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in _flat(part)] if isinstance(value, (list, tuple)) else []


def run(name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> list[Tensor]:
    """Every tensor that a call returns, then every tensor that the operator `name` changes in place."""
    results = _flat(function(*arguments))
    schema = getattr(torch.ops.deeprec, name).default._schema.arguments
    for argument, given in zip(schema, arguments, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            results += _flat(given)
    return results


@contextlib.contextmanager
def launched(*kernels: str) -> Iterator[None]:
    """Fail unless each of these Triton kernels is started meanwhile: that a reference ran is no parity."""
    before = Counter(_door.launches)
    yield
    ran = Counter(_door.launches) - before
    missing = [kernel for kernel in kernels if not ran[kernel]]
    assert not missing, f"{', '.join(missing)} did not run; what ran: {dict(ran)}"


def compare(got: Tensor, like: Tensor, exact: Tensor, terms: float) -> None:
    """`got` may err as far as the reference in its dtype does, by a rounding, and by those of a float32 sum.

    Args:
        like: of the reference in the dtypes of the call; integers must be equal to it.
        exact: of the reference in float64.
        terms: roundings of the accumulator that are allowed, in units of the largest exact value (at least 1).
    """
    assert (got.shape, got.dtype) == (like.shape, like.dtype)
    got = got.cpu()
    if not got.is_floating_point():
        assert torch.equal(got, like)
        return
    if got.numel() == 0:
        return
    assert torch.equal(got.isfinite(), exact.isfinite())
    got, exact, like, dtype = (*(torch.nan_to_num(x.double(), 0, 0, 0) for x in (got, exact, like)), got.dtype)
    one = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    allowed = (like - exact).abs().max() + torch.finfo(dtype).eps * exact.abs()
    allowed = allowed + terms * one * exact.abs().max().clamp(min=1)
    error = (got - exact).abs()
    worst = int((error - allowed).argmax())
    assert bool((error <= allowed).all()), (
        f"{float(got.flatten()[worst])} at {worst}, exactly {float(exact.flatten()[worst])}, "
        f"{float(error.flatten()[worst]):.3g} apart, {float(allowed.flatten()[worst]):.3g} allowed"
    )


def check(
    name: str, *arguments: Any, kernels: Sequence[str] = (), terms: float = 64, device: torch.device | str = DEVICE
) -> list[Tensor]:
    """Run an operator twice in this place: the same bits, and the values of its float64 reference on the CPU.

    Args:
        arguments: on the CPU; they are copied for each run, in their layouts.
        kernels: that must have run, where the operator is served by Triton; see `launched`.
        terms: see `compare`.
    Returns:
        what the reference gives in the dtypes of the arguments: results, then changed arguments.
    """
    operator = OPERATORS[name]
    exact = run(name, operator.reference, [wide(x) for x in arguments])
    like = run(name, operator.reference, [moved(x, "cpu") for x in arguments])
    is_triton = operator.implementation("cuda")[0] == "triton"
    with launched(*(kernels if is_triton else ())):
        got = run(name, getattr(torch.ops.deeprec, name), [moved(x, device) for x in arguments])
    again = run(name, getattr(torch.ops.deeprec, name), [moved(x, device) for x in arguments])
    assert len(got) == len(like)
    for ours, twice, theirs, best in zip(got, again, like, exact, strict=True):
        assert ours.device.type == torch.device(device).type or ours.dim() == 0
        assert torch.equal(ours.nan_to_num(0.5), twice.nan_to_num(0.5)), f"{name}: two runs give other bits"
        compare(ours, theirs, best, terms)
    return like
