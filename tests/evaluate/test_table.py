"""Tables for papers: a row a result, added to what is there, never twice and never among other columns."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from deeprec.evaluate import Card, ClickProtocol, protocol
from deeprec.evaluate.table import add_to_table, require_table, table_of_means, table_row
from deeprec.models import config_class


def card(seed: int = 0, hr: float = 0.5, model: str = "gmf", **options: object) -> Card:
    """A result of a model with these options."""
    config = dataclasses.asdict(config_class(model)(**options))
    rule = protocol("ncf", cutoffs=(5, 10)).as_dict()
    return Card(model, config, {"name": "a, b"}, rule, {"hr@10": hr, "ndcg@10": None}, seed, 1.23456, epoch=3)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_rows_are_added_and_none_twice(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    assert add_to_table(path, [table_row(card(1, factors=16))]) == 1
    assert add_to_table(path, [table_row(card(1, factors=16)), table_row(card(2, 0.1 + 0.2, compile=False))]) == 1
    frame = pl.read_csv(path) if suffix == ".csv" else pl.read_json(path)
    assert frame.columns == ["model", "data", "protocol", "options", "seed", "epoch", "hr@10", "ndcg@10", "seconds"]
    first, second = frame.to_dicts()
    assert first | {"options": None} == {
        "model": "gmf", "data": "a, b", "protocol": "ncf cutoffs=5,10", "options": None, "seed": 1, "epoch": 3,
        "hr@10": 0.5, "ndcg@10": None, "seconds": 1.235,
    }  # fmt: skip
    assert first["options"] == "factors=16"
    assert not second["options"]
    assert second["hr@10"] == 0.1 + 0.2
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    add_to_table(path, [table_row(card())])
    before = path.read_bytes()
    rule = ClickProtocol().as_dict()
    other = dataclasses.replace(card(), metrics={"auc": 0.7}, protocol=rule)
    assert table_row(other)["protocol"] == "click"
    with pytest.raises(ValueError, match=r"columns of .*table.csv must be model, .*auc, seconds, got model, .*hr@10"):
        add_to_table(path, [table_row(other)])
    assert path.read_bytes() == before
    assert add_to_table(tmp_path / "table.json", [table_row(card()), table_row(other)]) == 2


def test_mean_and_spread_are_columns(tmp_path: Path) -> None:
    cards = [card(1, 0.4), card(2, 0.6), card(1, 0.7, factors=16)]
    best, other = table_of_means(cards)
    assert (best["options"], best["seeds"], best["hr@10"], best["hr@10_std"]) == ("factors=16", 1, 0.7, None)
    assert (other["options"], other["seeds"], other["hr@10"]) == ("", 2, 0.5)
    assert other["hr@10_std"] == pytest.approx(0.02**0.5)
    assert add_to_table(tmp_path / "means.csv", [best, other]) == 2


def test_runs_that_end_together_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda seed: add_to_table(path, [table_row(card(seed))]), range(12))) == 12
    assert sorted(pl.read_csv(path)["seed"].to_list()) == list(range(12))


@pytest.mark.parametrize(("name", "content"), [("t.json", "{}"), ("t.json", "["), ("t.csv", '"a'), ("t.json", "[1]")])
def test_a_file_that_is_no_table_is_kept(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{name} must hold a table of figures"):
        require_table(path)
    assert path.read_text() == content


def test_a_table_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in .csv or .json, got table.txt"):
        require_table(tmp_path / "table.txt")
    with pytest.raises(ValueError, match="must lie in a folder there is"):
        require_table(tmp_path / "no" / "table.csv")
    assert json.loads(json.dumps(table_row(card())))["seed"] == 0
