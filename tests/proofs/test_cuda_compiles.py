"""Every csrc/cuda/*.cu compiles with nvcc for the GPUs we name, without one at hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = (80, 90, 100)


@pytest.mark.skipif(not SOURCES, reason="csrc/cuda has no .cu file: Triton serves every operator on the GPU")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed: csrc/cuda cannot be compiled")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_cuda_source_compiles_without_spills(source: Path) -> None:
    out = ROOT / "build" / "proofs"
    out.mkdir(parents=True, exist_ok=True)
    include = Path(torch.__file__).parent / "include"
    run = subprocess.run(
        ["nvcc", "-c", source, "-o", out / f"{source.stem}.o", "-std=c++20", "-O3", "-Xptxas", "-v", "--threads", "0"]
        + [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
        + ["-isystem", include, "-DUSE_CUDA", "-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020b000000000000"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    rows = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
        run.stderr,
        re.DOTALL,
    )
    usage = [
        {"kernel": kernel, "target": target, "spill_bytes": int(spill), "registers": int(registers)}
        for kernel, target, spill, registers in rows
    ]
    (out / f"nvcc_{source.stem}.json").write_text(json.dumps(usage, indent=1), encoding="utf-8")
    assert usage, "ptxas reported no kernel"
    assert not [row for row in usage if row["spill_bytes"]]
