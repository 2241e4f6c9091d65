"""Click logs whose rows know what came before: made of interactions, and read from MIND's files."""

from __future__ import annotations

from collections.abc import Sequence as Listed
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.columns.kinds import Categorical, Sequence
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.interactions.build import from_frame
from deeprec.data.interactions.features import with_features
from deeprec.data.interactions.interactions import Int64Array, Interactions
from deeprec.data.interactions.splits import negatives_of_rows
from deeprec.data.reading.errors import reading
from deeprec.data.reading.tables import read_separated
from deeprec.data.reading.text import read_bytes
from deeprec.data.sets.click_files import Clicks

SPLITS = ("position", "time")
_UNKNOWN = "unknown"


def clicks_with_histories(
    data: Interactions,
    *,
    negatives: int = 1,
    length: int | None = 50,
    columns: Listed[str] = (),
    split: str = "position",
    shares: tuple[float, float] = (0.1, 0.1),
    min_history: int = 1,
    seed: int = 0,
) -> Clicks:
    """Each event as a row of label 1, and beside it items that the user never met as rows of label 0.

    The history of both is what the user met before the event, the latest last; events of one moment go in the order of
    the data. An event and what comes after it are in no history of its rows, whatever part they are of, while a test
    row's history holds the validation row, as it would when serving. Negatives are uniform over the items that the user
    meets nowhere in the data, later events included; a row's own draw depends on seed and row alone.

    The frames have columns user_id, item_id, history (lists of item ids), label, and of each of `columns` the value of
    the item, COLUMN, and those of the history, history_COLUMN. Their schema shares the vocabularies, has the user as
    group and no feature of the user's own.

    Args:
        data: with an order.
        negatives: rows of label 0 for each event, different items, >= 1.
        length: most entries of a history, the last ones, >= 1; None: all, whose sum grows with the square of a user's
            events.
        columns: of `data.item_features`, one value an item, such as the category.
        split: "position": the last event of each user is for testing, the one before for validation, the rest for
            training; "time": one moment divides training from validation, a second one validation from test.
        shares: of the events, for validation and test, of "time".
        min_history: events with fewer before them make no row, >= 0.
        seed: of the negatives.
    Returns:
        what `load_clicks` and a click model's `fit` take, with parts of their own.
    Raises:
        ValueError: no order, or no times for "time"; an option out of range; a column that is not there; a user who met
            so much that fewer than `negatives` items are left; a part without rows.
    Reference: the preparation of Amazon's reviews by Zhou et al. 2018 (arXiv 1706.06978), section 6.1, with a negative
        for each event.
    """
    _check(data, negatives, length, columns, split, min_history)
    assert data.order is not None
    ordered = np.lexsort((data.order, data.users))  # stable: equal moments stay in the order of the data
    users, items = data.users[ordered], data.items[ordered]
    counts = data.user_counts()
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    events = np.arange(len(users))
    place = events - starts
    if split == "position":
        part = (place == counts[users] - 1) * 2 + (place == counts[users] - 2)
    else:
        part = _by_moment(data.order[ordered], shares)
    kept = events[place >= min_history]
    begin = starts if length is None else np.maximum(starts, events - length)
    drawn = negatives_of_rows(data, users[kept], negatives, seed)
    each = 1 + negatives
    rows = pl.DataFrame(
        {
            "user_id": data.user_ids.values.gather(np.repeat(users[kept], each)),
            "label": np.tile(np.arange(each) == 0, len(kept)).astype(np.int8),
        }
    )
    candidates = np.concatenate([items[kept, None], drawn], 1).reshape(-1)
    what = {"item_id": data.item_ids.values}
    what |= {column: data.item_features[column] for column in columns} if data.item_features is not None else {}
    again = np.repeat(np.arange(len(kept)), each)
    for name, values in what.items():
        history = "history" if name == "item_id" else f"history_{name}"
        lists = _lists(values.gather(items), begin[kept], kept).rename(history)
        rows = rows.with_columns(values.gather(candidates).alias(name), lists.gather(again))
    parts = [rows.filter(part[kept].repeat(each) == number) for number in range(3)]
    for name, frame in zip(("train", "validation", "test"), parts, strict=True):
        if not len(frame):
            raise ValueError(
                f"clicks_with_histories: the {name} part must hold rows, got none of {data.name}; take another split, "
                "other shares or a smaller min_history"
            )
    schema = _schema("item_id", columns, length, group="user_id")
    return Clicks(parts[0], schema, parts[1], parts[2], name=f"{data.name} with histories")


def _check(
    data: Interactions, negatives: int, length: int | None, columns: Listed[str], split: str, min_history: int
) -> None:
    function = "clicks_with_histories"
    for name, value, least in (
        ("negatives", negatives, 1),
        ("length", 1 if length is None else length, 1),
        ("min_history", min_history, 0),
    ):
        if value < least:
            raise ValueError(f"{function}: {name} must be >= {least}, got {value}")
    if split not in SPLITS:
        raise ValueError(f"{function}: split must be {' or '.join(SPLITS)}, got {split!r}")
    if data.order is None or (split == "time" and data.order_kind != "time"):
        needs = "an order" if data.order is None else "times"
        raise ValueError(f"{function}: the data must have {needs}, got {data.name} without; load it with a timestamp")
    if not len(data):
        raise ValueError(f"{function}: at least one interaction is required, got none in {data.name}")
    if isinstance(columns, str):
        raise TypeError(f"{function}: columns must be a list of names, got {columns!r}; write ({columns!r},)")
    known = [] if data.item_features is None else data.item_features.columns
    for column in columns:
        if column not in known or column == "item_id":
            raise ValueError(f"{function}: columns must be of the items' table, {known}, got {column!r}")
        assert data.item_features is not None
        if data.item_features[column].dtype.is_nested():
            raise ValueError(
                f"{function}: columns must have one value an item, got {column!r} with lists; leave it out"
            )


