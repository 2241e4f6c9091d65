"""Claims about holding out the last share of each user's sequence, and the protocol of Caser that measures it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.data import from_frame
from deeprec.data.interactions.splits import last_holdout
from deeprec.evaluate import protocol
from deeprec.evaluate.histories import histories_before


def sequences(lengths, seed=0):
    """Users with sequences of these lengths, in rows that are in no order."""
    rows = [(user, 1000 * user + place, place // 2) for user, n in enumerate(lengths) for place in range(n)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    # Two rows of a user share each time: they stay in the order of the file, users are mixed.
    order = np.argsort(np.random.default_rng(seed).random(len(lengths))[frame["user_id"].to_numpy()], kind="stable")
    return from_frame(frame[order])


def slow_parts(data, test, validation):
    """By user: the items of train, validation and test, ascending in time, equal times by row."""
    rows = {}
    for row in sorted(range(len(data)), key=lambda row: (data.order[row], row)):
        rows.setdefault(int(data.users[row]), []).append(int(data.items[row]))
    parts = {}
    for user, items in rows.items():
        num_test = min(int(len(items) * test + 0.5), len(items) - 1)
        num_held = min(int(len(items) * test + 0.5) + int(len(items) * validation + 0.5), len(items) - 1)
        cut = len(items) - num_held, len(items) - num_test
        parts[user] = (items[: cut[0]], items[cut[0] : cut[1]], items[cut[1] :])
    return parts


def items_of(part, user):
    return sorted(part.items[part.users == user].tolist())


@pytest.mark.parametrize(("test", "validation"), [(0.2, 0.1), (0.5, 0.4), (0.2, 0.0)])
def test_parts_are_the_shares_of_each_sequence_in_order(test, validation):
    data = sequences([1, 2, 3, 4, 5, 9, 10, 37])
    split = last_holdout(data, test, validation)
    for user, expected in slow_parts(data, test, validation).items():
        given = [items_of(part, user) for part in (split.train, split.validation, split.test)]
        assert given == [sorted(part) for part in expected]
        assert expected[0]
    assert len(split.train) + len(split.validation) + len(split.test) == len(data)


def test_without_an_order_it_is_refused():
    with pytest.raises(ValueError, match=r"without; name its timestamp column, or take random_holdout"):
        last_holdout(dataclasses.replace(sequences([4, 5]), order=None))


def test_protocol_is_that_of_the_paper():
    rule = protocol("caser")
    assert (rule.holdout, rule.test_share, rule.validation_share, rule.task) == ("last_by_user", 0.2, 0.1, "next-item")
    assert rule.headline == "map_all"
    assert protocol("full", holdout="last_by_user").validation == "share"
    with pytest.raises(ValueError, match="seed has no effect"):
        protocol("full", holdout="last_by_user", seed=3)
    assert rule.differences(protocol("next-item", holdout="last_by_user")) == ["test_share: 0.2 / 0.1"]


def test_histories_before_the_test_are_all_that_was_before_it():
    data = sequences([10, 21, 2, 30])
    split = protocol("caser").split(data)
    offsets, items = histories_before(split, "test")
    for user, (train, validation, _) in slow_parts(data, 0.2, 0.1).items():
        assert sorted(items[offsets[user] : offsets[user + 1]].tolist()) == sorted(train + validation)


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="needs DEEPREC_DATA")
def test_sequences_of_movielens_are_cut_as_the_paper_counts():
    path = Path(os.environ["DEEPREC_DATA"]) / "sasrec" / "ml-1m.txt.gz"
    frame = pl.read_csv(path, separator=" ", has_header=False, new_columns=["user_id", "item_id"])
    data = from_frame(frame.with_row_index("timestamp"))
    split = protocol("caser").split(data)
    assert (data.num_users, data.num_items, len(data)) == (6_040, 3_416, 999_611)
    shares = [len(part) / len(data) for part in (split.train, split.validation, split.test)]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=1e-3)
    latest = np.zeros(data.num_users)
    np.maximum.at(latest, split.train.users, split.train.order)
    assert (split.test.order > latest[split.test.users]).all()
