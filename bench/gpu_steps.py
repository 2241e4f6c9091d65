"""The steps of `bench.gpu_check`: what each runs, and how what it left is judged."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench import gpu_progress
from bench.gpu_check import FAILED, NOT_RUN, PASSED, ROOT, Finished, Outcome, Place, child_environment

PYTHON = sys.executable
GRAPHS = "tests/gpu/test_graphs.py"
TOOLS = ("memcheck", "initcheck", "synccheck")
# Of memcheck, so that the tests after an error run too.
TOOL_OPTIONS = {"memcheck": ["--report-api-errors", "no", "--destroy-on-device-error", "kernel"]}
# Steps of a tool that cannot watch this GPU say so in these words.
UNSUPPORTED = ("Device not supported", "not supported on this device", "Unable to find injection library")
UNNAMED = "what it names no kernel for"
COPIES = "copies to the host of what nobody filled"  # as tests make them of memory beside their tensors
NEEDS_A_PACKAGE = 3  # exit status of bench.end_to_end
DOCTOR = "import json; from deeprec import doctor; print(json.dumps(doctor.report()))"
# Of the stand-in: a little of each, so that it ends within a minute.
STAND_IN_BENCH, STAND_IN_CASE = "sample_negatives", "uniform, 256 users"


def all_names(place: Place) -> list[str]:
    """Every step, in order."""
    operators = [p.stem for p in sorted((ROOT / "bench").glob("*.py")) if (ROOT / "kernels" / p.stem).is_dir()]
    return [
        "build",
        *(f"parity/{name}" for name in test_files()),
        "graphs",
        *(f"sanitizer/{tool}" for tool in TOOLS),
        *(f"bench/{name}" for name in operators),
        *(f"train/{name}" for name in place.facts["models"]),
    ]


def test_files() -> dict[str, str]:
    """Files of tests that need a GPU, by the names of their steps: those of tests/gpu, and FOLDER-NAME for others."""
    files = {}
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        folder, name = path.parent.name, path.stem.removeprefix("test_")
        if folder == "gpu" and name != "graphs":
            files[name] = f"tests/gpu/{path.name}"
        elif folder != "gpu" and "mark.gpu\n" in path.read_text(encoding="utf-8"):
            files[f"{folder}-{name}"] = f"tests/{folder}/{path.name}"
    return files


def picked(place: Place, words: Iterable[str]) -> list[str]:
    """The steps of these names or groups, in order; all where there are none.

    Raises:
        ValueError: a word that names neither.
    """
    names, words = all_names(place), list(words)
    for word in words:
        if not any(name == word or name.startswith(f"{word}/") for name in names):
            groups = ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))
            raise ValueError(f"GPU_STEPS must name steps or groups of them, got {word!r}; groups are {groups}")
    return [n for n in names if not words or any(n == word or n.startswith(f"{word}/") for word in words)]


def run(place: Place, name: str, *, goes_on: bool) -> Outcome:
    """Run a step.

    Args:
        goes_on: the step was begun before, for the same sources, machine and versions: keep what it left.
    """
    group, _, part = name.partition("/")
    steps: dict[str, Callable[[], Outcome]] = {
        "build": lambda: build(place),
        "parity": lambda: tests(place, name, test_files()[part], goes_on),
        "graphs": lambda: tests(place, name, GRAPHS, goes_on),
        "sanitizer": lambda: sanitizer(place, name, part),
        "bench": lambda: bench(place, name, part, goes_on),
        "train": lambda: train(place, name, part),
    }
    return steps[group]()


# --- build ------------------------------------------------------------------------------------------------------------


def build(place: Place) -> Outcome:
    """Compile csrc for the interpreter and the GPUs there, next to the sources, and ask `deeprec doctor`."""
    reasons: list[str] = []
    facts = doctor(place) if place.stands_in else None  # which takes what is built already
    if facts is not None and not facts["cpu"]["compiled"]:
        facts, reasons = None, compile_sources(place, cuda=False)
    elif facts is None:
        nvcc = find_program("nvcc")
        if nvcc is None:
            reasons.append("nvcc is not found: csrc/cuda is not built; put the CUDA toolkit on PATH or in CUDA_HOME")
        reasons += compile_sources(place, cuda=nvcc is not None)
    facts = facts or doctor(place)
    place.path("doctor.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    reasons += [f"C++ kernels: {facts['cpu']['reason']}"] if facts["cpu"]["reason"] else []
    if not place.stands_in:
        reasons += [f"CUDA C++ kernels: {facts['cuda']['reason']}"] if facts["cuda"]["reason"] else []
        reasons += [f"Triton: {facts['triton']['reason']}"] if facts["triton"]["reason"] else []
    if reasons:
        return Outcome(FAILED, "; ".join(reasons))
    served = [row["cuda"]["implementation"] for row in facts["operators"].values()]
    counts = ", ".join(f"{served.count(kind)} by {kind}" for kind in sorted(set(served)))
    return Outcome(PASSED, f"{len(served)} operators on the GPU: {counts}")


def find_program(name: str) -> str | None:
    """A program where the steps' processes find it, or where people keep CUDA's."""
    homes = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")]
    folders = [
        *(str(Path(home) / "bin") for home in homes if home),
        child_environment({})["PATH"],
        "/usr/local/cuda/bin",
    ]
    return shutil.which(name, path=os.pathsep.join(folders))


def compile_sources(place: Place, *, cuda: bool) -> list[str]:
    """CMake into build/gpu, installed into deeprec/ of the sources; why it failed, nothing where it did not."""
    capabilities = sorted({gpu["capability"].replace(".", "") for gpu in place.facts["gpus"]})
    tree = ROOT / "build" / "gpu" / "cmake"
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(tree), *(["-G", "Ninja"] if find_program("ninja") else []),
        f"-DPython_EXECUTABLE={PYTHON}", "-DDEEPREC_INSTALL_DIR=deeprec", f"-DCMAKE_INSTALL_PREFIX={ROOT}",
        f"-DDEEPREC_CUDA={'ON' if cuda else 'OFF'}",
    ]  # fmt: skip
    if cuda:
        configure += [
            f"-DCMAKE_CUDA_COMPILER={find_program('nvcc')}",
            f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(capabilities)}",
        ]
    for command in (configure, ["cmake", "--build", str(tree), "--target", "install", "--parallel"]):
        done = place.run("build", command)
        if done.status is None:
            return [f"the compiler took more than {place.limit:.0f} s; start the step again, it goes on"]
        if done.status:
            errors = [line for line in done.text.splitlines() if "error" in line.lower()]
            return [f"{command[0]} {command[1]} failed: {errors[0].strip()[:300] if errors else done.last_words()}"]
    return []


def doctor(place: Place) -> dict[str, Any]:
    """What `deeprec doctor --json` says in a new process, but for what is this machine's alone: its folders."""
    done = place.run("build", [PYTHON, "-c", DOCTOR])
    if done.status != 0:
        raise OSError(f"deeprec doctor failed: {done.last_words()}")
    facts: dict[str, Any] = json.loads(
        done.text.strip().splitlines()[-1].replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    )
    del facts["data"], facts["platform"]
    return facts


