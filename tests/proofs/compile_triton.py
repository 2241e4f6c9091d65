"""Compiles every Triton kernel for one target and writes what each needs: registers, spills, shared memory.

    python tests/proofs/compile_triton.py TARGET FILE.json [float32]     float32: leaves out the other element types

Run by test_triton_compiles.py in a process of its own: under TRITON_INTERPRET=1 kernels are not compilable.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from deeprec.kernels._gpu_code import cases_for, compile_case, kernel_files, kernel_names

OTHERS = ("bf16", "fp16", "fp64")


def main(target: str, out: Path, *, float32_alone: bool) -> None:
    cases = cases_for(target)
    seen = {case.name for case in cases}
    if len(seen) != len(cases):
        sys.exit(f"compile_cases: names must be unique, got {sorted(case.name for case in cases)}")
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # processes of tests that share the cores
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 1) // beside)) as pool:
        asked = [n for n, case in enumerate(cases) if not (float32_alone and any(o in case.name for o in OTHERS))]
        rows = list(pool.map(compile_case, asked, [target] * len(asked)))
    missing = sorted(kernel_names(kernel_files()) - {row["kernel"] for row in rows})
    out.write_text(json.dumps({"target": target, "kernels_without_case": missing, "cases": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float32_alone=sys.argv[3:] == ["float32"])
