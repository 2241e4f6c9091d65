"""`make gpu-check`, tried with the interpreter standing in for the GPU: steps go on, and what did not run is told."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from bench import end_to_end, gpu_check, gpu_page, gpu_progress, gpu_steps  # noqa: E402

sys.path.pop(0)
FACTS = {"versions": {"torch": "2.11.0"}, "gpus": [{"name": "H200", "capability": "9.0", "memory_gib": 139.0}],
         "models": ["neumf"]}  # fmt: skip
STEPS = ["build", "parity/fm_interaction", "sanitizer", "bench/sample_negatives", "train/autorec"]


def _place(out: Path, *, stands_in: bool = False, limit: float = 60.0) -> gpu_check.Place:
    return gpu_check.Place(out, stands_in, limit, FACTS)


def _start(out: Path, *steps: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.gpu_check", "--stand-in", "--out", str(out), "--steps", " ".join(steps)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _status(out: Path, step: str) -> str:
    record = gpu_check.read_record(out, step)
    return "" if record is None else record["status"]


def test_a_run_that_is_ended_goes_on_with_the_step_it_was_in(tmp_path: Path) -> None:
    first = _start(tmp_path, *STEPS)
    while _status(tmp_path, "parity/fm_interaction") != gpu_check.UNFINISHED and first.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=200)
    assert first.returncode == 128 + signal.SIGTERM
    assert _status(tmp_path, "build") == gpu_check.PASSED
    assert "parity/fm_interaction | **unfinished**" in (tmp_path / "README.md").read_text(encoding="utf-8")
    built = gpu_check.record_path(tmp_path, "build").read_bytes()

    second = _start(tmp_path, *STEPS)
    told, _ = second.communicate(timeout=400)
    assert second.returncode == 0, told
    assert "build: already done" in told
    assert gpu_check.record_path(tmp_path, "build").read_bytes() == built
    assert {step: _status(tmp_path, step) for step in STEPS if step != "sanitizer"} == dict.fromkeys(
        ["build", "parity/fm_interaction", "bench/sample_negatives", "train/autorec"], gpu_check.PASSED
    )
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    for tool in gpu_steps.TOOLS:  # what was not run is never told as passed
        assert f"sanitizer/{tool} | **not run** | the stand-in has no GPU to watch" in page
    assert page.index("not run") < page.index("## Machine") < page.index("## Parity")
    for words in ("| parity/fm_interaction | passed |", "| sample_negatives, uniform, 256 users x 4 | deeprec |",
                  "|  |  | torch |", "fm_interaction_grad | c++"):  # fmt: skip
        assert words in page
    assert str(ROOT) not in page
    trained = json.loads((tmp_path / "train" / "autorec.json").read_text(encoding="utf-8"))
    ours, theirs = (row["metrics"]["rmse"] for row in trained["rows"])
    assert ours == pytest.approx(theirs, rel=0.1)
    assert len(list((tmp_path / "tests").glob("*.xml"))) == 1


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu_check", "--out", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "a GPU is needed" in run.stderr
    assert "GPU_STAND_IN=1" in run.stderr
    assert not list(tmp_path.iterdir())


def test_steps_cover_every_operator_file_of_tests_and_model(tmp_path: Path) -> None:
    names = gpu_steps.all_names(_place(tmp_path))
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "gpu").glob("test_*.py")} - {"graphs"}
    assert tests <= {name.partition("/")[2] for name in names if name.startswith("parity/")}
    marked = "@pytest.mark." + "gpu\n"
    others = [path for path in ROOT.glob("tests/*/test_*.py") if marked in path.read_text(encoding="utf-8")]
    files = {ROOT / file for file in gpu_steps.test_files().values()}
    assert {path for path in others if path.parent.name != "gpu"} == {f for f in files if f.parent.name != "gpu"}
    # plan_check is part of every launch; session_step is the step of GRU4Rec, which bench/gru4rec.py times whole.
    operators = {path.parent.name for path in ROOT.glob("kernels/*/reference.py")} - {"plan_check", "session_step"}
    assert {name.partition("/")[2] for name in names if name.startswith("bench/")} == operators
    assert names[0] == "build"
    assert names[-1] == "train/neumf"
    assert gpu_steps.picked(_place(tmp_path), ["sanitizer", "build"]) == ["build", *names_of("sanitizer", names)]
    with pytest.raises(ValueError, match="must name steps or groups of them, got 'parities'; groups are build, parity"):
        gpu_steps.picked(_place(tmp_path), ["parities"])


def names_of(group: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{group}/")]


def test_a_step_of_other_sources_is_not_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, began = _place(tmp_path), []

    def run(place: gpu_check.Place, name: str, *, goes_on: bool) -> gpu_check.Outcome:
        began.append((name, goes_on))
        return gpu_check.Outcome(gpu_check.PASSED if name != "graphs" else gpu_check.FAILED, "told")

    monkeypatch.setattr(gpu_steps, "run", run)
    console = gpu_check.Console(quiet=True)
    for _ in range(2):  # one that failed is run again, but goes on
        gpu_check.run_steps(place, ["build", "graphs"], console)
    assert began == [("build", False), ("graphs", False), ("graphs", True)]
    assert gpu_check.conclude(place, ["build", "graphs"], console) == 1
    monkeypatch.setattr(gpu_check, "sources_sha256", lambda: "other")
    gpu_check.run_steps(place, ["build"], console)
    assert began[-1] == ("build", False)
    assert "2 states of sources" in (tmp_path / "README.md").read_text(encoding="utf-8")


FILE = "tests/gpu/test_some.py"
SUITE = """
import os, pytest
{mark}
@pytest.mark.parametrize("n", range(3))
def test_passes(n): pass
def test_fails(): assert 1 == 2, "one is not two"
def test_ends_the_process(): os._exit(9)
def test_is_skipped(): pytest.skip("one GPU here")
def test_after_it(): pass
"""


def _tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, *, stands_in: bool = True) -> gpu_check.Outcome:
    for name in ("gpu_check", "gpu_steps"):
        monkeypatch.setattr(f"bench.{name}.ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: of a GPU\n", encoding="utf-8")
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    return gpu_steps.tests(_place(tmp_path / "out", stands_in=stands_in), "parity/some", FILE, False)


def test_a_test_that_ends_its_process_fails_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = _tests(tmp_path, monkeypatch, SUITE.format(mark=""))
    assert outcome.status == gpu_check.FAILED
    assert outcome.facts["passed"] == 4
    assert outcome.facts["failed"] == 2
    assert outcome.facts["skipped"] == {"one GPU here": 1}
    why = {name.partition("::")[2]: words for name, words in outcome.facts["failures"].items()}
    assert "one is not two" in why["test_fails"]
    assert why["test_ends_the_process"] == "it ended the process, or hung"
    # Started again, those that passed are not run again.
    kept = tmp_path / "out" / "tests" / "parity-some.jsonl"
    passed = [name for name, test in gpu_progress.read(kept).items() if test["outcome"] == "passed"]
    (tmp_path / FILE).write_text("def test_fails(): pass", encoding="utf-8")
    again = gpu_steps.tests(_place(tmp_path / "out", stands_in=True), "parity/some", FILE, True)
    assert again.status == gpu_check.PASSED
    assert set(passed) < set(gpu_progress.read(kept))


def test_a_slow_test_that_begins_late_has_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of results is written as processes would write it, of which the first is ended at the limit."""
    place = _place(tmp_path, stands_in=True)
    line = '{{"id": "t::{}", "outcome": "{}", "seconds": 0.1, "message": ""}}\n'
    processes = [
        (None, line.format("quick", "passed") + line.format("slow", "running")),
        (0, line.format("slow", "running") + line.format("slow", "passed")),
    ]

    def run(name: str, command: list[str], environment: object) -> gpu_check.Finished:
        status, lines = processes.pop(0)
        kept = Path(command[command.index("--progress") + 1])
        kept.write_text(kept.read_text(encoding="utf-8") + lines, encoding="utf-8")
        return gpu_check.Finished(status, "", 1.0)

    monkeypatch.setattr(place, "run", run)
    assert gpu_steps.tests(place, "parity/embedding", "tests/gpu/test_embedding.py", False).facts["passed"] == 2
    assert not processes
    # One that is ended alone does not end, and a process that dies after its tests has not passed.
    processes += [(None, line.format("slow", "running")), (0, "")]
    hung = gpu_steps.tests(place, "parity/embedding", "tests/gpu/test_embedding.py", False)
    assert hung.facts["failures"] == {"t::slow": "it ended the process, or hung"}
    processes[:] = [(-11, line.format("quick", "passed")), (5, "")]
    died = gpu_steps.tests(place, "parity/embedding", "tests/gpu/test_embedding.py", False)
    assert (died.status, died.reason) == (gpu_check.FAILED, "pytest ended with status -11: it said nothing")


