"""protocol.split on real Interactions."""

from __future__ import annotations

import os

import numpy as np
import polars as pl
import pytest

from deeprec import data as deeprec_data
from deeprec.evaluate import protocol


@pytest.fixture(scope="module")
def small():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 40, 900), generator.integers(0, 150, 900)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(900)})
    return deeprec_data.from_frame(frame.unique(["user_id", "item_id"], maintain_order=True))


@pytest.mark.parametrize("name", ["ncf", "full", "random"])
def test_parts_are_disjoint_and_complete(small, name) -> None:
    split = protocol(name, **({"candidates": 20} if name == "ncf" else {})).split(small)
    keys = [part.pair_keys() for part in (split.train, split.validation, split.test)]
    assert all(len(key) for key in keys)
    assert np.array_equal(np.sort(np.concatenate(keys)), np.sort(small.pair_keys()))


def test_seeded_negatives_are_unmet_and_depend_on_their_own_seed_only(small) -> None:
    split, same_rows, moved = (
        protocol("ncf", candidates=20, negatives_seed=seed, seed=split_seed).split(small)
        for seed, split_seed in ((1, 0), (1, 5), (2, 0))
    )
    met = set(small.pair_keys().tolist())
    for part, lists in ((split.test, split.test_negatives), (split.validation, split.validation_negatives)):
        assert lists.shape == (len(part), 20)
        pairs = part.users[:, None].astype(np.int64) * small.num_items + lists
        assert not met & set(pairs.ravel().tolist())
    np.testing.assert_array_equal(split.test_negatives, same_rows.test_negatives)
    assert not np.array_equal(split.test_negatives, moved.test_negatives)


def test_without_validation_the_part_is_empty(small) -> None:
    for name in ("ncf", "full", "random"):
        overrides = {"candidates": 20} if name == "ncf" else {}
        assert len(protocol(name, validation="none", **overrides).split(small).validation) == 0


def test_ncf_on_ml_1m_uses_the_authors_split_and_negatives() -> None:
    folder = os.environ.get("DEEPREC_DATA")
    if not folder or deeprec_data.find("ml-1m") is None:
        pytest.skip("DEEPREC_DATA has no ml-1m")
    ml = deeprec_data.load("ml-1m")
    resolved = protocol("ncf").resolve(ml)
    assert (resolved.holdout, resolved.negatives) == ("official", "given")
    split = resolved.split(ml)
    assert len(split.test) == len(split.validation) == 6040
    np.testing.assert_array_equal(split.test_negatives, ml.official.test_negatives)
    assert split.validation_negatives.shape == (6040, 99)