# --- tests ------------------------------------------------------------------------------------------------------------


def tests(place: Place, name: str, file: str, goes_on: bool) -> Outcome:
    """A file of tests."""
    if not (ROOT / file).exists():
        return Outcome(NOT_RUN, f"{file} is not there")
    interpreted = place.stands_in and file.startswith("tests/gpu/")
    environment = {"TRITON_INTERPRET": "1"} if interpreted else {}
    arguments = [file, *([] if interpreted else ["-m", "gpu"])]
    results, done = in_processes(place, name, [], arguments, environment, goes_on=goes_on)
    return judged(place, results, done)


def in_processes(
    place: Place, name: str, before: list[str], arguments: list[str], environment: dict[str, str], *, goes_on: bool
) -> tuple[dict[str, dict[str, Any]], Finished]:
    """Run pytest in as many processes as it takes, each of which begins where the one before ended.

    Args:
        before: put before the interpreter. goes_on: leave out what an earlier run of the step came through.
    Returns:
        what each test came to, and the last process, with the words of all.
    """
    kept = place.path("tests", f"{name.replace('/', '-')}.jsonl")
    keep(kept, [test for test in gpu_progress.read(kept).values() if goes_on and is_through(test)])
    command = [
        *before, PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.gpu_progress", "--progress",
        str(kept), "--stop-after", str(0.8 * place.limit), *arguments,
    ]  # fmt: skip
    said, crashed = "", None
    while True:
        count = len(gpu_progress.read(kept))
        done = place.run(name, command, environment)
        said += done.text
        results = gpu_progress.read(kept)
        cut_off = [key for key, test in results.items() if test["outcome"] == gpu_progress.RUNNING]
        if done.status is None and len(results) > count + 1:  # began late: it has a process of its own next
            keep(kept, [test for key, test in results.items() if key not in cut_off])
        elif done.status not in (0, 1, 2, 5) and not cut_off:
            crashed = done.status  # after its last test
        if done.status in (0, 1, 5) or len(results) == count:
            break
    gpu_progress.write_junit(place.path("tests", f"{name.replace('/', '-')}.xml"), name, results.values())
    return results, done._replace(text=said, status=done.status if crashed is None else crashed)


