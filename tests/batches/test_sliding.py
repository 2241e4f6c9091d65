"""Claims about sliding windows: those of a slow reference, each once an epoch, and negatives that were not met."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.batches.sequences import Histories
from deeprec.batches.sliding import SlidingBatches
from deeprec.contract import Seen
from deeprec.data import Interactions, from_frame

GIVEN = {
    "one": [4],
    "two": [8, 9],
    "three": [1, 2, 3],
    "five": [6, 5, 4, 3, 2],
    "six": [1, 2, 1, 2, 1, 7],
    "many": list(range(10)),
}


def interactions(histories: dict[str, list[int]]) -> Interactions:
    """What each user met in turn, in a file whose rows are in no order."""
    rows = [(user, item, time) for user, items in histories.items() for time, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return from_frame(frame.sample(fraction=1, shuffle=True, seed=7), duplicates="keep")


def slow_windows(items: list[int], length: int, targets: int) -> list[tuple[list[int], list[int]]]:
    """(the last items, the next items), by the rule of the authors' code where the history is long enough."""
    if len(items) >= length + targets:
        cuts = range(length, len(items) - targets + 1)
    else:
        cuts = range(max(1, len(items) - targets), max(2, len(items) - targets + 1)) if len(items) > 1 else range(0)
    out = []
    for cut in cuts:
        shown, following = items[max(0, cut - length) : cut], items[cut : cut + targets]
        out.append(([-1] * (length - len(shown)) + shown, following + [-1] * (targets - len(following))))
    return out


def windows_of(batches: SlidingBatches, epoch: int = 0) -> list[tuple[int, list[int], list[int]]]:
    return [
        (user, items, targets)
        for batch in batches.epoch(epoch)
        for user, items, targets in zip(batch.users.tolist(), batch.items.tolist(), batch.targets.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("length", "targets"), [(3, 2), (1, 1), (5, 3), (2, 6), (12, 1)])
def test_windows_are_those_of_the_slow_reference_each_once(length: int, targets: int) -> None:
    data = interactions(GIVEN)
    histories = Histories.of(data)
    expected = [
        (user, *window)
        for user in range(data.num_users)
        for window in slow_windows(
            histories.items[histories.offsets[user] : histories.offsets[user + 1]].tolist(), length, targets
        )
    ]
    batches = SlidingBatches(data, batch_size=3, length=length, num_targets=targets, num_negatives=0, seed=0)
    assert sorted(windows_of(batches)) == sorted(expected)
    assert batches.num_examples == sum(item >= 0 for _, _, window in expected for item in window)
    assert len(batches) == -(-len(expected) // 3)
    assert sum(len(batch) for batch in batches.epoch(1)) == batches.num_examples


def test_epochs_differ_and_are_repeatable() -> None:
    options: dict[str, Any] = {"batch_size": 4, "length": 3, "num_targets": 2, "num_negatives": 1}
    data = interactions({f"u{u}": [(u + step) % 40 for step in range(20)] for u in range(10)})
    first, again = (SlidingBatches(data, seed=5, **options) for _ in range(2))
    assert windows_of(first) == windows_of(again)
    assert windows_of(first) != windows_of(first, 1)
    assert windows_of(first) != windows_of(SlidingBatches(data, seed=6, **options))
    for skip in (1, 7, len(first)):
        left = list(first.epoch(2))[skip:]
        later = list(first.epoch(2, skip=skip))
        assert len(left) == len(later)
        for a, b in zip(left, later, strict=True):
            assert (a.seed, a.offset, a.num_targets) == (b.seed, b.offset, b.num_targets)
            for name in ("users", "items", "targets", "negatives"):
                assert torch.equal(getattr(a, name), getattr(b, name))


def test_negatives_are_uniform_over_what_the_user_has_not_met() -> None:
    filler = {f"u{item}": [item, (item + 1) % 8] for item in range(8)}
    data = interactions({"a": [0, 1, 2, 3] * 300, "b": [0, 1, 2, 3, 4, 5, 6] * 100, **filler})
    met = {user: set(data.items[data.users == user].tolist()) for user in range(data.num_users)}
    drawn = np.zeros((data.num_users, data.num_items), dtype=int)
    for batch in SlidingBatches(data, batch_size=16, length=2, num_targets=2, num_negatives=3, seed=1).epoch(0):
        assert batch.negatives is not None
        assert batch.negatives.shape == (len(batch.users), 6)
        np.add.at(drawn, (batch.users.unsqueeze(1).expand(-1, 6).flatten(), batch.negatives.flatten()), 1)
    assert all(not drawn[user, sorted(items)].any() for user, items in met.items())
    of_a = drawn[data.user_ids.encode(["a"])[0]]
    assert of_a.sum() == 1197 * 6
    assert abs(of_a[of_a > 0] - 1197 * 6 / 4).max() < 5 * (1197 * 6 / 4) ** 0.5


def test_items_to_avoid_are_no_negatives() -> None:
    data = interactions(GIVEN)
    everything_but = 3
    rows = np.tile(np.delete(np.arange(data.num_items, dtype=np.int32), everything_but), data.num_users)
    avoid = Seen(np.arange(data.num_users + 1) * (data.num_items - 1), rows)
    batches = SlidingBatches(data, batch_size=4, length=3, num_targets=2, num_negatives=2, seed=0, avoid=avoid)
    assert all((batch.negatives == everything_but).all() for batch in batches.epoch(0))


def test_a_user_who_met_everything_is_named() -> None:
    data = interactions({"all": [1, 2, 3, 1, 2, 3], "few": [1, 2]})
    with pytest.raises(ValueError, match="'all' who met all 3; leave the user out"):
        SlidingBatches(data, batch_size=2, length=3, num_targets=1, num_negatives=1, seed=0)
    SlidingBatches(data, batch_size=2, length=3, num_targets=1, num_negatives=0, seed=0)


def test_data_without_two_items_of_a_user_is_refused() -> None:
    with pytest.raises(ValueError, match="a user must have two items at least"):
        SlidingBatches(
            interactions({"a": [1], "b": [2]}), batch_size=2, length=3, num_targets=1, num_negatives=0, seed=0
        )


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="needs DEEPREC_DATA")
def test_windows_of_movielens_are_counted_as_the_authors_do() -> None:
    path = Path(os.environ["DEEPREC_DATA"]) / "sasrec" / "ml-1m.txt.gz"
    frame = pl.read_csv(path, separator=" ", has_header=False, new_columns=["user_id", "item_id"], n_rows=50_000)
    data = from_frame(frame.with_row_index("timestamp"))
    batches = SlidingBatches(data, batch_size=512, length=5, num_targets=3, num_negatives=3, seed=0)
    counts = data.user_counts()
    num_windows = int(np.where(counts >= 8, counts - 7, counts >= 2).sum())
    assert sum(len(batch.users) for batch in batches.epoch(0)) == num_windows
    assert batches.num_examples == 3 * num_windows  # all histories are long enough
    histories = Histories.of(data)
    for batch in batches.epoch(0):
        user = int(batch.users[0])
        history = histories.items[histories.offsets[user] : histories.offsets[user + 1]].tolist()
        window = [*batch.items[0].tolist(), *batch.targets[0].tolist()]
        assert any(history[at : at + 8] == window for at in range(len(history)))
        assert not set(batch.negatives[0].tolist()) & set(history)  # type: ignore[index]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "got 0, 3, 2 and 1"),
        ({"length": 0}, "got 4, 0, 2 and 1"),
        ({"num_targets": 0}, "got 4, 3, 0 and 1"),
        ({"num_negatives": -1}, "got 4, 3, 2 and -1"),
    ],
)
def test_numbers_out_of_range_are_refused(option: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlidingBatches(
            interactions(GIVEN),
            seed=0,
            **{"batch_size": 4, "length": 3, "num_targets": 2, "num_negatives": 1, **option},
        )
