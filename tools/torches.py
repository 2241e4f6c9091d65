"""Builds csrc against several releases of torch, runs the kernel and layer tests in each and prints a table.

    python tools/torches.py [VERSION ...] [--index ADDRESS] [-- PYTEST_ARGUMENT ...]

VERSION is a release, or `newest`; without one: the oldest that pyproject.toml allows, the one that constraints.txt
pins, the newest that pip offers. Everything lies in build/torches/VERSION: the wheel in `site` (PYTHONPATH puts it
before the torch of the environment, from which all else comes), a package tree with the libraries built against it, and
a log a step.

The promise is one binary for every torch from the oldest on, so the kernel tests run a second time in each later
release, on the binary that was built against the first one in the list.

A CUDA wheel asks for gigabytes of NVIDIA's libraries. Without a GPU nothing calls them: small ones stand in for them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "torches"
NEWEST = "newest"
# The editable install looks first, whatever PYTHONPATH says; this, read at start-up, takes its finder out again.
WITHOUT_EDITABLE = (
    'import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildInplaceFinder"]\n'
)
# Their interpreter makes numbers of arrays with one element, which NumPy refuses from 2.4 on.
OLD_INTERPRETERS = ("triton==3.5.", "triton==3.6.")
LOADS = """
import sys, torch
import deeprec.kernels._library as library
assert torch.__file__.startswith(sys.argv[1]), torch.__file__
assert library.__file__.startswith(sys.argv[2]), library.__file__
errors = [library.load_error(), library.cuda_load_error() if len(sys.argv) > 3 else ""]
sys.exit("; ".join(filter(None, errors)) or 0)
"""


class StepError(Exception):
    """A step did not succeed; the message says where its log is."""


@dataclass
class Release:
    """One row of the table: a release of torch in a folder of its own, and what came of each step."""

    name: str
    version: str = "?"
    results: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return HOME / self.name

    @property
    def site(self) -> Path:
        return self.folder / "site"

    @property
    def has_cuda(self) -> bool:
        return any((self.site / "torch" / "lib").glob("libtorch_cuda.*"))

    def environment(self, tree: Path) -> dict[str, str]:
        """Python takes deeprec from `tree` and torch from `site`, not from the folder that it starts in."""
        path = os.pathsep.join([str(tree), str(self.site)])
        tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**os.environ, "PYTHONPATH": path, "PATH": tools, "PYTHONSAFEPATH": "1"}

    def run(self, step: str, *command: str | Path, tree: Path | None = None) -> str:
        """Run a command, its output in STEP.log, and return the output.

        Raises:
            StepError: the command failed.
        """
        log = self.folder / f"{step}.log"
        environment = self.environment(tree) if tree else None
        with log.open("w", encoding="utf-8") as out:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
        text = log.read_text(encoding="utf-8", errors="replace")
        if done.returncode:
            print(text[-6000:])
            raise StepError(f"FAILED, see {log.relative_to(ROOT)}")
        return text


def default_versions() -> list[str]:
    """The oldest torch that the package allows, the pinned one, the newest."""
    oldest = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert oldest
    assert pinned
    return [f"{oldest[1]}.0" if oldest[1].count(".") == 1 else oldest[1], pinned[1], NEWEST]


def fetch(release: Release, index: str) -> None:
    """Install torch, and the Triton that it asks for, without any other dependency."""
    done = release.folder / ".fetched"
    if not done.exists():
        shutil.rmtree(release.folder, ignore_errors=True)
        release.folder.mkdir(parents=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-compile"]
        pip += ["--target", str(release.site)]
        source = ["--index-url", index] if index else []
        torch = "torch" if release.name == NEWEST else f"torch=={release.name}"
        release.run("fetch", *pip, *source, torch)
        asked = re.search(r"^Requires-Dist: (triton[^;\s]+)", _metadata(release), re.MULTILINE)
        if asked:
            release.run("fetch-triton", *pip, *source, asked[1])
            if asked[1].startswith(OLD_INTERPRETERS):
                release.run("fetch-numpy", *pip, "numpy<2.4")
        put_stand_ins(release.site / "torch" / "lib")
        done.touch()
    version = re.search(r"^Version: (\S+)", _metadata(release), re.MULTILINE)
    assert version
    release.version = version[1]


def _metadata(release: Release) -> str:
    (path,) = release.site.glob("torch-*.dist-info/METADATA")
    return path.read_text(encoding="utf-8")


def put_stand_ins(libraries: Path) -> None:
    """Put an empty library for each one of NVIDIA's that is missing beside those of torch, and one with all functions.

    Each function answers 100, "no device". They lie in a library with a name of its own, because in one with the name
    of the real one the loader wants symbols with versions.
    """
    paths = sorted(libraries.glob("*.so*"))
    needed: set[str] = set()
    undefined: set[str] = set()
    for path in paths:
        needed |= set(re.findall(r"NEEDED.*\[(.*?)\]", _output("readelf", "-d", path)))
        undefined |= set(re.findall(r"^\s+U (\w+)", _output("nm", "-D", "--undefined-only", path), re.MULTILINE))
    missing = {name for name in needed if re.match("lib(cu|nv|nccl)", name)} - {path.name for path in paths}
    if not missing:
        return
    for path in paths:
        undefined -= set(re.findall(r" (\w+)(?:@.*)?$", _output("nm", "-D", "--defined-only", path), re.MULTILINE))
    functions = sorted(name for name in undefined if re.match("_*(cu|nv|nccl)", name))
    source = libraries / "stand_in.c"
    source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in functions), encoding="utf-8")
    shared = ["cc", "-shared", "-fPIC", "-nostdlib"]
    _output(*shared, "-o", libraries / "libstand_in.so", source)
    source.write_text("", encoding="utf-8")
    for name in sorted(missing):
        link = [f"-Wl,-soname,{name},--no-as-needed,-rpath,$ORIGIN", f"-L{libraries}", "-lstand_in"]
        _output(*shared, "-o", libraries / name, source, *link)
    source.unlink()


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def make_tree(folder: Path) -> Path:
    """A copy of the package without its compiled kernels; deeprec._host, which knows no torch, comes along."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "deeprec", tree / "deeprec", ignore=shutil.ignore_patterns("__pycache__", "lib"))
    (tree / "sitecustomize.py").write_text(WITHOUT_EDITABLE, encoding="utf-8")
    return tree


