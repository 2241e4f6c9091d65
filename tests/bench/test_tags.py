"""Cards of tag-aware models: what is trained, kept, chosen on validation, and said first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from bench import tags


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small setting, and folders of its own for what comes out."""
    draw = np.random.default_rng(0)
    rows = [(user, int(item), f"t{int(item) % 4}") for user in range(40) for item in draw.permutation(30)[:9]]
    pl.DataFrame(rows, schema=["user_id", "item_id", "tag"], orient="row").write_csv(tmp_path / "tags.csv")
    setting = tags.Setting("Small", "A few rows.", str(tmp_path / "tags.csv"), {"tag": "tag"}, {}, True, True, epochs=2)
    monkeypatch.setattr(tags, "SETTINGS", {"small": setting})
    for name, file in (("CARDS", "cards"), ("PAGE", "page.md"), ("SCRATCH", "scratch")):
        monkeypatch.setattr(tags, name, tmp_path / file)
    tiny = {"layers": (8,), "factors": 4, "batch_size": 64}
    monkeypatch.setitem(tags.CANDIDATES, "dspr", ({"gamma": 5.0, **tiny}, {"gamma": 10.0, **tiny}))
    monkeypatch.setattr(tags, "CHOOSING_EPOCHS", 1)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.tags", *words])
    tags.main()


def test_runs_are_kept_and_options_chosen_on_validation(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--models", "tag-cosine", "dspr", "repeat", "--seeds", "1", "2")
    call(monkeypatch, *words)
    cards = sorted(path.relative_to(places / "cards").as_posix() for path in (places / "cards").rglob("*.json"))
    assert [card for card in cards if "choosing" not in card] == [
        f"small/{model}/seed-{seed}.json" for model in ("dspr", "repeat", "tag-cosine") for seed in (1, 2)
    ]
    tried = [json.loads((places / f"cards/small/choosing/dspr-{at}.json").read_text()) for at in (0, 1)]
    best = max(tried, key=lambda each: each["validation"]["precision@10"])
    card = json.loads((places / "cards/small/dspr/seed-2.json").read_text())
    assert card["config"]["gamma"] == best["options"]["gamma"]
    assert (card["config"]["epochs"], card["protocol"]["seed"], card["seed"]) == (2, 2, 2)
    assert not list((places / "scratch").rglob("*.json"))

    def train_again(*_: Any) -> None:
        raise AssertionError("a finished run is trained again")

    monkeypatch.setattr(tags, "train", train_again)
    call(monkeypatch, *words)


@pytest.mark.parametrize("ours", [0.05, 0.2])
def test_a_simple_method_that_is_ahead_is_said_first(places: Path, ours: float) -> None:
    for model, value in (("popularity", 0.01), ("tag-cosine", 0.1), ("dspr", ours)):
        for seed in (1, 2, 3):
            path = places / f"cards/small/{model}/seed-{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            figures = dict.fromkeys(tags.FIGURES, value)
            config = {"weighting": "log", "gamma": 5.0}
            path.write_text(json.dumps({"metrics": figures, "config": config}))
    page = tags.page()
    first = "- **tag-cosine is ahead of DSPR**" if ours < 0.1 else "- DSPR is ahead on Small: DSPR 20.00 %, tag-cosine"
    assert page.splitlines()[4].startswith(first)
    assert "| tag-cosine | 3 | 10.00 ± 0.00 |" in page
    assert "| DSPR, paper | - | 22.68 | 14.86 |" in page


def test_runs_that_say_nothing_new_are_left_out() -> None:
    drawn, published = tags.SETTINGS["delicious-80-5-15"], tags.SETTINGS["delicious"]
    assert tags.has_run(drawn, "item-knn", 3)
    assert not tags.has_run(published, "item-knn", 3)
    assert tags.has_run(published, "dspr", 3)
    assert not tags.has_run(published, "repeat", 1)
