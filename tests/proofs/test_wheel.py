"""The wheel holds what it should and works from a fresh place, with and without a C++ compiler."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deeprec.kernels import _library

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "proofs"

SMOKE = """
import json, sys
import torch
import deeprec.kernels
from deeprec import doctor
from deeprec.kernels import _library
operators = doctor._operators()
weight = torch.randn(7, 3)
from deeprec.kernels.embedding import embedding
same = torch.equal(embedding(weight, torch.tensor([1, 1, 6])), weight[[1, 1, 6]])
print(json.dumps({
    "file": deeprec.kernels._library.__file__, "error": _library.load_error(), "same": same,
    "cpu": {name: row["cpu"]["implementation"] for name, row in operators.items()},
}))
"""


def _build_wheel(name: str, build: Path, **environment: str) -> Path:
    """Build a wheel into build/proofs/NAME in the folder `build`, which is kept: a second run compiles nothing."""
    out = BUILD / name
    for old in out.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["-w", str(out), "-C", f"build-dir={build}", str(ROOT)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = subprocess.run(command, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def _run_installed(wheel: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Unpack the wheel where nothing else of deeprec lies, and run code on it.

    -S leaves out the .pth files, the editable install among them; the dependencies are put back by hand.
    """
    target = wheel.parent / "site"
    shutil.rmtree(target, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    paths = [str(target), *site.getsitepackages()]
    code = f"import sys; sys.path[1:1] = {paths!r}\n{code}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=wheel.parent)


@pytest.mark.skipif(bool(_library.load_error()), reason=f"no compiled library: {_library.load_error()}")
def test_wheel_is_complete_and_works_from_a_fresh_place() -> None:
    # What `make build` compiled has the same commands, and is compiled again where it has not.
    made = ROOT / "build" / "make"
    wheel = _build_wheel("wheel", made if (made / "CMakeCache.txt").exists() else BUILD / "wheel_build")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"deeprec/__init__.py", "deeprec/py.typed", "deeprec/lib/libdeeprec_ops.so"} <= names
    sources = {f"deeprec/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").rglob("*.py")}
    sources |= {str(path.relative_to(ROOT)) for path in (ROOT / "deeprec").rglob("*.py") if "kernels" not in path.parts}
    assert sources <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    strays = {name for name in names if not name.startswith(("deeprec/", "deeprec_torch-")) or "__pycache__" in name}
    assert not strays

    run = _run_installed(wheel, SMOKE)
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert str(wheel.parent) in facts["file"]
    assert facts["error"] == ""
    assert facts["same"]
    assert facts["cpu"]["embedding"].startswith("c++")


def test_wheel_without_compiler_runs_on_references_and_says_so_once() -> None:
    name = "wheel_without_compiler"
    wheel = _build_wheel(name, BUILD / f"{name}_build", CXX=str(ROOT / "no-such-compiler"))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in names if name.endswith((".so", ".dylib", ".dll"))]

    run = _run_installed(wheel, SMOKE)
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert set(facts["cpu"].values()) == {"reference"}
    assert facts["same"]
    assert run.stderr.count("compiled kernels are not in use") == 1
