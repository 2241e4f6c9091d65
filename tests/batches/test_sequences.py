"""Claims about sequences: histories in order, windows at the right end of rows, what comes next, and negatives."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.batches import Histories, SequenceBatch, SequenceBatches
from deeprec.data import Interactions, from_frame


def interactions(histories: dict[str, list[int]], **options: Any) -> Interactions:
    """What each user met in turn, in a file whose rows are in no order."""
    rows = [(user, item, time) for user, items in histories.items() for time, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return from_frame(frame.sample(fraction=1, shuffle=True, seed=7), **({"duplicates": "keep"} | options))


def names(data: Interactions, items: Any) -> list[int]:
    return [int(data.item_ids.values[int(item)]) for item in items]


def windows(data: Interactions, batch: SequenceBatch) -> dict[str, tuple[list[int], list[int]]]:
    """External user id to the items that are shown and the targets, both by external id."""
    out = {}
    for user, items, targets, mask in zip(batch.users, batch.items, batch.targets, batch.mask, strict=True):
        out[str(data.user_ids.values[int(user)])] = (names(data, items[mask]), names(data, targets[mask]))
    return out


def long_tailed(num_users: int = 400, longest: int = 300) -> Interactions:
    draw = np.random.default_rng(0)
    lengths = np.minimum(longest, 1 + draw.pareto(1.0, num_users) * 8).astype(int)
    return interactions({f"u{user}": draw.integers(0, 500, n).tolist() for user, n in enumerate(lengths)})


def test_histories_are_in_order_of_time_with_repeats() -> None:
    given = {"a": [5, 3, 5, 5, 1], "b": [2], "c": [9, 1]}
    data = interactions(given)
    histories = Histories.of(data)
    for user, name in enumerate(data.user_ids.values):
        start, end = histories.offsets[user : user + 2]
        assert names(data, histories.items[start:end]) == given[name]


def test_equal_times_keep_the_order_of_the_file() -> None:
    frame = pl.DataFrame({"user_id": ["a", "b", "a", "a", "b", "a"], "item_id": [7, 1, 3, 9, 2, 1], "timestamp": 0})
    frame = frame.with_columns(timestamp=pl.Series([5, 0, 5, 4, 0, 5]))
    data = from_frame(frame)
    offsets, items = Histories.of(data)
    of_user = {name: names(data, items[offsets[u] : offsets[u + 1]]) for u, name in enumerate(data.user_ids.values)}
    assert of_user == {"a": [9, 7, 3, 1], "b": [1, 2]}


def test_each_window_is_the_end_of_a_history_and_its_targets_come_next() -> None:
    given = {"one": [4], "two": [8, 9], "four": [1, 2, 1, 2], "six": [6, 5, 4, 3, 2, 1], "many": list(range(10))}
    data = interactions(given)
    batches = SequenceBatches(data, batch_size=2, length=4, seed=0)
    seen: dict[str, Any] = {}
    for batch in batches.epoch(0):
        assert batch.items.shape == batch.targets.shape == batch.mask.shape
        assert batch.items.shape[1] == int(batch.mask.sum(1).max()) <= 4
        assert (batch.items[~batch.mask] == -1).all()
        assert (batch.targets[~batch.mask] == -1).all()
        assert all(row.tolist() == sorted(row.tolist()) for row in batch.mask)  # padding comes first
        assert len(batch) == int(batch.mask.sum())
        seen |= windows(data, batch)
    assert seen == {
        "two": ([8], [9]),
        "four": ([1, 2, 1], [2, 1, 2]),
        "six": ([5, 4, 3, 2], [4, 3, 2, 1]),
        "many": ([5, 6, 7, 8], [6, 7, 8, 9]),
    }
    assert batches.num_examples == 1 + 3 + 4 + 4


def test_of_a_history_of_ten_thousand_the_last_window_counts() -> None:
    items = np.random.default_rng(0).integers(0, 50, 10_000).tolist()
    data = interactions({"endless": items, "short": [1, 2]})
    for length in (50, 20_000):
        batches = SequenceBatches(data, batch_size=8, length=length, seed=0, num_negatives=0)
        (batch,) = batches.epoch(0)
        shown, targets = windows(data, batch)["endless"]
        width = min(length, 9_999)
        assert shown == items[-width - 1 : -1]
        assert targets == items[-width:]
        assert len(batch) == batches.num_examples == width + 1


def test_padding_may_be_an_index_of_its_own() -> None:
    data = interactions({"a": [1, 2], "b": [2, 3, 4]})
    (batch,) = SequenceBatches(data, batch_size=2, length=9, seed=0, num_negatives=2, padding=4).epoch(0)
    assert batch.negatives is not None
    for part in (batch.items, batch.targets, batch.negatives):
        assert (part[~batch.mask] == 4).all()
        assert (part[batch.mask] < 4).all()


def test_negatives_were_not_met_and_stand_beside_every_target() -> None:
    data = long_tailed()
    batches = SequenceBatches(data, batch_size=16, length=30, seed=3, num_negatives=5)
    met = set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    first = list(batches.epoch(0))
    for batch in first:
        assert batch.negatives is not None
        assert batch.negatives.shape == (*batch.items.shape, 5)
        assert (batch.negatives[~batch.mask] == -1).all()
        drawn = batch.negatives[batch.mask]
        assert ((drawn >= 0) & (drawn < data.num_items)).all()
        owners = batch.users.unsqueeze(1).expand(batch.mask.shape)[batch.mask]
        assert not met & {
            (user, item) for user, row in zip(owners.tolist(), drawn.tolist(), strict=True) for item in row
        }
    drawn = torch.cat([batch.negatives[batch.mask].flatten() for batch in first])
    assert len(drawn.unique()) > 0.9 * data.num_items
    again = torch.cat([batch.negatives[batch.mask].flatten() for batch in batches.epoch(1)])
    assert not torch.equal(drawn.sort().values, again.sort().values)  # anew in every epoch


def test_draws_do_not_depend_on_the_blocks_they_are_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    data = long_tailed()
    options: dict[str, Any] = {"batch_size": 16, "length": 30, "seed": 3, "num_negatives": 2}
    whole = list(SequenceBatches(data, **options).epoch(0))
    for targets in (1, 1000):
        monkeypatch.setattr("deeprec.batches.sequences._TARGETS_A_DRAW", targets)
        for a, b in zip(whole, SequenceBatches(data, **options).epoch(0), strict=True):
            assert torch.equal(a.items, b.items)
            assert torch.equal(a.negatives, b.negatives)


def test_windows_of_like_length_share_a_batch_and_batches_come_in_no_order_of_length() -> None:
    data = long_tailed(4000)
    batches = SequenceBatches(data, batch_size=32, length=200, seed=0)
    epoch = list(batches.epoch(0))
    entries = sum(batch.mask.numel() for batch in epoch)
    assert batches.num_examples / entries > 0.9  # of shuffled users it would be less than a quarter
    shuffled = torch.randperm(len(batches._users), generator=torch.Generator().manual_seed(0)).split(32)
    assert batches.num_examples < 0.25 * sum(len(p) * int(batches._widths[batches._users[p]].max()) for p in shuffled)
    widths = [batch.mask.shape[1] for batch in epoch]
    rises = sum(b > a for a, b in pairwise(widths))
    assert 0.3 * len(widths) < rises < 0.7 * len(widths)
    company = [frozenset(batch.users.tolist()) for batch in (*epoch, *batches.epoch(1))]
    assert len(set(company)) == len(company)  # another each epoch


def test_every_user_with_two_items_comes_once_an_epoch() -> None:
    data = long_tailed()
    batches = SequenceBatches(data, batch_size=33, length=10, seed=1)
    for number in (0, 1):
        users = torch.cat([batch.users for batch in batches.epoch(number)])
        assert sorted(users.tolist()) == np.flatnonzero(data.user_counts() > 1).tolist()
    assert len(batches) == len(list(batches.epoch(0)))


def test_what_has_no_sequences_is_refused() -> None:
    data = interactions({"a": [0, 1, 2], "b": [1, 2], "c": [3]})

    def refused(message: str, part: Interactions, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            SequenceBatches(part, **({"batch_size": 2, "length": 5, "seed": 0} | options))

    refused("must have an order, got .* without; pass timestamp=", dataclasses.replace(data, order=None))
    refused("a user must have two items at least", interactions({"a": [1], "b": [2]}))
    refused("a user must have two items at least", data.take(data.users < 0))
    refused("batch_size and length must be >= 1", data, length=0)
    refused("num_negatives >= 0, got 2, 5 and -1", data, num_negatives=-1)
    refused("padding must be no item, got 2 of 4 items; take -1 or 4", data, padding=2)
    everything = interactions({"a": [0, 1, 2, 3, 3], "b": [1, 2]})
    refused("got user 'a' who met all 4; leave the user out", everything, num_negatives=1)
    assert SequenceBatches(everything, batch_size=2, length=5, seed=0).num_examples == 5
