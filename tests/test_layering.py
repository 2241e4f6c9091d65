"""Arrows point one way: kernels <- nn <- batches <- evaluate <- serve <- train <- models <- pipeline <- http <- cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {
    "kernels": 0,
    "nn": 1,
    "surroundings": 1,
    "batches": 2,
    "evaluate": 3,
    "simulate": 3,
    "serve": 4,
    "train": 5,
    "models": 6,
    "pipeline": 7,
    "http": 8,
    "cli": 9,
    "doctor": 9,
    "__main__": 10,
}
# The rooms of deeprec.data, and the rooms that each knows.
ROOMS = {
    "reading": set[str](),
    "media": {"reading"},
    "columns": {"reading", "media"},
    "interactions": {"reading", "columns"},
    "clicks": {"reading", "columns"},
    "sets": {"reading", "media", "columns", "interactions", "clicks"},
}
SOURCES = sorted([*(ROOT / "deeprec").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
SOURCES = [path for path in SOURCES if path.parts[len(ROOT.parts) :][:2] != ("deeprec", "kernels")]


def _module(path: Path) -> str:
    """Path below deeprec/, "kernels/fm/reference.py" for kernels/."""
    relative = path.relative_to(ROOT)
    return str(relative.relative_to("deeprec") if relative.parts[0] == "deeprec" else relative)


def _imports(source: str, package: list[str]) -> set[tuple[str, str]]:
    """What a module of a package names in its imports.

    Returns:
        ("deeprec.train.fit", when), with when "loaded", "called" (in a function) or "typed" (for type checkers only).
    """
    when: dict[int, str] = {}
    tree = ast.parse(source)
    for node in ast.walk(tree):  # outer nodes come first
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            when |= {id(inner): "called" for inner in ast.walk(node)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            when |= {id(inner): "typed" for statement in node.body for inner in ast.walk(statement)}
    found: set[tuple[str, str]] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join([*base, alias.name]) for alias in node.names]
        found |= {(name, when.get(id(node), "loaded")) for name in names}
    return found


def _imported(path: Path) -> set[tuple[str, bool]]:
    """(part of deeprec that is imported, whether at import time), e.g. ("train", False)."""
    found = _imports(path.read_text(encoding="utf-8"), ["deeprec", *Path(_module(path)).parent.parts])
    split = [(name.split("."), when) for name, when in found]
    return {(parts[1], when == "loaded") for parts, when in split if parts[0] == "deeprec" and len(parts) > 1}


@pytest.mark.parametrize("path", SOURCES, ids=_module)
def test_imports_point_down(path: Path) -> None:
    module = _module(path)
    own = Path(module).parts[0].removesuffix(".py")
    for other, at_import in _imported(path):
        if other == own or (module == "__init__.py" and not at_import):
            continue
        if own == "data" or own not in LEVELS:  # data and the helpers that every layer uses
            assert other not in LEVELS, f"{module} imports deeprec.{other}, which is above it"
            assert other != "data" or own == "data" or not at_import, f"{module} imports deeprec.data"
        elif other == "data":
            assert LEVELS[own] >= LEVELS["batches"], f"{module} imports deeprec.data: kernels and layers know no data"
        elif other in LEVELS:
            assert LEVELS[other] <= LEVELS[own], f"{module} imports deeprec.{other}, which is above it"


@pytest.mark.parametrize("path", [path for path in SOURCES if _module(path).startswith("data/")], ids=_module)
def test_rooms_of_data_know_those_below_alone(path: Path) -> None:
    module = Path(_module(path))
    if module == Path("data/__init__.py"):  # gathers the public names of all rooms
        return
    room = module.parts[1] if len(module.parts) > 2 else None
    below = ROOMS[room] if room else set()  # what lies beside the rooms serves all of them
    for name, _ in _imports(path.read_text(encoding="utf-8"), ["deeprec", *module.parent.parts]):
        if name.startswith("deeprec.data."):
            other = name.split(".")[2]
            assert other == room or other in below or other not in ROOMS, f"{module} imports {name}, which is above it"
            assert other in ROOMS or (path.parents[len(module.parts) - 2] / f"{other}.py").exists(), (
                f"{module} imports {name} from deeprec.data, which imports all rooms; name the module"
            )


def _graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which modules each module imports, when it is loaded or inside its functions; not those for type checkers only.

    Args:
        sources: text of each file by its path, such as "deeprec/data/__init__.py".
    Returns:
        By dotted name. The packages above an imported module count only where they are named themselves, and what
        `importlib` is asked for by a text does not count.
    """
    files = {".".join(Path(path).with_suffix("").parts).removesuffix(".__init__"): path for path in sources}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = set()
        for name, when in _imports(sources[path], list(Path(path).parent.parts)):
            known = name if name in files else name.rpartition(".")[0]  # a module, or a name out of one
            if when != "typed" and known in files and known != module:
                graph[module].add(known)
    return graph


