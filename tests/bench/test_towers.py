"""The bench of two towers: what is due, a card a run, a page of what is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec import models
from deeprec.data import DataSchema, FeatureSchema, Interactions, Text, from_frame, with_features

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench import towers
from bench.card_runs import due_runs


def read() -> Interactions:
    users, items = np.nonzero(np.random.default_rng(0).random((40, 30)) < 0.4)
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items})).canonical()
    titles = [f"film {item % 4}" for item in range(30)]
    return with_features(data, items=pl.DataFrame({"item_id": range(30), "title": titles}))


def test_runs_are_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    schema = DataSchema(items=FeatureSchema((Text("title", tokens="words"),), label=None))
    toy = towers.Set("a toy", read, {"text": schema, "words": schema}, {"epochs": 2, "batch_size": 64}, "Small.")
    monkeypatch.setattr(towers, "SETS", {"toy": toy})
    for name in ("RESULTS", "WORK"):
        monkeypatch.setattr(towers, name, tmp_path / name)
    monkeypatch.setattr(towers, "PAGE", tmp_path / "page.md")
    labels = ["popularity", "bm25", "in-batch", "dssm-printed"]
    monkeypatch.setattr(sys, "argv", ["towers", "--only", "toy", "--labels", *labels, "--seeds", "1", "2"])
    results = tmp_path / "RESULTS"
    assert len(list(due_runs(results, ["toy"], labels, [1, 2]))) == 8
    towers.main()
    page = (tmp_path / "page.md").read_text()
    assert page.count("| 2 |") == 4
    assert "BM25 of text" in page
    assert "** ranks best by ndcg@20" in page
    assert ". Small." in page
    assert not list(due_runs(results, ["toy"], labels, [1, 2]))
    (tmp_path / "RESULTS" / "toy" / "bm25" / "seed-2.json").unlink()
    assert list(due_runs(results, ["toy"], labels, [1, 2])) == [("toy", "bm25", 2)]
    assert "toy, in-batch, seed 2: ndcg@20" in capsys.readouterr().out


def test_every_contender_has_options_that_its_model_takes() -> None:
    for name, each in towers.SETS.items():
        for label, contender in towers.CONTENDERS.items():
            assert not contender.columns or contender.columns in each.columns
            for kind, options in contender.candidates:
                assert models.create(kind, **towers.options_of(name, label, options)).name == kind


def test_who_is_ahead_of_every_tower_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = towers.Set("a toy", read, {}, {"epochs": 1, "batch_size": 64}, "Small.")
    monkeypatch.setattr(towers, "SETS", {"toy": toy})
    for name in ("RESULTS", "WORK"):
        monkeypatch.setattr(towers, name, tmp_path / name)
    for label in ("popularity", "item-knn", "in-batch"):
        towers.run("toy", label, 1, read())
        path = tmp_path / "RESULTS" / "toy" / label / "seed-1.json"
        card = json.loads(path.read_text())
        card["metrics"]["ndcg@20"] = {"popularity": 0.2, "item-knn": 0.4, "in-batch": 0.3}[label]
        path.write_text(json.dumps(card))
    assert "**item-KNN** ranks best by ndcg@20; ahead of every tower: item-KNN. Small." in towers.page()
