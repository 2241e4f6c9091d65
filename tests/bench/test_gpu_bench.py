"""The bench's GPU path without a GPU: a device that keeps its own time stands in for CUDA's events."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
MEBI = 1 << 20


@pytest.fixture(scope="module")
def bench() -> Iterator[Callable[[str], Any]]:
    sys.path.insert(0, str(ROOT))
    yield lambda name: importlib.import_module(f"bench.{name}")
    sys.path.pop(0)


class Standin:
    """A device whose time passes by what is enqueued: steps of `work` seconds, flushes, and being held back."""

    def __init__(self, work: float = 50e-6) -> None:
        self.now, self.work = 0.0, work
        self.flushes = self.held = self.waits = 0

    def gpu(self, clocks: Any, l2_bytes: int = 50 * MEBI) -> Any:
        device = self

        class Event:
            def record(self) -> None:
                self.at = device.now

            def elapsed_time(self, later: Event) -> float:
                return 1e3 * (later.at - self.at)

        return clocks.Gpu(Event, self.wait, self.hold, self.flush, l2_bytes, lambda: None)

    def wait(self) -> None:
        self.waits += 1

    def hold(self, seconds: float) -> None:
        self.now, self.held = self.now + seconds, self.held + 1

    def flush(self) -> None:
        self.now, self.flushes = self.now + 30e-6, self.flushes + 1

    def step(self) -> torch.Tensor:
        self.now += self.work
        return torch.ones(2)


class ByTheWall(Standin):
    """A device whose time is that of the wall."""

    @property
    def now(self) -> float:
        return time.perf_counter()

    @now.setter
    def now(self, value: float) -> None:
        pass


def _clock(bench: Callable[[str], Any], device: Standin) -> Any:
    clock = bench("clocks").GpuClock(device.gpu(bench("clocks")))
    clock.device = "cpu"  # where the tensors are here
    return clock


@pytest.mark.parametrize(("moved", "cold"), [(400 * MEBI, "rotation"), (200 * MEBI, "flush")])
def test_device_time_is_that_of_the_steps_alone(bench: Callable[[str], Any], moved: int, cold: str) -> None:
    device = Standin()
    contenders = [bench("harness").Contender(name, device.step) for name in ("deeprec", "rival")]
    for timing in _clock(bench, device).time_all(contenders, 0.01, 2, moved):
        assert timing.cold == cold
        for seconds in (timing.low, timing.median, timing.high, timing.step_low, timing.step_median, timing.step_high):
            assert seconds == pytest.approx(50e-6)
        assert 0 < timing.enqueue < 1e-3
        assert 0 < timing.waited_low <= timing.waited <= timing.waited_high
        assert timing.blocks >= 4
    assert (device.flushes > 0) == (cold == "flush")
    assert device.held > 0
    assert device.waits > 0


def test_contenders_take_turns_and_each_begins_a_round(bench: Callable[[str], Any]) -> None:
    assert bench("clocks").in_turn(3, 2) == [0, 1, 2, 1, 2, 0]


class Rates:
    """Limits that are known: copy 4 TB/s, everything else 2 TB/s."""

    reason = ""
    measured: dict[str, float] = {"copy": 4e12}  # noqa: RUF012

    def of(self, pattern: Any) -> tuple[float | None, str | None]:
        if pattern is None:
            return None, None
        return (4e12, "copy") if pattern == "copy" else (2e12, pattern.label)


def test_rows_have_device_and_host_side_by_side(bench: Callable[[str], Any]) -> None:
    harness, device = bench("harness"), Standin()

    def build() -> Any:
        trial = harness.Trial([torch.ones(2, dtype=torch.float64)])
        trial.add("deeprec", device.step)
        trial.add("rival", lambda: (device.step(), device.step())[1])
        return trial

    limit = bench("machine").Gather(64, 1000, writes=True)
    case = harness.Case("work", "group", build, bytes=50e6, limit=limit, scale="large; on the CPU small")
    result = harness.run_case(case, Rates(), 0.01, 2, _clock(bench, device))
    ours, rival = result["rows"]
    assert ours["median"] == pytest.approx(50e-6)
    assert rival["ratio"] == pytest.approx(2)
    assert ours["fraction"] == pytest.approx(0.5)
    assert ours["fraction_of_copy"] == pytest.approx(0.25)
    assert rival["waited_ratio"] == rival["waited"] / ours["waited"]
    assert result["scale"] == "large; on the CPU small"
    target = harness.Target("work", "group", "copy", 0.2, device="cuda")
    assert harness.reached(target, [result])["reached"]


GPU = {
    "name": "NVIDIA H200",
    "capability": "9.0",
    "multiprocessors": 132,
    "l2_bytes": 50 * MEBI,
    "memory_bytes": 141 << 30,
    "cuda": "13.0",
    "float32_products": "highest",
    "implementations": {"fm_interaction": "triton"},
    "driver_version": "580.1",
}


def test_the_gpu_is_described_as_torch_and_nvidia_smi_read_it(
    bench: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, L2_cache_size=50 * MEBI)
    found.total_memory, found.uuid = 141 << 30, "0123-45"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: found)
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\n[ "$2" = GPU-0123-45 ] && echo "580.1, 345 MHz, 2619 MHz, 1980 MHz, 3201 MHz, 700 W, P0"\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert bench("fm_interaction").TARGETS  # loads the operators
    gpu = bench("machine").gpu("fm_interaction")
    assert {**gpu, "cuda": "13.0"}.items() >= {key: GPU[key] for key in GPU if key != "implementations"}.items()
    assert gpu["clocks.sm"] == "345 MHz"
    assert set(gpu["implementations"]) >= {"fm_interaction", "bi_interaction"}
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "driver_version" not in bench("machine").gpu("fm_interaction")


@pytest.fixture
def whole(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`bench.__main__` with a stand-in for the GPU, and small cases."""
    main = bench("__main__")
    monkeypatch.setattr(main, "_instruments", lambda device: (_clock(bench, ByTheWall()), Rates()))
    monkeypatch.setattr(main, "gpu", lambda op: GPU)
    monkeypatch.setattr(main, "resolve_device", lambda *_: None)
    monkeypatch.setattr(bench("fm_interaction"), "BATCH", {"cpu": 8, "cuda": 16})
    monkeypatch.setattr(bench("fm_interaction"), "compiled", lambda function, **_: function)
    return main


