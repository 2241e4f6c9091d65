"""Speed of an operator beside its rivals.

    python -m bench OP [--device cuda] [--json FILE [--go-on]] [--plot DIR] [--quick] [--cases TEXT]
    python -m bench all [--device cuda] --results DIR

Parity with the float64 reference comes first: where it is red, the exit status is 1 and nothing is timed. An op is a
file bench/OP.py with `cases(device)` and TARGETS; `all` runs each in a process of its own and writes the page of
results. Without a GPU that torch sees, `--device cuda` ends with status 2. With --go-on the FILE is written after every
case, the cases that it holds already are not run again, and one whose parity is red does not keep the others from being
timed; the exit status is 1 all the same.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.clocks import CpuClock, GpuClock
from bench.harness import Clock, ParityError, reached, run_case
from bench.machine import COPY, Limits, gpu, machine, versions
from deeprec._files import write_atomically
from deeprec.device import resolve_device

HERE = Path(__file__).parent


def ops() -> list[str]:
    """Every operator that has a bench here."""
    named = [path.stem for path in sorted(HERE.glob("*.py")) if (HERE.parent / "kernels" / path.stem).is_dir()]
    return [name for name in named if hasattr(importlib.import_module(f"bench.{name}"), "cases")]


def run(op: str, device: str, quick: bool, only: str, keep: Path | None = None) -> dict[str, Any]:
    """All cases of an op on "cpu" or "cuda", one after the other.

    Args:
        keep: file to write after every case, whose cases are not run again; see --go-on.
    Raises:
        ParityError: one of ours differs from its reference; with `keep` after the other cases.
    """
    module = importlib.import_module(f"bench.{op}")
    clock, limits = _instruments(device)
    seconds, rounds = (0.1, 2) if quick else (0.8, 5)
    before = {} if keep is None else _kept(keep, op, device, seconds)
    done: list[dict[str, Any]] = []
    red: list[str] = []
    started = time.perf_counter()

    def result() -> dict[str, Any]:
        measured = {**before.get("limits", {}), **limits.measured}
        return {
            "schema": report.SCHEMA,
            "op": op,
            "device": device,
            "machine": machine() if device == "cpu" else {**machine(), "gpu": gpu(op)},
            "versions": versions(),
            "limits": measured,
            "limits_missing": limits.reason,
            "seconds_a_contender": seconds,
            "cases": done,
            "targets": [reached(target, done) for target in module.TARGETS if target.device == device],
        }

    timed = {case["case"]: case for case in before.get("cases", [])}
    for case in module.cases(device):
        if case.name in timed:
            done.append(timed[case.name])
        elif only in case.name:
            print(f"{time.perf_counter() - started:5.0f} s  {case.name}", flush=True)
            try:
                done.append(run_case(case, limits, seconds, rounds, clock))
            except ParityError as error:
                if keep is None:
                    raise
                red.append(str(error))
            if keep is not None:
                _write(keep, result())
    limits.of(COPY)
    if red:
        raise ParityError("; ".join(red))
    return result()


def _kept(path: Path, op: str, device: str, seconds: float) -> dict[str, Any]:
    """An earlier result of the same op, device, versions and effort; {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    asked = {
        "schema": report.SCHEMA,
        "op": op,
        "device": device,
        "versions": versions(),
        "seconds_a_contender": seconds,
    }
    is_same = isinstance(found, dict) and all(found.get(name) == value for name, value in asked.items())
    return found if is_same else {}


def _write(path: Path, result: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())


def _instruments(device: str) -> tuple[Clock, Any]:
    """What times and what measures limits on a device."""
    if device == "cpu":
        return CpuClock(), Limits()
    from bench.limits_gpu import GpuLimits  # needs Triton

    torch.set_float32_matmul_precision("highest")  # the same for all; float32 is what parity asks for
    return GpuClock(), GpuLimits()


def run_all(folder: Path, device: str, quick: bool) -> int:
    """Every op in a process of its own; 1 if one of them failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for op in ops():
        command = [sys.executable, "-m", "bench", op, "--device", device]
        command += ["--json", str(folder / f"{op}.json"), "--plot", str(folder)]
        if subprocess.run([*command, *(["--quick"] if quick else [])], check=False).returncode:
            failed.append(op)
    write_page(folder)
    print(f"failed: {', '.join(failed)}" if failed else f"wrote {folder / 'README.md'}")
    return int(bool(failed))


def write_page(folder: Path) -> None:
    pictures = [path.name for path in folder.glob("*.png")]
    (folder / "README.md").write_text(report.page(report.load(folder), pictures), encoding="utf-8")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("op", choices=[*ops(), "all", "page"], help="an operator, all of them, or the page alone")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the tensors are")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--go-on", action="store_true", help="of that file: time the cases that it lacks")
    parser.add_argument("--plot", type=Path, help="write charts (PNG) into this folder")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time: to see that all works")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--results", type=Path, help="folder for all and page; by default results/ beside the benches")
    arguments = parser.parse_args()
    device = arguments.device
    results = arguments.results or HERE / "results" / ("" if device == "cpu" else device)
    if arguments.op == "page":
        write_page(results)
        return 0
    if arguments.go_on and not arguments.json:
        parser.error("--go-on needs --json, the file to go on with")
    try:
        resolve_device(device, "bench")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.op == "all":
        return run_all(results, device, arguments.quick)
    try:
        keep = arguments.json if arguments.go_on else None
        result = run(arguments.op, device, arguments.quick, arguments.cases, keep)
    except ParityError as error:
        print(f"{arguments.op}: parity is red, no time is given: {error}", file=sys.stderr)
        return 1
    print(report.show(result))
    if arguments.json:
        _write(arguments.json, result)
    if arguments.plot:
        from bench import plots

        plots.draw(result, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
