"""The `deeprec` command: train, evaluate, recommend, compare, data, models, doctor."""

from __future__ import annotations


def main() -> None:
    """Entry point of `deeprec` and of `python -m deeprec`."""
    from deeprec.cli.app import app  # here, so that importing the package stays cheap

    app(prog_name="deeprec")
