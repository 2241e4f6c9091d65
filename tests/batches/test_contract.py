"""Claims about every sampler: it keeps the contract of `Batch` and `Batches`, and an epoch goes on in its middle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from deeprec.batches import Likes, LogBatches, PairwiseBatches, RatingRows, SequenceBatches, SessionBatches
from deeprec.batches.content_sweeps import ContentsAndSides, VectorContents
from deeprec.batches.corruption import Corruption
from deeprec.batches.reviews import ReviewBatches, ReviewDocuments
from deeprec.batches.sides import Sides
from deeprec.contract import Batches
from deeprec.data import Interactions
from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.inputs import Bags, Encoded

CPU, META = torch.device("cpu"), torch.device("meta")


def log_part(count: int = 50) -> ClickPart:
    """Rows with two fields, one number and a weighted bag of two entries each."""
    draw = np.random.default_rng(0)
    offsets = np.arange(count + 1, dtype=np.int64) * 2
    bag = Bags(draw.integers(0, 9, 2 * count).astype(np.int32), offsets, draw.random(2 * count).astype(np.float32))
    return ClickPart(
        Encoded(
            draw.integers(0, 7, (count, 2)).astype(np.int32),
            np.arange(count, dtype=np.float32).reshape(-1, 1),
            {"tags": bag},
            (draw.random(count) < 0.5).astype(np.float32),
        )
    )


def review_batches(data: Interactions, seed: int) -> ReviewBatches:
    """Three words a rating."""
    words = np.random.default_rng(0).integers(1, 30, 3 * len(data)).astype(np.int32)
    offsets = np.arange(len(data) + 1) * 3
    of_users = ReviewDocuments(data.users, offsets, words, data.num_users, data.order, 20)
    of_items = ReviewDocuments(data.items, offsets, words, data.num_items, None, 20)
    assert data.ratings is not None
    given = (data.users, data.items, data.ratings, of_users, of_items)
    return ReviewBatches(*given, with_own=False, batch_size=7, seed=seed)


def content_batches(data: Interactions, seed: int) -> ContentsAndSides:
    """Two numbers an item."""
    contents = VectorContents(torch.arange(2.0 * data.num_items).view(-1, 2))
    met_by = np.concatenate([[0], data.item_counts().cumsum()]), data.users[np.argsort(data.items, kind="stable")]
    return ContentsAndSides(Sides(data), contents, met_by, passes=2, batch_size=5, seed=seed, device=CPU)


NOISE = Corruption(hide=0.2, gaussian=0.1, salt_pepper=0.1)
# What each makes of the data with a seed; a sampler that is added here is held to the contract.
SAMPLERS: dict[str, Callable[[Interactions, int], Batches]] = {
    "pairs": lambda data, seed: PairwiseBatches(data, batch_size=20, num_negatives=3, seed=seed),
    "item columns": lambda data, seed: RatingRows(data, side="item", batch_size=4, seed=seed, corrupt=NOISE),
    "user rows": lambda data, seed: RatingRows(data, side="user", batch_size=4, seed=seed),
    "all ratings": lambda data, seed: RatingRows(data, side="user", batch_size=0, seed=seed),
    "likes": lambda data, seed: Likes(data, batch_size=7, corruption=0.5, num_negatives=2, seed=seed),
    "sequences": lambda data, seed: SequenceBatches(data, batch_size=4, length=5, seed=seed),
    "sequences with negatives": lambda data, seed: SequenceBatches(
        data, batch_size=4, length=5, seed=seed, num_negatives=2
    ),
    "sessions": lambda data, seed: SessionBatches(data, num_lanes=4, seed=seed, num_negatives=3),
    "shuffled sessions": lambda data, seed: SessionBatches(data, num_lanes=4, seed=seed, session_order="shuffled"),
    "reviews": lambda data, seed: review_batches(data, seed),
    "contents": lambda data, seed: content_batches(data, seed),
    "log": lambda data, seed: LogBatches(log_part(), batch_size=8, seed=seed),
}


def parts(batch: Any) -> list[Any]:
    """Everything in a batch: tensors, numbers, None."""
    return tree_leaves([getattr(batch, field.name) for field in dataclasses.fields(batch)], is_leaf=lambda x: x is None)


def require_same(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for x, y in zip(parts(a), parts(b), strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.fixture(params=SAMPLERS)
def make(request: pytest.FixtureRequest, ratings: Interactions) -> Callable[[int], Batches]:
    return lambda seed: SAMPLERS[request.param](ratings, seed)


def test_batches_hold_the_examples_of_an_epoch(make: Callable[[int], Batches]) -> None:
    batches = make(3)
    for number in (0, 1):
        assert sum(len(batch) for batch in batches.epoch(number)) == batches.num_examples > 0


def test_batches_say_how_many_there_are(make: Callable[[int], Batches]) -> None:
    batches = make(0)
    assert len(batches) == len(list(batches.epoch(0)))


def test_an_epoch_goes_on_in_its_middle(make: Callable[[int], Batches]) -> None:
    whole = list(make(3).epoch(1))
    for skip in (0, 1, 3, len(whole), len(whole) + 1):
        require_same(list(make(3).epoch(1, skip)), whole[skip:])


def test_an_epoch_is_the_same_whenever_it_is_asked_for(make: Callable[[int], Batches]) -> None:
    batches = make(3)
    first = list(batches.epoch(2))
    list(batches.epoch(5))
    require_same(list(batches.epoch(2)), first)


def test_each_epoch_and_each_seed_has_an_order_of_its_own(make: Callable[[int], Batches]) -> None:
    def order(seed: int, number: int) -> list[Any]:
        return [part.tolist() for batch in make(seed).epoch(number) for part in parts(batch) if hasattr(part, "tolist")]

    if len(list(make(3).epoch(0))) > 1:
        assert order(3, 0) != order(3, 1)
        assert order(3, 0) != order(4, 0)


def test_a_batch_goes_to_a_device_and_stays_where_it_is_there(make: Callable[[int], Batches]) -> None:
    batch = next(iter(make(3).epoch(0)))
    assert batch.to(CPU) is batch
    there = batch.to(META)
    assert type(there) is type(batch)
    assert len(there) == len(batch)
    assert {part.device for part in parts(there) if isinstance(part, torch.Tensor)} == {META}
    shapes = [part.shape for part in parts(dataclasses.replace(batch, plan=None) if hasattr(batch, "plan") else batch)
              if isinstance(part, torch.Tensor)]  # fmt: skip
    assert [part.shape for part in parts(there) if isinstance(part, torch.Tensor)] == shapes


def test_a_batch_cannot_be_changed(make: Callable[[int], Batches]) -> None:
    batch = next(iter(make(3).epoch(0)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(batch, dataclasses.fields(batch)[0].name, None)
