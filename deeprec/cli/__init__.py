"""The `deeprec` command: train, evaluate, recommend, compare, data, models, doctor."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Entry point of `deeprec` and of `python -m deeprec`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a title that the terminal has no letters for ends no run
    from deeprec.cli.app import app  # here, so that importing the package stays cheap

    app(prog_name="deeprec")
