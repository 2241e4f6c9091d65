"""Every row update: dtypes, index dtypes, shapes, decay, momentum, stochastic rounding, several tables at once."""

from __future__ import annotations

import pytest
import torch
from gpu_arguments import problem_of, update_call
from gpu_parity import DEVICE, FLOATS, INDICES, OPERATORS, check, grid, moved, normal, on_gpu, run

RULES = ["sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl", "adam_dense", "catch_up"]
SHAPES = [(9, 17), (50, 64), (5, 123), (6, 1), (1, 8), (3, 300), (3, 1100), (8, 6)]
SHAPES += on_gpu((20_011, 16), (3000, 130), (700, 1027))
GRADS = ["contiguous", "part of wider rows", "expanded"]  # the operators want adjacent columns


@grid(shape=SHAPES, rule=RULES, dtype=FLOATS, index=INDICES, decay=[0.0, 0.01], layout=GRADS)
def test_update(
    shape: tuple[int, int], rule: str, dtype: torch.dtype, index: torch.dtype, decay: float, layout: str
) -> None:
    name, arguments, kernel = update_call(problem_of(*shape, dtype, index, layout=layout), rule, decay)
    check(name, *arguments, kernels=[kernel])


@grid(rule=RULES, dtype=FLOATS)
def test_every_rule_in_every_dtype(rule: str, dtype: torch.dtype) -> None:
    name, arguments, kernel = update_call(problem_of(7, 20, dtype, torch.int32, seed=9), rule, 0.01)
    check(name, *arguments, kernels=[kernel])


@pytest.mark.parametrize("rule", RULES)
def test_no_rows_change_nothing(rule: str) -> None:
    p = problem_of(6, 5, torch.float32)
    name, arguments, _ = update_call(p._replace(rows=p.rows[:0], grads=p.grads[:0]), rule, 0.1)
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


@grid(rule=["sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl"], dim=[33, *on_gpu(1, 260, 1100)])
def test_every_rule_rounds_stochastically_to_a_neighbour(rule: str, dim: int) -> None:
    name, arguments, kernel = update_call(problem_of(20, dim, torch.bfloat16), rule, 0.0, seed=11)
    drawn = check(name, *arguments, kernels=[kernel])
    nearest = check(name, *update_call(problem_of(20, dim, torch.bfloat16), rule, 0.0)[1], kernels=[kernel])
    assert not torch.equal(drawn[0], nearest[0])


def test_all_rows_and_repeated_rows_catch_up() -> None:
    p = problem_of(12, 9, torch.float32)
    for rows in (None, torch.tensor([[7, 3, 7], [3, 11, 7]])):
        name, arguments, kernel = update_call(p._replace(rows=rows), "catch_up", 0.01)
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
    columns = [list(x) for x in zip(*(update_call(p, rule, decay)[1] for p in problems), strict=True)]
    tensors = 6 if rule == "adam_dense" else 5
    name = f"{update_call(problems[0], rule, decay)[0]}tables_"
    kernel = "_adam_tables_kernel" if rule == "adam_dense" else "_adam_update_kernel"
    check(name, *columns[:tensors], *(column[0] for column in columns[tensors:]), kernels=[kernel])
