"""How Triton kernels report a fault: the first one to claim it writes what it met, the others go on."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.faults import claim_of

_BLOCK = 1024
_FAR = tl.constexpr(2**62)


@triton.jit
def _at(is_it, x):
    """The number of x [N], or x itself, at the one place where is_it [N] holds."""
    wide = tl.zeros_like(is_it).to(tl.int64) + x
    return tl.max(tl.where(is_it, wide, -_FAR), 0)


@triton.jit
def report_one(claim, CHECK, is_bad, value, position, bound, other):
    """As `report`, of one number of each kind."""
    if is_bad:  # noqa: SIM102 (Triton has no `and` that stops early)
        if tl.atomic_cas(claim, tl.cast(0, tl.int64), tl.cast(CHECK, tl.int64)) == 0:
            to = tl.load(claim + 1).to(claim.dtype)
            tl.store(to + 1, tl.cast(value, tl.int64))
            tl.store(to + 2, tl.cast(position, tl.int64))
            tl.store(to + 3, tl.cast(bound, tl.int64))
            tl.store(to + 4, tl.cast(other, tl.int64))
            tl.store(to, tl.cast(CHECK, tl.int64))


@triton.jit
def report(claim, CHECK, is_bad, value, position, bound, other):
    """Where any of is_bad [N] holds, claim the device's report for the lowest of these positions.

    claim: of `claim_of`. CHECK: of `number_of`. position: [N] int64, no two alike. value, bound, other: [N], or one
    number for all, below 2^62 in size.
    """
    if tl.max(is_bad.to(tl.int32), 0) > 0:
        lowest = tl.min(tl.where(is_bad, position, _FAR), 0)
        is_it = is_bad & (position == lowest)
        report_one(claim, CHECK, True, _at(is_it, value), lowest, _at(is_it, bound), _at(is_it, other))


@triton.jit(do_not_specialize=("count", "check"))
def _faults_kernel(is_bad, claim, count, check, BLOCK: tl.constexpr):
    """Report the first of is_bad [count]; one program, so that it is the first of all."""
    lowest = tl.cast(count, tl.int64)
    for begin in range(0, count, BLOCK):
        i = begin + tl.arange(0, BLOCK).to(tl.int64)
        holds = tl.load(is_bad + i, mask=i < count, other=0) != 0
        lowest = tl.minimum(lowest, tl.min(tl.where(holds, i, _FAR), 0))
    place = lowest + tl.arange(0, 1)
    report(claim, check, place < count, 1, place, count, 0)


def start_report(is_bad: Tensor, check: int) -> None:
    """Report a check where any of is_bad [...] holds, at the first of these places."""
    flat = is_bad.reshape(-1)
    launch(_faults_kernel, (1,), flat, claim_of(flat.device), flat.numel(), check, BLOCK=_BLOCK, num_warps=4)


def compile_cases() -> list[CompileCase]:
    """The one kernel."""
    types = {"is_bad": "*i1", "claim": "*i64", "count": "i32", "check": "i32", "BLOCK": "constexpr"}
    return [CompileCase("faults", _faults_kernel, types, {"BLOCK": _BLOCK})]
