"""sample_negatives: the numbers of the CPU, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from gpu_arguments import seen_of
from gpu_parity import INDICES, check, grid, integers, normal, on_gpu

from deeprec.kernels.sample_negatives import alias_table

# Users, items, rows, negatives a row.
SHAPES = [(1, 2, 1, 1), (5, 123, 17, 3), (40, 1000, 333, 5), (7, 64, 300, 4), (3, 65, 16, 1), (3, 9, 0, 4)]
SHAPES += on_gpu((50, 3706, 100_003, 5), (9, 100_003, 500, 129))


@grid(
    shape=SHAPES, index=INDICES, is_weighted=[False, True], most=[0.5, 1.0], seed=[0, 2**40 + 3], offset=[99, 2**33, 0]
)
def test_numbers(
    shape: tuple[int, int, int, int], index: torch.dtype, is_weighted: bool, most: float, seed: int, offset: int
) -> None:
    num_users, num_items, rows, negatives = shape
    table: Any = alias_table(normal(num_items).abs() + 0.01) if is_weighted else (None, None, None)
    users = integers(num_users, rows, dtype=index)
    check(
        "sample_negatives",
        users,
        *seen_of(num_users, num_items, most, left=1),
        num_items,
        negatives,
        seed,
        offset,
        *table,
    )
