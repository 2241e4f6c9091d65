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

# Columns of a feature's line. A padding that no id has: -1.
ADDRESS, ROWS, STRIDE, DIM, COLUMN, PADDING, MODE, NUMBER = (tl.constexpr(i) for i in range(8))
FIELDS = tl.constexpr(8)

BackwardT = TypeVar("BackwardT", bound=Any)  # BagsBackward or FMBackward

MAX_BLOCK = 256  # columns of a tile; wider rows are walked in blocks
_LANES = 64 if torch.version.hip else 32  # threads of a warp
BAD_INPUT = "ids must be in [0, num_embeddings) and offsets ascend from 0 to the number of ids"


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
def clear_if(ok, is_bad):
    """Set the flag ok [1] to 0 where any of is_bad [N] holds."""
    tl.store(ok + tl.zeros_like(is_bad).to(tl.int32), tl.zeros_like(is_bad).to(tl.int32), mask=is_bad)


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
    reason, remedy = "numbers of its tables are not on the GPU yet", "make the same call once before the capture"
    _door.refuse_capture("deeprec", device, reason, remedy)
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


def new_flag(device: torch.device) -> Tensor:
    """[1] int32, 1: nothing is wrong yet."""
    return torch.ones(1, dtype=torch.int32, device=device)


def flat_plan(given: BackwardT) -> BackwardT:
    """A backward pass with the parts of its plan, which are contiguous, in one dimension."""
    parts = ("rows", "row_offsets", "order", "bags", "table_starts")
    flat: BackwardT = given._replace(**{part: getattr(given, part).view(-1) for part in parts})
    return flat
