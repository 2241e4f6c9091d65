"""Compiles the launches that the tests of tests/gpu make, for one GPU, and writes what each needs.

    python tests/proofs/compile_launches.py sm_90 FILE.json [--only EXPRESSION]

The tests run on the CPU by the C++ kernels; every call of an operator that Triton serves on a GPU is shown to its
launcher too (`gpu_launches.py`). Each specialisation is compiled once. Run by test_launches_compile.py with a few of
the tests; by hand, without --only, it tries all (many minutes).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TESTS = HERE.parent / "gpu"
sys.path[:0] = [str(HERE), str(TESTS)]
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests run on the CPU, whatever this machine has

import gpu_launches  # noqa: E402
import gpu_parity  # noqa: E402

from deeprec.kernels import _gpu_code  # noqa: E402

MOST_SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}  # bytes of a program
LEFT_OUT = "not served and not doctor and not opcheck"  # they look at who serves an operator here
# Files that call the operators as the others do, and those about what only a GPU or the interpreter meets.
OTHER_FILES = ("test_functions", "test_layers", "test_models", "test_faults", "test_graphs")
MOST_SPILLED = 32  # bytes: the assembler moves a pointer or two to memory, so that more programs fit
launches: list[gpu_launches.Launch] = []


class Plugin:
    """Shows the operators of every test to the recorder."""

    def __init__(self, recorder: gpu_launches.Recorder) -> None:
        self.recorder = recorder

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        with gpu_launches.Watch(self.recorder):
            return (yield)


def compiled(place: int) -> dict[str, Any]:
    """What a launch compiles to; an error is part of the answer."""
    launch = launches[place]
    row: dict[str, Any] = {"kernel": launch.kernel.__name__, "launch": launch.words(), "error": ""}
    try:
        result = launch.compile()
    except Exception as error:
        return {**row, "error": f"{type(error).__name__}: {error}"[:2000]}
    return {**row, "shared_bytes": result.metadata.shared, **_gpu_code.nvidia(result.asm["cubin"], False)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=MOST_SHARED)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="tests, as pytest's -k takes them")
    given = parser.parse_args()
    gpu_parity.STANDS_IN = True  # so that the tests are not skipped
    recorder = gpu_launches.Recorder(gpu_launches.GPUTarget(*_gpu_code.TARGETS[given.target]))
    files = sorted(str(path) for path in TESTS.glob("test_*.py") if path.stem not in OTHER_FILES)
    chosen = f"({given.only}) and {LEFT_OUT}" if given.only else LEFT_OUT
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", "-k", chosen, *files]
    failed = pytest.main(arguments, plugins=[Plugin(recorder)])
    launches.extend(recorder.launches.values())
    print(f"{sum(recorder.calls.values())} calls, {len(launches)} launches to compile", flush=True)
    workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        rows = list(pool.map(compiled, range(len(launches))))
    most = MOST_SHARED[given.target]
    for row in rows:
        if not row["error"] and row["shared_bytes"] > most:
            row["error"] = f"{row['shared_bytes']} bytes of shared memory, a program has {most}"
    result = {"target": given.target, "tests_failed": int(failed), "waits": dict(recorder.waits), "launches": rows}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    bad = [row for row in rows if row["error"] or row["spill_bytes"] > MOST_SPILLED]
    for row in bad:
        print(f"{row['launch']}: {row['error'] or str(row['spill_bytes']) + ' bytes spilled'}")
    return 1 if bad or failed else 0


if __name__ == "__main__":
    sys.exit(main())
