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

from deeprec.kernels._gpu_code import cases_for, compile_case, kernel_files, kernel_names

OTHERS = ("bf16", "fp16", "fp64")
_WIDTH = re.compile(r"_[dk](\d+)(?=_|$)")
_INDEX = re.compile(r"_i(?:32|64)(?=_|$)")


def chosen(names: Sequence[str], which: str) -> list[int]:
    """Numbers of the cases to compile."""
    if which == "all":
        return list(range(len(names)))
    widest: dict[str, tuple[int, int]] = {}  # name without its width -> the width, the number of the case
    for n, name in enumerate(names):
        if which == "float32" and any(other in name for other in OTHERS):
            continue
        kind, width = _INDEX.sub("", _WIDTH.sub("", name)), int((_WIDTH.findall(name) or [0])[0])
        if kind not in widest or width > widest[kind][0]:
            widest[kind] = width, n
    return [n for _, n in widest.values()]


def main(target: str, out: Path, which: str) -> None:
    cases = cases_for(target)
    seen = {case.name for case in cases}
    if len(seen) != len(cases):
        sys.exit(f"compile_cases: names must be unique, got {sorted(case.name for case in cases)}")
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # processes of tests that share the cores
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 1) // beside)) as pool:
        asked = chosen([case.name for case in cases], which)
        rows = list(pool.map(compile_case, asked, [target] * len(asked)))
    missing = sorted(kernel_names(kernel_files()) - {row["kernel"] for row in rows})
    out.write_text(json.dumps({"target": target, "kernels_without_case": missing, "cases": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *(sys.argv[3:] or ["all"]))
