"""Sums by index are in order: on a GPU no reference, and no formula of a derivative, leaves it to atomic operations."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from deeprec.kernels import _library, sums
from deeprec.nn.attention import PairAttention


def _module(place: str) -> ModuleType:
    path = Path(__file__).parent / place
    spec = importlib.util.spec_from_file_location(f"sums_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


UNORDERED = _module("../proofs/unordered.py")
DERIVATIVES = _module("test_derivatives.py")


class InOrder(TorchDispatchMode):
    """Refuses what would sum in no fixed order on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if UNORDERED.is_unordered_sum(func, args, kwargs):
            raise AssertionError(f"{func} sums in no fixed order on a GPU; use deeprec.kernels.sums")
        if UNORDERED.is_unordered_write(func, args, kwargs):
            assert writes_the_same_backwards(args), f"{func} writes several values to one place"
        return func(*args, **kwargs)


def writes_the_same_backwards(args: Any) -> bool:
    """Whether the order in which `index_put_(out, indices, values)` or `index_copy_(out, 0, index, values)` writes is
    nothing to it."""
    out, index, values = args[:3] if isinstance(args[1], (list, tuple)) else (args[0], [args[2]], args[3])
    forwards, backwards = out.clone(), out.clone()
    forwards[tuple(index)] = values
    values = values.expand(out[tuple(index)].shape)
    backwards[tuple(places.flip(0) for places in index)] = values.flip(0)
    return torch.allclose(forwards, backwards, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are taken here as on a device whose plain operators keep no order."""
    monkeypatch.setattr(sums, "_adds_in_order", lambda x: False)


def copied(arguments: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("index_add", (torch.zeros(3), 0, torch.tensor([0, 0]), torch.ones(2))),
        ("scatter_add", (torch.zeros(3), 0, torch.tensor([0, 0]), torch.ones(2))),
        ("scatter_reduce", (torch.zeros(3), 0, torch.tensor([0, 0]), torch.ones(2), "sum")),
        ("cumsum", (torch.ones(3), 0)),
        ("bincount", (torch.tensor([0, 0]), torch.ones(2))),
    ],
)
def test_refusal_notices_sums_without_an_order(name: str, arguments: tuple[Any, ...]) -> None:
    with InOrder(), pytest.raises(AssertionError, match="no fixed order"):
        getattr(torch, name)(*arguments)


def test_refusal_notices_several_values_for_one_place() -> None:
    at = torch.tensor([0, 0])
    with InOrder():
        torch.zeros(3).index_put_((at,), torch.ones(2))
        for write in (lambda x: x.index_copy_(0, at, x[:2]), lambda x: x.index_put_((at,), x[:2])):
            with pytest.raises(AssertionError, match="several values"):
                write(torch.arange(3.0))


def test_refusal_passes_sums_of_whole_numbers_and_those_in_order() -> None:
    at = torch.tensor([0, 0])
    with InOrder():
        torch.zeros(3, dtype=torch.int64).index_add_(0, at, torch.ones_like(at)).cumsum(0)
        torch.zeros(3).index_put_((at,), torch.ones(2), accumulate=True)
        torch.zeros(3).scatter_reduce(0, at, torch.ones(2), "amax")


@pytest.mark.parametrize("name", [operator.name for operator in _library.operators()])
def test_reference_sums_in_order(
    name: str, samples: dict[str, list[tuple[Any, ...]]], request: pytest.FixtureRequest
) -> None:
    """And the sums are those of the CPU."""
    reference = next(operator.reference for operator in _library.operators() if operator.name == name)
    calls = [copied(arguments) for arguments in samples[name]]
    wants = [reference(*arguments) for arguments in copied(calls)]
    request.getfixturevalue("as_elsewhere")
    for arguments, want in zip(calls, wants, strict=True):
        with InOrder():
            got = reference(*arguments)
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("name", DERIVATIVES.CASES)
@pytest.mark.usefixtures("as_elsewhere")
def test_derivatives_of_every_kind_sum_in_order(name: str) -> None:
    case = DERIVATIVES.CASES[name]
    torch.manual_seed(0)
    inputs = tuple(DERIVATIVES.random(*shape) for shape in case.shapes)

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return DERIVATIVES.tensors(case.call(False, *inputs))  # type: ignore[no-any-return]

    def loss(*inputs: Tensor) -> Tensor:
        return DERIVATIVES.total(case.call(True, *inputs))  # type: ignore[no-any-return]

    with InOrder():
        for sparse in (False, True):
            total = DERIVATIVES.total(case.call(sparse, *inputs))
            firsts = torch.autograd.grad(total, inputs, create_graph=True)
            squares = [first.to_dense().square().sum() for first in firsts]
            torch.autograd.grad(sum(squares[1:], squares[0]), inputs)
            torch.autograd.grad(DERIVATIVES.total(case.call(sparse, *inputs)), inputs)
        torch.func.grad(loss, tuple(range(len(inputs))))(*inputs)
        torch.func.jvp(loss, inputs, inputs)
    how = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(call, inputs, fast_mode=True, **how)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_add_rows_is_index_add(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, index = torch.randn(shape), torch.tensor([4, 0, 4, 4, 1, 0, 4], dtype=dtype)
    out = torch.randn(5, *shape[1:])
    want = out.index_add(0, index, rows)
    assert torch.equal(sums.add_rows(out.clone(), index, rows), want)
    monkeypatch.setattr(sums, "_adds_in_order", lambda x: False)
    mine = out.clone()
    assert sums.add_rows(mine, index, rows) is mine
    torch.testing.assert_close(mine, want)


@pytest.mark.parametrize("dim", [0, 1])
def test_take_is_index_select_and_its_gradient(dim: int, request: pytest.FixtureRequest) -> None:
    x, index = torch.randn(4, 4, 3, dtype=torch.float64, requires_grad=True), torch.tensor([3, 0, 3, 3])
    (want,) = torch.autograd.grad(sums.take(x, dim, index).pow(2).sum(), x)
    request.getfixturevalue("as_elsewhere")
    with InOrder():
        out = sums.take(x, dim, index)
        (got,) = torch.autograd.grad(out.pow(2).sum(), x)
    assert torch.equal(out, x.index_select(dim, index))
    torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("as_elsewhere")
def test_pair_attention_sums_in_order() -> None:
    layer = PairAttention(3, 2).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    with InOrder():
        (first,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
        torch.autograd.grad(first.square().sum(), x)
        torch.func.grad(lambda y: layer(y).sum())(x)
    assert gradcheck(layer, (x,), fast_mode=True, check_forward_ad=True)


@pytest.mark.usefixtures("as_elsewhere")
@pytest.mark.parametrize("length", [0, 1, 5])
def test_running_sums_are_cumsum(length: int) -> None:
    x = torch.randn(3, length, 2)
    torch.testing.assert_close(sums.running_sums(x, 1), x.cumsum(1))
