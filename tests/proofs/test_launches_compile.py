"""What operators launch compiles for a GPU as Triton would there, hardly spills, and takes no tensor of the CPU.

`test_triton_compiles.py` compiles signatures written by hand; these are the real ones: what is 1 or a multiple of 16,
what stands in for an absent tensor, int32 beside int64. A few of the tests in tests/gpu; `python
tests/proofs/compile_launches.py sm_90 FILE.json` takes them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each kernel once; the largest k; D = 1, odd, round and beyond 1024. Every k: test_triton_compiles.py.
ONLY = "test_a_small_call or (test_every_k_of and 64) or ((test_lookup or test_plan_and_gradients) and bfloat16)"
# Who may wait for the GPU, and why; the references of what no kernel takes wait too.
WAITS = {
    "_require_ascending": "whether the rows of a gradient ascend, as row optimizers need",
    "_check_places": "whether the rows to catch up with exist",
    "check_users": "of the reference of sample_negatives, which stands in for its CUDA kernel here",
    "adam_catch_up_": "distinct rows to catch up with",
    "embedding_bags_plan": "distinct rows of the ids",
    "empty_grads": "distinct rows of each table",
}
pytest.importorskip("triton", reason="triton is not installed: kernels cannot be compiled")


def test_what_operators_launch_compiles() -> None:
    out = ROOT / "build" / "proofs" / "launches_sm_90.json"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_launches.py"), "sm_90", out, "--only", ONLY],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    result = json.loads(out.read_text(encoding="utf-8"))
    assert len(result["launches"]) > 60, "the operators were not called"
    waits = [place for place in result["waits"] if "/reference.py:" not in place]
    unknown = [place for place in waits if place.split()[1] not in WAITS]
    assert not unknown, f"launchers that wait for the GPU: {unknown}"
