"""What a Triton kernel is compiled for in tests: one case per kernel and element type, no GPU needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """One specialisation of a Triton kernel, as `triton.compile(ASTSource(kernel, signature, constexprs))` wants it.

    Each `kernels/<op>/triton_*.py` with kernels has `compile_cases() -> list[CompileCase]`.

    Attributes:
        name: unique over the package, e.g. "embedding_fwd_bf16_i32".
        kernel: the `@triton.jit` function.
        signature: argument name -> Triton type, e.g. {"weight": "*bf16", "num_rows": "i64", "BLOCK": "constexpr"}.
        constexprs: values of the constexpr arguments.
        backends: "cuda" (NVIDIA), "hip" (AMD), where the launcher gives them different constants.
        num_warps: as the launcher gives it.
        max_registers: of a thread, on NVIDIA, where the launcher gives it.
        aligned: arguments that are multiples of 16 (pointers: of 16 bytes), which Triton sees for itself at a launch.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    backends: tuple[str, ...] = ("cuda", "hip")
    num_warps: int = 4
    aligned: tuple[str, ...] = ()
    max_registers: int | None = None
