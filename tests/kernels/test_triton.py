"""The Triton kernels under the interpreter, on the CPU: each triton_OPERATOR.py here, and the suite of tests/gpu.

Each in a process of its own, for Triton decides on import whether kernels are interpreted.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = [HERE.parent / "gpu", *sorted(HERE.glob("triton_*.py"))]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") == "sanitize", reason="sanitizers look at C++ only")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.removeprefix("triton_"))
def test_kernels_match_under_the_interpreter(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=file.parents[2] if file.is_file() else file.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout
