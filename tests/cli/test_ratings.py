"""The commands with a model of ratings: `deeprec train autorec --protocol rating`, then what the folder serves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import deeprec as package
from deeprec.evaluate import read_card

SMALL = ("hidden=8", "epochs=80", "l2=0.5", "protocol.clamp=false", "protocol.metrics=rmse,rmse_rare")


def ratings() -> pl.DataFrame:
    """Users and items of two kinds; 5 where they are of one kind, else 1."""
    users, items = np.nonzero(np.random.default_rng(0).random((80, 40)) < 0.5)
    return pl.DataFrame({"user_id": users, "item_id": items, "rating": np.where(users % 2 == items % 2, 5.0, 1.0)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, deeprec) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    ratings().write_csv(folder / "ratings.csv")
    out = folder / "autorec"
    done = deeprec("train", "autorec", "--data", folder / "ratings.csv", "--protocol", "rating", "--out", out, *SMALL)
    assert done.exit_code == 0, done.output
    assert "errors of predicted ratings, not clamped" in done.output
    return out


def test_the_card_and_evaluate_say_the_same(trained: Path, deeprec) -> None:
    card = read_card(trained)
    assert (card.protocol["task"], card.protocol["clamp"], card.protocol["default_rating"]) == ("rating", False, None)
    done = deeprec("evaluate", trained, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"] == pytest.approx(card.metrics)
    ranked = deeprec("evaluate", trained, "--protocol", "random", "--json")
    assert "ndcg@10" in json.loads(ranked.stdout)["metrics"]


def test_predict_rates_the_pairs_of_a_file(trained: Path, deeprec, tmp_path: Path) -> None:
    pairs = ratings().head(300).select("item_id", "user_id", note=pl.lit("x"))
    pairs.write_csv(tmp_path / "pairs.csv")
    pairs.write_parquet(tmp_path / "pairs.parquet")
    for name in ("pairs.csv", "pairs.parquet"):
        words = ("predict", trained, "--input", tmp_path / name, "--output", tmp_path / "out.parquet", "--keep", "note")
        done = deeprec(*words)
        assert done.exit_code == 0, done.output
        assert "300 ratings written" in done.output
        found = pl.read_parquet(tmp_path / "out.parquet")
        assert found.columns == ["user_id", "item_id", "note", "rating"]
        assert found.select("user_id", "item_id").equals(pairs.select("user_id", "item_id"))
        assert found["rating"].is_between(1, 5).all()
        wanted = package.load(trained).score(pairs).clip(1, 5)
        np.testing.assert_allclose(found["rating"].to_numpy(), wanted, rtol=1e-5)
    liked = (found["user_id"] + found["item_id"]) % 2 == 0
    assert found.filter(liked)["rating"].mean() > found.filter(~liked)["rating"].mean() + 1


def test_recommend_follows_the_ratings_of_a_new_user(trained: Path, deeprec) -> None:
    def kinds(*ratings: str) -> set[int]:
        done = deeprec("recommend", trained, "--history", "0,2,4,1,3,5", "--ratings", *ratings, "-k", 8, "--json")
        return {row["item_id"] % 2 for row in json.loads(done.stdout)}

    assert kinds("5,5,5,1,1,1") == {0}
    assert kinds("1,1,1", "--ratings", "5,5,5") == {1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("user_id,item_id\n1,99\n", "every item id must be among the 40 known ones, got 1 unknown: 99"),
        ("user_id,item_id\nx,1\n", "user ids here are integers, got 'x'"),
        ("user,item\n1,1\n", "pairs must have columns user_id and item_id"),
    ],
)
def test_pairs_that_cannot_be_rated_are_named(trained: Path, deeprec, tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(rows)
    done = deeprec("predict", trained, "--input", tmp_path / "pairs.csv", "--output", tmp_path / "out.csv")
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("predict", "--input", "pairs.csv", "--output", "out.csv", "--format", "csv"),
            "--format goes with click models",
        ),
        (("predict", "--input", "pairs.dat", "--output", "out.csv"), "go with .parquet, .csv and .tsv input"),
        (("recommend", "--user", "1", "--ratings", "5"), "--ratings goes with --history"),
        (("recommend", "--history", "1,2", "--ratings", "5"), "one finite number for each item"),
        (("recommend", "--history", "1", "--ratings", "good"), "--ratings must be numbers such as 5,3, got good"),
    ],
)
def test_mistakes_end_in_one_line(trained: Path, deeprec, words: tuple[str, ...], message: str) -> None:
    done = deeprec(words[0], trained, *words[1:])
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_side_information_comes_from_a_table(deeprec, tmp_path: Path, suffix: str) -> None:
    ratings().with_columns(item_id=pl.format("i{}", "item_id")).write_csv(tmp_path / "ratings.csv")
    table = pl.DataFrame({"item_id": [f"i{i}" for i in range(40)], "kind": ["even", "odd"] * 20, "size": [0.5] * 40})
    path = tmp_path / f"items.{suffix}"
    write = {"csv": table.write_csv, "tsv": lambda to: table.write_csv(to, separator="\t")}
    write.get(suffix, table.write_parquet)(path)
    words = ("train", "cfn", "--data", tmp_path / "ratings.csv", "--protocol", "rating", "--out", tmp_path / "run")
    options = ("hidden=8", "epochs=3", "features=kind,size")
    done = deeprec(*words, *options, "--item-features", path)
    assert done.exit_code == 0, done.output
    assert package.load(tmp_path / "run").side_information.shape == (40, 3)
    again = deeprec("evaluate", tmp_path / "run", "--json")
    assert json.loads(again.stdout)["metrics"] == pytest.approx(read_card(tmp_path / "run").metrics)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("items.csv", "item_id,kind\n0,a\n", "must hold each item of the data once and no other, got 39 not at all"),
        ("items.csv", "item,kind\n0,a\n", "the item table must have a column item_id, got"),
        ("items.csv", "item_id,kind\nzero,a\n", "item ids here are integers, got 'zero'"),
    ],
)
def test_a_table_that_does_not_fit_is_named(deeprec, tmp_path: Path, name: str, rows: str, message: str) -> None:
    ratings().write_csv(tmp_path / "ratings.csv")
    (tmp_path / name).write_text(rows)
    words = ("train", "cfn", "--data", tmp_path / "ratings.csv", "--protocol", "rating", "--out", tmp_path / "run")
    done = deeprec(*words, "features=kind", "--item-features", tmp_path / name)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
