"""What the memory of a GPU can do, measured where the benches run: a large copy, and rows gathered at random.

The gather is a Triton kernel with nothing else to do: 16-byte loads, several of them in flight in every thread before
the first value is used. A row is taken in pieces, the largest power of two of words that divides it, so that no lane
is idle and rows of 800 bytes need no mask. Several tiles are tried and the fastest counts, as on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.clocks import Gpu, this_gpu
from bench.machine import COPY, Gather
from deeprec.kernels._compile_cases import CompileCase

WORD = 4  # bytes
GATHERED = 1 << 29  # bytes of rows that a measurement reads: far beyond any cache
COPIED = (1 << 28, 1 << 30, 1 << 32)  # bytes that a copy reads
TILES = ((2048, 4), (4096, 4), (8192, 4), (8192, 8), (16384, 8))  # words of a program, and its warps
REPEATS = 7


@triton.jit
def _gather_kernel(
    table,  # [num_rows * pieces, PIECE] int32
    ids,  # [count] int64
    out,  # [count * pieces, PIECE] int32, or a word a program
    total,  # pieces of all rows together, count * pieces
    pieces,  # of a row
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
    WRITES: tl.constexpr,
):
    """out[i] = table row ids[i], or without WRITES the sum of what a program read, so that no load can be left out."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_real = place < total
    entry = place // pieces
    row = tl.load(ids + entry, mask=is_real, other=0)
    begin = (row * pieces + (place - entry * pieces)) * PIECE
    word = tl.arange(0, PIECE)
    values = tl.load(table + begin[:, None] + word[None, :], mask=is_real[:, None], other=0)
    if WRITES:
        tl.store(out + place[:, None] * PIECE + word[None, :], values, mask=is_real[:, None])
    else:
        tl.store(out + tl.program_id(0), tl.sum(tl.sum(values, 1), 0))


@triton.jit
def _copy_kernel(source, target, BLOCK: tl.constexpr):
    """target = source, whole blocks of words."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place))


def _piece(words: int) -> int:
    """The largest power of two of words, 4,096 at most, that divides a row."""
    return math.gcd(words, 1 << 12)


class Rows(NamedTuple):
    """Rows of `row_bytes` at random places of a table of `num_rows`, as the kernel takes them."""

    table: Tensor
    ids: Tensor
    out: Tensor
    words: int
    writes: bool

    @classmethod
    def make(cls, pattern: Gather, count: int, device: str) -> Rows:
        words = pattern.row_bytes // WORD
        table = torch.zeros(pattern.num_rows * words, dtype=torch.int32, device=device)
        ids = torch.randint(pattern.num_rows, (count,), device=device)
        size = count * (words if pattern.writes else words // _piece(words))  # read alone: a word a program
        return cls(table, ids, torch.empty(size, dtype=torch.int32, device=device), words, pattern.writes)

    def gather(self, tile: int, warps: int) -> None:
        """Launch the kernel with tiles of about so many words."""
        piece = _piece(self.words)
        pieces, block = self.words // piece, max(1, tile // piece)
        total = self.ids.numel() * pieces
        grid = (triton.cdiv(total, block),)
        _gather_kernel[grid](
            self.table,
            self.ids,
            self.out,
            total,
            pieces,
            PIECE=piece,
            BLOCK=block,
            WRITES=self.writes,
            num_warps=warps,
        )


def copy(target: Tensor, source: Tensor, tile: int, warps: int) -> None:
    """Launch the copy of words whose number is a multiple of `tile`."""
    _copy_kernel[(source.numel() // tile,)](source, target, BLOCK=tile, num_warps=warps)


class GpuLimits:
    """Bytes a second that the GPU reaches, by events; the best value of each pattern so far counts.

    A pattern is measured each time it is asked for, before and after the contenders of a case.
    """

    def __init__(
        self,
        gpu: Gpu | None = None,
        device: str = "cuda",
        gathered: int = GATHERED,
        copied: Sequence[int] = COPIED,
    ) -> None:
        self.measured: dict[str, float] = {}
        self.reason = ""
        self._gpu, self._device, self._gathered, self._copied = gpu or this_gpu(), device, gathered, copied

    def of(self, pattern: Gather | str | None) -> tuple[float | None, str | None]:
        """Bytes a second and the name of a limit; None where there is none or it cannot be measured."""
        if pattern is None:
            return None, None
        return (self.gather(pattern), pattern.label) if isinstance(pattern, Gather) else (self.copy(), pattern)

    def gather(self, pattern: Gather) -> float | None:
        """Bytes of ids, rows read and rows written a second; None where the memory of the device is too small."""
        count = self._gathered // pattern.row_bytes
        moved = count * (8 + pattern.row_bytes * (2 if pattern.writes else 1))
        return self._keep(pattern.label, lambda: self._gathers(pattern, count), moved)

    def _gathers(self, pattern: Gather, count: int) -> list[Callable[[], Any]]:
        rows = Rows.make(pattern, count, self._device)
        return [partial(rows.gather, tile, warps) for tile, warps in TILES]

    def copy(self) -> float | None:
        """Bytes read and written a second by a large copy: torch's, and a kernel's."""
        for size in self._copied:
            self._keep(COPY, partial(self._copies, size), 2 * size)
        return self.measured.get(COPY)

    def _copies(self, size: int) -> list[Callable[[], Any]]:
        source = torch.zeros(size // WORD, dtype=torch.int32, device=self._device)
        target = torch.empty_like(source)
        ways: list[Callable[[], Any]] = [partial(copy, target, source, tile, warps) for tile, warps in TILES]
        return [*ways, partial(target.copy_, source)]

    def _keep(self, name: str, ways: Callable[[], list[Callable[[], Any]]], moved: int) -> float | None:
        try:
            value = moved / self._best(ways())
        except torch.OutOfMemoryError:
            self.reason = f"{name}: the memory of the GPU is too small"
            return self.measured.get(name)
        self.measured[name] = max(value, self.measured.get(name, 0.0))
        self._gpu.release()
        return self.measured[name]

    def _best(self, ways: list[Callable[[], Any]]) -> float:
        """The shortest device time of any of the ways, in seconds."""
        best = math.inf
        for repeat in range(REPEATS + 1):
            for way in ways:
                first, last = self._gpu.event(), self._gpu.event()
                first.record()
                way()
                last.record()
                self._gpu.synchronize()
                if repeat:  # the first call compiles
                    best = min(best, float(first.elapsed_time(last)) / 1e3)
        return best


def compile_cases() -> list[CompileCase]:
    """The kernels as a launch specialises them: a row of 64 bytes, and one of 800 in pieces of 32."""
    cases = []
    for piece, writes in ((16, True), (16, False), (8, True)):
        signature = {"table": "*i32", "ids": "*i64", "out": "*i32", "total": "i32", "pieces": "i32"}
        signature |= {"PIECE": "constexpr", "BLOCK": "constexpr", "WRITES": "constexpr"}
        constants = {"PIECE": piece, "BLOCK": 4096 // piece, "WRITES": writes}
        name = f"limits_gather_{piece}{'_written' if writes else ''}"
        cases.append(CompileCase(name, _gather_kernel, signature, constants, aligned=("table", "ids", "out")))
    signature = {"source": "*i32", "target": "*i32", "BLOCK": "constexpr"}
    return [
        *cases,
        CompileCase("limits_copy", _copy_kernel, signature, {"BLOCK": 4096}, aligned=("source", "target")),
    ]
