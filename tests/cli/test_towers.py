"""The commands with two towers over columns: training with tables and a schema, new users from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

SCHEMA = """
users:
  features:
    - categorical: group
items:
  features:
    - bag: tags
      separator: ";"
"""
SMALL = ("epochs=6", "factors=6", "lr=0.02", "batch_size=64", "item_inputs=id,features")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    users, items = np.nonzero(np.random.default_rng(0).random((60, 40)) < 0.4)
    is_own = users % 2 == items % 2
    pl.DataFrame({"user_id": users[is_own], "item_id": items[is_own]}).write_csv(folder / "pairs.csv")
    every = list(range(60))
    pl.DataFrame({"user_id": every, "group": [f"g{u % 2}" for u in every]}).write_csv(folder / "users.csv")
    every = every[:40]
    pl.DataFrame({"item_id": every, "tags": [f"t{i % 2};x{i % 3}" for i in every]}).write_parquet(
        folder / "items.parquet"
    )
    (folder / "schema.yaml").write_text(SCHEMA)
    return folder


def test_towers_over_tables_serve_new_users_from_a_file(files: Path, deeprec) -> None:
    tables = ("--user-features", files / "users.csv", "--item-features", files / "items.parquet")
    words = ("train", "dssm", "--data", files / "pairs.csv", *tables, "--schema", files / "schema.yaml")
    done = deeprec(*words, "--out", files / "model", *SMALL, "user_inputs=history,features")
    assert done.exit_code == 0, done.output
    new = files / "new.csv"
    pl.DataFrame({"user_id": [900, 901], "group": ["g0", "g1"]}).write_csv(new)
    done = deeprec("recommend", files / "model", "--features", new, "-k", 6, "--json")
    assert done.exit_code == 0, done.output
    listed = pl.DataFrame(json.loads(done.stdout))
    assert listed["user_id"].unique().sort().to_list() == [900, 901]
    assert ((listed["item_id"] + listed["user_id"]) % 2 == 0).mean() > 0.8
    assert "For user 901" in deeprec("recommend", files / "model", "--features", new).output
    pl.DataFrame({"group": ["g1"]}).write_csv(new)
    assert "For row 0" in deeprec("recommend", files / "model", "--features", new).output
    assert deeprec("evaluate", files / "model").exit_code == 0
    both = deeprec("recommend", files / "model", "--features", new, "--user", 1)
    assert "one of --user ID" in both.output
    assert "--features FILE is needed" in both.output


def test_a_table_that_is_not_read_is_refused(files: Path, deeprec) -> None:
    words = ("train", "dssm", "--data", files / "pairs.csv", "--user-features", files / "users.csv")
    done = deeprec(*words, *SMALL, "--out", files / "other")
    assert done.exit_code == 2
    assert "dssm does not use --user-features" in done.output
    assert "take user_inputs=history,features" in done.output
    done = deeprec("train", "dssm", "--data", files / "pairs.csv", *SMALL, "--out", files / "other")
    assert "columns of items are an input, so a schema must say what they mean" in done.output
    assert not (files / "other").exists() or not any((files / "other").iterdir())
