"""The logs of the comparison of clicks: those known by name, and the impressions of news of the MIND extract."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from deeprec.data import ClickLog, load_clicks
from deeprec.data.clicks.log import Split, in_memory
from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.inputs import Encoded
from deeprec.data.columns.rows import take
from deeprec.data.columns.schema import Categorical, FeatureSchema, Numeric
from deeprec.data.sets.datasets import search_dirs

SUBSAMPLE_SEED = 14


def mind_clicks(behaviors: Path, news: Path) -> ClickLog:
    """A row for each article shown in an impression, label whether it was clicked, cut by time.

    The first 80 % of the impressions are for training, the next 10 % for validation, the last 10 % for the test.

    Args:
        behaviors: MIND's behaviors.tsv: impression, user, time, articles clicked before, articles shown ("N1-0 N2-1").
        news: MIND's news.tsv; articles that are not in it have no category.
    """
    impressions = _table(behaviors, "impression", "user", "time", "history", "shown").drop("impression")
    articles = _table(news, "item", "category", "subcategory", "title", "abstract", "url", "of_title", "of_abstract")
    articles = articles.select("item", "category", "subcategory").unique("item", keep="first")
    time = pl.col("time").str.to_datetime("%m/%d/%Y %I:%M:%S %p")
    rows = (
        impressions.with_columns(time=time, shown=pl.col("shown").str.split(" "))
        .sort("time", maintain_order=True)
        .with_row_index("impression")
        .select(
            "impression",
            "user",
            "shown",
            hour=pl.col("time").dt.hour().cast(pl.String),
            weekday=pl.col("time").dt.weekday().cast(pl.String),
            history=pl.col("history").str.split(" ").list.len().fill_null(0).cast(pl.Float64),
            candidates=pl.col("shown").list.len().cast(pl.Float64),
        )
        .explode("shown")
        .with_columns(item=pl.col("shown").str.slice(0, pl.col("shown").str.len_chars() - 2))
        .with_columns(click=pl.col("shown").str.ends_with("-1").cast(pl.Int8))
        .join(articles, on="item", how="left", maintain_order="left")
        .drop("shown")
    )
    schema = FeatureSchema(
        (
            Categorical("user", min_count=2),
            Categorical("item", min_count=2),
            *(Categorical(name) for name in ("hour", "weekday", "category", "subcategory")),
            *(Numeric(name, transform="log-standardise") for name in ("history", "candidates")),
        ),
        label="click",
    )
    first, last = (round(len(impressions) * share) for share in (0.8, 0.9))
    number = pl.col("impression")
    train, validation, test = (
        rows.filter(which).drop("impression")
        for which in (number < first, number.is_between(first, last, closed="left"), number >= last)
    )
    return in_memory(train, schema, Split("files", validation=validation, test=test))


def _table(path: Path, *columns: str) -> pl.DataFrame:
    """A file of tab-separated text without a header or quotes."""
    return pl.read_csv(
        path, separator="\t", has_header=False, new_columns=list(columns), quote_char=None, infer_schema=False
    )


def _mind(data_dir: str | None) -> ClickLog:
    names = [f"mind-extract/{name}.tsv" for name in ("behaviors", "news")]
    for place in search_dirs(data_dir):
        for ending in ("", ".gz"):
            paths = [Path(place) / f"{name}{ending}" for name in names]
            if all(path.is_file() for path in paths):
                return replace(mind_clicks(*paths), name="mind")
    raise FileNotFoundError(f"{' and '.join(names)} (or .gz) are nowhere; pass --data-dir or set DEEPREC_DATA")


def _known(name: str) -> Callable[[str | None], ClickLog]:
    return lambda data_dir: load_clicks(name, data_dir=data_dir)


LOGS: dict[str, Callable[[str | None], ClickLog]] = {
    "adult": _known("adult"),
    "criteo-mini": _known("criteo-mini"),
    "mind": _mind,
    "ml-1m": _known("ml-1m-clicks"),
    "frappe": _known("frappe"),
}
# Train rows of a trial and of the runs with seeds, drawn at random; all of them elsewhere.
TRIAL_ROWS = {"frappe": 50_000, "ml-1m": 50_000}
RUN_ROWS = {"frappe": 100_000, "ml-1m": 100_000}


def with_train_rows(log: ClickLog, count: int | None) -> ClickLog:
    """The log with so many of its train rows at most, in their order; the same ones for everybody."""
    train = log.parts["train"]
    if count is None or count >= len(train):
        return log
    rows = np.sort(np.random.default_rng(SUBSAMPLE_SEED).choice(len(train), count, replace=False))
    data = Encoded(train.ids, train.values, bags=train.bags, labels=train.labels, groups=train.groups)
    return replace(log, parts=log.parts | {"train": ClickPart(take(data, rows))})


def without_test_rows(log: ClickLog) -> ClickLog:
    """The log with its validation rows in place of the test rows: a trial cannot look at these, whatever it does."""
    return replace(log, parts=log.parts | {"test": log.parts["validation"]})


def checksum(log: ClickLog) -> str:
    """SHA-256 of the numbers that a model is fed."""
    found = hashlib.sha256()
    for part in log.parts.values():
        arrays = [part.ids, part.values, part.labels]
        arrays += [array for bags in part.bags.values() for array in bags if array is not None]
        for array in arrays:
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
