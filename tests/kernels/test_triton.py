"""The Triton kernels under the interpreter, on the CPU: the suite of tests/gpu, and what is special, triton_*.py here.

Each of the two in a process of its own, for Triton decides on import whether kernels are interpreted, and tests/gpu
takes the launchers for the kernels of the CPU. All files of the second in one: to begin takes longer than many of them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUITES = {"gpu": [HERE.parent / "gpu"], "special": sorted(HERE.glob("triton_*.py"))}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") == "sanitize", reason="sanitizers look at C++ only")
@pytest.mark.parametrize("suite", SUITES)
def test_kernels_match_under_the_interpreter(suite: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, SUITES[suite])],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout
