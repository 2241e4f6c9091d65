"""Claims about session-parallel mini-batches: every session once, in one lane, next to nobody else's events."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.batches import SessionBatch, SessionBatches
from deeprec.batches.sessions import schedule_lanes
from deeprec.data import Interactions, from_frame
from deeprec.kernels.sample_negatives import alias_table


def interactions(sessions: list[list[int]], begins: list[int] | None = None) -> Interactions:
    """Session s, named s, of these items, its events one second apart from `begins` on, in a file in no order."""
    starts = range(len(sessions)) if begins is None else begins
    rows = [(s, item, starts[s] + t) for s, items in enumerate(sessions) for t, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return from_frame(frame.sample(fraction=1, shuffle=True, seed=3), timestamp="timestamp", duplicates="keep")


def drawn(num_sessions: int = 60, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 40, draw.integers(1, 12)).tolist() for _ in range(num_sessions)]


def by_hand(sessions: list[list[int]], num_lanes: int) -> list[list[tuple[int, int, int, bool]]]:
    """(lane, item, target, is first) of each step, by walking through the lanes one event at a time."""
    waiting = [items for items in sessions if len(items) > 1]
    lanes: list[list[int] | None] = [None] * num_lanes
    places, steps = [0] * num_lanes, []
    while True:
        step = []
        for lane in range(num_lanes):
            items = lanes[lane]
            if (items is None or places[lane] + 1 >= len(items)) and waiting:
                lanes[lane], places[lane] = waiting.pop(0), 0
                items = lanes[lane]
            if items is not None and places[lane] + 1 < len(items):
                step.append((lane, items[places[lane]], items[places[lane] + 1], places[lane] == 0))
                places[lane] += 1
        if not step:
            return steps
        steps.append(step)


def entries(data: Interactions, batch: SessionBatch, num_lanes: int) -> list[tuple[int, int, int, bool]]:
    size = len(batch)
    lanes = range(num_lanes) if batch.lanes is None else batch.lanes.tolist()
    is_first = [False] * size if batch.is_first is None else batch.is_first.tolist()
    items, targets = ([int(data.item_ids.values[i]) for i in part.tolist()] for part in (batch.items, batch.targets))
    return list(zip(lanes, items, targets, is_first, strict=True))


@pytest.mark.parametrize("num_lanes", [1, 2, 7, 59, 200])
def test_steps_are_those_of_lanes_walked_by_hand(num_lanes: int) -> None:
    sessions = drawn()
    data = interactions(sessions)
    batches = SessionBatches(data, num_lanes=num_lanes, seed=0)
    steps = [entries(data, batch, batches.num_lanes) for batch in batches.epoch(0)]
    assert steps == by_hand(sessions, batches.num_lanes)
    assert len(steps) == len(batches)
    assert sum(map(len, steps)) == batches.num_examples == sum(len(items) - 1 for items in sessions)


def test_lanes_are_dropped_when_sessions_run_out() -> None:
    data = interactions([[1, 2], [3, 4, 5, 6], [7, 8, 9]])
    widths = [len(batch) for batch in SessionBatches(data, num_lanes=3, seed=0).epoch(0)]
    assert widths == [3, 2, 1]
    assert [len(batch) for batch in SessionBatches(data, num_lanes=3, seed=0, min_lanes=2).epoch(0)] == [3, 2]


def test_a_lane_is_first_when_its_session_begins_and_at_no_other_step() -> None:
    data = interactions([[1, 2, 3], [4, 5], [6, 7, 8]])
    firsts = [
        None if b.is_first is None else b.is_first.tolist() for b in SessionBatches(data, num_lanes=2, seed=0).epoch(0)
    ]
    assert firsts == [[True, True], [False, True], None]


def test_sessions_go_by_their_first_event_and_equal_ones_by_the_data() -> None:
    data = interactions([[1, 2], [3, 4], [5, 6], [7, 8]], begins=[30, 10, 20, 10])
    order = [
        int(data.item_ids.values[int(batch.items[0])]) for batch in SessionBatches(data, num_lanes=1, seed=0).epoch(0)
    ]
    tied = [3, 7] if data.user_ids.encode([1])[0] < data.user_ids.encode([3])[0] else [7, 3]
    assert order == [*tied, 5, 1]


def test_shuffled_sessions_are_the_same_for_a_seed_and_epoch() -> None:
    data = interactions(drawn())

    def order(seed: int, epoch: int) -> list[int]:
        batches = SessionBatches(data, num_lanes=3, seed=seed, session_order="shuffled")
        return [item for batch in batches.epoch(epoch) for item in batch.items.tolist()]

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 0)) == sorted(order(0, 1)) == sorted(order(1, 0))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("order", ["time", "shuffled"])
def test_an_epoch_begins_at_any_step(order: str) -> None:
    data = interactions(drawn(400))
    options: dict[str, Any] = {"num_lanes": 4, "seed": 5, "num_negatives": 6, "session_order": order}
    whole = list(SessionBatches(data, **options).epoch(2))
    for skip in (1, 255, 256, 257, len(whole) - 1, len(whole)):
        rest = list(SessionBatches(data, **options).epoch(2, skip))
        assert len(rest) == len(whole) - skip
        for one, other in zip(rest, whole[skip:], strict=True):
            for name in ("items", "targets", "lanes", "is_first", "negatives"):
                left, right = getattr(one, name), getattr(other, name)
                assert (left is None) == (right is None)
                assert left is None or torch.equal(left, right)


def test_negatives_are_drawn_by_popularity_to_a_power() -> None:
    draw = np.random.default_rng(1)
    sessions = [draw.choice(5, 4, p=[0.5, 0.3, 0.1, 0.06, 0.04]).tolist() for _ in range(300)]
    data = interactions(sessions)
    counts = data.item_counts()
    table = alias_table(torch.from_numpy(counts), 0.5)
    batches = SessionBatches(data, num_lanes=8, seed=2, num_negatives=500, popularity=table)
    negatives = torch.cat([batch.negatives for batch in batches.epoch(0)])  # type: ignore[misc]
    shares = torch.bincount(negatives, minlength=5).double().numpy() / len(negatives)
    np.testing.assert_allclose(shares, counts**0.5 / (counts**0.5).sum(), atol=0.01)
    steps = list(batches.epoch(0))
    assert not torch.equal(steps[0].negatives, steps[1].negatives)  # type: ignore[arg-type]


def test_sessions_of_one_event_are_left_out_and_a_long_one_is_whole() -> None:
    data = interactions([[1], list(range(2000)), [5]])
    batches = SessionBatches(data, num_lanes=4, seed=0)
    steps = list(batches.epoch(0))
    assert batches.num_lanes == 1
    assert len(steps) == 1999
    assert all(int(one.targets) == int(other.items) for one, other in pairwise(steps))


def test_what_cannot_be_batched_is_refused() -> None:
    with pytest.raises(ValueError, match="sessions of two events or more are needed"):
        SessionBatches(interactions([[1], [2]]), num_lanes=2, seed=0)
    with pytest.raises(ValueError, match="2 at least, got 1"):
        SessionBatches(interactions([[1, 2]]), num_lanes=2, seed=0, min_lanes=2)
    with pytest.raises(ValueError, match=r"num_lanes and min_lanes must be >= 1.*got 0"):
        SessionBatches(interactions([[1, 2]]), num_lanes=0, seed=0)
    with pytest.raises(ValueError, match="session_order must be one of time, shuffled, got 'random'"):
        SessionBatches(interactions([[1, 2]]), num_lanes=1, seed=0, session_order="random")
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2]})
    with pytest.raises(ValueError, match="must have an order"):
        SessionBatches(from_frame(frame), num_lanes=1, seed=0)


def test_a_plan_of_many_sessions_wastes_no_lane() -> None:
    steps = np.random.default_rng(0).integers(1, 30, 5000)
    lanes, starts = schedule_lanes(steps, 32)
    for lane in range(32):
        of_lane = np.flatnonzero(lanes == lane)
        assert (starts[of_lane[1:]] == (starts + steps)[of_lane[:-1]]).all()
        assert starts[of_lane[0]] == 0
    assert (np.diff(starts) >= 0).all()
