"""What a Triton kernel compiles to, without a GPU: the cases of all kernels, their machine code, and what it tells.

The proofs in tests/proofs ask it whether every kernel compiles for every GPU and keeps its values in registers;
`python -m bench.gpu_static` asks for the rest. Both run it in processes without TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import deeprec.kernels
from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._gpu_races import unguarded, without_barriers

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


def kernel_files() -> list[Path]:
    """Every kernels/*/triton_*.py."""
    return sorted(Path(deeprec.kernels.__path__[0]).glob("*/triton_*.py"))


def kernel_names(paths: Iterable[Path]) -> set[str]:
    """Every `@triton.jit` function whose name ends in `_kernel`: each must be in a case."""
    names: set[str] = set()
    for path in paths:
        names |= set(re.findall(r"@triton\.jit[^\n]*\s+def (\w+_kernel)\(", path.read_text(encoding="utf-8")))
    return names


def cases_for(target: str) -> list[CompileCase]:
    """The cases meant for a target, of all files with kernels; a file without `compile_cases` is an error."""
    cases: list[CompileCase] = []
    for path in kernel_files():
        if kernel_names([path]):
            cases += importlib.import_module(f"deeprec.kernels.{path.parent.name}.{path.stem}").compile_cases()
    return [case for case in cases if TARGETS[target][0] in case.backends]


def compile_case(index: int, target: str, with_loads: bool = False) -> dict[str, Any]:
    """Compile case number `index` for `target`; an error is part of the answer.

    Args:
        with_loads: say of NVIDIA code what `loads` finds in it; the disassembler takes longer than the compiler.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    case = cases_for(target)[index]
    row: dict[str, Any] = {"case": case.name, "kernel": case.kernel.__name__, "target": target, "error": ""}
    try:
        arguments = list(case.signature)
        attrs = {(arguments.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
        source = ASTSource(fn=case.kernel, signature=case.signature, constexprs=case.constexprs, attrs=attrs)
        options = {"num_warps": case.num_warps}
        if case.max_registers and TARGETS[target][0] == "cuda":
            options["maxnreg"] = case.max_registers
        compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    except Exception as error:
        return {**row, "error": f"{type(error).__name__}: {error}"[:2000]}
    row["shared_bytes"] = compiled.metadata.shared
    row["num_warps"] = compiled.metadata.num_warps
    row["unguarded"] = unguarded(compiled.asm["ttir"])
    row["needs_barriers"] = bool(unguarded(without_barriers(compiled.asm["ttir"])))
    if "cubin" in compiled.asm:
        return {**row, **nvidia(compiled.asm["cubin"], with_loads)}
    return {**row, **amd(compiled.asm["amdgcn"])}


def nvidia(cubin: bytes, with_loads: bool) -> dict[str, Any]:
    """Registers and spills from the resource table, loads from the machine code; the tools come with triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        numbers = {key: int(number) for key, number in re.findall(r"(REG|STACK):(\d+)", usage)}
        sass = ""
        if with_loads or numbers["STACK"]:
            command = [str(tools / "nvdisasm"), "-c", file.name]
            sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "registers": numbers["REG"],
        # Spilled registers are all that a Triton kernel keeps on its stack; STL is the store that puts them there.
        "spill_bytes": numbers["STACK"] if re.search(r"\bSTL\b", sass) else 0,
        "stack_bytes": numbers["STACK"],
        **(loads(sass) if with_loads else {}),
    }


_LOAD = re.compile(r"\bLDG\.E([.\w]*)\s+R(\d+),")
_REGISTER = re.compile(r"\bR(\d+)\b")


def loads(sass: str) -> dict[str, int]:
    """Width, number and depth of the global loads of a kernel, from its machine code in the order it is written.

    Returns:
        widest_load_bits; vector_loads: those of 16 bytes; loads_in_flight: the most loads of the widest kind that are
        issued before an instruction reads what the first of them brings.
    """
    per_line = [(_width(m.group(1)), int(m.group(2))) if (m := _LOAD.search(line)) else None for line in _lines(sass)]
    widest = max((load[0] for load in per_line if load), default=0)
    waiting: list[range] = []  # registers of loads nobody has read
    most = 0
    for line, load in zip(_lines(sass), per_line, strict=True):
        sources = line.split(",", 1)[1] if load or not re.search(r"\bST[GSL]\b|\bRED", line) else line
        read = {int(number) for number in _REGISTER.findall(sources)}
        if any(read.intersection(registers) for registers in waiting):
            waiting = []
        if load and load[0] == widest:
            waiting.append(range(load[1], load[1] + max(1, widest // 32)))
            most = max(most, len(waiting))
    return {
        "widest_load_bits": widest,
        "vector_loads": sum(1 for load in per_line if load and load[0] == 128),
        "loads_in_flight": most,
    }


def _lines(sass: str) -> list[str]:
    """The instructions that have operands."""
    return [line for line in sass.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/", line) and "," in line]


def _width(suffix: str) -> int:
    """Bits of a load named LDG.E and this, e.g. "", ".64", ".128.CONSTANT", ".U16"."""
    match = re.search(r"\.[US]?(8|16|64|128)\b", suffix)
    return int(match.group(1)) if match else 32


def amd(assembly: str) -> dict[str, Any]:
    """Registers, spills and width of the loads from the assembly's notes and text."""

    def number(key: str) -> int:
        match = re.search(rf"\.{key}:\s+(\d+)", assembly)
        return int(match.group(1)) if match else 0

    widths = [32 * int(width) for width in re.findall(r"(?:global|buffer)_load_dwordx?(\d)", assembly)]
    return {
        "registers": number("vgpr_count"),
        "spill_bytes": 4 * (number("vgpr_spill_count") + number("sgpr_spill_count")),
        "stack_bytes": number("private_segment_fixed_size"),
        "widest_load_bits": max(widths, default=0),
    }
