"""Files of tags by the commands: trained on, shown, and asked by tags."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest


@pytest.fixture(scope="module")
def triples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(0)
    rows = [(user, int(item), f"t{int(item) % 4}") for user in range(20) for item in draw.permutation(30)[:6]]
    path = tmp_path_factory.mktemp("tags") / "tags.csv"
    pl.DataFrame(rows, schema=["user_id", "item_id", "tag"], orient="row").write_csv(path)
    return path


def test_a_model_of_tags_is_trained_on_a_file_and_asked_by_tags(deeprec, triples: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    done = deeprec("train", "tag-cosine", "--data", triples, "--protocol", "dspr", "--out", out, "data.tag=tag")
    assert done.exit_code == 0, done.output
    asked = deeprec("recommend", out, "--tags", "t1,t1", "-k", "3", "--json")
    assert asked.exit_code == 0, asked.output
    assert all(row["item_id"] % 4 == 1 for row in json.loads(asked.stdout))
    unknown = deeprec("recommend", out, "--tags", "jazz")
    assert unknown.exit_code != 0
    assert "jazz" in unknown.output
    again = deeprec("evaluate", out, "--json")
    assert again.exit_code == 0, again.output


def test_tags_are_counted_and_rare_ones_left_out(deeprec, triples: Path) -> None:
    shown = deeprec("data", "info", triples, "data.tag=tag", "data.min_tag_uses=2", "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["tags"] == 4


def test_other_models_say_who_knows_tags(deeprec, triples: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert deeprec("train", "popularity", "--data", triples, "--out", out).exit_code == 0
    asked = deeprec("recommend", out, "--tags", "t1")
    assert asked.exit_code != 0
    assert "such are dspr, tag-cosine" in " ".join(asked.output.split())
