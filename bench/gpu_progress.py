"""A pytest plugin for `bench.gpu_check`: what each test came to is kept, so that the next process goes on after it.

    python -m pytest -p bench.gpu_progress --progress FILE [--stop-after SECONDS] tests/gpu

FILE gets a line of JSON when a test begins and when it ends: id, outcome ("running", "passed", "failed", "skipped"),
seconds, message; the last line about a test counts. Tests that stand there are left out. A test that is "running" when
the process is gone ended it. After an error of the GPU, which spoils a process, no further test is begun in it.
Needs pytest alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

FAILED, RUNNING = "failed", "running"
SPOILT = ("CUDA error", "AcceleratorError", "illegal memory access")
_LONGEST = 500  # characters of a message


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line about each test, by its id; a line that a kill cut off is dropped."""
    tests: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            test = json.loads(line)
        except ValueError:
            continue
        tests[test["id"]] = test
    return tests


def write_junit(path: Path, name: str, tests: Iterable[dict[str, Any]]) -> None:
    """The same as JUnit XML, for tools that show it."""
    listed = list(tests)
    failures = sum(test["outcome"] in (FAILED, RUNNING) for test in listed)
    skipped = sum(test["outcome"] == "skipped" for test in listed)
    counts = {"tests": len(listed), "failures": failures, "errors": 0, "skipped": skipped}
    suite = ElementTree.Element("testsuite", name=name, **{key: str(value) for key, value in counts.items()})
    for test in listed:
        place, _, case = test["id"].partition("::")
        entry = ElementTree.SubElement(suite, "testcase", classname=place, name=case, time=f"{test['seconds']:.3f}")
        if test["outcome"] != "passed":
            kind = "skipped" if test["outcome"] == "skipped" else "failure"
            ElementTree.SubElement(entry, kind, message=test["message"])
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


class Recorder:
    """Leaves out what stands in the file, writes what each test comes to, and ends the process in time."""

    def __init__(self, path: Path, stop_after: float) -> None:
        self.path, self.stop_after, self.started = path, stop_after, time.monotonic()
        self.before = read(path).keys()
        self.stop = ""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = [item for item in items if item.nodeid in self.before]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item.nodeid not in self.before]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._write(item.nodeid, RUNNING)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped or report.when == "call":
            self._write(report.nodeid, report.outcome, report.duration, "" if report.passed else _message(report))
        if report.failed and any(sign in str(report.longrepr) for sign in SPOILT):
            self.stop = "an error of the GPU spoils the process"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:  # a file that cannot be imported, or is skipped as a whole
            self._write(report.nodeid, report.outcome, 0.0, _message(report))

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if self.stop_after and time.monotonic() - self.started > self.stop_after:
            self.stop = "the time of this process is up"
        if self.stop:
            item.session.shouldstop = f"{self.stop}; the next one goes on"

    def _write(self, name: str, outcome: str, seconds: float = 0.0, message: str = "") -> None:
        test = {"id": name, "outcome": outcome, "seconds": round(seconds, 3), "message": message}
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(test) + "\n")


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test failed or was skipped, in a line that does not name the folder of the sources."""
    if isinstance(report.longrepr, tuple):
        words = str(report.longrepr[2]).removeprefix("Skipped: ")
    else:
        lines = str(report.longrepr).splitlines()
        words = " ".join([line[1:].strip() for line in lines if line.startswith("E ")] or lines[-1:])
    return words.replace(f"{Path.cwd()}/", "")[:_LONGEST]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--progress", type=Path, help="file that keeps what each test came to")
    parser.addoption("--stop-after", type=float, default=0.0, help="seconds after which no further test is begun")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--progress") is not None:
        config.pluginmanager.register(Recorder(config.getoption("--progress"), config.getoption("--stop-after")))
