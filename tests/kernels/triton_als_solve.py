"""Triton kernels of als_solve under the interpreter; run by test_triton.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from deeprec.kernels.als_solve import triton_kernels
from deeprec.kernels.als_solve.reference import als_solve_reference

_spec = importlib.util.spec_from_file_location("als_cases", Path(__file__).with_name("test_als_solve.py"))
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = cases
_spec.loader.exec_module(cases)

LENGTHS = [3, 0, 64, 1, 130, 0, 9]


def test_takes_rows_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = cases.Problem.make(LENGTHS, 90, 20)
    monkeypatch.setattr(triton_kernels, "_MATRIX_BYTES", 3 * 20 * 20 * 4)
    cases.close(triton_kernels.als_solve(*problem, 0), als_solve_reference(*problem.to(torch.float64), 0))
