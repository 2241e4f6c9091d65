"""Compiles every Triton kernel for one target and writes what each needs: registers, spills, shared memory.

    python tests/proofs/compile_triton.py TARGET FILE.json [all | widest | float32]

all: every case, as without a word. widest: of the cases that differ in their width or index type alone, the widest.
float32: of these the ones without another element type.

Run by test_triton_compiles.py in a process of its own: under TRITON_INTERPRET=1 kernels are not compilable.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._gpu_code import cases_for, compile_case, kernel_files, kernel_names

OTHERS = ("bf16", "fp16", "fp64")
_WIDTH = re.compile(r"_[dk](\d+)(?=_|$)")


def chosen(cases: Sequence[CompileCase], which: str) -> list[int]:
    """Numbers of the cases to compile: all; the widest of each kernel and element type; of each kernel, in float32."""
    if which == "all":
        return list(range(len(cases)))
    widest: dict[tuple[str, str], tuple[tuple[int, int], int]] = {}  # kernel, element type -> its size, its number
    for n, case in enumerate(cases):
        element = next((other for other in OTHERS if other in case.name), "")
        if which == "float32" and element:
            continue
        kind = (case.kernel.__name__, element)
        # Of one width the one with most options, each of which is in its name.
        size = (int((_WIDTH.findall(case.name) or [0])[0]), len(case.name))
        if kind not in widest or size > widest[kind][0]:
            widest[kind] = size, n
    return [n for _, n in widest.values()]


def main(target: str, out: Path, which: str) -> None:
    cases = cases_for(target)
    seen = {case.name for case in cases}
    if len(seen) != len(cases):
        sys.exit(f"compile_cases: names must be unique, got {sorted(case.name for case in cases)}")
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # processes of tests that share the cores
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 1) // beside)) as pool:
        asked = chosen(cases, which)
        rows = list(pool.map(compile_case, asked, [target] * len(asked)))
    missing = sorted(kernel_names(kernel_files()) - {row["kernel"] for row in rows})
    out.write_text(json.dumps({"target": target, "kernels_without_case": missing, "cases": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *(sys.argv[3:] or ["all"]))
