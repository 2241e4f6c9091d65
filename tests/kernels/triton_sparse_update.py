"""Triton kernels of the row updates under the interpreter; run by test_triton.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deeprec.kernels._door import launcher
from deeprec.kernels.faults import raise_faults
from deeprec.kernels.sparse_update import reference, triton_kernels

_spec = importlib.util.spec_from_file_location("sparse_update_cases", Path(__file__).with_name("test_sparse_update.py"))
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = cases
_spec.loader.exec_module(cases)


class _Door:
    """The launchers as a GPU gets them: with their checks."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return launcher("sparse_update", name)


DOOR = _Door()
KERNELS = {
    "sgd": (DOOR.sgd_update_, reference.sgd_update_reference),
    "momentum": (DOOR.sgd_update_, reference.sgd_update_reference),
    "adagrad": (DOOR.adagrad_update_, reference.adagrad_update_reference),
    "rowwise_adagrad": (DOOR.rowwise_adagrad_update_, reference.rowwise_adagrad_update_reference),
    "adam": (DOOR.adam_update_, reference.adam_update_reference),
    "ftrl": (DOOR.ftrl_update_, reference.ftrl_update_reference),
    "adam_dense": (DOOR.adam_dense_update_, reference.adam_dense_update_reference),
    "catch_up": (DOOR.adam_catch_up_, reference.adam_catch_up_reference),
}


SHAPES = [(9, 17), (5, 123), (6, 1), (3, 1100)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Each rule with each shape, type and decay; other turns of them in tests/gpu.
TURNS = [
    (name, *shape, DTYPES[(i + j) % 3], [0.0, 0.01][(i + j // 2) % 2])
    for i, name in enumerate(KERNELS)
    for j, shape in enumerate(SHAPES)
]


@pytest.mark.parametrize(("name", "num_rows", "dim", "dtype", "decay"), TURNS)
def test_update_matches_float64_reference(
    name: str, num_rows: int, dim: int, dtype: torch.dtype, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "KERNELS", KERNELS)
    index = torch.int32 if dim % 2 else torch.int64
    cases.compare(name, num_rows, dim, dtype, index, decay, seed=5)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl", "adam_dense"])
def test_rows_out_of_order_are_refused(name: str) -> None:
    problem = cases.Problem(10, 4, torch.float32)
    problem.rows, problem.grads = torch.tensor([3, 1]), torch.ones(2, 4)
    with pytest.raises(RuntimeError, match="strictly ascending"):
        KERNELS[name][0](*problem.arguments(name, 0.0))


@pytest.mark.parametrize(
    ("dims", "dtype", "decay"),
    [
        ((8, 16, 24, 8), torch.float32, 0.0),
        ((8, 16, 24, 8), torch.bfloat16, 0.01),
        ((12, 5, 1, 33), torch.bfloat16, 0.0),
        ((12, 5, 1, 33), torch.float64, 0.01),
        ((1100, 4, 8, 1), torch.float64, 0.0),
        ((1100, 4, 8, 1), torch.float32, 0.01),
    ],
)
def test_tables_in_one_launch_equal_one_after_another(dims: tuple[int, ...], dtype: torch.dtype, decay: float) -> None:
    """Of one block and of several, one of them without a gradient."""
    together, apart = ([cases.Problem(5 + i, dim, dtype, i) for i, dim in enumerate(dims)] for _ in range(2))
    for problems in (together, apart):
        problems[2].rows, problems[2].grads = problems[2].rows[:0], problems[2].grads[:0]
        for problem in problems:
            problem.lr_history = problems[0].lr_history
    for problem in apart:
        DOOR.adam_dense_update_(*problem.arguments("adam_dense", decay))
    columns = [list(x) for x in zip(*(problem.arguments("adam_dense", decay) for problem in together), strict=True)]
    DOOR.adam_dense_update_tables_(*columns[:6], *(column[0] for column in columns[6:]))
    for ours, theirs in zip(together, apart, strict=True):
        assert all(map(torch.equal, ours.tensors(), theirs.tensors()))


def test_a_table_with_rows_out_of_order_is_refused() -> None:
    problems = [cases.Problem(10, 4, torch.float32, i) for i in range(3)]
    problems[1].rows, problems[1].grads = torch.tensor([3, 1]), torch.ones(2, 4)
    before = [problem.weight.clone() for problem in problems]
    columns = [list(x) for x in zip(*(problem.arguments("adam_dense", 0.0) for problem in problems), strict=True)]
    with pytest.raises(RuntimeError, match="strictly ascending"):
        DOOR.adam_dense_update_tables_(*columns[:6], *(column[0] for column in columns[6:]))
    assert all(torch.equal(problem.weight, old) for problem, old in zip(problems, before, strict=True))


@pytest.mark.parametrize("name", ["adam_dense", "catch_up"])
def test_a_row_behind_the_history_is_a_fault_and_stays(name: str) -> None:
    """Without the checks of the door, which look at the last steps on the CPU: as on a GPU."""
    problem = cases.Problem(12, 9, torch.float32)
    arguments = list(problem.arguments(name, 0.01))
    place = 6 if name == "adam_dense" else 5
    arguments[place : place + 2] = problem.lr_history[3:].clone(), 3
    row = int(problem.rows[0])
    problem.last_step[:] = 3
    problem.last_step[row] = 1
    before = [tensor[row].clone() for tensor in problem.tensors()]
    launch = triton_kernels.adam_dense_update_ if name == "adam_dense" else triton_kernels.adam_catch_up_
    launch(*arguments)
    with pytest.raises(RuntimeError, match="a row reached step 1 only, but lr_history begins after step 3"):
        raise_faults()
    assert all(torch.equal(tensor[row], old) for tensor, old in zip(problem.tensors(), before, strict=True))
    assert int(problem.last_step.max()) == problem.step
