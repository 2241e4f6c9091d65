"""What the Triton kernels over several tables share: numbers of tables and features on the GPU, and tiles of rows.

The kernels read where a table lies, how long its rows are and where its columns go from a small int64 matrix, one line
a feature or table, so one launch serves any number of them. The matrix holds what stays the same from batch to batch
and is copied once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels import _door
from deeprec.kernels.faults.triton_report import report_one

# Columns of a feature's line. A padding that no id has: -1.
ADDRESS, ROWS, STRIDE, DIM, COLUMN, PADDING, MODE, NUMBER, TABLE = (tl.constexpr(i) for i in range(9))
FIELDS = tl.constexpr(9)

BackwardT = TypeVar("BackwardT", bound=Any)  # BagsBackward or FMBackward

MAX_BLOCK = 256  # columns of a tile; wider rows are walked in blocks
_LANES = 64 if torch.version.hip else 32  # threads of a warp


@triton.jit
def pointer_at(address, like, ALIGNED: tl.constexpr):
    """The pointer of like's type at an address (int64); ALIGNED: a multiple of 16 bytes."""
    pointer = address.to(like.dtype)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def load_rows(table, num_rows, row_stride, padding, ids, is_entry, column, in_row):
    """Rows [N, BLOCK_D] of ids [N] with zeros for padding and bad ids; which entries count, and which are bad."""
    is_known = (ids >= 0) & (ids < num_rows)
    keep = is_entry & is_known & (ids != padding)
    where = table + ids[:, None] * row_stride + column[None, :]
    rows = tl.load(where, mask=keep[:, None] & in_row[None, :], other=0.0)
    return rows, keep, is_entry & (is_known == 0)


@triton.jit
def bounds_of(offsets, bag, is_bag, num_bags, nnz):
    """First entry of bags [N] and the entry after the last; whether they lie where they should: if not, none do."""
    entry = tl.load(offsets + bag, mask=is_bag, other=0).to(tl.int64)
    end = tl.load(offsets + bag + 1, mask=is_bag, other=0).to(tl.int64)
    is_whole = (entry >= 0) & (entry <= end) & (end <= nnz)
    is_whole &= ((bag > 0) | (entry == 0)) & ((bag + 1 < num_bags) | (end == nnz))
    return entry, tl.where(is_whole, end, entry), is_whole


@triton.jit
def report_bags(claim, OFFSETS, IDS, offsets, ids, first, last, num_bags, nnz, num_rows, table):
    """Look again at the bags [first, last) of a feature, and report by the two checks what is wrong with one."""
    for bag in range(first, tl.minimum(last, num_bags)):
        entry, end = tl.load(offsets + bag).to(tl.int64), tl.load(offsets + bag + 1).to(tl.int64)
        is_whole = (entry >= 0) & (entry <= end) & (end <= nnz)
        is_whole &= ((bag > 0) | (entry == 0)) & ((bag + 1 < num_bags) | (end == nnz))
        report_one(claim, OFFSETS, is_whole == 0, entry, bag, nnz, end)
        for p in range(entry, tl.where(is_whole, end, entry)):
            id = tl.load(ids + p).to(tl.int64)
            report_one(claim, IDS, (id < 0) | (id >= num_rows), id, p, num_rows, table)


def rows_adjacent(x: Tensor) -> Tensor:
    """x [N, M], copied only where columns are not adjacent."""
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def block_of(dim: int) -> int:
    """Columns of a tile."""
    return min(triton.next_power_of_2(max(dim, 1)), MAX_BLOCK)


def rows_of_tile(block_d: int, vec: int, num_warps: int, loads: int) -> int:
    """So many that each thread reads `loads` times 16 bytes of a tile; half of that where rows are not aligned."""
    each = loads * vec if vec > 1 else 2 * loads
    return max(1, _LANES * num_warps * each // block_d)


def registers(most: int) -> dict[str, int]:
    """Launch option: left alone, NVIDIA's assembler moves a pointer or two to memory, so that more programs fit."""
    return {} if torch.version.hip else {"maxnreg": most}


def is_aligned(x: Tensor) -> bool:
    """Whether every row of x [N, M] begins and ends at a multiple of 16 bytes."""
    elements = 16 // x.element_size()
    row = x.stride(0) if x.shape[0] > 1 else x.shape[1]
    return x.data_ptr() % 16 == 0 and x.shape[1] % elements == 0 and row % elements == 0


def acc_of(x: Tensor) -> tl.dtype:
    """What sums of x are kept in."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@functools.lru_cache(maxsize=1024)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if _door.is_capturing(device):
        raise _door.NotOnDeviceYet
    return torch.tensor(values, dtype=dtype, device=device)


_captured: set[Tensor] = set()  # a CUDA graph replays with their addresses, so they are kept


def constant_numbers(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers that recur from call to call, on the device; copied the first time only, and not to be written to."""
    out = _constant(tuple(values), dtype, device)
    if _door.is_capturing(device):
        _captured.add(out)
    return out


def constant(lines: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Lines of a matrix that recurs from call to call, flat int64 on the device; see `constant_numbers`."""
    return constant_numbers([x for line in lines for x in line], torch.int64, device)


def sent(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of this call alone on the device, without waiting for it; not where a CUDA graph is captured.

    A graph would copy them again from memory that is long another call's: callers refuse a capture before.
    """
    assert not _door.is_capturing(device)
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def flat_plan(given: BackwardT) -> BackwardT:
    """A backward pass with the parts of its plan, which are contiguous, in one dimension."""
    parts = ("rows", "row_offsets", "order", "bags", "table_starts")
    flat: BackwardT = given._replace(**{part: getattr(given, part).view(-1) for part in parts})
    return flat
