"""als_solve: exact and by conjugate gradient, for odd rows, widths and layouts."""

from __future__ import annotations

from typing import Any

import torch
from gpu_arguments import als_arguments
from gpu_parity import INDICES, LAYOUTS, check, grid, laid_out, on_gpu

DTYPES = [torch.float32, torch.float64]
LENGTHS = [[3, 0, 64, 1, 130, 0, 9], [1], [0, 0], *on_gpu([40] * 500, [5000, 0, 3], [0] * 70 + [9])]
DIMS = [16, 1, 20, 70, *on_gpu(64, 130, 200, 257)]


def check_solve(arguments: list[Any], steps: int) -> None:
    kernels = [] if len(arguments[0]) == 1 else ["_als_cg_kernel" if steps else "_als_normal_kernel"]
    # The condition of the systems, about a thousand, multiplies the roundings.
    check("als_solve", *arguments, steps, kernels=kernels, terms=4000.0)


@grid(lengths=LENGTHS, dim=DIMS, dtype=DTYPES, index=INDICES, steps=[0, 1, 3], has_start=[True, False])
def test_solution(
    lengths: list[int], dim: int, dtype: torch.dtype, index: torch.dtype, steps: int, has_start: bool
) -> None:
    arguments = als_arguments(lengths, dim, dtype, index)
    if not has_start:
        arguments[-1] = None
    check_solve(arguments, steps)


@grid(2, dim=DIMS, dtype=DTYPES, steps=[3, 0])
def test_every_width(dim: int, dtype: torch.dtype, steps: int) -> None:
    check_solve(als_arguments([3, 0, 70, 9], dim, dtype, torch.int64), steps)


@grid(layout=LAYOUTS, steps=[0, 2, 0, 2])
def test_any_layout(layout: str, steps: int) -> None:
    arguments = als_arguments([3, 0, 9], 20, torch.float32, torch.int32)
    check_solve([laid_out(x, layout) for x in arguments], steps)


def test_no_rows() -> None:
    for steps in (0, 2):
        check_solve(als_arguments([], 4, torch.float32, torch.int64), steps)
