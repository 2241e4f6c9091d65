"""Small data for the samplers."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from deeprec.data import Interactions, from_frame


@pytest.fixture(scope="session")
def ratings() -> Interactions:
    """Thirty users, twenty items, and one more of each without a row."""
    draw = np.random.default_rng(0)
    users, items = np.nonzero(draw.random((31, 21)) < 0.4)
    values = draw.integers(1, 6, len(users)).astype(float)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "rating": values, "timestamp": values})
    whole = from_frame(frame, rating="rating", timestamp="timestamp")
    return whole.take((whole.users != 30) & (whole.items != 20))
