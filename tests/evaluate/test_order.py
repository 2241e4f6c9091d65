"""Claims: shuffled rows of a file give the same split and the same figures, by time as well as by chance."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from deeprec.data import OfficialSplit, from_frame
from deeprec.evaluate import protocol
from deeprec.evaluate.tasks import InteractionTask, as_interactions
from deeprec.models import create
from deeprec.train import fit


def frame(seed: int = 0) -> pl.DataFrame:
    """Times that differ within each user; few distinct counts and cosines, so that ties are everywhere."""
    draw = np.random.default_rng(seed)
    users, items = np.nonzero(draw.random((60, 40)) < 0.2)
    times = draw.permutation(len(users))
    names = np.array([f"item-{number}" for number in draw.permutation(40)])
    ratings = draw.integers(1, 6, len(users)).astype(float)
    return pl.DataFrame({"user_id": users, "item_id": names[items], "rating": ratings, "timestamp": times})


def shuffled(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    return rows[np.random.default_rng(seed).permutation(rows.height)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("full", {}),
        ("next-item", {}),
        ("ncf", {"candidates": 10}),
        ("random", {}),
        ("cdae", {}),
        ("rating", {}),
        ("full", {"holdout": "time"}),
        ("cold-items", {}),
    ],
)
def test_shuffled_rows_are_held_out_alike(name: str, options: dict) -> None:
    splits = [
        InteractionTask(as_interactions(rows), protocol(name, **options)).split
        for rows in (frame(), shuffled(frame(), 1), shuffled(frame(), 2))
    ]
    assert len({split.sha256 for split in splits}) == 1
    assert len(splits[0].test)
    assert len(splits[0].validation)


@pytest.mark.parametrize(("model", "options"), [("popularity", {}), ("item-knn", {"neighbors": 5}), ("ease", {}),
                                                ("mf", {"epochs": 1})])  # fmt: skip
def test_shuffled_rows_give_the_same_figures(model: str, options: dict) -> None:
    figures = [
        fit(create(model, **options), rows, protocol="full", baselines=False).card.metrics
        for rows in (frame(), shuffled(frame(), 1))
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)


def test_a_file_is_read_as_its_frame_and_a_split_comes_along(tmp_path) -> None:
    frame().write_csv(tmp_path / "a.csv")
    data = as_interactions(frame())
    assert as_interactions(str(tmp_path / "a.csv")).sha256 == data.sha256
    raw = from_frame(frame())
    published = OfficialSplit(np.array([4, 0, 7]), np.array([9, 2]), np.array([[3, 1], [0, 5]], dtype=np.int32))
    moved = type(raw)(**{**vars_of(raw), "official": published}).canonical()
    assert moved.official is not None
    for ours, theirs in ((moved.official.train_index, [4, 0, 7]), (moved.official.test_index, [9, 2])):
        assert moved.take(ours).to_frame().equals(raw.take(np.array(theirs)).to_frame())
    named = moved.item_ids.decode(moved.official.test_negatives.ravel()).tolist()
    assert named == raw.item_ids.decode(published.test_negatives.ravel()).tolist()


def vars_of(data) -> dict:
    names = ("users", "items", "user_ids", "item_ids", "ratings", "order", "order_kind", "name")
    return {name: getattr(data, name) for name in names}
