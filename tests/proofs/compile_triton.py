"""Compiles every Triton kernel for one target and writes what each needs: registers, spills, shared memory.

Run by test_triton_compiles.py in a process of its own: under TRITON_INTERPRET=1 kernels are not compilable.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from deeprec.kernels._gpu_code import cases_for, compile_case, kernel_files, kernel_names


def main(target: str, out: Path) -> None:
    cases = cases_for(target)
    seen = {case.name for case in cases}
    if len(seen) != len(cases):
        sys.exit(f"compile_cases: names must be unique, got {sorted(case.name for case in cases)}")
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # processes of tests that share the cores
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 1) // beside)) as pool:
        rows = list(pool.map(compile_case, range(len(cases)), [target] * len(cases)))
    missing = sorted(kernel_names(kernel_files()) - {row["kernel"] for row in rows})
    out.write_text(json.dumps({"target": target, "kernels_without_case": missing, "cases": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
