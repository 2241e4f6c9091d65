"""Two processes under DistributedDataParallel train as one process on the whole batch does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo: CPUs cannot meet")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), tmp_path], stderr=subprocess.PIPE, text=True, cwd=WORKER.parents[2]
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for case in worker().CASES:
        want = worker().train(case, None)
        for key, value in want.items():
            assert torch.equal(one[case][key], other[case][key]), (case, key)
            torch.testing.assert_close(
                one[case][key], value, rtol=0, atol=1e-10, msg=lambda text, case=case: f"{case}: {text}"
            )
