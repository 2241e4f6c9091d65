"""Names in the library and its kernels say what a thing is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VAGUE = {"some", "found", "wanted", "good", "room", "rooms", "look", "looks"}
FILES = [path for folder in ("kernels", "deeprec") for path in (ROOT / folder).rglob("*.py")]


def _names(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", sorted(FILES), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_vague(path: Path) -> None:
    assert not {name.strip("_").lower() for name in _names(ast.parse(path.read_text(encoding="utf-8")))} & VAGUE
