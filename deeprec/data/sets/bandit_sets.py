"""Logs with known propensities by name: those of the Open Bandit Dataset."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from deeprec.data.interactions.bandit_log import BanditLog
from deeprec.data.reading.errors import did_you_mean, naming
from deeprec.data.reading.text import needed, read_bytes, with_gz
from deeprec.data.sets.datasets import search_dirs

BANDIT_LOGS = {"open-bandit-random": "random_women", "open-bandit-bts": "bts_women"}


def load_bandit(name: str, data_dir: str | os.PathLike[str] | None = None) -> BanditLog:
    """A log with known propensities, by name.

    "open-bandit-random" and "open-bandit-bts": 10,000 rows each of the campaign "women" of the Open Bandit Dataset, 46
    items at 3 positions, logged by a uniform and by a Bernoulli Thompson sampling policy; the reward is a click.

    Args:
        name: one of these.
        data_dir: looked in first, then $DEEPREC_DATA and the cache, as `load` does.
    Returns:
        contexts have the hashed columns user_feature_0 to 3 and the numbers user-item_affinity_0 to 45, action_features
        item_feature_0 to 3. Features are hashed for each policy by itself: do not join them over the two logs.
    Raises:
        ValueError: an unknown name, or a damaged file. FileNotFoundError: a file is not there.
    Reference: Saito, Aihara, Matsutani, Narita 2020, "Open Bandit Dataset and Pipeline" (arXiv 2008.07146); Apache 2.0.
    """
    if name not in BANDIT_LOGS:
        raise ValueError(
            f"load_bandit: a log must be one of {', '.join(BANDIT_LOGS)}, got {name!r}{did_you_mean(name, BANDIT_LOGS)}"
        )
    folders = [place / "open-bandit" for place in search_dirs(data_dir)]
    folder = next((each for each in folders if with_gz(each / f"{BANDIT_LOGS[name]}.csv")), None)
    if folder is None:
        raise FileNotFoundError(
            f"load_bandit: {BANDIT_LOGS[name]}.csv (or .gz) is not in {', '.join(map(str, folders))}; get it from "
            "https://github.com/st-tech/zr-obp (folder obd) and pass data_dir or set DEEPREC_DATA"
        )
    path = needed(folder, f"{BANDIT_LOGS[name]}.csv")
    needs = ("item_id", "position", "click", "propensity_score")
    table = _table(path, needs)
    items = _table(needed(folder, f"{BANDIT_LOGS[name]}_item_context.csv"), ("item_id",)).sort("item_id")
    with naming(path):
        return BanditLog(
            actions=table.get_column("item_id").to_numpy(),
            rewards=table.get_column("click").cast(pl.Float64).to_numpy(),
            propensities=table.get_column("propensity_score").cast(pl.Float64).fill_null(float("nan")).to_numpy(),
            num_actions=len(items),
            positions=table.get_column("position").to_numpy() - 1,
            contexts=table.drop(*needs),
            action_ids=items.get_column("item_id"),
            action_features=items.drop("item_id"),
            name=name,
        )


def _table(path: Path, needs: tuple[str, ...]) -> pl.DataFrame:
    """A file with a number before each row; ValueError where it lacks a column."""
    try:
        table = pl.read_csv(read_bytes(path), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"read: {path} must be a table with commas, got {error}; get it again") from None
    missing = [column for column in needs if column not in table.columns]
    if missing:
        raise ValueError(f"read: {path} must have the columns {', '.join(needs)}, got none called {missing[0]}")
    return table.drop("", strict=False)
