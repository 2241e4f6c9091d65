"""Every command ends in one line that names the damaged file, whatever the damage is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import polars as pl
import pytest

ROWS = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "c": ["a", "b"], "label": [0, 1]})
COMMANDS = {
    "train a recommender": ["train", "gmf", "--data"],
    "train a click model": ["train", "lr", "--schema", "SCHEMA", "--data"],
    "schema": ["schema"],
    "data info": ["data", "info"],
    "predict pairs": ["predict", "GMF", "--output", "OUT/x.csv", "--input"],
    "predict clicks": ["predict", "LR", "--output", "OUT/x.csv", "--input"],
    "predict clicks and keep": ["predict", "LR", "--output", "OUT/x.csv", "--keep", "c", "--input"],
    "item features": [
        *("train", "cfn", "side=item", "features=genre", "--protocol", "rating", "data.num_interactions=10000"),
        "--item-features",
    ],
    "evaluate": ["evaluate", "GMF", "--data"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, deeprec, trained) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    rows = folder / "rows.parquet"
    pl.concat([ROWS] * 100).write_parquet(rows)
    schema = folder / "schema.yaml"
    schema.write_text("features:\n  - categorical: c\n")
    done = deeprec("train", "lr", "--data", rows, "--schema", schema, "--out", folder / "lr", "epochs=1")
    assert done.exit_code == 0, done.output
    (folder / "out").mkdir()
    return {"SCHEMA": str(schema), "GMF": str(trained[0]), "LR": str(folder / "lr"), "OUT": str(folder / "out")}


def _damage(path: Path) -> dict[str, bytes]:
    ROWS.write_parquet(path)
    whole = path.read_bytes()
    return {
        "truncated": whole[: len(whole) // 2],
        "a CSV": ROWS.write_csv().encode(),
        "empty": b"",
        "zip": b"PK\x03\x04",
        "head": b"PAR1" + bytes(100),
        "no foot": whole[:-8] + bytes(8),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_parquet_file_is_named_by_every_command(tmp_path, deeprec, places, command) -> None:
    path = tmp_path / "damaged.parquet"
    for content in _damage(path).values():
        path.write_bytes(content)
        words = [places.get(word.split("/")[0], word) + ("/x.csv" if "/" in word else "") for word in COMMANDS[command]]
        done = deeprec(*words, path)
        assert done.exit_code in (1, 2), done.output
        assert isinstance(done.exception, SystemExit)
        assert done.stderr.startswith("error: "), done.output
        assert str(path) in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not list(Path(places["OUT"]).iterdir())


def test_a_full_disk_ends_in_a_line_with_path_and_resume(tmp_path, deeprec, small, monkeypatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "run"
    words = ["train", "gmf", "--protocol", "ncf", "--out", out, "epochs=1", "factors=4", *small]
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        done = deeprec(*words)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: write: {out}/checkpoint.safetensors must be written whole")
    assert done.stderr.endswith("free space on its disk, then go on with resume=True (--resume)\n")
    assert deeprec(*words, "--resume").exit_code == 0
