"""The `deeprec` command: train, evaluate, recommend, compare, data, models, doctor."""

from __future__ import annotations

import importlib
import io
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeprec.cli import running as running
    from deeprec.cli import sources as sources


def main() -> None:
    """Entry point of `deeprec` and of `python -m deeprec`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a title that the terminal has no letters for ends no run
    from deeprec.cli.app import app  # here, so that importing the package stays cheap

    app(prog_name="deeprec")


def __getattr__(name: str) -> Any:
    """What a command needs for its work and not for its help is imported when it is first used."""
    if name in ("running", "sources"):
        return importlib.import_module(f"deeprec.cli.{name}")
    raise AttributeError(f"module 'deeprec.cli' has no attribute {name!r}")
