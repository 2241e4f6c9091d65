"""`make gpu-check`: all that a GPU can tell about this library, in steps; one folder of JSON and a page.

    python -m bench.gpu_check [--out DIR] [--steps "build parity bench/embedding"] [--list] [--stand-in]

Steps: build, parity/FILE of tests/gpu, graphs, sanitizer/TOOL, bench/OP, train/MODEL. Each is a process (or several) of
under ten minutes; a failing one does not stop the others, but the exit status is 1. A step that is through for the same
sources, machine and versions is not run again, and one that was cut off goes on: start the same command until it says
that all passed. `--stand-in` tries all this without a GPU: Triton's interpreter, and the CPU for benches and training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from rich.console import Console

from bench import gpu_page
from deeprec._files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "deeprec-gpu-check/1"
PASSED, FAILED, NOT_RUN, UNFINISHED = "passed", "failed", "not run", "unfinished"
LIMIT = 540  # seconds of a process: a lent machine often allows ten minutes a command, build and start included
SOURCES = ("CMakeLists.txt", "bench/*.py", "bench/peers/*.py", "bench/*.cpp", "csrc/**/*", "deeprec/*.py",
           "deeprec/*/*.py", "deeprec/*/*/*.py", "kernels/*.py", "kernels/*/*.py", "tests/conftest.py",
           "tests/*/*.py")  # fmt: skip

# Asked of the interpreter there, in a process of its own: the driver itself imports neither torch nor the package's
# operators, which are not built yet.
FACTS = """
import importlib.metadata, json, platform, subprocess, torch
from deeprec import registry
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(number) for number in range(count)]
try:
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                            text=True).stdout.split()
except OSError:
    driver = []
