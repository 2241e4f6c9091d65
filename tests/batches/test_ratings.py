"""Claims about rows of ratings: every rating once, batches of rows, all rows in one step, and refusals."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest
import torch

from deeprec.batches import RatingRows
from deeprec.data import Interactions, from_frame


@pytest.mark.parametrize("side", ["item", "user"])
def test_batches_hold_every_rating_once(ratings: Interactions, side: str) -> None:
    rows = RatingRows(ratings, side=side, batch_size=7, seed=3)
    index = ratings.items if side == "item" else ratings.users
    columns = ratings.users if side == "item" else ratings.items
    whole = sorted(zip(index.tolist(), columns.tolist(), ratings.ratings.tolist(), strict=True))
    for number in (0, 1):
        batches, entries = list(rows.epoch(number)), []
        for batch in batches:
            assert len(batch.rows) <= 7
            assert len(batch) == len(batch.labels) == int(batch.offsets[-1])
            assert batch.share == len(batch.rows) / rows.num_rows
            owners = batch.rows.repeat_interleave(batch.offsets.diff())
            entries += zip(owners.tolist(), batch.indices.tolist(), batch.labels.tolist(), strict=True)
        assert sorted(entries) == whole


def test_rows_without_ratings_are_in_the_whole_matrix_alone(ratings: Interactions) -> None:
    rows = RatingRows(ratings, side="user", batch_size=0, seed=0)
    (batch,) = rows.epoch(0)
    assert len(batch.rows) == rows.num_rows == 31
    assert batch.offsets.diff()[30] == 0
    assert batch.share == 1.0
    assert batch.plan is rows.whole().plan  # made once, used by every step
    split = RatingRows(ratings, side="user", batch_size=4, seed=0)
    assert 30 not in torch.cat([batch.rows for batch in split.epoch(0)])


def test_noise_is_drawn_for_each_epoch_and_the_targets_stay(ratings: Interactions) -> None:
    def corrupt(targets: torch.Tensor, offsets: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, None]:
        return targets + torch.randn(len(targets), generator=generator), None

    rows = RatingRows(ratings, side="item", batch_size=0, seed=3, corrupt=corrupt)
    first, again, second = (next(iter(rows.epoch(number))) for number in (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.labels, rows.ratings)


def test_what_is_no_matrix_of_ratings_is_refused(ratings: Interactions) -> None:
    def refused(message: str, data: Interactions, side: str = "item", batch_size: int = 4) -> None:
        with pytest.raises(ValueError, match=message):
            RatingRows(data, side=side, batch_size=batch_size, seed=0)

    refused("must have ratings", dataclasses.replace(ratings, ratings=None))
    refused("must have a rating, .* has none", ratings.take(ratings.users < 0))
    frame = ratings.to_frame()
    twice = from_frame(pl.concat([frame, frame]), duplicates="keep")
    refused("may rate an item once, got .* of user 0 and item .*; read the data with duplicates='latest'", twice)
    refused("side must be item or user, got 'both'", ratings, side="both")
    refused("batch_size must be >= 0", ratings, batch_size=-1)