def _circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """For each module that reaches itself, one shortest way round; a way found once is not told again."""
    found: dict[frozenset[str], list[str]] = {}
    for start in sorted(graph):
        came_from: dict[str, str] = {}
        waiting = deque([start])
        while waiting and start not in came_from:
            module = waiting.popleft()
            for other in sorted(graph[module] - came_from.keys()):
                came_from[other] = module
                waiting.append(other)
        if start in came_from:
            way = [start]
            while (before := came_from[way[-1]]) != start:
                way.append(before)
            found.setdefault(frozenset(way), [start, *reversed(way)])
    return list(found.values())


def test_no_import_goes_in_a_circle() -> None:
    sources = {f"deeprec/{_module(path)}": path.read_text(encoding="utf-8") for path in SOURCES}
    graph = _graph(sources)
    assert len(graph) == len(SOURCES)
    assert not (circles := _circles(graph)), "; ".join(" -> ".join(way) for way in circles)


PLANTED = {
    "deeprec/__init__.py": "",
    "deeprec/a/__init__.py": "from deeprec.a.one import f",
    "deeprec/a/one.py": "import deeprec.b.two\nfrom typing import TYPE_CHECKING",
    "deeprec/b/__init__.py": "",
    "deeprec/b/two.py": "import os",
}


@pytest.mark.parametrize(
    ("path", "line", "expected"),
    [
        ("deeprec/b/two.py", "from deeprec.a.one import f", ["deeprec.a.one", "deeprec.b.two"]),
        ("deeprec/b/two.py", "def g():\n    from deeprec.a import one", ["deeprec.a.one", "deeprec.b.two"]),
        ("deeprec/b/two.py", "import deeprec.a.one as one", ["deeprec.a.one", "deeprec.b.two"]),
        (
            "deeprec/b/two.py",
            "class C:\n  def g(self):\n    from ..a import one",
            ["deeprec.a.one", "deeprec.b.two"],
        ),
        ("deeprec/b/two.py", "from deeprec.a import f", ["deeprec.a", "deeprec.a.one", "deeprec.b.two"]),
        ("deeprec/a/one.py", "from . import f", ["deeprec.a", "deeprec.a.one"]),
        ("deeprec/b/two.py", "from deeprec.b import two", None),
        ("deeprec/b/two.py", "if TYPE_CHECKING:\n    from deeprec.a.one import f", None),
        ("deeprec/b/two.py", "if not TYPE_CHECKING:\n    import deeprec.a.one", ["deeprec.a.one", "deeprec.b.two"]),
        ("deeprec/a/one.py", "from deeprec.b.two import os", None),
    ],
)
def test_a_planted_circle_is_found(path: str, line: str, expected: list[str] | None) -> None:
    assert _circles(_graph(PLANTED)) == []
    found = _circles(_graph({**PLANTED, path: f"{PLANTED[path]}\n{line}"}))
    assert [sorted(set(way)) for way in found] == ([expected] if expected else [])
    assert all(way[0] == way[-1] for way in found)


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


def test_optimizers_import_torch_and_numpy_only() -> None:
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("polars", "safetensors", "yaml", "typer", "rich", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
import deeprec, torch
optim = deeprec.train.optim
weight = torch.nn.Parameter(torch.ones(4, 2))
torch.nn.functional.embedding(torch.tensor([1, 1]), weight, sparse=True).sum().backward()
optim.SGD([weight], lr=1.0).step()
assert weight[:2].tolist() == [[1.0, 1.0], [-1.0, -1.0]], weight
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


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
