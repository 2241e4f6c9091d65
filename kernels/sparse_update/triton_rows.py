"""What the Triton kernels of the row updates share: how a weight is stored, and the types of their arguments.

Stochastic rounding draws the bits of `round_stochastically` (reference.py), so every device stores the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase

SEEDS = ("seed_low", "seed_high")  # the halves of the seed as int32; they change at every step


@triton.jit
def _mix(x):
    """The bijection of 32 bits by which the reference mixes; x is uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def store_weight(pointer, value, element, mask, seed_low, seed_high, IS_STOCHASTIC: tl.constexpr):
    """Store value in the dtype of the table; element is the place row * D + d in it, int64."""
    if IS_STOCHASTIC:
        low = (element & 0xFFFFFFFF).to(tl.uint32) ^ seed_low.to(tl.uint32, bitcast=True)
        high = (element >> 32).to(tl.uint32) + seed_high.to(tl.uint32, bitcast=True)
        bits = _mix(_mix(low) ^ high)
        whole = value.to(tl.uint32, bitcast=True)
        rounded = (whole + (bits & 0xFFFF)) >> 16
        is_nan = (whole & 0x7FFFFFFF) > 0x7F800000
        is_finite = (whole & 0x7F800000) != 0x7F800000
        rounded = tl.where(is_finite, rounded, (whole >> 16) | (is_nan.to(tl.uint32) << 6))
        tl.store(pointer, rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


def seed_halves(seed: int) -> tuple[int, int]:
    """Low and high 32 bits of a seed >= 0 as int32, zeros for -1."""
    halves = (max(seed, 0) & 0xFFFFFFFF, max(seed, 0) >> 32)
    low, high = (half - 2**32 if half >= 2**31 else half for half in halves)
    return low, high


def types_of(weight: Tensor, seed: int = -1) -> dict[str, Any]:
    dim = weight.shape[1]
    low, high = seed_halves(seed)
    return {
        "seed_low": low,
        "seed_high": high,
        "IS_STOCHASTIC": seed >= 0 and weight.dtype == torch.bfloat16,
        "ACC": tl.float64 if weight.dtype == torch.float64 else tl.float32,
        "BLOCK_D": min(triton.next_power_of_2(max(dim, 16)), 1024),
    }


def update_types(element: str) -> tuple[dict[str, str], dict[str, Any]]:
    """For compile cases: types of the arguments that all updates have, and constants at D = 64."""
    common = {"weight": f"*{element}", "rows": "*i64", "grads": f"*{element}", "grad_stride": "i64", "dim": "i32"}
    common |= dict.fromkeys(SEEDS, "i32") | dict.fromkeys(("IS_STOCHASTIC", "ACC", "BLOCK_D"), "constexpr")
    acc = tl.float64 if element == "fp64" else tl.float32
    return common, {"ACC": acc, "BLOCK_D": 64, "IS_STOCHASTIC": element == "bf16"}


def case_in_order(case: CompileCase) -> CompileCase:
    """Its signature in the order of the kernel's arguments; sizes and pointers are multiples of 16."""
    signature = {key: case.signature[key] for key in case.kernel.arg_names}
    numbers = [key for key in ("dim", "grad_stride") if key in signature]
    pointers = [key for key, kind in signature.items() if kind.startswith("*")]
    return replace(case, signature=signature, aligned=(*numbers, *pointers))
