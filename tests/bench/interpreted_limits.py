"""The limits of a GPU under Triton's interpreter: what is gathered and copied is right. Run by test_gpu_bench.py."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.clocks import Gpu
from bench.limits_gpu import TILES, GpuLimits, Rows, copy
from bench.machine import Gather


class Event:
    """By the wall clock."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later.at - self.at)


def gathered() -> None:
    """Rows of several widths, with a tile that does not fill up."""
    for row_bytes, writes, (tile, warps) in itertools.product((4, 32, 64, 800), (True, False), (TILES[0], (64, 1))):
        rows = Rows.make(Gather(row_bytes, 37, writes), 51, "cpu")
        rows.table.copy_(torch.randint(1, 1000, rows.table.shape))
        rows.out.zero_()
        rows.gather(tile, warps)
        expected = rows.table.view(37, -1)[rows.ids]
        if writes:
            assert torch.equal(rows.out.view(51, -1), expected), (row_bytes, tile)
        else:
            assert int(rows.out.sum()) == int(expected.sum()), (row_bytes, tile)


def copied() -> None:
    """Whole tiles."""
    source, target = torch.randint(1000, (4096,), dtype=torch.int32), torch.zeros(4096, dtype=torch.int32)
    copy(target, source, 2048, 4)
    assert torch.equal(source, target)


def measured() -> None:
    """Every limit has a rate, and the best one is kept."""
    gpu = Gpu(Event, lambda: None, lambda seconds: None, lambda: None, 1 << 20, lambda: None)
    limits = GpuLimits(gpu, "cpu", gathered=1 << 14, copied=(1 << 16,))
    pattern = Gather(64, 100, writes=True)
    rate, label = limits.of(pattern)
    assert label == pattern.label
    assert rate == limits.measured[label] > 0
    assert limits.of("copy")[0] == limits.measured["copy"] > 0
    assert limits.of(None) == (None, None)
    limits.measured[label] = 1e30
    assert limits.of(pattern)[0] == 1e30
    assert not limits.reason


gathered()
copied()
measured()
