"""The door of all GPU launchers: nothing else starts a kernel; devices and arguments are checked, starts counted."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deeprec.kernels
from deeprec.kernels import _door

# Kernels, and who could import one.
SOURCES = sorted(
    path
    for path in Path(deeprec.kernels.__path__[0]).rglob("*.py")
    if path.name != "_door.py" and "triton" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_else_starts_a_kernel(path: Path) -> None:
    """`kernel[grid](...)`, and what it stands for."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            is_start = isinstance(node.func, ast.Subscript) or any(word.arg == "grid" for word in node.keywords)
            assert not is_start, f"{path}:{node.lineno} starts a kernel; call launch(kernel, grid, ...) of _door.py"


class _Kernel:
    """Takes down how it was started."""

    __name__ = "_toy_kernel"

    def __init__(self) -> None:
        self.starts: list[Any] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **options: self.starts.append((grid, arguments, options))


def test_launch_hands_everything_on_and_counts() -> None:
    kernel, before = _Kernel(), _door.launches["_toy_kernel"]
    _door.launch(kernel, (3, 2), 1, kernel=5, grid=6)
    assert kernel.starts == [((3, 2), (1,), {"kernel": 5, "grid": 6})]
    assert _door.launches["_toy_kernel"] == before + 1


def test_a_tensor_on_another_device_is_named() -> None:
    here, there = torch.ones(2), torch.ones(2, device="meta")
    names = ("weights", "ids", "lr", "offsets")
    assert _door.check_devices("toy", names, ([here, here], here, here, None)) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"toy: weights\[1\] must be on cpu like weights\[0\], got meta"):
        _door.check_devices("toy", names, ([here, there], here))
    with pytest.raises(ValueError, match=r"toy: ids must be on meta like weights\[0\], got cpu"):
        _door.check_devices("toy", names, ([there], here))
    assert _door.check_devices("toy", names, ([there], there, here)) == torch.device("meta")


def test_checks_come_before_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    modules = {
        "triton_kernels": SimpleNamespace(fm_interaction=lambda x: calls.append("launcher") or x),
        "checks": SimpleNamespace(CHECKS={"fm_interaction": lambda x: calls.append("check")}),
    }
    monkeypatch.setattr(_door.importlib, "import_module", lambda path: modules[path.rsplit(".", 1)[1]])
    monkeypatch.setattr(_door.importlib.util, "find_spec", lambda path: path)
    launcher, x = _door.launcher("fm_interaction", "fm_interaction"), torch.ones(2)
    assert calls == []
    assert launcher(x) is x
    assert calls == ["check", "launcher"]
