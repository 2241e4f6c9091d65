"""All tests of this folder need a GPU, or the interpreter standing in for one (see gpu_parity.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the tests share gpu_parity.py and the builders


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from gpu_parity import STANDS_IN

    for item in items:
        if HERE in item.path.parents and not STANDS_IN:
            item.add_marker(pytest.mark.gpu)
