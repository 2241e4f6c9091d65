"""`deeprec pipeline`: from a YAML file to figures and lists."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

SMALL = """
data: synthetic
data_options: {num_users: 200, num_items: 150, num_interactions: 6000, seed: 2}
protocol: {name: caser, metrics: [ndcg, recall], cutoffs: [10]}
sources:
  - {kind: model, name: ease, model: ease, quota: 50}
  - {kind: popularity, quota: 50}
rerank:
  - {kind: mmr, vectors: ease, diversity: 0.1}
"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, deeprec) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "small.yaml").write_text(SMALL)
    done = deeprec("pipeline", folder / "small.yaml", "--out", folder / "made")
    assert done.exit_code == 0, done.output
    return folder / "made", done.output


def test_a_file_becomes_a_folder_and_figures(fitted: tuple[Path, str]) -> None:
    folder, printed = fitted
    assert (folder / "pipeline.json").is_file()
    for words in ("ease", "popularity", "candidates", "ranking: fusion", "mmr", "ndcg@10 of the best source alone"):
        assert words in printed
    assert "deeprec pipeline recommend" in printed
    assert "deeprec serve" in printed


def test_it_is_measured_again_to_the_same_figures(fitted: tuple[Path, str], deeprec) -> None:
    folder, _ = fitted
    again = deeprec("pipeline", "evaluate", folder, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.output) == json.loads((folder / "pipeline.json").read_text())["report"]["test"]
    five = json.loads(deeprec("pipeline", "evaluate", folder, "-k", "5", "--json").output)
    assert five["k"] == 5


def test_lists_say_why(fitted: tuple[Path, str], deeprec) -> None:
    folder, _ = fitted
    done = deeprec("pipeline", "recommend", folder, "--user", 3, "-k", 4, "--explain")
    assert done.exit_code == 0, done.output
    assert "ease" in done.output
    records = json.loads(deeprec("pipeline", "recommend", folder, "--user", 3, "-k", 4, "--json").output)
    assert [record["rank"] for record in records] == [1, 2, 3, 4]
    history = json.loads(deeprec("pipeline", "recommend", folder, "--history", "1,2", "-k", 3, "--json").output)
    assert len(history) == 3


def test_all_lists_go_into_a_file(fitted: tuple[Path, str], deeprec, tmp_path: Path) -> None:
    folder, _ = fitted
    done = deeprec("pipeline", "recommend", folder, "--all", "-k", 3, "--output", tmp_path / "lists.parquet")
    assert done.exit_code == 0, done.output
    lists = pl.read_parquet(tmp_path / "lists.parquet")
    assert len(lists) == 600
    assert lists.columns == ["user_id", "rank", "item_id", "score"]
    alone = json.loads(deeprec("pipeline", "recommend", folder, "--user", 7, "-k", 3, "--json").output)
    assert lists.filter(pl.col("user_id") == 7)["item_id"].to_list() == [each["item_id"] for each in alone]
    assert "--output goes with" in deeprec("pipeline", "recommend", folder, "--all").stderr


def test_two_pipelines_are_compared(fitted: tuple[Path, str], deeprec, tmp_path: Path) -> None:
    folder, _ = fitted
    head = SMALL.split("sources")[0]
    (tmp_path / "popular.yaml").write_text(f"{head}sources: [popularity]\n")
    made = deeprec("pipeline", tmp_path / "popular.yaml", "--out", tmp_path / "popular", "--json")
    assert made.exit_code == 0, made.output
    done = deeprec("pipeline", "compare", folder, tmp_path / "popular", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.output)
    assert result["low"] <= result["difference"] <= result["high"] < 0
    assert "95% interval" in deeprec("pipeline", "compare", folder, tmp_path / "popular").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pipeline", "none.yaml"), "none.yaml"),
        (("pipeline", "evaluate", "none"), "no pipeline in none"),
        (("pipeline", "recommend", "none"), "one of --user, --history and --all"),
        (("serve", "none"), "none"),
        (("pipeline", "evalute", "none"), "evaluate"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(deeprec, words: tuple[str, ...], message: str) -> None:
    done = deeprec(*words)
    assert done.exit_code == 2
    assert message in done.output + (done.stderr or "")


def test_a_misspelt_stage_is_refused_before_data_is_read(deeprec, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(SMALL.replace("kind: mmr", "kind: mnr").replace("synthetic", "/nowhere"))
    done = deeprec("pipeline", tmp_path / "wrong.yaml")
    assert done.exit_code == 2
    assert "rerank[0]: unknown kind 'mnr'; did you mean 'mmr'?" in done.stderr


def test_out_is_no_other_folder(deeprec, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    done = deeprec("pipeline", tmp_path / "small.yaml", "--out", tmp_path)
    assert done.exit_code == 2
    assert "--out must be new, empty or a pipeline" in done.stderr


def test_others_are_not_let_in_without_a_key(fitted: tuple[Path, str], deeprec, tmp_path: Path) -> None:
    done = deeprec("serve", fitted[0], "--host", "0.0.0.0", "--state", tmp_path / "events.sqlite")
    assert done.exit_code == 2
    assert "lets others in; give a key" in done.stderr
    (tmp_path / "key").write_text("\n")
    done = deeprec("serve", fitted[0], "--api-key-file", tmp_path / "key", "--state", tmp_path / "events.sqlite")
    assert "must hold a key" in done.stderr
