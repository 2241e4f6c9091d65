"""How this package was installed, and so what to type to install it again or with an extra."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

NAME = "deeprec-torch"  # on the package index; `deeprec` there is another project
_BESIDE = Path(__file__).resolve().parents[1]


def install_command(extra: str = "", *, rebuild: bool = False) -> str:
    """The command that installs this very package once more.

    From a folder of sources (an editable installation, `pip install .`, or sources that are only on the path) it
    installs from that folder, from an archive or repository out of that, otherwise from the package index.

    Args:
        extra: of pyproject.toml, such as "gpu".
        rebuild: also where the same version is installed already, without its dependencies.
    """
    options = ["--no-build-isolation", "--force-reinstall", "--no-deps"] if rebuild else []
    extras = f"[{extra}]" if extra else ""
    origin = _origin()
    folder = _source_folder(origin)
    before = ""
    if folder is not None:
        is_editable = folder == _BESIDE or origin.get("dir_info", {}).get("editable")
        options = list(dict.fromkeys(["--no-build-isolation", *options, *(["-e"] if is_editable else [])]))
        before, target = "pip install scikit-build-core pybind11 && ", f"{folder}{extras}"
    elif "url" in origin and "dir_info" not in origin:
        scheme = origin["vcs_info"]["vcs"] + "+" if "vcs_info" in origin else ""
        target = f"{NAME}{extras} @ {scheme}{origin['url']}"
    else:
        target = f"{NAME}{extras}"
    return before + " ".join(["pip install", *options, _quoted(target)])


def _quoted(word: str) -> str:
    """Quoted for a shell where that is needed; brackets are expanded by some."""
    return shlex.quote(word) if re.search(r"[^\w@%+=:,./-]", word) else word


def _origin() -> dict[str, Any]:
    """What pip noted about where it took the package from (PEP 610); {} for the package index, and without pip."""
    try:
        distribution = importlib.metadata.distribution(NAME)
        noted: Any = json.loads(distribution.read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError, OSError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _source_folder(origin: dict[str, Any]) -> Path | None:
    """The folder of sources: beside the package that is imported, or the one that pip installed from."""
    if _holds_sources(_BESIDE):
        return _BESIDE
    if "dir_info" not in origin:
        return None
    noted = Path(url2pathname(unquote(urlsplit(str(origin.get("url", ""))).path)))
    return noted if _holds_sources(noted) else None


def _holds_sources(folder: Path) -> bool:
    try:
        return f'name = "{NAME}"' in (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