def build(release: Release, tree: Path) -> list[Path]:
    """Compile csrc against the release and put the libraries into the tree."""
    cmake = release.folder / "cmake"
    options = [
        "-DDEEPREC_PORTABLE_ONLY=ON",
        "-DCMAKE_CUDA_ARCHITECTURES=90",
        "-DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON",
    ]
    options += ["-DDEEPREC_INSTALL_DIR=deeprec", f"-DCMAKE_INSTALL_PREFIX={tree}", "--log-level=ERROR"]
    python = f"-DPython_EXECUTABLE={sys.executable}"
    release.run("configure", "cmake", "-S", ROOT, "-B", cmake, "-G", "Ninja", *options, python, tree=tree)
    release.run("build", "cmake", "--build", cmake, "--target", "install", tree=tree)
    libraries = sorted((tree / "deeprec" / "lib").glob("*"))
    if not libraries:
        raise StepError("FAILED: no library was built")
    for library in libraries:
        text = _output("nm", "-D", "--undefined-only", "--demangle", library)
        unstable = [line.strip() for line in text.splitlines() if "at::" in line or "c10::" in line]
        if unstable:
            raise StepError(f"FAILED: {library.name} needs {unstable[0]}")
    return libraries


def test(release: Release, step: str, tree: Path, tests: list[str], arguments: list[str]) -> str:
    """Load the libraries of the tree in the release, run tests on them, and return pytest's last line."""
    has_cuda = [path.name for path in (tree / "deeprec" / "lib").glob("libdeeprec_cuda_ops.*") if release.has_cuda]
    release.run(f"{step}-load", sys.executable, "-c", LOADS, str(release.site), str(tree), *has_cuda, tree=tree)
    pytest = Path(sys.executable).with_name("pytest")
    # FBGEMM, which TorchRec imports, loads in the one torch that it was built against.
    quiet = ["-q", "-p", "no:cacheprovider", "--ignore=tests/nn/test_torchrec.py"]
    text = release.run(step, sys.executable, pytest, *quiet, *tests, *arguments, tree=tree)
    return text.strip().splitlines()[-1].strip("= ")


def check(release: Release, first: Release | None, index: str, arguments: list[str]) -> bool:
    """All steps for one release; `first` is the one whose binary must serve here too. Returns whether all succeeded."""
    step = "built"
    try:
        print(f"torches: {release.name}", flush=True)
        fetch(release, index)
        tree = make_tree(release.folder)
        release.results[step] = ", ".join(path.name for path in build(release, tree))
        step = "tests"
        release.results[step] = test(release, step, tree, ["tests/kernels", "tests/nn"], arguments)
        if first:
            step = "one-binary"
            release.results[step] = test(release, step, first.folder / "tree", ["tests/kernels"], arguments)
    except (StepError, subprocess.CalledProcessError) as error:
        release.results[step] = str(error)
        return False
    return True


def main() -> int:
    given = sys.argv[1:]
    dashes = given.index("--") if "--" in given else len(given)
    arguments = given[dashes + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", help="releases of torch, or `newest`")
    parser.add_argument("--index", default="", help="where pip takes torch from")
    options = parser.parse_args(given[:dashes])
    releases = [Release(name) for name in options.versions or default_versions()]
    succeeded = [check(r, releases[0] if r is not releases[0] else None, options.index, arguments) for r in releases]
    print(f"\n| torch | built | tests | kernel tests on the binary of {releases[0].version} |\n|---|---|---|---|")
    for release in releases:
        cells = [release.results.get(step, "-") for step in ("built", "tests", "one-binary")]
        print("|", " | ".join([release.version, *cells]), "|")
    return 0 if all(succeeded) else 1


if __name__ == "__main__":
    sys.exit(main())
