"""Next items: what a model is told of a user, and that nothing later is in it."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from deeprec.contract import Queries
from deeprec.data import Interactions, from_frame
from deeprec.evaluate import evaluate, protocol, rank
from deeprec.evaluate.histories import histories_before
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models import MF, ItemKNN, Popularity
from deeprec.nn.scoring import BlockScorer

# user, item, time; of the first user two share the last time, of which the later row of the file is the last.
ROWS = [(1, 13, 3), (1, 11, 1), (1, 14, 4), (1, 12, 2), (1, 15, 4), (2, 15, 9), (2, 11, 5), (2, 13, 7), (3, 12, 1)]


def make(rows: list[tuple[int, int, int]]) -> Interactions:
    return from_frame(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))


class Reader(nn.Module):
    """Scores the item after the last one of the history highest, and remembers what it was asked."""

    reads_history = True

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items, self.asked = num_items, {}

    def encode(self, queries: Queries) -> torch.Tensor:
        offsets, items = queries.history
        assert offsets.dtype == items.dtype == torch.int64
        assert len(offsets) == len(queries.users) + 1
        lists = [items[start:end].tolist() for start, end in pairwise(offsets)]
        self.asked |= dict(zip(queries.users.tolist(), lists, strict=True))
        return torch.tensor([listed[-1] if listed else -1 for listed in lists])

    def scorer(self, state: torch.Tensor) -> BlockScorer:
        def scores(start: int, end: int) -> torch.Tensor:
            return -(torch.arange(self.num_items) - state[start:end, None] - 1).abs().float()

        return BlockScorer(len(state), self.num_items, state.device, scores)


def names(data: Interactions, histories) -> dict[int, list[int]]:
    offsets, items = histories
    return {
        user: data.item_ids.decode(items[offsets[place] : offsets[place + 1]].numpy()).tolist()
        for place, user in enumerate(data.user_ids.values.to_list())
    }


def test_histories_are_in_order_and_the_test_is_told_the_validation_item() -> None:
    data = make(ROWS)
    split = protocol("next-item").split(data)
    assert split.test.to_frame()["item_id"].to_list() == [15, 15]
    assert split.validation.to_frame()["item_id"].to_list() == [14, 13]
    assert names(data, histories_before(split, "validation")) == {1: [11, 12, 13], 2: [11], 3: [12]}
    assert names(data, histories_before(split, "test")) == {1: [11, 12, 13, 14], 2: [11, 13], 3: [12]}


def test_a_model_that_reads_histories_is_asked_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make([(user, item, item) for user in range(5) for item in range(user, user + 5)])
    rule = protocol("next-item")
    split, model = rule.split(data), Reader(data.num_items)
    assert evaluate(model, split, rule) == {"hr@10": 1.0, "ndcg@10": 1.0, "mrr@10": 1.0}
    assert model.asked == {user: list(range(user, user + 4)) for user in range(5)}
    assert evaluate(model, split, rule, "validation")["mrr@10"] == 1.0
    assert model.asked == {user: list(range(user, user + 3)) for user in range(5)}
    ranking = rank(model, split, protocol("next-item", metrics=("coverage",)), users=np.array([3]))
    assert ranking.top_items[0, 0] == 7
    sampled = protocol("next-item", candidates=2, metrics=("hr",), cutoffs=(1,))
    for users_a_block in (64, 2):
        monkeypatch.setattr("deeprec.evaluate.histories._USERS_A_BLOCK", users_a_block)
        model.asked.clear()
        assert evaluate(model, sampled.split(data), sampled) == {"hr@1": 1.0}
        assert model.asked == {user: list(range(user, user + 4)) for user in range(5)}


def test_a_planted_future_item_never_reaches_the_model() -> None:
    data = make([(user, item, 10 + item) for user in range(4) for item in range(6)])
    split = protocol("next-item").split(data)
    later = split.train.take([0])
    planted = dataclasses.replace(later, items=np.array([5], np.int32), order=np.array([99]), users=later.users)
    columns = {
        name: np.concatenate([getattr(split.train, name), getattr(planted, name)])
        for name in ("users", "items", "order")
    }
    leaky = dataclasses.replace(split, train=dataclasses.replace(split.train, **columns))
    for part, length in (("validation", 4), ("test", 5)):
        model = Reader(data.num_items)
        evaluate(model, leaky, protocol("next-item"), part)
        assert model.asked == {user: list(range(length)) for user in range(4)}


def test_by_time_a_history_ends_at_the_moment() -> None:
    data = make([(user, (step + 3 * user) % 10, 10 * step + user) for user in range(4) for step in range(10)])
    rule = protocol("next-item", holdout="time", test_share=0.2, validation_share=0.2)
    split, model = rule.split(data), Reader(data.num_items)
    evaluate(model, split, rule)
    assert model.asked == {user: [(step + 3 * user) % 10 for step in range(8)] for user in range(4)}
    assert len(split.test) == 8
    evaluate(model, split, rule, "validation")
    assert model.asked == {user: [(step + 3 * user) % 10 for step in range(6)] for user in range(4)}


def test_models_without_histories_are_asked_as_trained() -> None:
    generator = np.random.default_rng(0)
    frame = {"user_id": generator.integers(0, 40, 900), "item_id": generator.integers(0, 60, 900)}
    data = from_frame(pl.DataFrame({**frame, "timestamp": np.arange(900)}))
    task = InteractionTask(data, protocol("next-item"))
    same_rows = dataclasses.replace(protocol("full"), validation="last", metrics=task.protocol.metrics)
    for model in (Popularity(), ItemKNN(), MF(epochs=1, factors=4)):
        model.fit(task)
        figures = evaluate(model, task.split, task.protocol)
        assert figures == evaluate(model, same_rows.split(data), same_rows)
        assert list(figures) == ["hr@10", "ndcg@10", "mrr@10"]


def test_a_reader_under_another_protocol_is_asked_by_user(table_scorer) -> None:
    data = make([(user, item, item) for user in range(3) for item in range(4)])
    table = table_scorer(torch.rand(3, 4))
    model = SimpleNamespace(reads_history=True, score_items=table.score_items, score_pairs=table.score_pairs)
    rule = protocol("full")
    assert evaluate(model, rule.split(data), rule) == evaluate(table, rule.split(data), rule)


def test_histories_without_an_order_are_refused() -> None:
    blind = from_frame(pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3]}))
    with pytest.raises(ValueError, match="got frame without timestamps"):
        protocol("next-item").split(blind)
    with pytest.raises(ValueError, match="histories need the order"):
        histories_before(protocol("full").split(blind), "test")
