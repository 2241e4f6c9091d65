"""Every registered model answers the same in forked and spawned processes, workers of a DataLoader, and threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.data.clicks.log import ClickLog
from deeprec.models import is_click_model, names

WORKER = Path(__file__).with_name("fork_worker.py")


@pytest.fixture(scope="session")
def everything(fitted: Callable[[str], Any], rows: pl.DataFrame, log: ClickLog, tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "models.pt"
    torch.save({"models": {name: fitted(name) for name in names()}, "rows": rows.head(50), "log": log}, path)
    return path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("how", ["fork", "loader"])
def test_a_forked_process_answers_as_its_parent(how: str, everything: Path) -> None:
    _run(everything, how)


def test_a_spawned_process_answers_as_its_parent(everything: Path, tmp_path: Path) -> None:
    saved = torch.load(everything, weights_only=False)
    some = {name: saved["models"][name] for name in ("neumf", "cfn", "deepfm", "dcn-v2")}
    torch.save({**saved, "models": some}, tmp_path / "some.pt")
    _run(tmp_path / "some.pt", "spawn")


LOST = """
import os, signal, sys
import numpy as np
import polars as pl
import deeprec
from deeprec.data.reading.sources import open_source
frame = pl.DataFrame({"x": np.arange(1000)})
frame.write_parquet(sys.argv[2])
if os.fork() == 0:
    signal.alarm(60)  # ends a process that waits for ever
    path, file = sys.argv[1:]
    for call in (lambda: deeprec.load(path), lambda: open_source(file), lambda: open_source(frame.lazy())):
        try:
            call()
        except RuntimeError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are named on Linux only")
def test_what_needs_the_lost_pool_says_so(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    fitted("popularity").save(tmp_path / "model")
    command = [sys.executable, "-W", "ignore", "-c", LOST, str(tmp_path / "model"), str(tmp_path / "x.parquet")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 3
    assert all("needs the threads of polars" in line and "spawn" in line for line in lines)


def _run(path: Path, how: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(WORKER), str(path), how],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = run.stdout.splitlines()
    assert len(lines) == 1, run.stdout[-3000:]
    line = lines[0]
    assert line.startswith("asked ")
    assert int(line.split()[1]) >= 4


@pytest.mark.parametrize("name", names())
def test_eight_threads_get_one_answer(name: str, fitted: Callable[[str], Any], rows: pl.DataFrame) -> None:
    model = fitted(name)

    def ask(_: int) -> Any:
        if is_click_model(name):
            return model.predict(rows.head(80))
        return model.recommend(model.user_ids.values, 4)["score"].to_numpy()

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(ask, range(16)):
            np.testing.assert_allclose(found, ask(0), rtol=1e-5, atol=1e-6)
