"""The built libraries need only PyTorch's stable ABI, and no code of one instruction set leaks into another."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import deeprec
from deeprec.kernels import _library

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(deeprec.__file__).parent
LIBRARIES = sorted([*PACKAGE.glob("lib/*.so"), *PACKAGE.glob("_host*.so")])
OBJECTS = ROOT / "build" / "make" / "CMakeFiles"

pytestmark = [
    pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed"),
    pytest.mark.skipif(bool(_library.load_error()), reason=f"no compiled library: {_library.load_error()}"),
]


def _nm(*args: str | Path) -> list[str]:
    return subprocess.run(["nm", *args], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_library_needs_no_unstable_torch_symbol(library: Path) -> None:
    undefined = _nm("-D", "--undefined-only", "--demangle", library)
    unstable = [line for line in undefined if "at::" in line or "c10::" in line]
    assert not unstable


@pytest.mark.skipif(not OBJECTS.exists(), reason="no build/make: build with make")
@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512bf16"])
def test_code_for_newer_processors_stays_in_its_namespace(isa: str) -> None:
    # The linker keeps one copy of a weak (inline or template) symbol; an older processor dies of the AVX-512 one.
    weak = {
        line.split(maxsplit=2)[2]
        for path in OBJECTS.glob(f"deeprec_cpu_{isa}.dir/**/*.o")
        for line in _nm("--defined-only", "--demangle", path)
        if line.split(maxsplit=2)[1] in "WVu"
    }
    leaked = sorted(name for name in weak if f"deeprec::{isa}::" not in name and not name.startswith("DW.ref."))
    assert not leaked
