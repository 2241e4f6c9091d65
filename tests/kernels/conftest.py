"""Valid arguments of every operator, from `opcheck_samples()` in each operator's test file; what the sanitizers run."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import pkgutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deeprec.kernels

for _package in pkgutil.iter_modules(deeprec.kernels.__path__):
    if _package.ispkg:
        importlib.import_module(f"deeprec.kernels.{_package.name}")

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
    from quick_interpreter import make_quick

    make_quick()

# Files and words of names. What these add to the others is PyTorch's own work, which takes long under the sanitizers.
NOT_SANITIZED = ("test_derivatives.py", "test_door.py", "test_opcheck.py", "test_sums.py")
NOT_SANITIZED_WORDS = ("compile", "export", "gradcheck", "test_gpu_")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under the sanitizers: tests that reach C++, of each the cases that are the first to show two values together."""
    if os.environ.get("DEEPREC_TESTS") != "sanitize":
        return
    shown: defaultdict[str, set[Any]] = defaultdict(set)
    chosen, rest = [], []
    for item in items:
        is_chosen = item.path.parent != Path(__file__).parent or _is_sanitized(item, shown[item.nodeid.split("[")[0]])
        (chosen if is_chosen else rest).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=rest)


def _is_sanitized(item: pytest.Item, shown: set[Any]) -> bool:
    if item.path.name in NOT_SANITIZED or any(word in item.name for word in NOT_SANITIZED_WORDS):
        return False
    case = getattr(item, "callspec", None)
    if case is None:
        return True
    values = [(name, repr(value)) for name, value in sorted(case.params.items())]
    pairs = set(itertools.combinations(values, min(2, len(values))))
    is_new = not pairs <= shown
    shown |= pairs
    return is_new


@pytest.fixture(autouse=True, scope="module")
def several_threads() -> Iterator[None]:
    """At least two threads, also where a process has one core: how kernels share their work is part of the claims."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


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
