"""Arrows point one way: kernels <- nn <- models <- train, evaluate <- serve <- cli; data knows no model."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {
    "kernels": 0,
    "nn": 1,
    "models": 2,
    "train": 3,
    "evaluate": 3,
    "serve": 4,
    "cli": 5,
    "doctor": 5,
    "__main__": 6,
}
# The methods fit, evaluate, recommend, ... of a model call the layers above, from inside functions only.
FACADES = {"models/base.py", "models/click.py"}
SOURCES = sorted([*(ROOT / "deeprec").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
SOURCES = [path for path in SOURCES if path.parts[len(ROOT.parts) :][:2] != ("deeprec", "kernels")]


def _module(path: Path) -> str:
    """Path below deeprec/, "kernels/fm/reference.py" for kernels/."""
    relative = path.relative_to(ROOT)
    return str(relative.relative_to("deeprec") if relative.parts[0] == "deeprec" else relative)


def _imported(path: Path) -> set[tuple[str, bool]]:
    """(part of deeprec that is imported, whether at import time), e.g. ("train", False)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy: set[int] = set()
    for node in ast.walk(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if is_typing or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lazy |= {id(inner) for inner in ast.walk(node)}
    package = ["deeprec", *Path(_module(path)).parent.parts]
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join([*base, alias.name]) for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "deeprec" and len(parts) > 1:
                found.add((parts[1], id(node) not in lazy))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=_module)
def test_imports_point_down(path: Path) -> None:
    module = _module(path)
    own = Path(module).parts[0].removesuffix(".py")
    for other, at_import in _imported(path):
        if other == own or (module == "__init__.py" and not at_import):
            continue
        if module in FACADES and not at_import:
            continue
        if own == "data" or own not in LEVELS:  # data and the helpers that every layer uses
            assert other not in LEVELS, f"{module} imports deeprec.{other}, which is above it"
            assert other != "data" or own == "data" or not at_import, f"{module} imports deeprec.data"
        elif other == "data":
            assert LEVELS[own] >= LEVELS["models"], f"{module} imports deeprec.data: kernels and layers know no data"
        elif other in LEVELS:
            assert LEVELS[other] <= LEVELS[own], f"{module} imports deeprec.{other}, which is above it"


def test_compiled_code_does_not_call_python_layers() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        assert "deeprec.models" not in path.read_text(encoding="utf-8"), path


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("package", ["kernels", "nn"])
def test_kernels_and_layers_import_torch_and_numpy_only(package: str) -> None:
    directory = ROOT / "kernels" if package == "kernels" else ROOT / "deeprec" / package
    if not directory.exists():
        pytest.skip(f"deeprec.{package} does not exist yet")
    names = sorted(path.parent.name for path in directory.glob("*/__init__.py")) if package == "kernels" else []
    statement = "; ".join([f"import deeprec.{package}", *(f"import deeprec.kernels.{name}" for name in names)])
    # What torch itself brings along is not ours to forbid.
    brought = {name.split(".")[0] for name in _modules_after(statement) - _modules_after("import torch._dynamo, numpy")}
    forbidden = {
        "polars",
        "pandas",
        "pyarrow",
        "typer",
        "rich",
        "matplotlib",
        "safetensors",
        "sklearn",
        "scipy",
        "triton",
    }
    assert not brought & forbidden


def test_import_opens_no_connection_and_starts_no_program() -> None:
    code = """
import sys
def audit(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.posix_spawn"):
        import traceback
        frames = [frame.filename for frame in traceback.extract_stack()]
        if any("deeprec" in name for name in frames[1:]) and not any("site-packages" in name for name in frames):
            raise SystemExit(f"{event} {args}")
import torch, numpy
sys.addaudithook(audit)
import deeprec, deeprec.kernels, deeprec.doctor
deeprec.doctor._operators()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