def keep(path: Path, tests: Iterable[dict[str, Any]]) -> None:
    """Write what tests came to, in place of what is there."""
    path.write_text("".join(json.dumps(test) + "\n" for test in tests), encoding="utf-8")


def is_through(test: dict[str, Any]) -> bool:
    """Whether a test need not be run again."""
    return test["outcome"] not in (gpu_progress.FAILED, gpu_progress.RUNNING)


def judged(place: Place, results: dict[str, dict[str, Any]], done: Finished) -> Outcome:
    """What a file of tests came to. Where nothing ran, nothing has passed."""
    failed = {key: test for key, test in results.items() if not is_through(test)}
    skipped: dict[str, int] = {}
    for test in results.values():
        if test["outcome"] == "skipped":
            skipped[test["message"]] = skipped.get(test["message"], 0) + 1
    passed = len(results) - len(failed) - sum(skipped.values())
    first = next(iter(failed), None)
    facts = {
        "passed": passed,
        "failed": len(failed),
        "skipped": skipped,
        "failures": {k: t["message"] or "it ended the process, or hung" for k, t in list(failed.items())[:50]},
    }
    if failed:
        return Outcome(FAILED, f"{len(failed)} of {len(results)} tests failed, first {first}", facts)
    if done.status not in (0, 5):
        return Outcome(FAILED, f"pytest ended with status {done.status}: {done.last_words()}", facts)
    if not passed:
        status = NOT_RUN if place.stands_in else FAILED
        return Outcome(status, f"no test ran; skipped: {'; '.join(skipped) or 'none'}", facts)
    return Outcome(PASSED, f"{passed} tests passed" + (f", {sum(skipped.values())} skipped" if skipped else ""), facts)


# --- compute-sanitizer ------------------------------------------------------------------------------------------------


def sanitizer(place: Place, name: str, tool: str) -> Outcome:
    """compute-sanitizer over the tests marked `sanitizer`; errors in kernels of others (torch's own) are told apart."""
    program = find_program("compute-sanitizer")
    if place.stands_in:
        return Outcome(NOT_RUN, "the stand-in has no GPU to watch")
    if program is None:
        return Outcome(NOT_RUN, "compute-sanitizer is not found; it comes with the CUDA toolkit")
    watched = [
        program, "--tool", tool, "--target-processes", "all", "--print-limit", "2000", "--launch-timeout", "0",
        *TOOL_OPTIONS.get(tool, []),
    ]  # fmt: skip
    # Without torch's cache each tensor is memory of its own, so that an access beside it is seen.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    arguments = ["-m", "gpu and sanitizer", "tests/gpu"]
    results, done = in_processes(place, name, watched, arguments, environment, goes_on=False)
    if any(sign in done.text for sign in UNSUPPORTED):
        return Outcome(NOT_RUN, f"compute-sanitizer refuses this GPU: {first_line_with(done.text, UNSUPPORTED)}")
    return judge_sanitizer(done.text, judged(place, results, done), kernel_names())


