"""Claims about rows of rating levels: what is shown and asked of them, and the noise of chains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeprec.batches.levels import MOST_LEVELS, Chains, Splits, distinct_levels
from deeprec.batches.ratings import RatingRows
from deeprec.data import Interactions

CPU = torch.device("cpu")


@pytest.fixture
def rows(ratings: Interactions) -> RatingRows:
    made = RatingRows(ratings, side="user", batch_size=7, seed=3)
    made.targets = made.ratings - 1
    return made


def test_levels_are_the_distinct_ratings() -> None:
    assert distinct_levels(np.float32([3, 0.5, 3, 1.5])) == (0.5, 1.5, 3.0)
    assert distinct_levels(np.arange(MOST_LEVELS, dtype=np.float32)) == tuple(range(MOST_LEVELS))
    assert distinct_levels(np.arange(MOST_LEVELS + 1, dtype=np.float32)) == ()
    assert distinct_levels(np.float32([])) == ()


def test_a_split_holds_every_rating_once(rows: RatingRows) -> None:
    for split, whole in zip(Splits(rows, CPU).epoch(1), rows.epoch(1), strict=True):
        assert len(split) == len(whole)
        assert split.num_lookups == int((split.levels + 1).sum())
        for row, (first, end) in enumerate(zip(whole.offsets, whole.offsets[1:], strict=False)):
            shown = slice(split.offsets[row], split.offsets[row + 1])
            asked = slice(split.asked_offsets[row], split.asked_offsets[row + 1])
            there = [*zip(split.columns[shown].tolist(), split.levels[shown].tolist(), strict=True)]
            there += zip(split.asked_columns[asked].tolist(), split.asked_levels[asked].tolist(), strict=True)
            expected = zip(whole.indices[first:end].tolist(), whole.labels[first:end].tolist(), strict=True)
            assert sorted(there) == sorted(expected)
            assert asked.stop > asked.start
            assert float(split.weights[asked].sum()) == pytest.approx(int(end - first))


def test_every_number_of_shown_ratings_is_as_likely() -> None:
    size, repeats = 4, 4000
    rows = type("Rows", (), {})()
    rows.seed = 5
    offsets = torch.arange(repeats + 1) * size
    columns = torch.arange(size).repeat(repeats)
    batch = type("Batch", (), {"offsets": offsets, "indices": columns, "labels": torch.zeros(len(columns))})()
    rows.epoch = lambda number: iter([batch])
    (split,) = Splits(rows, CPU).epoch(0)
    shares = torch.bincount(split.offsets.diff(), minlength=size) / repeats
    assert torch.allclose(shares, torch.full((size,), 1 / size), atol=0.03)  # four standard deviations
    of_each = torch.bincount(split.columns, minlength=size) / repeats
    assert torch.allclose(of_each, torch.full((size,), (size - 1) / 2 / size), atol=0.03)


def test_chains_have_as_much_noise_as_steps(rows: RatingRows) -> None:
    chains = Chains(rows, CPU, steps=lambda epoch: epoch + 1, hidden=5, is_normal=False)
    for number in (0, 2):
        for batch, whole in zip(chains.epoch(number), rows.epoch(number), strict=True):
            assert batch.hidden_noise.shape == (number + 1, len(whole.rows), 5)
            assert batch.visible_noise.shape == (number + 1, len(whole))
            assert torch.equal(batch.levels.float(), whole.labels)


@pytest.mark.parametrize("kind", ["splits", "chains"])
def test_an_epoch_is_the_same_whenever_it_is_asked_for(rows: RatingRows, kind: str) -> None:
    if kind == "splits":
        batches = Splits(rows, CPU)
    else:
        batches = Chains(rows, CPU, steps=lambda _: 2, hidden=3, is_normal=True)
    first, again, other = (list(batches.epoch(number)) for number in (0, 0, 1))
    drawn = [torch.cat([getattr(b, "weights" if kind == "splits" else "visible_noise").flatten() for b in each])
             for each in (first, again, other)]  # fmt: skip
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or not torch.equal(drawn[0], drawn[2])
    (last,) = list(batches.epoch(0, skip=len(batches) - 1))
    assert torch.equal(last.columns, first[-1].columns)
    assert len(batches) == len(first)
    assert batches.num_examples == sum(map(len, first))
