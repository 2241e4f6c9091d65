"""Valid arguments of every operator, from `opcheck_samples()` in each operator's test file."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import deeprec.kernels

for _package in pkgutil.iter_modules(deeprec.kernels.__path__):
    if _package.ispkg:
        importlib.import_module(f"deeprec.kernels.{_package.name}")


@pytest.fixture(scope="session")
def samples() -> dict[str, list[tuple[Any, ...]]]:
    torch.manual_seed(0)
    found: dict[str, list[tuple[Any, ...]]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if "def opcheck_samples(" not in path.read_text():
            continue
        spec = importlib.util.spec_from_file_location(f"samples_of_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look up their annotations
        spec.loader.exec_module(module)
        for name, arguments in module.opcheck_samples():
            found.setdefault(name, []).append(arguments)
    return found
