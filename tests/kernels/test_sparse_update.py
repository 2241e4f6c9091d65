"""Claims about the fused row updates on the CPU: against the references in float64, and what they must not do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import deeprec.kernels.sparse_update as ops
from deeprec.kernels.sparse_update import reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RULE = (0.9, 0.999, 1e-8)
NAMES = ("sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl", "adam_dense")


class Problem:
    """A table, its states some way into training, and a gradient for some of its rows."""

    def __init__(
        self,
        num_rows: int,
        dim: int,
        dtype: torch.dtype,
        seed: int = 0,
        index: torch.dtype = torch.int64,
        step: int = 40,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.weight = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64).to(dtype)
        self.first = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64).to(self.state_dtype)
        self.second = torch.rand(num_rows, dim, generator=generator, dtype=torch.float64).to(self.state_dtype)
        self.row_state = self.second[:, :1].sum(1).contiguous()
        self.last_step = torch.randint(0, step, (num_rows,), generator=generator, dtype=torch.int32)
        untouched = self.last_step == 0
        self.first[untouched] = 0
        self.second[untouched] = 0
        self.lr_history = torch.rand(step, generator=generator, dtype=torch.float64) * 0.01
        self.step = step
        self.rows = (torch.rand(num_rows, generator=generator) < 0.6).nonzero().flatten().to(index)
        self.grads = torch.randn(len(self.rows), dim, generator=generator, dtype=torch.float64).to(dtype)

    def arguments(self, name: str, decay: float) -> tuple[object, ...]:
        w, m, v, rows, grads = self.weight, self.first, self.second, self.rows, self.grads
        return {
            "sgd": (w, None, rows, grads, 0.1, 0.0, decay),
            "momentum": (w, m, rows, grads, 0.1, 0.9, decay),
            "adagrad": (w, v, rows, grads, 0.1, 1e-10, decay),
            "rowwise_adagrad": (w, self.row_state, rows, grads, 0.1, 1e-10, decay),
            "adam": (w, m, v, rows, grads, self.step, 0.01, *RULE, decay),
            "ftrl": (w, v, m, rows, grads, 0.1, 10 * decay, 0.2, 1.0),
            "adam_dense": (w, m, v, self.last_step, rows, grads, self.lr_history, 0, self.step, *RULE, decay),
            "catch_up": (w, m, v, self.last_step, rows, self.lr_history, 0, self.step, *RULE, decay),
        }[name]

    def tensors(self) -> list[Tensor]:
        return [self.weight, self.first, self.second, self.row_state, self.last_step]


KERNELS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "sgd": (ops.sgd_update_, reference.sgd_update_reference),
    "momentum": (ops.sgd_update_, reference.sgd_update_reference),
    "adagrad": (ops.adagrad_update_, reference.adagrad_update_reference),
    "rowwise_adagrad": (ops.rowwise_adagrad_update_, reference.rowwise_adagrad_update_reference),
    "adam": (ops.adam_update_, reference.adam_update_reference),
    "ftrl": (ops.ftrl_update_, reference.ftrl_update_reference),
    "adam_dense": (ops.adam_dense_update_, reference.adam_dense_update_reference),
    "catch_up": (ops.adam_catch_up_, reference.adam_catch_up_reference),
}


def compare(
    name: str, num_rows: int, dim: int, dtype: torch.dtype, index: torch.dtype, decay: float, seed: int
) -> None:
    """Kernel in `dtype` against the reference in float64; it may err as far as the reference in `dtype` does."""
    ours, honest, want = (Problem(num_rows, dim, dtype, seed, index) for _ in range(3))
    for key in ("weight", "first", "second", "row_state", "grads"):
        setattr(want, key, getattr(want, key).double())
    KERNELS[name][0](*ours.arguments(name, decay))
    KERNELS[name][1](*honest.arguments(name, decay))
    KERNELS[name][1](*want.arguments(name, decay))
    assert torch.equal(ours.last_step, want.last_step)
    for a, b, c in zip(ours.tensors()[:4], honest.tensors()[:4], want.tensors()[:4], strict=True):
        error, allowed = (a.double() - c).abs(), (b.double() - c).abs().max()
        slack = (1e-12 if dtype == torch.float64 else 4e-6) * (1 + c.abs()) + torch.finfo(a.dtype).eps * c.abs()
        assert bool((error <= allowed + slack).all()), f"{float((error - slack).max()):.3g} > {float(allowed):.3g}"


@pytest.mark.parametrize("name", [*NAMES, "catch_up"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "dim"), [(50, 64), (33, 17), (5, 123), (40, 1), (1, 8)])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_update_matches_float64_reference(name: str, dtype: torch.dtype, num_rows: int, dim: int, decay: float) -> None:
    compare(name, num_rows, dim, dtype, torch.int64, decay, seed=3)


@given(
    name=st.sampled_from([*NAMES, "catch_up"]),
    num_rows=st.integers(1, 60),
    dim=st.integers(1, 90),
    index=st.sampled_from([torch.int32, torch.int64]),
    decay=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_matches_float64_reference(
    name: str, num_rows: int, dim: int, index: torch.dtype, decay: float, seed: int
) -> None:
    compare(name, num_rows, dim, torch.float32, index, decay, seed)


@pytest.mark.parametrize("name", ["catch_up", "adam_dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 4, 16, 40])
def test_many_rows_that_share_the_coefficients_of_missed_steps(name: str, dtype: torch.dtype, dim: int) -> None:
    compare(name, 2000, dim, dtype, torch.int32, 0.0, seed=4)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99), (0.0, 0.999), (0.9, 0.9999), (0.99, 0.995)], ids=str)
@pytest.mark.parametrize("start", [0, 3, 50, 500, 20_000])
@pytest.mark.parametrize("missed", [1, 5, 150, 1500])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-9])
def test_catch_up_equals_the_replay_at_any_time_and_gradient_size(
    betas: tuple[float, float], start: int, missed: int, scale: float
) -> None:
    torch.manual_seed(0)
    last = max(start, 1)
    moments = scale * torch.randn(4, 20, dtype=torch.float64), (scale * torch.randn(4, 20, dtype=torch.float64)) ** 2
    tables = []
    for dtype, run in ((torch.float32, ops.adam_catch_up_), (torch.float64, reference.adam_catch_up_reference)):
        w, m, v = torch.zeros(4, 20, dtype=dtype), *(moment.to(torch.float32).to(dtype) for moment in moments)
        reached = torch.full((4,), last, dtype=torch.int32)
        history = torch.full((missed,), 1e-3, dtype=torch.float64)
        run(w, m, v, reached, None, history, last, last + missed, *betas, 1e-8, 0.0)
        tables.append((w.double(), m.double(), v.double()))
        assert reached.tolist() == [last + missed] * 4
    (w, m, v), (w_want, m_want, v_want) = tables
    torch.testing.assert_close(w, w_want, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(m, m_want, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(v, v_want, rtol=1e-5, atol=1e-30)


def test_repeated_unsorted_rows_catch_up_once() -> None:
    a, b = Problem(50, 9, torch.float32), Problem(50, 9, torch.float32)
    ids = torch.tensor([[7, 3, 7], [3, 49, 7]])
    for problem, rows in ((a, ids), (b, ids.unique())):
        problem.rows = rows
        ops.adam_catch_up_(*problem.arguments("catch_up", 0.0))
    assert all(map(torch.equal, a.tensors(), b.tensors()))


def test_row_before_its_first_gradient_stands_still() -> None:
    problem = Problem(20, 4, torch.float32)
    problem.last_step.zero_()
    before = [tensor.clone() for tensor in problem.tensors()]
    ops.adam_catch_up_(*problem.arguments("catch_up", 0.0))
    assert all(map(torch.equal, before, problem.tensors()))


@pytest.mark.parametrize("name", [*NAMES, "catch_up"])
def test_bitwise_equal_for_any_thread_count(name: str) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            problem = Problem(3000, 65, torch.float32)
            KERNELS[name][0](*problem.arguments(name, 0.0))
            results.append(problem.tensors())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def side_by_side(problems: list[Problem], name: str) -> tuple[list[Any], ...]:
    """The tensors of several problems as the operators over tables want them, and what they share behind."""
    columns = [list(column) for column in zip(*(problem.arguments(name, 0.0) for problem in problems), strict=True)]
    tensors = 5 if name == "catch_up" else 6
    return (*columns[:tensors], *(column[0] for column in columns[tensors:]))


TABLES = {"catch_up": ops.adam_catch_up_tables_, "adam_dense": ops.adam_dense_update_tables_}


def uneven_tables(dtype: torch.dtype = torch.float32) -> list[Problem]:
    """Five tables as a network has them: two pairs that share their rows, and an empty gradient."""
    generator = torch.Generator().manual_seed(0)
    problems = [Problem(rows, dim, dtype, rows) for rows, dim in ((900, 64), (2500, 5), (900, 33), (2500, 128), (7, 8))]
    for problem, other in ((problems[2], problems[0]), (problems[3], problems[1])):
        problem.rows = other.rows
        problem.grads = torch.randn(len(problem.rows), problem.weight.shape[1], generator=generator).to(dtype)
    problems[4].rows, problems[4].grads = problems[4].rows[:0], problems[4].grads[:0]
    return problems


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_in_one_call_equal_one_after_another(name: str, threads: int, dtype: torch.dtype) -> None:
    together, apart = uneven_tables(dtype), uneven_tables(dtype)
    for problem in apart:
        problem.lr_history = apart[0].lr_history
        KERNELS[name][0](*problem.arguments(name, 0.0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        TABLES[name](*side_by_side(together, name))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(together, apart, strict=True):
        assert all(map(torch.equal, ours.tensors(), theirs.tensors()))


@pytest.mark.parametrize("name", TABLES)
def test_one_bad_table_leaves_all_as_they_were(name: str) -> None:
    problems = uneven_tables()
    problems[3].rows = problems[3].rows.flip(0)
    before = [tensor.clone() for problem in problems for tensor in problem.tensors()]
    with pytest.raises(RuntimeError, match="strictly ascending"):
        TABLES[name](*side_by_side(problems, name))
    arguments = side_by_side(problems, name)
    with pytest.raises(RuntimeError, match="one tensor of each kind"):
        TABLES[name](arguments[0], arguments[1][:2], *arguments[2:])
    assert all(map(torch.equal, before, [tensor for problem in problems for tensor in problem.tensors()]))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_change_nothing(name: str) -> None:
    problem = Problem(10, 4, torch.float32)
    problem.rows, problem.grads = problem.rows[:0], problem.grads[:0]
    before = [tensor.clone() for tensor in problem.tensors()]
    KERNELS[name][0](*problem.arguments(name, 0.1))
    assert all(map(torch.equal, before, problem.tensors()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [[3, 1], [2, 2], [-1, 4], [4, 10]], ids=str)
def test_wrong_rows_are_refused_and_nothing_changes(name: str, rows: list[int]) -> None:
    problem = Problem(10, 4, torch.float32)
    problem.rows, problem.grads = torch.tensor(rows), torch.ones(2, 4)
    before = [tensor.clone() for tensor in problem.tensors()]
    with pytest.raises(RuntimeError, match="strictly ascending"):
        KERNELS[name][0](*problem.arguments(name, 0.0))
    assert all(map(torch.equal, before, problem.tensors()))


def test_catch_up_refuses_rows_out_of_range_and_a_history_too_short() -> None:
    problem = Problem(10, 4, torch.float32)
    before = [tensor.clone() for tensor in problem.tensors()]
    problem.rows = torch.tensor([0, 10])
    with pytest.raises(RuntimeError, match=r"rows must be in \[0, 10\), got 10 at position 1"):
        ops.adam_catch_up_(*problem.arguments("catch_up", 0.0))
    problem.rows, problem.lr_history = torch.tensor([0]), problem.lr_history[:3]
    with pytest.raises(RuntimeError, match="lr_history must be"):
        ops.adam_catch_up_(*problem.arguments("catch_up", 0.0))
    assert all(map(torch.equal, before, problem.tensors()))


def test_gradients_of_any_row_stride() -> None:
    for grads in (torch.randn(30, 20)[:, 3:11], torch.randn(60, 8)[::2], torch.randn(1, 8).expand(30, 8)):
        tables = []
        for some in (grads, grads.contiguous()):
            problem = Problem(30, 8, torch.float32)
            problem.rows, problem.grads = torch.arange(30), some
            ops.adam_update_(*problem.arguments("adam", 0.0))
            tables.append(problem.weight)
        assert torch.equal(*tables)


def published_ftrl(
    start: float, gradients: list[float], alpha: float, l1: float, l2: float, beta: float
) -> list[float]:
    """McMahan et al. 2013, algorithm 1, of one coordinate, line by line: its weight after each gradient."""
    z, n, weights = -start * (beta / alpha + l2) - math.copysign(l1, start) * (start != 0), 0.0, []
    w = start
    for g in gradients:
        sigma = (math.sqrt(n + g * g) - math.sqrt(n)) / alpha
        z += g - sigma * w
        n += g * g
        if n > 0:
            w = 0.0 if abs(z) <= l1 else -(z - math.copysign(l1, z)) / ((beta + math.sqrt(n)) / alpha + l2)
        weights.append(w)
    return weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("start", [0.0, 0.7, -2.0])
@pytest.mark.parametrize(("l1", "l2", "beta"), [(0.0, 0.0, 1.0), (2.0, 0.5, 1.0), (0.5, 0.0, 0.0)])
def test_ftrl_is_the_published_recurrence_over_500_steps(
    dtype: torch.dtype, tolerance: float, start: float, l1: float, l2: float, beta: float
) -> None:
    """19 coordinates of a row, some of whose gradients are 0 at times; the first 40 of one are."""
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(500, 19, generator=generator, dtype=torch.float64).to(dtype)
    gradients *= torch.rand(500, 19, generator=generator) < 0.7
    gradients[:40, 3] = 0
    weight, total, linear = torch.full((3, 19), start, dtype=dtype), torch.zeros(3, 19).to(dtype), torch.zeros(3, 19)
    linear = linear.to(dtype)
    taken = []
    for gradient in gradients:
        ops.ftrl_update_(weight, total, linear, torch.tensor([1]), gradient[None], 0.1, l1, l2, beta)
        taken.append(weight[1].clone())
    for column, got in enumerate(torch.stack(taken).T):
        want = published_ftrl(start, gradients[:, column].tolist(), 0.1, l1, l2, beta)
        torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=0, atol=tolerance)
    assert torch.equal(weight[[0, 2]], torch.full((2, 19), start, dtype=dtype))
    assert float(total[[0, 2]].abs().sum() + linear[[0, 2]].abs().sum()) == 0


def test_ftrl_weights_under_l1_are_exactly_zero() -> None:
    problem = Problem(50, 33, torch.float32)
    problem.weight.zero_()
    ops.ftrl_update_(problem.weight, problem.second, problem.first, problem.rows, problem.grads, 0.1, l1=0.6)
    small = problem.first[problem.rows].abs() <= 0.6
    assert 0.1 < small.float().mean() < 0.9
    assert torch.equal(problem.weight[problem.rows] == 0, small)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [-1, 3])
def test_zero_gradients_leave_ftrl_weights_that_had_none_before_as_they_are(dtype: torch.dtype, seed: int) -> None:
    problem = Problem(50, 33, dtype)
    before = problem.weight.clone()
    problem.second.zero_()
    problem.grads.zero_()
    ops.ftrl_update_(
        problem.weight, problem.second, problem.first, problem.rows, problem.grads, 0.1, 5.0, 0.1, 0.0, seed
    )
    assert torch.equal(problem.weight, before)


@pytest.mark.parametrize(
    "numbers", [(0.0, 0.1, 0.1, 1.0), (-0.1, 0.0, 0.0, 1.0), (0.1, -1.0, 0.0, 1.0), (0.1, 0.0, -1.0, 1.0)], ids=str
)
def test_ftrl_refuses_numbers_out_of_range_and_nothing_changes(numbers: tuple[float, ...]) -> None:
    for bad in (numbers, (0.1, 0.0, 0.0, -1.0), (float("nan"), 0.0, 0.0, 1.0)):
        problem = Problem(10, 4, torch.float32)
        before = [tensor.clone() for tensor in problem.tensors()]
        with pytest.raises(RuntimeError, match="ftrl_update_: FTRL needs lr > 0 and l1, l2, beta >= 0"):
            ops.ftrl_update_(problem.weight, problem.second, problem.first, problem.rows, problem.grads, *bad)
        assert all(map(torch.equal, before, problem.tensors()))


def test_ftrl_passes_a_gradient_that_is_not_finite_on() -> None:
    weight, total, linear = torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)
    grads = torch.tensor([[torch.nan, torch.inf, 1.0]])
    ops.ftrl_update_(weight, total, linear, torch.tensor([0]), grads, 0.1, 0.5)
    assert weight[0].isfinite().tolist() == [False, False, True]
    assert weight[1].tolist() == [1, 1, 1]


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    for name in (*NAMES, "catch_up"):
        yield KERNELS[name][0].__name__, Problem(12, 5, torch.float32).arguments(name, 0.01)
    for name, function in TABLES.items():
        problems = [Problem(12, 5, torch.float32), Problem(9, 3, torch.float32)]
        yield function.__name__, side_by_side(problems, name)
