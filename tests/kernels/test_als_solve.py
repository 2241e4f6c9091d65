"""als_solve: the exact solution and the steps of conjugate gradient, on every instruction set and for odd rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels.als_solve import Solved, als_solve, als_solve_reference

ops = torch.ops.deeprec
LENGTHS = [0, 1, 3, 8, 9, 70, 0, 200, 5, 33, 64, 65, 128, 2, 0]
TOLERANCE = {torch.float32: 3e-4, torch.float64: 1e-10}


class Problem(NamedTuple):
    """The arguments of the operator but the number of steps."""

    indptr: Tensor
    indices: Tensor
    weights: Tensor
    factors: Tensor
    gram: Tensor
    ridge: Tensor
    start: Tensor

    @classmethod
    def make(
        cls, lengths: list[int], num_items: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Problem:
        """Rows of these lengths; items are repeated within them."""
        generator = torch.Generator().manual_seed(seed)
        indptr = torch.tensor([0, *lengths]).cumsum(0)
        nnz, batch = int(indptr[-1]), len(lengths)
        factors = 0.3 * torch.randn(num_items, dim, generator=generator, dtype=torch.float64)
        return cls(
            indptr,
            torch.randint(0, num_items, (nnz,), generator=generator),
            10 * torch.rand(nnz, generator=generator, dtype=torch.float64),
            factors,
            factors.T @ factors,
            0.5 + torch.rand(batch, generator=generator, dtype=torch.float64),
            0.3 * torch.randn(batch, dim, generator=generator, dtype=torch.float64),
        ).to(dtype)

    def to(self, to: torch.dtype | torch.device) -> Problem:
        """In another dtype, or on another device."""
        is_dtype = isinstance(to, torch.dtype)
        return Problem(*(each.to(to) if not is_dtype or each.is_floating_point() else each for each in self))


def close(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        error = (ours.double() - theirs.double()).abs().max() if ours.numel() else torch.zeros(())
        assert error <= TOLERANCE[ours.dtype] * theirs.abs().amax().clamp(min=1), f"off by {error}"


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    for steps in (0, 3):
        problem = Problem.make([3, 0, 1, 4], 9, 5)
        yield "als_solve", (*problem, steps)
    yield "als_solve", (*Problem.make([2, 5], 9, 16, torch.float64)[:6], None, 2)


@pytest.mark.parametrize("steps", [0, 1, 3, 7])
@pytest.mark.parametrize("dim", [1, 3, 16, 17, 40, 64, 100])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_matches_the_float64_reference(dtype: torch.dtype, dim: int, steps: int) -> None:
    problem = Problem.make(LENGTHS, 300, dim, dtype)
    close(ops.als_solve(*problem, steps), als_solve_reference(*problem.to(torch.float64), steps))
    narrow = problem._replace(indptr=problem.indptr.int(), indices=problem.indices.int())
    for ours, theirs in zip(ops.als_solve(*narrow, steps), ops.als_solve(*problem, steps), strict=True):
        assert torch.equal(ours, theirs)


def test_solves_what_hu_et_al_minimise() -> None:
    """Against the dense normal equations, written down as the paper has them: (Y'CY + lambda I)^-1 Y'C p."""
    problem = Problem.make([4, 0, 7], 12, 5, torch.float64)
    got = als_solve(*problem[:4], ridge=0.7)
    for b in range(3):
        entries = slice(int(problem.indptr[b]), int(problem.indptr[b + 1]))
        confidence = torch.ones(12, dtype=torch.float64).index_add_(
            0, problem.indices[entries], problem.weights[entries]
        )
        likes = torch.zeros(12, dtype=torch.float64)
        # An item listed twice has both weights, and counts as liked once for each.
        likes.index_add_(0, problem.indices[entries], 1 + problem.weights[entries])
        y = problem.factors
        x = torch.linalg.solve(y.T @ (confidence[:, None] * y) + 0.7 * torch.eye(5, dtype=torch.float64), y.T @ likes)
        torch.testing.assert_close(got.rows[b], x)


def test_losses_are_those_of_the_rows() -> None:
    problem = Problem.make([4, 2, 7], 50, 6, torch.float64)
    problem = problem._replace(indices=torch.cat([torch.randperm(50)[:n] for n in (4, 2, 7)]))  # each item once
    for steps in (0, 2):
        got = als_solve(*problem[:4], ridge=problem.ridge, start=problem.start, cg_steps=steps)
        for b in range(3):
            entries = slice(int(problem.indptr[b]), int(problem.indptr[b + 1]))
            confidence, likes = torch.ones(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
            confidence[problem.indices[entries]] += problem.weights[entries]
            likes[problem.indices[entries]] = 1.0
            errors = confidence * (likes - problem.factors @ got.rows[b]).square()
            loss = errors.sum() + problem.ridge[b] * got.rows[b].square().sum()
            torch.testing.assert_close(got.losses[b], loss)


def test_conjugate_gradient_arrives_at_the_exact_solution() -> None:
    problem = Problem.make(LENGTHS, 300, 8, torch.float64)
    exact = als_solve(*problem[:4], ridge=problem.ridge)
    close(als_solve(*problem[:4], ridge=problem.ridge, start=problem.start, cg_steps=30), exact)
    close(als_solve(*problem[:4], ridge=problem.ridge, start=exact.rows, cg_steps=1), exact)


def test_rows_without_entries_are_zero_whatever_they_begin_from() -> None:
    problem = Problem.make([0, 3, 0], 9, 4)
    for steps in (0, 1, 3):
        got = ops.als_solve(*problem._replace(ridge=torch.zeros(3)), steps)
        assert not got[0][[0, 2]].any()
        assert not got[1][[0, 2]].any()


def test_empty_inputs_return_empty() -> None:
    for steps in (0, 2):
        none = Problem.make([], 9, 4)
        assert [each.shape for each in ops.als_solve(*none, steps)] == [(0, 4), (0,)]
        rows = ops.als_solve(*Problem.make([0, 0], 3, 4), steps)[0]
        assert rows.shape == (2, 4)
        assert not rows.any()


@pytest.mark.parametrize("steps", [0, 3])
def test_strides_are_read_correctly(steps: int) -> None:
    problem = Problem.make([4, 2, 7], 9, 6)
    strided = Problem(*(torch.stack([each, each], -1)[..., 0] for each in problem))
    for ours, theirs in zip(ops.als_solve(*strided, steps), ops.als_solve(*problem, steps), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("steps", [0, 3])
def test_same_bits_for_any_number_of_threads_and_any_batch(steps: int) -> None:
    problem = Problem.make([37 * i % 90 for i in range(300)], 400, 24)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.als_solve(*problem, steps)
        torch.set_num_threads(4)
        four = ops.als_solve(*problem, steps)
    finally:
        torch.set_num_threads(before)
    first = int(problem.indptr[113])
    later = problem._replace(
        indptr=problem.indptr[113:] - first,
        indices=problem.indices[first:],
        weights=problem.weights[first:],
        ridge=problem.ridge[113:],
        start=problem.start[113:],
    )
    for whole, other, part in zip(one, four, ops.als_solve(*later, steps), strict=True):
        assert torch.equal(whole, other)
        assert torch.equal(whole[113:], part)


@pytest.mark.skipif(_library.load_error() != "", reason="the compiled kernels are not in use")
@pytest.mark.parametrize("isa", ["portable", "avx2"])  # the best of this machine serves the other tests
def test_lesser_instruction_sets_match_reference(isa: str) -> None:
    code = (
        "import importlib.util as u, sys, torch\n"
        f"spec = u.spec_from_file_location('cases', {__file__!r})\n"
        "m = u.module_from_spec(spec); sys.modules['cases'] = m; spec.loader.exec_module(m)\n"
        "for dim in (5, 64):\n"
        "    for steps in (0, 3):\n"
        "        for dtype in m.TOLERANCE:\n"
        "            p = m.Problem.make(m.LENGTHS, 300, dim, dtype)\n"
        "            m.close(m.ops.als_solve(*p, steps), m.als_solve_reference(*p.to(torch.float64), steps))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "DEEPREC_ISA": isa}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("steps", [0, 3])
def test_compiles_to_one_graph(steps: int) -> None:
    problem = Problem.make([3, 0, 1, 4], 9, 5)

    def call(factors: Tensor) -> Tensor:
        return als_solve(*problem[:3], factors, ridge=0.5, cg_steps=steps).rows

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(problem.factors), call(problem.factors))


def test_bad_arguments_are_refused() -> None:
    problem = Problem.make([3, 0, 1, 4], 9, 5)
    indptr, indices, weights, factors = problem[:4]

    def call(*given: Tensor, **options: Any) -> Solved:
        return als_solve(*(given or problem[:4]), **{"ridge": 0.5, **options})

    for match, kind, given, options in (
        ("factors must be \\[N, D\\]", ValueError, (indptr, indices, weights, factors[0]), {}),
        ("float32 or float64", TypeError, (indptr, indices, weights.half(), factors.half()), {}),
        ("in \\[0, 9\\), got 9 at position 2", IndexError, (indptr, indices.clone(), weights, factors), {}),
        ("weights must be", ValueError, (indptr, indices, weights[:-1], factors), {}),
        ("gram must be", ValueError, (), {"gram": torch.eye(4)}),
        ("ridge", ValueError, (), {"ridge": torch.ones(3)}),
        ("start must be", ValueError, (), {"start": torch.ones(4, 4)}),
        ("cg_steps must be in", ValueError, (), {"cg_steps": -1}),
        ("row 0 must be positive definite", ValueError, (), {"ridge": -1000.0}),
        ("row 2 must be positive definite", ValueError, (), {"ridge": torch.tensor([1.0, -1000.0, -1000.0, 1.0])}),
    ):  # fmt: skip
        if kind is IndexError:
            given[1][2] = 9
        with pytest.raises(kind, match=f"als_solve: .*{match}"):
            call(*given, **options)
