"""Every row update: dtypes, index dtypes, shapes, decay, momentum, stochastic rounding, several tables at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from gpu_parity import DEVICE, FLOATS, INDICES, OPERATORS, check, grid, laid_out, moved, normal, on_gpu, run
from torch import Tensor

RULE = (0.9, 0.999, 1e-8)
STEP = 40


class Problem(NamedTuple):
    """A table, its states some way into training, and a gradient for some of its rows.

    Attributes:
        weight: [R, D]; first, second: [R, D], row_state: [R], states; last_step: [R], int32, what each row has reached.
        rows: [U]; grads: [U, D]; lr_history: [STEP], float64.
    """

    weight: Tensor
    first: Tensor
    second: Tensor
    row_state: Tensor
    last_step: Tensor
    rows: Tensor
    grads: Tensor
    lr_history: Tensor


def problem_of(
    num_rows: int, dim: int, dtype: torch.dtype, index: torch.dtype = torch.int64, seed: int = 0, layout: str = ""
) -> Problem:
    draw = torch.Generator().manual_seed(seed)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    second = normal(num_rows, dim, dtype=state, seed=seed + 1).square()
    last_step = torch.randint(0, STEP, (num_rows,), generator=draw, dtype=torch.int32)
    first = normal(num_rows, dim, dtype=state, seed=seed + 2)
    first[last_step == 0], second[last_step == 0] = 0, 0
    is_touched = torch.rand(num_rows, generator=draw) < 0.6
    is_touched[0] = True
    rows = is_touched.nonzero().flatten().to(index)
    grads = laid_out(normal(len(rows), dim, dtype=dtype, seed=seed + 3), layout or "contiguous")
    history = torch.rand(STEP, generator=draw, dtype=torch.float64) * 0.01
    weight = normal(num_rows, dim, dtype=dtype, seed=seed + 4)
    return Problem(weight, first, second, second.mean(1), last_step, rows, grads, history)


def call_of(p: Problem, name: str, decay: float, seed: int = -1) -> tuple[str, tuple[Any, ...], str]:
    """Operator, arguments and kernel of a rule."""
    adam, replay = "_adam_update_kernel", (p.lr_history, 0, STEP, *RULE, decay)
    states = (p.weight, p.first, p.second)
    calls: dict[str, tuple[str, tuple[Any, ...], str]] = {
        "sgd": ("sgd_update_", (p.weight, None, p.rows, p.grads, 0.1, 0.0, decay, seed), "_sgd_update_kernel"),
        "momentum": ("sgd_update_", (p.weight, p.first, p.rows, p.grads, 0.1, 0.9, decay, seed), "_sgd_update_kernel"),
        "adagrad": (
            "adagrad_update_",
            (p.weight, p.second, p.rows, p.grads, 0.1, 1e-10, decay, seed),
            "_adagrad_update_kernel",
        ),
        "rowwise_adagrad": (
            "rowwise_adagrad_update_",
            (p.weight, p.row_state, p.rows, p.grads, 0.1, 1e-10, decay, seed),
            "_rowwise_adagrad_update_kernel",
        ),
        "adam": ("adam_update_", (*states, p.rows, p.grads, STEP, 0.01, *RULE, decay, seed), adam),
        "ftrl": (
            "ftrl_update_",
            (p.weight, p.second, p.first, p.rows, p.grads, 0.1, 10 * decay, 0.2, 1.0, seed),
            "_ftrl_update_kernel",
        ),
        "adam_dense": ("adam_dense_update_", (*states, p.last_step, p.rows, p.grads, *replay), adam),
        "catch_up": ("adam_catch_up_", (*states, p.last_step, p.rows, *replay), adam),
    }
    return calls[name]


RULES = ["sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl", "adam_dense", "catch_up"]
SHAPES = [(9, 17), (50, 64), (5, 123), (6, 1), (1, 8), (3, 300), (3, 1100), (8, 6)]
SHAPES += on_gpu((20_011, 16), (3000, 130), (700, 1027))
GRADS = ["contiguous", "part of wider rows", "expanded"]  # the operators want adjacent columns


@grid(shape=SHAPES, rule=RULES, dtype=FLOATS, index=INDICES, decay=[0.0, 0.01], layout=GRADS)
def test_update(
    shape: tuple[int, int], rule: str, dtype: torch.dtype, index: torch.dtype, decay: float, layout: str
) -> None:
    name, arguments, kernel = call_of(problem_of(*shape, dtype, index, layout=layout), rule, decay)
    check(name, *arguments, kernels=[kernel])


@grid(rule=RULES, dtype=FLOATS)
def test_every_rule_in_every_dtype(rule: str, dtype: torch.dtype) -> None:
    name, arguments, kernel = call_of(problem_of(7, 20, dtype, torch.int32, seed=9), rule, 0.01)
    check(name, *arguments, kernels=[kernel])


@pytest.mark.parametrize("rule", RULES)
def test_no_rows_change_nothing(rule: str) -> None:
    p = problem_of(6, 5, torch.float32)
    name, arguments, _ = call_of(p._replace(rows=p.rows[:0], grads=p.grads[:0]), rule, 0.1)
    check(name, *arguments)


@grid(seed=[0, 7, 2**31 + 5, 2**63 - 1], dim=[1, 17, 130])
def test_stochastic_rounding_draws_the_bits_of_the_reference(seed: int, dim: int) -> None:
    """Plain SGD; infinity, NaN and a value that rounds up to infinity among the results."""
    rows, lr = torch.tensor([0, 3, 48, 49], dtype=torch.int32), 1.75
    weight, grads = (normal(count, dim, dtype=torch.bfloat16) for count in (50, 4))
    grads[1, 0], grads[2, 0], grads[3, 0] = torch.inf, torch.nan, 146 / 128 * 2**127
    arguments = (weight, None, rows, grads, lr, 0.0, 0.0, seed)
    (got,) = run("sgd_update_", torch.ops.deeprec.sgd_update_, [moved(x, DEVICE) for x in arguments])
    (want,) = run("sgd_update_", OPERATORS["sgd_update_"].reference, [moved(x, "cpu") for x in arguments])
    assert torch.equal(got.cpu().view(torch.int16), want.view(torch.int16))


@grid(rule=["sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl"], dim=[33, 1, *on_gpu(260, 1100)])
def test_every_rule_rounds_stochastically_to_a_neighbour(rule: str, dim: int) -> None:
    name, arguments, kernel = call_of(problem_of(60, dim, torch.bfloat16), rule, 0.0, seed=11)
    drawn = check(name, *arguments, kernels=[kernel])
    nearest = check(name, *call_of(problem_of(60, dim, torch.bfloat16), rule, 0.0)[1], kernels=[kernel])
    assert not torch.equal(drawn[0], nearest[0])


def test_all_rows_and_repeated_rows_catch_up() -> None:
    p = problem_of(12, 9, torch.float32)
    for rows in (None, torch.tensor([[7, 3, 7], [3, 11, 7]])):
        name, arguments, kernel = call_of(p._replace(rows=rows), "catch_up", 0.01)
        check(name, *arguments, kernels=[kernel])


@grid(
    dtype=FLOATS,
    dims=[(8, 16, 24, 8), (12, 5, 1, 33), (1100, 4, 8, 1), *on_gpu((64, 5, 33, 128), (16,) * 26)],
    rule=["adam_dense", "catch_up"],
    decay=[0.0, 0.01],
)
def test_tables_in_one_call(dims: tuple[int, ...], dtype: torch.dtype, rule: str, decay: float) -> None:
    """Of one block and of several, one of them without a gradient."""
    problems = [problem_of(5 + i, dim, dtype, seed=i) for i, dim in enumerate(dims)]
    problems[2] = problems[2]._replace(rows=problems[2].rows[:0], grads=problems[2].grads[:0])
    columns = [list(x) for x in zip(*(call_of(p, rule, decay)[1] for p in problems), strict=True)]
    tensors = 6 if rule == "adam_dense" else 5
    name = f"{call_of(problems[0], rule, decay)[0]}tables_"
    kernel = "_adam_tables_kernel" if rule == "adam_dense" else "_adam_update_kernel"
    check(name, *columns[:tensors], *(column[0] for column in columns[tensors:]), kernels=[kernel])
