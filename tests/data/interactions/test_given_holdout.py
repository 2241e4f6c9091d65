"""Training on so many rows of each user: counts, shares, seeds, and the protocol of CDL."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from deeprec.data import Interactions, from_frame
from deeprec.data.interactions.splits import given_holdout
from deeprec.evaluate import protocol


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Users with 1, 2, 5, 20 and 40 rows."""
    counts = (1, 2, 5, 20, 40)
    users = np.repeat(np.arange(5), counts)
    return from_frame(pl.DataFrame({"user_id": users, "item_id": np.concatenate([np.arange(n) for n in counts])}))


@pytest.mark.parametrize("given", [1, 3])
def test_each_user_trains_on_so_many_rows(data: Interactions, given: int) -> None:
    split = given_holdout(data, given, 0.25, seed=3)
    train, validation, test = (part.user_counts() for part in (split.train, split.validation, split.test))
    assert train.tolist() == [min(given, n) for n in (1, 2, 5, 20, 40)]
    others = np.maximum(data.user_counts() - given, 0)
    assert validation.tolist() == np.floor(others * 0.25 + 0.5).tolist()
    assert (train + validation + test).tolist() == data.user_counts().tolist()
    keys = np.concatenate([part.pair_keys() for part in (split.train, split.validation, split.test)])
    assert len(np.unique(keys)) == len(data)


def test_the_seed_draws_the_rows(data: Interactions) -> None:
    first, again, other = (given_holdout(data, 1, 0.1, seed=seed).train.items.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_rows_are_drawn_evenly(data: Interactions) -> None:
    drawn = [int(given_holdout(data, 1, 0.0, seed=seed).train.items[2]) for seed in range(500)]
    assert np.bincount(drawn, minlength=5).min() > 70  # of the user with five rows


def test_the_protocol_of_the_paper(data: Interactions) -> None:
    rule = protocol("cdl", given_rows=10, seed=4)
    assert (rule.holdout, rule.validation, rule.headline) == ("given_by_user", "share", "recall@300")
    split = rule.split(data)
    assert split.train.user_counts().tolist() == [1, 2, 5, 10, 10]
    assert rule.differences(protocol("cdl", seed=4)) == ["given_rows: 10 / 1"]
    with pytest.raises(ValueError, match="test_share has no effect"):
        protocol("cdl", test_share=0.3)
    with pytest.raises(ValueError, match="given_rows has no effect"):
        protocol("random", given_rows=2)
    with pytest.raises(ValueError, match="given_rows must be a whole number of at least 1, got 0"):
        protocol("cdl", given_rows=0)


def test_bad_arguments_are_named(data: Interactions) -> None:
    with pytest.raises(ValueError, match="given must be a whole number >= 1, got 0"):
        given_holdout(data, 0)
    with pytest.raises(ValueError, match="validation must be a share"):
        given_holdout(data, 1, 1.0)
    with pytest.raises(ValueError, match="at least one interaction"):
        given_holdout(data.take(np.zeros(0, dtype=np.int64)))