def _by_moment(order: Int64Array, shares: tuple[float, float]) -> NDArray[np.int64]:
    """0, 1 or 2 for each event: before the first moment, before the second, from there on."""
    if not (min(shares) > 0 and sum(shares) < 1):
        raise ValueError(f"clicks_with_histories: shares must be > 0 with a sum below 1, got {shares}")
    ascending = np.sort(order)
    validation, test = (ascending[-max(1, round(len(order) * share))] for share in (sum(shares), shares[1]))
    part: NDArray[np.int64] = (order >= validation).astype(np.int64) + (order >= test)
    return part


def _lists(values: pl.Series, begin: Int64Array, end: Int64Array) -> pl.Series:
    """values[begin[n]:end[n]] of each n as a column of lists."""
    lengths = end - begin
    owner = np.repeat(np.arange(len(begin)), lengths)
    entries = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(begin, lengths)
    taken = pl.DataFrame({"row": owner, "list": values.gather(entries)})
    lists = taken.group_by("row", maintain_order=True).agg("list")
    every = pl.DataFrame({"row": np.arange(len(begin))}).join(lists, on="row", how="left", maintain_order="left")
    empty = pl.lit(pl.Series([[]], dtype=pl.List(values.dtype)))
    return every.select(pl.col("list").fill_null(empty)).to_series()


def _schema(item: str, columns: Listed[str], length: int | None, group: str) -> FeatureSchema:
    candidates = [Categorical(name) for name in (item, *columns)]
    histories = [Sequence("history", vocabulary=item, length=length)]
    histories += [Sequence(f"history_{n}", vocabulary=n, parallel_to="history", length=length) for n in columns]
    return FeatureSchema((*candidates, *histories), group=group)


def read_grocery(events: Path, items: Path) -> Clicks:
    """Amazon's groceries: `clicks_with_histories` of reviews with times, with the category of each item.

    Args:
        events: a table with user_id, item_id and time; items: one with item_id and i_category.
    Raises:
        ValueError: a file of another form.
    """
    with reading(events, "reviews and the items' categories"):
        reviews = read_separated(events).frame.rename({"time": "timestamp"})
        categories = read_separated(items).frame.select("item_id", category="i_category")
        categories = categories.join(reviews, on="item_id", how="semi")  # items without a review are in neither part
    data = with_features(from_frame(reviews, name="amazon-grocery"), items=categories)
    return clicks_with_histories(data, columns=("category",))


def read_mind(behaviors: Path, news: Path, *, length: int = 50, shares: tuple[float, float] = (0.1, 0.1)) -> Clicks:
    """MIND's impressions, a row for each news shown, with what the reader had clicked before.

    Columns impression_id, user_id, news_id, category, subcategory (of news without a line in the news file "unknown"),
    history, history_category, history_subcategory, label; the impression is the group. Impressions go by time: the last
    share of them is for testing, the one before for validation.

    Args:
        behaviors, news: behaviors.tsv and news.tsv, gzipped or not.
        length: most entries of a history, the last ones, >= 1.
        shares: of the impressions, for validation and test.
    Raises:
        ValueError: a file of another form.
    Reference: Wu et al. 2020, MIND: A Large-scale Dataset for News Recommendation (ACL), section 3.
    """
    shown = _tsv(behaviors, ("impression_id", "user_id", "time", "history", "shown"))
    words = _tsv(news, ("news_id", "category", "subcategory", "title", "abstract", "url", "entities", "others"))
    with reading(behaviors, "impressions of MIND"):
        shown = shown.with_columns(
            pl.col("time").str.to_datetime("%m/%d/%Y %I:%M:%S %p"),
            pl.col("history").fill_null("").str.split(" ").list.eval(pl.element().filter(pl.element() != "")),
            pl.col("shown").str.split(" "),
        ).sort("time", maintain_order=True)
        shown = shown.with_columns(pl.col("history").list.tail(length))
        rank = np.arange(len(shown)) / max(1, len(shown))
        part = (rank >= 1 - sum(shares)).astype(np.int8) + (rank >= 1 - shares[1])
        for column in ("category", "subcategory"):
            known = dict(zip(words["news_id"].to_list(), words[column].to_list(), strict=True))
            of_history = pl.element().replace_strict(known, default=_UNKNOWN, return_dtype=pl.String)
            shown = shown.with_columns(pl.col("history").list.eval(of_history).alias(f"history_{column}"))
        rows = shown.with_columns(part=part).explode("shown")
        rows = rows.with_columns(
            pl.col("shown").str.head(-2).alias("news_id"), pl.col("shown").str.tail(1).cast(pl.Int8).alias("label")
        ).drop("shown", "time")
        rows = rows.join(words.select("news_id", "category", "subcategory"), on="news_id", how="left",
                         maintain_order="left")  # fmt: skip
        rows = rows.with_columns(pl.col("category", "subcategory").fill_null(_UNKNOWN))
    parts = [rows.filter(pl.col("part") == number).drop("part") for number in range(3)]
    schema = _schema("news_id", ("category", "subcategory"), length, group="impression_id")
    return Clicks(parts[0], schema, parts[1], parts[2], name="mind-clicks")


def _tsv(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """A table without a header or quotes."""
    options: dict[str, Any] = {"separator": "\t", "has_header": False, "quote_char": None, "infer_schema": False}
    with reading(path, f"rows of {len(columns)} columns with tabs between"):
        return pl.read_csv(read_bytes(path), new_columns=list(columns), **options)
