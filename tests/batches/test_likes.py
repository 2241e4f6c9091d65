"""Claims about users with their likes: every like once, unseen items beside it, the corruption of the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.batches import Likes
from deeprec.data import Interactions, from_frame


def likes(num_users: int = 40, num_items: int = 30, density: float = 0.3) -> Interactions:
    users, items = np.nonzero(np.random.default_rng(0).random((num_users, num_items)) < density)
    return from_frame(pl.DataFrame({"user_id": users, "item_id": items}))


def sampler(data: Interactions, **options: Any) -> Likes:
    return Likes(data, **({"batch_size": 7, "corruption": 0.0, "num_negatives": 3, "seed": 3} | options))


def test_batches_hold_every_like_once_and_unseen_items_beside_it() -> None:
    data = likes()
    batches = sampler(data, negative_label=-1.0)
    liked = set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    for number in (0, 1):
        seen: list[tuple[int, int]] = []
        for batch in batches.epoch(number):
            owners = torch.repeat_interleave(batch.users, batch.offsets.diff()).view(-1, 4)
            scored, labels = batch.indices.view(-1, 4), batch.labels.view(-1, 4)
            assert (labels == torch.tensor([1.0, -1, -1, -1])).all()
            seen += zip(owners[:, 0].tolist(), scored[:, 0].tolist(), strict=True)
            negatives = zip(owners[:, 1:].flatten().tolist(), scored[:, 1:].flatten().tolist(), strict=True)
            assert not liked & set(negatives)
            assert torch.equal(batch.input_indices, scored[:, 0])
            assert len(batch.users) <= 7
            assert len(batch) == batch.labels.numel()
        assert sorted(seen) == sorted(liked)
    first, second = (torch.cat([b.indices for b in batches.epoch(n)]).sort().values for n in (0, 1))
    assert not torch.equal(first, second)  # negatives are drawn anew


def test_without_negatives_the_likes_alone_are_scored() -> None:
    data = likes()
    everything = from_frame(pl.DataFrame({"user_id": [0] * 5 + [1], "item_id": [0, 1, 2, 3, 4, 2]}))
    for part in (data, everything):
        batches = sampler(part, num_negatives=0)
        assert batches.num_examples == len(part)
        assert all(torch.equal(batch.indices, batch.input_indices) for batch in batches.epoch(0))


def test_corruption_drops_the_share_it_says_and_scales_the_rest() -> None:
    data = likes(300, 200, density=0.6)
    options: dict[str, Any] = {"batch_size": 50, "corruption": 0.7, "num_negatives": 5}
    batches = list(sampler(data, **options).epoch(0))
    kept = sum(len(batch.input_indices) for batch in batches) / len(data)
    assert kept == pytest.approx(0.3, abs=0.02)
    for batch in batches:
        assert (batch.input_values == torch.tensor(1 / 0.3)).all()
        rows = torch.repeat_interleave(torch.arange(len(batch.users)), batch.input_offsets.diff())
        owners = torch.repeat_interleave(torch.arange(len(batch.users)), batch.offsets.diff())
        inputs = set(zip(rows.tolist(), batch.input_indices.tolist(), strict=True))
        assert inputs <= set(zip(owners[::6].tolist(), batch.indices[::6].tolist(), strict=True))
    assert all(not len(batch.input_indices) for batch in sampler(data, corruption=1.0).epoch(0))


def test_draws_do_not_depend_on_the_blocks_they_are_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    data = likes()
    whole = list(sampler(data, corruption=0.5).epoch(0))
    monkeypatch.setattr("deeprec.batches.likes._LIKES_A_DRAW", 1)
    for a, b in zip(whole, sampler(data, corruption=0.5).epoch(0), strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.input_indices, b.input_indices)


def test_mean_likes_of_a_batch(ratings: Interactions) -> None:
    assert sampler(ratings, batch_size=3).likes_a_batch == pytest.approx(len(ratings) * 3 / 30)  # 30 users have likes
    assert sampler(ratings, batch_size=100).likes_a_batch == len(ratings)


def test_a_user_who_likes_everything_and_numbers_out_of_range_are_refused() -> None:
    frame = pl.concat([likes().to_frame(), pl.DataFrame({"user_id": [99] * 30, "item_id": list(range(30))})])
    with pytest.raises(ValueError, match="got user 99 who likes all 30; leave the user out"):
        sampler(from_frame(frame))
    for options in ({"batch_size": 0}, {"corruption": 1.5}, {"num_negatives": -1}):
        with pytest.raises(ValueError, match="batch_size must be >= 1, num_negatives >= 0 and corruption in"):
            sampler(likes(), **options)