def judge_sanitizer(said: str, tested: Outcome, ours: set[str]) -> Outcome:
    """Pass where the tests passed and no error lies in a kernel of ours, or in one without a name.

    Args:
        said: by the tool and the tests. tested: what the tests came to.
        ours: names of our kernels.
    """
    errors: dict[str, int] = {}
    for block in re.split(r"^=========[ \t]*$", said, flags=re.MULTILINE):
        at = re.search(r"^=========\s+at (?:0x\w+ in )?(.+?)(?:\+0x\w+)?(?: in .*)?$", block, re.MULTILINE)
        named = at.group(1) if at else COPIES if "Host API uninitialized" in block else None
        if named:
            errors[named] = errors.get(named, 0) + 1
    counted = sum(int(count) for count in re.findall(r"ERROR SUMMARY: (\d+) error", said))
    if counted > sum(errors.values()):
        errors[UNNAMED] = counted - sum(errors.values())
    theirs = {name: count for name, count in errors.items() if is_of_torch(name, ours)}
    own = {name: count for name, count in errors.items() if name not in theirs}
    facts = {"errors": own, "errors_of_torch": theirs, "failures": tested.facts["failures"]}
    if own:
        return Outcome(FAILED, "; ".join(f"{count} in {name}" for name, count in own.items()), facts)
    if "ERROR SUMMARY" not in said:
        return Outcome(FAILED, f"it watched nothing: {first_line_with(said, ('Error:',)) or tested.reason}", facts)
    if tested.status != PASSED:
        return Outcome(FAILED, f"the tests did not pass under it: {tested.reason}", facts)
    beside = f"; {sum(theirs.values())} reports about kernels of torch" if theirs else ""
    return Outcome(PASSED, f"no error, {tested.reason}{beside}", facts)


def is_of_torch(kernel: str, ours: set[str]) -> bool:
    """Whether a report is about a kernel with a name that is none of ours, or a copy that no kernel made."""
    return kernel == COPIES or (kernel != UNNAMED and not any(name in kernel for name in ours))


def kernel_names() -> set[str]:
    """Of the Triton and CUDA kernels in the sources."""
    names = set()
    for path in ROOT.glob("kernels/*/*.py"):
        names |= set(re.findall(r"@triton\.jit[^\n]*\ndef (\w+)\(", path.read_text(encoding="utf-8")))
    for path in (*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("csrc/cuda/*.cuh")):
        names |= set(re.findall(r"__global__[^;{]*?\b(\w+)\(", path.read_text(encoding="utf-8")))
    return names


def first_line_with(text: str, signs: Iterable[str]) -> str:
    """The first line that holds one of these texts."""
    return next((line.strip() for line in text.splitlines() if any(sign in line for sign in signs)), "")


# --- benches and training ---------------------------------------------------------------------------------------------


def bench(place: Place, name: str, op: str, goes_on: bool) -> Outcome:
    """`python -m bench OP` on the GPU, a process after the other until all cases are timed."""
    if place.stands_in and op != STAND_IN_BENCH:
        return Outcome(NOT_RUN, f"the stand-in times {STAND_IN_BENCH} alone")
    kept = place.path("bench", f"{op}.json")
    if not goes_on:
        kept.unlink(missing_ok=True)
    command = [PYTHON, "-m", "bench", op, "--device", place.device, "--json", str(kept), "--go-on"]
    command += ["--quick", "--cases", STAND_IN_CASE] if place.stands_in else []
    while True:
        before = timed(kept)
        done = place.run(name, command)
        if done.status is not None or timed(kept) == before:
            break
    if done.status is None:
        return Outcome(FAILED, f"a case takes more than {place.limit:.0f} s; {timed(kept)} cases are timed")
    if done.status:
        return Outcome(FAILED, done.last_words())
    return Outcome(PASSED, f"{timed(kept)} cases timed")


def timed(path: Path) -> int:
    """Cases in a result file of the benches."""
    try:
        return len(json.loads(path.read_text(encoding="utf-8"))["cases"])
    except (OSError, ValueError, KeyError):
        return 0


def train(place: Place, name: str, model: str) -> Outcome:
    """`fit` beside plain PyTorch on the same data."""
    kept = place.path("train", f"{model}.json")
    kept.unlink(missing_ok=True)
    command = [PYTHON, "-m", "bench.end_to_end", model, "--device", place.device, "--json", str(kept)]
    done = place.run(name, [*command, *(["--tiny"] if place.stands_in else [])])
    if done.status is None:
        return Outcome(FAILED, f"it took more than {place.limit:.0f} s")
    if done.status == NEEDS_A_PACKAGE:
        return Outcome(NOT_RUN, done.last_words())
    if done.status:
        return Outcome(FAILED, done.last_words())
    rows = json.loads(kept.read_text(encoding="utf-8"))["rows"]
    return Outcome(PASSED, "; ".join(f"{row['name']}: {row['says']}" for row in rows))
