"""Every registered model, fitted once on small data of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from deeprec.config import taken_options
from deeprec.data import Interactions, from_frame
from deeprec.data.clicks.log import ClickLog
from deeprec.data.columns.schema import TRANSFORMS, Bag, Categorical, Cross, FeatureSchema, Numeric
from deeprec.data.sets.click_datasets import load_clicks
from deeprec.models import config_class, create, is_click_model

NUMERICS = tuple(f"x-{transform}" for transform in TRANSFORMS)
SMALL = {"epochs": 2, "factors": 4, "hidden": 4}
SMALL_CLICKS = {"epochs": 2, "factors": 4, "hidden": (8,), "batch_size": 128, "patience": 0, "lr": 0.01}


def options_of(name: str) -> dict[str, Any]:
    """Small sizes of a model, where it has them."""
    known = taken_options(config_class(name))
    return {key: value for key, value in (SMALL_CLICKS if is_click_model(name) else SMALL).items() if key in known}


@pytest.fixture(scope="session")
def ratings() -> Interactions:
    """40 users named by text, 30 items by large integers, with ratings and times."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(40):
        liked = rng.permutation(15)[:8] + 15 * (user % 2)
        rows += [(f"user-{user}", 3_000_000_000 + int(item), t, 1 + t % 5) for t, item in enumerate(liked)]
    columns = dict(zip(("user_id", "item_id", "timestamp", "rating"), zip(*rows, strict=True), strict=True))
    return from_frame(pl.DataFrame(columns), timestamp="timestamp", rating="rating")


@pytest.fixture(scope="session")
def rows() -> pl.DataFrame:
    """600 rows of a log with columns of every kind, each with missing values."""
    rng = np.random.default_rng(1)
    count = 600
    columns: dict[str, Any] = {"label": rng.integers(0, 2, count), "site": [f"s{i % 7}" for i in range(count)]}
    columns["app"] = [None if i % 11 == 0 else int(i % 13) for i in range(count)]
    columns["tags"] = [[f"t{j}" for j in range(i % 4)] for i in range(count)]
    columns["likes"] = ["|".join(f"l{j}:{0.5 + j}" for j in range(i % 3)) for i in range(count)]
    for place, name in enumerate(NUMERICS):
        numbers = (rng.normal(size=count) * 10.0 ** (place % 3)).tolist()
        columns[name] = [None if i % (17 + place) == 0 else number for i, number in enumerate(numbers)]
    return pl.DataFrame(columns)


@pytest.fixture(scope="session")
def log(rows: pl.DataFrame) -> ClickLog:
    features = [
        Categorical("site"),
        Categorical("app", num_buckets=50),
        Bag("tags"),
        Bag("likes", separator="|", weight_separator=":"),
        *(Numeric(name, transform=transform) for name, transform in zip(NUMERICS, TRANSFORMS, strict=True)),
        Cross(("site", "app"), num_buckets=40),
    ]
    return load_clicks(rows, FeatureSchema(tuple(features), "label"))


@pytest.fixture(scope="session")
def fitted(ratings: Interactions, log: ClickLog) -> Callable[[str], Any]:
    """name -> the model, fitted when it is first asked for; leave it as it is."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            model = create(name, **options_of(name))
            data = {"data": log} if is_click_model(name) else {"data": ratings, "protocol": "full"}
            made[name] = model.fit(**data, seed=3)
        return made[name]

    return get