print(json.dumps({
    "versions": {"python": platform.python_version(), "cuda": torch.version.cuda,
                 "driver": driver[0] if driver else None, **{name: version(name) for name in (
        "torch", "triton", "numpy", "pytest", "polars", "fbgemm-gpu", "liger-kernel", "cut-cross-entropy")}},
    "gpus": [{"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}",
              "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
    "models": registry.names(),
}))
"""


class Outcome(NamedTuple):
    """What a step came to.

    Attributes:
        status: PASSED, FAILED, NOT_RUN or UNFINISHED.
        reason: why it is not passed; what it came to in a few words where it is.
        facts: ready for `json.dumps`; what the page shows.
    """

    status: str
    reason: str = ""
    facts: Mapping[str, Any] = {}


class Finished(NamedTuple):
    """A process that a step started: exit status (None: ended at the limit), what it said, seconds."""

    status: int | None
    text: str
    seconds: float

    def last_words(self) -> str:
        """The last line it said."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1][:400] if lines else "it said nothing"


@dataclass
class Place:
    """Where the steps run and what they leave.

    Attributes:
        out: folder of the results. stands_in: no GPU; the interpreter and the CPU stand in for it.
        limit: seconds that a process may take.
        facts: versions, gpus and models, as the interpreter there told.
    """

    out: Path
    stands_in: bool
    limit: float
    facts: dict[str, Any]
    running: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def device(self) -> str:
        """Of benches and trainings."""
        return "cpu" if self.stands_in else "cuda"

    def key(self) -> dict[str, Any]:
        """What must be equal for a result to hold."""
        return {
            "sources": sources_sha256(),
            "versions": self.facts["versions"],
            "gpus": self.facts["gpus"],
            "stands_in": self.stands_in,
        }

    def run(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
        """Run a command in the root of the sources; what it says goes to logs/NAME.log too.

        Past the limit it is ended with all that it started.
        """
        log = self.path("logs", f"{name.replace('/', '-')}.log")
        started = time.monotonic()
        with log.open("ab") as said:
            begin = said.tell()
            said.write(f"\n$ {' '.join(command)}\n".encode())
            said.flush()
            try:
                self.running = subprocess.Popen(
                    command, cwd=ROOT, env=child_environment(environment or {}), stdin=subprocess.DEVNULL, stdout=said,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                status: int | None = self.running.wait(timeout=self.limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                self.end()
        text = log.read_bytes()[begin:].decode(errors="replace")
        return Finished(status, text, time.monotonic() - started)

    def end(self) -> None:
        """End the process that is running, and all that it started."""
        process, self.running = self.running, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def path(self, *parts: str) -> Path:
        """A file of the results; its folder is made."""
        path = self.out.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def child_environment(more: Mapping[str, str]) -> dict[str, str]:
    """That of the steps' processes: these sources are imported, the tools of this interpreter are found."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join(programs),
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def sources_sha256() -> str:
    """Of every file that shapes a result."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()}):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def commit() -> str:
    """The commit of the sources, "-" where git does not say."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "-"
    return asked.stdout.strip() or "-"


def ask_facts() -> dict[str, Any]:
    """Versions, GPUs and names of the models; SystemExit where torch cannot be imported."""
    asked = subprocess.run([sys.executable, "-c", FACTS], cwd=ROOT, env=child_environment({}), capture_output=True,
                           text=True, check=False)  # fmt: skip
    if asked.returncode:
        raise SystemExit(f"gpu-check: {sys.executable} must have torch >= 2.11 and numpy: {asked.stderr[-600:]}")
    facts: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return facts


def record_path(out: Path, name: str) -> Path:
    return out / "steps" / f"{name.replace('/', '-')}.json"


def read_record(out: Path, name: str) -> dict[str, Any] | None:
    """What is known of a step; None where nothing is."""
    try:
        record = json.loads(record_path(out, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else None


def write_record(place: Place, name: str, outcome: Outcome, seconds: float) -> None:
    record = {
        "schema": SCHEMA,
        "step": name,
        "status": outcome.status,
        "reason": outcome.reason.replace(f"{ROOT}/", ""),
        "seconds": round(seconds, 1),
        "ended": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "commit": commit(),
        "key": place.key(),
        "facts": dict(outcome.facts),
    }
    write_atomically(
        place.path("steps", record_path(place.out, name).name), (json.dumps(record, indent=1) + "\n").encode()
    )


def run_steps(place: Place, names: Sequence[str], console: Console) -> None:
    """Each step that is not through yet; its record and the page are written as it ends."""
    from bench import gpu_steps

    for number, name in enumerate(names, 1):
        before = read_record(place.out, name)
        is_same = before is not None and before["key"] == place.key()
        title = f"[{number}/{len(names)}] {name}"
        if is_same and before is not None and before["status"] == PASSED:
            console.print(f"{title}: already done, {before['reason']}", style="dim", markup=False, highlight=False)
            continue
        write_record(place, name, Outcome(UNFINISHED, "it was cut off; the same command goes on with it"), 0.0)
        gpu_page.write(place.out)
        started = time.monotonic()
        with console.status(f"\\{title}"):
            try:
                outcome = gpu_steps.run(place, name, goes_on=is_same)
            except OSError as error:
                outcome = Outcome(FAILED, f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - started
        write_record(place, name, outcome, seconds)
        gpu_page.write(place.out)
        style = {PASSED: "green", FAILED: "red"}.get(outcome.status, "yellow")
        console.print(f"{title}: {outcome.status} in {seconds:.0f} s. {outcome.reason}", style=style, markup=False,
                      highlight=False)  # fmt: skip


def conclude(place: Place, names: Sequence[str], console: Console) -> int:
    """What all came to, and what to do next; the exit status."""
    records = {name: read_record(place.out, name) for name in names}
    by_status = {status: [n for n, record in records.items() if record and record["status"] == status]
                 for status in (PASSED, FAILED, NOT_RUN, UNFINISHED)}  # fmt: skip
    said = ", ".join(f"{len(steps)} {status}" for status, steps in by_status.items() if steps)
    console.print(f"{said}. The page: {place.out / 'README.md'}", markup=False, highlight=False)
    for status in (FAILED, UNFINISHED, NOT_RUN):
        for name in by_status[status]:
            record = records[name]
            assert record is not None
            console.print(f"  {status}: {name}: {record['reason']}", markup=False, highlight=False)
    bad = by_status[FAILED] + by_status[UNFINISHED]
    if bad:
        log = place.out / "logs" / f"{bad[0].replace('/', '-')}.log"
        console.print(f"Next: read {log}, mend it, and start the same command again: what has passed is not run "
                      f"again unless the sources change. One step alone: GPU_STEPS={bad[0]}",
                      markup=False, highlight=False)  # fmt: skip
    return int(bool(bad))


def default_out(facts: Mapping[str, Any], stands_in: bool) -> Path:
    """bench/results/NAME-OF-THE-GPU."""
    if stands_in:
        return ROOT / "build" / "gpu" / "stand-in"
    return ROOT / "bench" / "results" / re.sub(r"[^A-Za-z0-9]+", "-", facts["gpus"][0]["name"]).strip("-")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the results; bench/results/NAME-OF-THE-GPU")
    parser.add_argument("--steps", default="", help="names or groups of steps, with spaces between; all of them")
    parser.add_argument("--list", action="store_true", help="print the names of the steps")
    parser.add_argument("--stand-in", action="store_true", help="try the steps without a GPU")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a process of a step may take")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    facts = ask_facts()
    if not facts["gpus"] and not arguments.stand_in:
        print(
            f"gpu-check: a GPU is needed, torch {facts['versions']['torch']} (CUDA {facts['versions']['cuda']}) sees "
            "none; install a torch with CUDA and the driver, or try the steps without: GPU_STAND_IN=1",
            file=sys.stderr,
        )
        return 2
    from bench import gpu_steps

    out = (arguments.out or default_out(facts, arguments.stand_in)).resolve()
    place = Place(out, arguments.stand_in, arguments.limit, facts)
    try:
        names = gpu_steps.picked(place, arguments.steps.split())
    except ValueError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    if arguments.list:
        print("\n".join(names))
        return 0

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # `Place.run` ends its process; to wait for it here may meet a lock held below

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    run_steps(place, names, console)
    gpu_page.write(place.out)
    return conclude(place, names, console)


if __name__ == "__main__":
    sys.exit(main())
