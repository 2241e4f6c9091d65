"""Names in the kernels, the layers and the optimizers say what a thing is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VAGUE = {"some", "found", "wanted", "good", "room", "rooms", "look", "looks"}
FILES = [*(ROOT / "kernels").rglob("*.py"), *(ROOT / "deeprec" / "nn").glob("*.py")]
FILES += [ROOT / "deeprec" / "train" / "optim.py", *(ROOT / "deeprec" / "train").glob("_[!_]*.py")]


def _names(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", sorted(FILES), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_name_is_vague(path: Path) -> None:
    assert not _names(ast.parse(path.read_text(encoding="utf-8"))) & VAGUE
