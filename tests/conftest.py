"""What holds for every test: GPU tests are skipped where there is none, hypothesis draws the same examples each run.

Under pytest-xdist (`make pytest`) it also says which tests stay together in one process, and which come first.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

if importlib.util.find_spec("hypothesis"):  # the tests in gpu/ also run where only torch, numpy and pytest are
    from hypothesis import settings

    settings.register_profile("default", derandomize=True, deadline=None)
    settings.register_profile("sanitize", derandomize=True, deadline=None, max_examples=10)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# A file's tests stay together, so that what they share is made once. These folders and files share more than that,
TOGETHER = {
    "serve": "serve",  # every model, trained
    "cli": "cli",  # a trained model
    "proofs/test_wheel.py": "build",  # may compile what the other reads
    "proofs/test_symbols.py": "build",
}
# and the long tests of these share nothing.
APART = ("proofs/test_triton_compiles.py", "kernels/test_triton.py", "proofs/test_readme.py")
# The longest first, so that no process waits for another at the end.
FIRST = (*APART, "proofs", "serve")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        items.sort(key=_turn)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Here rather than by a mark on each, so that the summary has one line for them all.
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU, torch sees none")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What hands out the tests: those of a group together. (xdist's own groups do nothing under pytest 9.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

        def remove_node(self, node: Any) -> Any:
            """Of a process that died: its test has failed, and none runs it again, to die likewise."""
            units = self.assigned_work[node]
            died = next((test for unit in units.values() for test, is_done in unit.items() if not is_done), None)
            if died is not None:
                units[_group(died)][died] = True
            super().remove_node(node)
            return died

        def _reschedule(self, node: Any) -> None:
            super()._reschedule(node)
            # A process begins a test when it knows the next: with what is left of a group, one alone, it would wait.
            while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                self._assign_work_unit(node)

    return ByGroup(config, log)


def _place(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


def _group(nodeid: str) -> str:
    place = _place(nodeid)
    if place in APART:
        return nodeid
    return TOGETHER.get(place) or TOGETHER.get(place.partition("/")[0]) or place


def _turn(item: pytest.Item) -> int:
    """The number in FIRST that fits; tests of one number keep their order."""
    place = _place(item.nodeid)
    return next((n for n, first in enumerate(FIRST) if place == first or place.startswith(f"{first}/")), len(FIRST))
