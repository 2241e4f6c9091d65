"""What holds for every test: GPU tests are skipped where there is none, hypothesis draws the same examples each run."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", derandomize=True, deadline=None)
settings.register_profile("sanitize", derandomize=True, deadline=None, max_examples=10)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU, torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
