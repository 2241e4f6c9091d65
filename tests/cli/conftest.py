"""One small model, trained once through the command line, and a way to call the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.cli.app import app

SMALL = ("data.num_users=120", "data.num_items=300", "data.num_interactions=3000", "batch_size=512")


@pytest.fixture(scope="session")
def deeprec():
    """Call a command line; returns the result, wide enough that no line wraps."""

    def call(*words: object):
        return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "240", "TERM": "dumb"})

    return call


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory, deeprec) -> tuple[Path, str]:
    """(folder, what was printed) of a finished training of GMF on synthetic data."""
    out = tmp_path_factory.mktemp("runs") / "gmf"
    done = deeprec("train", "gmf", "--protocol", "ncf", "--seed", 1, "--out", out, "epochs=2", "factors=4", *SMALL)
    assert done.exit_code == 0, done.output
    return out, done.output
