"""Without the compiled library the PyTorch references serve, and pass the same tests of operators and layers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import deeprec

ROOT = Path(__file__).resolve().parents[2]
FILES = ("kernels/test_opcheck.py", "nn/test_embedding.py", "nn/test_embedding_bag.py", "nn/test_as_torch.py")
# An editable install looks first, whatever PYTHONPATH says; read at start-up, this takes its finder out again.
NO_FINDER = (
    "import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'ScikitBuildInplaceFinder']"
)
CHECK = "from deeprec.kernels import _library; assert _library.load_error(), _library.__file__"


def test_operators_and_layers_pass_their_tests_without_the_compiled_library(tmp_path: Path) -> None:
    nothing_built = shutil.ignore_patterns("lib", "_host*", "__pycache__")
    shutil.copytree(Path(deeprec.__file__).parent, tmp_path / "deeprec", ignore=nothing_built)
    (tmp_path / "sitecustomize.py").write_text(NO_FINDER)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "HYPOTHESIS_PROFILE": "sanitize"}
    pytest = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
    ]
    for command in (["-c", CHECK], [*pytest, *(str(ROOT / "tests" / name) for name in FILES)]):
        done = subprocess.run([sys.executable, *command], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
