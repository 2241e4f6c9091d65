"""Compiles every Triton kernel for one target and writes what each needs: registers, spills, shared memory, loads.

Run by test_triton_compiles.py in a process of its own: under TRITON_INTERPRET=1 kernels are not compilable.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


def kernel_files() -> list[Path]:
    """Every kernels/*/triton_*.py."""
    import deeprec.kernels

    return sorted(Path(deeprec.kernels.__path__[0]).glob("*/triton_*.py"))


def all_cases() -> list[Any]:
    """The cases of all files with kernels; one without `compile_cases` is an error."""
    cases: list[Any] = []
    for path in kernel_files():
        if kernel_names([path]):
            cases += importlib.import_module(f"deeprec.kernels.{path.parent.name}.{path.stem}").compile_cases()
    return cases


def kernel_names(paths: list[Path]) -> set[str]:
    """Every `@triton.jit` function whose name ends in `_kernel`: each must be in some case."""
    names: set[str] = set()
    for path in paths:
        names |= set(re.findall(r"@triton\.jit[^\n]*\s+def (\w+_kernel)\(", path.read_text(encoding="utf-8")))
    return names


def cases_for(target: str) -> list[Any]:
    """The cases that are meant for `target`."""
    return [case for case in all_cases() if TARGETS[target][0] in case.backends]


def compile_case(index: int, target: str) -> dict[str, Any]:
    """Compile case number `index` for `target`; an error is part of the answer."""
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
    return {**row, **(_nvidia(compiled.asm["cubin"]) if "cubin" in compiled.asm else _amd(compiled.asm["amdgcn"]))}


def _nvidia(cubin: bytes) -> dict[str, Any]:
    """Registers and spills from the resource table, load width from the machine code."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
    numbers = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    loads = re.findall(r"\bLDG\.E([.\w]*)", sass)  # e.g. "", ".64", ".128.CONSTANT", ".U16"
    widths = [int(match.group(1)) if (match := re.search(r"\.[US]?(8|16|64|128)\b", load)) else 32 for load in loads]
    return {
        "registers": int(numbers["REG"]),
        # Spilled registers are all that a Triton kernel keeps on its stack; STL is the store that puts them there.
        "spill_bytes": int(numbers["STACK"]) if re.search(r"\bSTL\b", sass) else 0,
        "stack_bytes": int(numbers["STACK"]),
        "widest_load_bits": max(widths, default=0),
    }


def _amd(assembly: str) -> dict[str, Any]:
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


def main(target: str, out: Path) -> None:
    cases = cases_for(target)
    seen = {case.name for case in cases}
    if len(seen) != len(cases):
        sys.exit(f"compile_cases: names must be unique, got {sorted(case.name for case in cases)}")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(compile_case, range(len(cases)), [target] * len(cases)))
    missing = sorted(kernel_names(kernel_files()) - {row["kernel"] for row in rows})
    out.write_text(json.dumps({"target": target, "kernels_without_case": missing, "cases": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
