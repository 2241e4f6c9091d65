"""Lists for histories and sessions: their order is kept; they are long, repeat, or hold what nobody knows."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.config import TrainConfig
from deeprec.contract import Queries, Schema, Seen
from deeprec.data import IdMap
from deeprec.models.base import Recommender
from deeprec.nn.scoring import BlockScorer

ITEMS = [f"i{number}" for number in range(30)]


class After(Recommender):
    """Scores the items after the last one highest, the nearer the better; an order-reading toy without training."""

    name = "after"
    config_class = TrainConfig
    reads_history = True

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.asked: list[list[int]] = []

    def history_rows(self, offsets: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, ...]:
        lists = [items[start:end].tolist() for start, end in pairwise(offsets)]
        self.asked += lists
        return (torch.tensor([each[-1] for each in lists]),)

    def scorer(self, state: tuple[torch.Tensor, ...]) -> BlockScorer:
        def scores(start: int, end: int) -> torch.Tensor:
            away = (torch.arange(len(ITEMS)) - state[0][start:end, None] - 1) % len(ITEMS)
            return -away.float()

        return BlockScorer(len(state[0]), len(ITEMS), state[0].device, scores)


@pytest.fixture
def model() -> After:
    made = After(Schema(2, len(ITEMS)))
    made.user_ids, made.item_ids = IdMap(np.arange(2), "user"), IdMap(pl.Series(ITEMS), "item")
    made.seen = Seen(np.zeros(3, np.int64), np.zeros(0, np.int32))
    return made


def listed(frame: pl.DataFrame) -> list[str]:
    return frame["item_id"].to_list()


def test_order_and_repeats_reach_the_model(model: After) -> None:
    assert listed(model.recommend_for_history(["i9", "i2", "i9", "i4"], 3)) == ["i5", "i6", "i7"]
    assert listed(model.recommend_for_history(["i4", "i9", "i2"], 3)) == ["i3", "i5", "i6"]
    assert model.asked == [[9, 2, 9, 4], [4, 9, 2]]


def test_what_was_met_may_come_again(model: After) -> None:
    history = ["i5", "i6", "i4"]
    assert listed(model.recommend_for_history(history, 3)) == ["i7", "i8", "i9"]
    assert listed(model.recommend_for_history(history, 3, exclude_seen=False)) == ["i5", "i6", "i7"]
    assert listed(model.recommend_for_history(history, 30, exclude_seen=False))[-1] == "i4"
    kept = model.recommend_for_history(history, 3, exclude_seen=False, deny=["i6"], allow=["i5", "i6", "i8"])
    assert listed(kept) == ["i5", "i8"]


def test_histories_of_one_item_and_of_ten_thousand(model: After) -> None:
    assert listed(model.recommend_for_history("i7", 2)) == ["i8", "i9"]
    long = [ITEMS[number] for number in np.random.default_rng(0).integers(0, 5, 9_999)] + ["i3"]
    assert listed(model.recommend_for_history(long, 2)) == ["i5", "i6"]
    assert len(model.asked[-1]) == 10_000
    frame = pl.DataFrame({"session_id": 1, "item_id": long})
    assert listed(model.recommend_for_histories(frame, 2)) == ["i5", "i6"]


def test_unknown_items_are_refused_or_skipped(model: After) -> None:
    for ask in (
        lambda **options: model.recommend_for_history(["i1", "new", "i2"], 2, **options),
        lambda **options: model.recommend_for_histories(
            pl.DataFrame({"user_id": 5, "item_id": ["i1", "new", "i2"]}), 2, **options
        ),
    ):
        with pytest.raises(ValueError, match=r"'new'.*pass unknown='skip'"):
            ask()
        assert listed(ask(unknown="skip")) == ["i3", "i4"]
        assert model.asked[-1] == [1, 2]
        with pytest.raises(ValueError, match="unknown must be one of raise, skip, got 'drop'"):
            ask(unknown="drop")
    with pytest.raises(ValueError, match="must hold at least one item, got 2 unknown ones"):
        model.recommend_for_history(["a", "b"], unknown="skip")


def test_many_histories_are_each_answered_as_alone(model: After, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    frame = pl.DataFrame(
        {
            "session_id": generator.permutation(np.repeat(np.arange(100, 140), 5)),
            "item_id": [ITEMS[number] for number in generator.integers(0, 30, 200)],
            "timestamp": generator.integers(0, 4, 200),
            "user_id": 0,
        }
    )
    events = frame.sort("timestamp", maintain_order=True)
    alone = {}
    for session in frame["session_id"].unique(maintain_order=True).to_list():
        own = events.filter(pl.col("session_id") == session)["item_id"].to_list()
        alone[session] = model.recommend_for_history(own, 4).rows()
    for at_once, items in ((1024, 1 << 20), (7, 1 << 20), (1024, 12)):
        monkeypatch.setattr("deeprec.serve.histories._HISTORIES_A_BLOCK", at_once)
        monkeypatch.setattr("deeprec.serve.histories._ITEMS_A_BLOCK", items)
        lists = model.recommend_for_histories(frame, 4)
        assert lists.columns == ["session_id", "rank", "item_id", "score"]
        parts = lists.partition_by("session_id", as_dict=True, maintain_order=True, include_key=False)
        assert {key[0]: part.rows() for key, part in parts.items()} == alone
        assert [key[0] for key in parts] == list(alone)
    in_rows = model.recommend_for_histories(frame.drop("timestamp", "session_id"), 1)
    assert in_rows.columns[0] == "user_id"
    assert model.asked[-1] == model.item_ids.encode(frame["item_id"]).tolist()


def test_who_has_nothing_known_gets_no_list(model: After, caplog: pytest.LogCaptureFixture) -> None:
    frame = pl.DataFrame({"user_id": ["a", "b", "c", "b"], "item_id": ["i1", "x", "i2", "y"]})
    with caplog.at_level(logging.WARNING, "deeprec"):
        lists = model.recommend_for_histories(frame, 1, unknown="skip")
    assert lists.select("user_id", "item_id").rows() == [("a", "i2"), ("c", "i3")]
    assert "1 of 3 have no item that the model knows" in caplog.text
    empty = model.recommend_for_histories(frame.head(0), 3)
    assert empty.columns == ["user_id", "rank", "item_id", "score"]
    assert not empty.height


def test_frames_that_do_not_fit_are_refused(model: After) -> None:
    rows = pl.DataFrame({"user_id": [1, 2], "item_id": ["i1", "i2"], "timestamp": [1, 2]})
    for frame, message in (
        (rows.drop("user_id"), "must have a column session_id or user_id"),
        (rows.drop("item_id"), "must have a column item_id"),
        (rows.with_columns(user_id=pl.Series([1, None])), "user_id must be there in every row, got None in row 1"),
        (rows.with_columns(timestamp=pl.Series(["2024-01-01", "soon"])), "timestamp must be there .* got 'soon'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.recommend_for_histories(frame)
    with pytest.raises(TypeError, match="histories must be a polars or pandas frame, got list"):
        model.recommend_for_histories([["i1"]])
    with pytest.raises(TypeError, match="exclude_seen must be True or False"):
        model.recommend_for_history("i1", exclude_seen="no")


def test_a_model_of_sets_is_asked_with_each_item_once(model: After) -> None:
    model.encode(Queries(history=(torch.tensor([0, 3]), torch.tensor([4, 2, 4]))))
    assert model.asked[-1] == [4, 2, 4]
    type(model).reads_history = False
    try:
        model.encode(Queries(history=(torch.tensor([0, 3]), torch.tensor([4, 2, 4]))))
        assert model.asked[-1] == [2, 4]
    finally:
        type(model).reads_history = True
