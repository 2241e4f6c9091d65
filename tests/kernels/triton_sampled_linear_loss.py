"""Triton kernels of the two sparse layers under the interpreter; run by test_triton.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deeprec.kernels.embedding_bag import triton_kernels as bags
from deeprec.kernels.faults import raise_faults
from deeprec.kernels.sampled_linear_loss import triton_kernels
from deeprec.kernels.sampled_linear_loss.reference import entry_losses, sampled_linear_loss_reference

_spec = importlib.util.spec_from_file_location("sparse_cases", Path(__file__).with_name("test_sampled_linear_loss.py"))
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = cases
_spec.loader.exec_module(cases)

LENGTHS = [3, 0, 64, 1, 130, 0]  # rows of no piece, one whole piece, several
ONE = ([0], [0], [-1])
KINDS = [(cases.ACTIVATIONS.index(a), cases.LOSSES.index(k)) for a, k in cases.KINDS]


def check(problem: cases.Problem, kind: tuple[int, int], need_grad: bool, with_all: bool) -> None:
    """Shapes and dtypes of the reference, and its values in float64."""
    p, tolerance = problem, cases.TOLERANCE[problem.hidden.dtype]
    rest = (p.indptr, p.indices, p.targets)
    own, weights = [t.detach() for t in (p.hidden, p.weight, p.bias)], p.weights
    wide = [t.double() for t in own]
    if not with_all:
        own[2], wide[2], weights = None, None, None
    got = triton_kernels.sampled_linear_loss(*own, *rest, weights, *kind, need_grad)
    like = sampled_linear_loss_reference(*own, *rest, weights, *kind, need_grad)
    given = (*rest[:2], p.targets.double(), None if weights is None else weights.double())
    want = sampled_linear_loss_reference(*wide, *given, *kind, need_grad)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in like]
    for ours, theirs in zip(got, want, strict=True):
        cases.close(ours, theirs, 2 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_matches_the_reference(kind: tuple[int, int]) -> None:
    problem = cases.Problem.make(LENGTHS, 25, 20, torch.float32, torch.int64)
    check(problem, kind, True, True)


# Odd widths in one type: alignment is what they are about.
WIDTHS = [(dim, dtype) for dtype in cases.TOLERANCE for dim in (1, 12, 500)]


@pytest.mark.parametrize(("dim", "dtype"), [*WIDTHS, *((dim, torch.float32) for dim in (7, 33, 515))])
def test_every_width_and_type_matches_the_reference(dim: int, dtype: torch.dtype) -> None:
    index = torch.int32 if dim % 2 else torch.int64
    check(cases.Problem.make([3, 0, 70], 25, dim, dtype, index), (1, 0), True, True)
    check(cases.Problem.make([5, 1], 25, dim, dtype, index), (0, 0), dim == 7, False)


def test_a_second_run_gives_the_same_bits() -> None:
    p = cases.Problem.make(LENGTHS, 25, 20, torch.float32, torch.int64)
    own = [t.detach() for t in (p.hidden, p.weight, p.bias)]
    runs = [
        triton_kernels.sampled_linear_loss(*own, p.indptr, p.indices, p.targets, p.weights, 1, 0, True)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("lengths", [[], [0, 0], [200]])
def test_no_rows_no_entries_and_one_row(lengths: list[int]) -> None:
    check(cases.Problem.make(lengths, 25, 8, torch.float32, torch.int64), (1, 1), True, True)


def test_any_layout() -> None:
    problem = cases.Problem.make([5, 70], 25, 16, torch.float32, torch.int64)
    problem.hidden = problem.hidden.detach().t().contiguous().t()
    problem.weight = torch.randn(25, 48)[:, 16:32]
    problem.bias = torch.randn(25, 3)[:, 1]
    problem.targets = torch.randn(75, 2)[:, 0]
    check(problem, (2, 0), True, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_extreme_and_of_tiny_logits(dtype: torch.dtype) -> None:
    size = torch.logspace(-9, 2.5, 40, dtype=dtype)
    z = torch.cat([-size, torch.zeros(1, dtype=dtype), size])
    indptr, indices = torch.tensor([0, len(z)]), torch.arange(len(z))
    for activation, loss in KINDS:
        y = torch.where(torch.arange(len(z)) % 2 == 0, 1.0, 0.0 if loss == 1 else -1.0).to(dtype)
        arguments = (torch.ones(1, 1, dtype=dtype), z[:, None], None, indptr, indices, y, None, activation, loss, False)
        _, a, slopes, _ = triton_kernels.sampled_linear_loss(*arguments)
        _, want, want_slopes = entry_losses(z.double(), y.double(), activation, loss)
        eps = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(a.double(), want, rtol=eps, atol=1e-40)
        torch.testing.assert_close(slopes.double(), want_slopes, rtol=eps, atol=eps)


@pytest.mark.parametrize("bad", [-1, 25])
def test_a_bad_column_is_refused(bad: int) -> None:
    problem = cases.Problem.make([3, 4], 25, 8, torch.float32, torch.int64)
    problem.indices[5] = bad
    with pytest.raises(IndexError, match="indices must be in"):  # the reference, which comes second
        check(problem, (0, 0), True, True)
    with pytest.raises(IndexError, match="indices must be in"):
        raise_faults()


@pytest.mark.parametrize("indptr", [[0, 5, 4], [1, 3, 7], [0, 3, 6]])
def test_rows_that_are_not_whole_are_refused(indptr: list[int]) -> None:
    problem = cases.Problem.make([3, 4], 25, 8, torch.float32, torch.int64)
    problem.indptr = torch.tensor(indptr)
    with pytest.raises(ValueError, match="indptr must ascend"):  # the reference, which comes second
        check(problem, (0, 0), True, True)
    with pytest.raises(ValueError, match="indptr must ascend"):
        raise_faults()


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 20), (torch.float64, 7), (torch.bfloat16, 16)])
def test_gradients_of_weight_and_bias_are_those_of_the_bags(dtype: torch.dtype, dim: int) -> None:
    """What the backward pass calls, with values and a plan: all of it on Triton."""
    p = cases.Problem.make(LENGTHS, 25, dim, dtype, torch.int64)
    plan = bags.embedding_bags_plan(p.indices, p.indptr, [25], [0], [-1])
    hidden, weight, bias = (t.detach() for t in (p.hidden, p.weight, p.bias))
    call = (p.indptr, p.indices, p.targets, p.weights)
    _, _, slopes, _ = triton_kernels.sampled_linear_loss(hidden, weight, bias, *call, 1, 0, True)
    _, _, (_, want_weight, want_bias) = p.exact("sigmoid", "squared")
    positions = (p.indices[:0], p.indices, p.indptr, slopes.to(dtype))

    def of(table: Tensor, grad: Tensor) -> Tensor:
        some, _ = bags.embedding_bags_grad([table], grad, [], *positions, *plan, *ONE, False)
        return torch.zeros(table.shape, dtype=torch.float64).index_copy(0, plan[0].long(), some.double())

    cases.close(of(weight, hidden), want_weight, 3 * cases.TOLERANCE[dtype])
    ones = hidden.new_ones(()).expand(hidden.shape[0], 1)
    cases.close(of(bias.view(-1, 1), ones)[:, 0], want_bias, 3 * cases.TOLERANCE[dtype])


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 19), (torch.float64, 16), (torch.float16, 40)])
def test_sparse_linear_and_its_gradients_are_those_of_the_bags(dtype: torch.dtype, dim: int) -> None:
    p = cases.Problem.make(LENGTHS, 25, dim, dtype, torch.int32)
    weight, values, grad = p.weight.detach(), p.weights.to(dtype), p.hidden.detach()
    positions = (p.indices, p.indptr, values)
    out, *_ = bags.embedding_bags([weight], *positions, *ONE)
    dense = torch.zeros(len(LENGTHS), 25, dtype=torch.float64)
    dense.index_put_((p.rows(), p.indices.long()), values.double(), accumulate=True)
    cases.close(out, dense @ weight.double(), 3 * cases.TOLERANCE[dtype])
    plan = bags.embedding_bags_plan(p.indices, p.indptr, [25], [0], [-1])
    some, of_values = bags.embedding_bags_grad([weight], grad, [], p.indices[:0], *positions, *plan, *ONE, True)
    wide = torch.zeros(25, dim, dtype=torch.float64).index_copy(0, plan[0].long(), some.double())
    cases.close(wide, dense.t() @ grad.double(), 3 * cases.TOLERANCE[dtype])
    want = (grad.double()[p.rows()] * weight.double()[p.indices.long()]).sum(1)
    cases.close(of_values, want, 3 * cases.TOLERANCE[dtype])
