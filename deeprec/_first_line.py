"""The first line of a module's docstring, read from its file, so that a list of models needs none of their imports."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path


def first_line(module: str) -> str:
    """The first line of the docstring of a module by its dotted name, "" where it has none; most often not imported.

    Raises:
        ImportError: no such module.
    """
    package, *names = module.split(".")
    spec = importlib.util.find_spec(package)
    folders = [Path(each) for each in (spec.submodule_search_locations or ())] if spec else []
    candidates = [Path(spec.origin)] if spec and spec.origin and not names else []
    for folder in folders:
        place = folder.joinpath(*names)
        candidates += [place.with_suffix(".py"), place / "__init__.py"]
    for path in candidates:
        if path.suffix == ".py" and path.is_file():
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            break
    else:  # in an archive, or made by an import hook
        text = importlib.import_module(module).__doc__
    return (text or "").strip().partition("\n")[0]