@pytest.mark.parametrize("text", ["def test_a(): pass", "import pytest\npytest.skip('no', allow_module_level=True)"])
def test_where_no_test_runs_on_a_gpu_the_step_fails(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = _tests(tmp_path, monkeypatch, text, stands_in=False)  # the test has no mark, the file none that runs
    assert outcome.status == gpu_check.FAILED
    assert "no test ran" in outcome.reason


def test_a_file_that_cannot_be_imported_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = _tests(tmp_path, monkeypatch, "import no_such_module")
    assert outcome.status == gpu_check.FAILED
    assert "no_such_module" in next(iter(outcome.facts["failures"].values()))


def test_an_error_of_the_gpu_ends_the_process_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import os\nspoilt = []\ndef test_a(): spoilt.append(1); raise RuntimeError('CUDA error: an illegal memory "
    outcome = _tests(tmp_path, monkeypatch, text + "access')\ndef test_b(): assert not spoilt\n")
    assert (outcome.facts["passed"], outcome.facts["failed"]) == (1, 1)


CLEAN = """========= COMPUTE-SANITIZER
========= ERROR SUMMARY: 0 errors
"""
REPORT = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at {kernel}+0x1a0 in {file}:88
=========     by thread (3,0,0) in block (0,0,0)
=========     Address 0x7f5c8a000200 is out of bounds
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernelEx [0x3ab2c0]
=========
========= ERROR SUMMARY: 1 error
"""
TESTED = gpu_check.Outcome(gpu_check.PASSED, "12 tests passed", {"failures": {}})


@pytest.mark.parametrize(
    ("said", "status", "own", "theirs"),
    [
        (CLEAN, gpu_check.PASSED, 0, 0),
        ("========= Error: Target application terminated before first instrumented API call",
         gpu_check.FAILED, 0, 0),
        ("=========\n========= Host API uninitialized memory access of 8 bytes\n=========\n"
         "========= ERROR SUMMARY: 1 error", gpu_check.PASSED, 0, 1),
        (CLEAN.replace("SUMMARY: 0 errors", "SUMMARY: 2 errors"), gpu_check.FAILED, 2, 0),
        (REPORT.format(kernel="_fm_interaction_fwd_kernel", file="triton_kernels.py"), gpu_check.FAILED, 1, 0),
        (REPORT.format(kernel="void sample_negatives_kernel<long>(NegativeSource)", file="sample_negatives.cu"),
         gpu_check.FAILED, 1, 0),
        (REPORT.format(kernel="void at::native::vectorized_elementwise_kernel<(int)4, float>(int)", file="Loops.cuh"),
         gpu_check.PASSED, 0, 1),
    ],
)  # fmt: skip
def test_errors_of_our_kernels_fail_a_sanitizer(said: str, status: str, own: int, theirs: int) -> None:
    names = gpu_steps.kernel_names()
    assert {"_fm_interaction_fwd_kernel", "sample_negatives_kernel"} <= names
    outcome = gpu_steps.judge_sanitizer(said, TESTED, names)
    assert outcome.status == status, outcome
    assert sum(outcome.facts["errors"].values()) == own
    assert sum(outcome.facts["errors_of_torch"].values()) == theirs
    failed = TESTED._replace(status=gpu_check.FAILED, reason="1 of 12 tests failed")
    assert gpu_steps.judge_sanitizer(said, failed, names).status == gpu_check.FAILED


def test_a_sanitizer_that_refuses_the_gpu_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = _place(tmp_path)
    monkeypatch.setattr(gpu_steps, "find_program", lambda name: name)
    refused = gpu_check.Finished(1, "========= Error: Device not supported. Please refer to the guide\n1 failed", 3.0)
    monkeypatch.setattr(place, "run", lambda *arguments: refused)
    outcome = gpu_steps.sanitizer(place, "sanitizer/memcheck", "memcheck")
    assert outcome.status == gpu_check.NOT_RUN
    assert "Device not supported" in outcome.reason
    monkeypatch.setattr(gpu_steps, "find_program", lambda name: None)
    assert gpu_steps.sanitizer(place, "sanitizer/memcheck", "memcheck").status == gpu_check.NOT_RUN


def test_build_is_for_the_gpus_there_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, commands = _place(tmp_path), []
    doctor = {
        "cpu": {"reason": ""},
        "cuda": {"reason": "libdeeprec_cuda_ops was not built"},
        "triton": {"reason": ""},
        "operators": {"fm_interaction": {"cuda": {"implementation": "triton"}}},
        "data": {},
        "platform": "",
    }

    def run(name: str, command: list[str], environment: object = None) -> gpu_check.Finished:
        commands.append(command)
        return gpu_check.Finished(0, json.dumps(doctor) if command[1] == "-c" else "", 1.0)

    monkeypatch.setattr(place, "run", run)
    monkeypatch.setattr(gpu_steps, "find_program", lambda name: None)
    outcome = gpu_steps.build(place)
    assert "nvcc is not found" in outcome.reason
    assert "-DDEEPREC_CUDA=OFF" in commands[0]  # Triton and the CPU are built for all the same
    monkeypatch.setattr(gpu_steps, "find_program", lambda name: f"/bin/{name}")
    assert gpu_steps.build(place).reason == "CUDA C++ kernels: libdeeprec_cuda_ops was not built"
    assert {"-DDEEPREC_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90", "-DCMAKE_CUDA_COMPILER=/bin/nvcc"} <= set(commands[3])
    doctor["cuda"]["reason"] = ""
    assert gpu_steps.build(place) == (gpu_check.PASSED, "1 operators on the GPU: 1 by triton", {})


def test_a_process_past_the_limit_ends_with_all_it_started(tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    late = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(marker)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {late!r}])"
    done = _place(tmp_path, limit=0.5).run("build", [sys.executable, "-c", code])
    assert done.status is None
    time.sleep(2)
    assert not marker.exists()


def test_a_bench_goes_on_with_the_cases_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = importlib.import_module("bench.__main__")
    ran: list[str] = []

    def run_case(case: SimpleNamespace, *others: object) -> dict[str, object]:
        ran.append(case.name)
        if case.name == "red":
            raise main.ParityError("red is off")
        if case.name == "cut off":
            raise KeyboardInterrupt
        return {"case": case.name, "group": "", "rows": []}

    names = ["one", "red", "two", "cut off", "three"]
    cases = SimpleNamespace(TARGETS=(), cases=lambda device: [SimpleNamespace(name=name) for name in names])
    monkeypatch.setitem(sys.modules, "bench.of_test", cases)
    limits = SimpleNamespace(measured={}, reason="", of=lambda pattern: (None, None))
    monkeypatch.setattr(main, "_instruments", lambda device: (None, limits))
    monkeypatch.setattr(main, "run_case", run_case)
    with pytest.raises(KeyboardInterrupt):
        main.run("of_test", "cpu", True, "", tmp_path / "kept")
    names.remove("cut off")
    with pytest.raises(main.ParityError, match="red is off"):
        main.run("of_test", "cpu", True, "", tmp_path / "kept")
    assert ran == ["one", "red", "two", "cut off", "red", "three"]
    kept = json.loads((tmp_path / "kept").read_text(encoding="utf-8"))
    assert [case["case"] for case in kept["cases"]] == ["one", "two", "three"]
    ran.clear()
    with pytest.raises(main.ParityError):
        main.run("of_test", "cpu", False, "", tmp_path / "kept")  # of another effort
    assert ran == ["one", "red", "two", "three"]


def test_page_of_nothing_and_cells_with_bars(tmp_path: Path) -> None:
    assert "nothing was run" in gpu_page.page(tmp_path)
    assert gpu_page.table(("a",), [("x | y\nz",)])[-1] == "| x \\| y z |"


@pytest.mark.parametrize("model", end_to_end.PEERS)
def test_every_rival_is_trained_with_the_options_of_ours(model: str) -> None:
    from deeprec.registry import config_class

    options = end_to_end.options_of(SimpleNamespace(model=model, tiny=False))
    assert config_class(model)(**options).batch_size == options["batch_size"]
    assert options["optimizer"] == "adam"
