"""Every Triton kernel compiles for the GPUs we name, without one at hand, keeps its values in registers, and has a
barrier wherever a thread would overwrite what another one has yet to read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Kernels with a number a row that all threads read and one replaces.
READ_AND_REWRITE = {
    "_adam_update_kernel",
    "_adam_tables_kernel",
    "_rowwise_adagrad_update_kernel",
    "_bags_rows_kernel",
    "_embedding_fm_rows_kernel",
}
# Bytes a thread keeps in memory since these look for bad input as well: an address or two, read where one is reported.
ALLOWED = {
    "sm_80": {"als_cg_fp32_i32_d512": 8},
    "sm_100": {"rows_pieces": 8},
    "gfx942": {"embedding_fm_fwd_all_fp32_d300": 40},
}
# All for the GPU at hand at times; of each kernel the widest case of every element type for the other vendor, and the
# widest of float32 for those that differ little from the first. By hand, compile_triton.py takes all for any.
WHICH = {"sm_80": "float32", "sm_90": "all", "sm_100": "float32", "gfx942": "widest"}
pytest.importorskip("triton", reason="triton is not installed: kernels cannot be compiled")


@pytest.mark.parametrize("target", WHICH)
def test_every_kernel_compiles_without_spills(target: str) -> None:
    out = ROOT / "build" / "proofs" / f"triton_{target}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache")}
    environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_triton.py"), target, out, WHICH[target]],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["cases"], "no kernels/*/triton_*.py lists a case"
    failed = {row["case"]: row["error"] for row in result["cases"] if row["error"]}
    assert not failed, f"{target}: {failed}"
    spills = {row["case"]: row["spill_bytes"] for row in result["cases"]}
    spilled = {case: size for case, size in spills.items() if size > ALLOWED.get(target, {}).get(case, 0)}
    assert not spilled, f"{target}: bytes of registers spilled to memory: {spilled}"
    unguarded = {row["case"]: row["unguarded"] for row in result["cases"] if row["unguarded"]}
    assert not unguarded, f"{target}: tl.debug_barrier() is missing: {unguarded}"
    needs_barriers = {row["kernel"] for row in result["cases"] if row["needs_barriers"]}
    assert needs_barriers >= READ_AND_REWRITE, "the proof no longer sees what their barriers are there for"
    assert not result["kernels_without_case"], "kernels that no CompileCase names; add one to compile_cases()"