def test_a_whole_run_gives_a_file_a_table_and_a_page(
    bench: Callable[[str], Any], whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["fm_interaction", "--device", "cuda", "--quick", "--cases", "D 16", "--json", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["bench", *words, "--plot", str(tmp_path)])
    assert whole.main() == 0
    shown = capsys.readouterr().out
    for text in ("NVIDIA H200", "host: with wait", "flush", "B 16; on the CPU B 8", "of the measured copy", "triton"):
        assert text in shown
    (result,) = bench("report").load(tmp_path)
    assert result["device"] == "cuda"
    assert len(result["cases"]) == 4
    assert {target["device"] for target in result["targets"]} == {"cuda"}
    names = {row["name"] for row in result["cases"][0]["rows"]}
    assert names == {"deeprec", "torch.compile", "torch.compile, max-autotune", "torch, eager"}
    monkeypatch.setattr(sys, "argv", ["bench", "page", "--device", "cuda", "--results", str(tmp_path)])
    assert whole.main() == 0
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# Speed of the kernels on a GPU")
    assert "| fm_interaction, forward | measured copy | 85% |" in page
    assert "host: to enqueue" in page


def test_without_a_gpu_it_says_so_and_ends_with_two() -> None:
    command = [sys.executable, "-m", "bench", "embedding", "--device", "cuda"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("bench: device 'cuda' needs a GPU")


def test_pages_of_earlier_results_are_as_they_were(bench: Callable[[str], Any]) -> None:
    folder = ROOT / "bench" / "results"
    page = bench("report").page(bench("report").load(folder), [path.name for path in folder.glob("*.png")])
    assert page == (folder / "README.md").read_text(encoding="utf-8")


ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("polars", "rich", "typer", "matplotlib", "yaml"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib
from bench.__main__ import ops
from bench.machine import machine, versions
assert len(ops()) >= 12, ops()
for op in ops():
    assert importlib.import_module(f"bench.{op}").cases("cuda"), op
print(machine(), versions())
"""


def test_cases_are_made_in_an_image_of_pytorch_alone() -> None:
    done = subprocess.run([sys.executable, "-c", ABSENT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_operators_that_move_memory_have_targets_on_a_gpu(bench: Callable[[str], Any]) -> None:
    for op in ("embedding", "embedding_bag", "embedding_fm", "fm_interaction", "sparse_update"):
        module = bench(op)
        groups = {case.group for case in module.cases("cuda")}
        targets = [target for target in module.TARGETS if target.device == "cuda"]
        assert any(target.rival == "copy" for target in targets), op
        assert {target.group for target in targets} <= groups, op


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("file", ["interpreted_limits.py", "compiled_limits.py"])
def test_limits(file: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if file.startswith("interpreted"):
        environment["TRITON_INTERPRET"] = "1"
    script = Path(__file__).with_name(file)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_result_is_json(bench: Callable[[str], Any]) -> None:
    timing = bench("clocks").GpuTiming("deeprec", *([1.0] * 3), 4, "flush", 8, *([1.0] * 7))
    assert json.loads(json.dumps(asdict(timing)))["waited_high"] == 1
