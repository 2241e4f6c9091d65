"""From what people did to what they may do next: one history, or many histories and sessions at once."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean, listed
from deeprec.contract import AnyModel, Queries
from deeprec.data import IdMap
from deeprec.data.interactions.ids import normalise_ids, stripped_ids
from deeprec.data.reading.times import times_of
from deeprec.device import device_of
from deeprec.nn.scoring import KeptLists, TopK, topk
from deeprec.serve.arguments import codes_of, require_flag, require_k
from deeprec.serve.features import require_table
from deeprec.serve.index import ItemIndex
from deeprec.serve.recommend import by_index, id_maps, item_filter, ranked_columns, rated
from deeprec.surroundings import served

_log = logging.getLogger("deeprec")

UNKNOWN_ITEMS = ("raise", "skip")  # what becomes of items of a history that the model does not know
_HISTORIES_A_BLOCK = 1024
_ITEMS_A_BLOCK = 1 << 20


@served
def recommend_for_history(
    model: AnyModel,
    item_ids: Any,
    k: int = 10,
    *,
    ratings: Any = None,
    exclude_seen: bool = True,
    allow: Any = None,
    deny: Any = None,
    unknown: str = "raise",
    index: ItemIndex | None = None,
) -> pl.DataFrame:
    """The k best further items for a user whom the model never saw.

    A model that knows no way of its own fits the user's vectors to the history with every other weight frozen: logistic
    loss over the items and seeded negatives, from the mean user (the same call gives the same list).

    Args:
        item_ids: external ids of the items the user liked (without ratings) or rated, at least one, in the order the
            user met them, repeats too; most models take them as a set.
        k: list length, >= 1.
        ratings: what the user gave each item, in the units of the data; for models that predict ratings, which hold
            them to the range of the training ratings.
        exclude_seen: leave out the items of the history; False: they may come again, as in a session.
        allow: external ids of the only items that may come; None: all.
        deny: external ids of items that may not come; they win over `allow`.
        unknown: what becomes of items that the model does not know: "raise" an error, or "skip" reads the others.
        index: as of `recommend`.
    Returns:
        rank (from 1), item_id, score; fewer than k rows where fewer items are left.
    Raises:
        ValueError: an empty history, or one of unknown items alone, an unknown item where `unknown` says so, ratings
            that do not fit, or k < 1.
        TypeError: ids of another type than the data's, ratings that are no numbers, or a k that is no whole number.
    """
    name = "recommend_for_history"
    _, items_map = id_maps(model)
    k = min(require_k(name, k), len(items_map))
    _require_unknown(name, unknown)
    if unknown == "skip" and ratings is not None:
        raise ValueError(f"{name}: unknown='skip' does not go with ratings, got both; leave the unknown items out")
    if ratings is None:
        history, given = _codes(name, "item_ids", item_ids, items_map, unknown), None
        count, history = len(history), history[history >= 0]
        if not len(history):
            got = "none" if not count else f"{count} unknown ones"
            raise ValueError(f"{name}: item_ids must hold at least one item, got {got}; try popularity")
    else:
        history, given = rated(name, "item_ids", item_ids, ratings, items_map)
    histories = _Histories(np.array([0, len(history)], dtype=np.int64), history.astype(np.int64))
    filters = {each: item_filter(name, each, ids, items_map) for each, ids in (("allow", allow), ("deny", deny))}
    is_out = require_flag(name, "exclude_seen", exclude_seen)
    best = _best(model, histories, k, is_out, filters, index, given)
    return pl.DataFrame(ranked_columns([best], k, items_map if index is None else index.ids, "item_id")[1])


@served
def recommend_for_histories(
    model: AnyModel,
    histories: Any,
    k: int = 10,
    *,
    exclude_seen: bool = True,
    allow: Any = None,
    deny: Any = None,
    unknown: str = "raise",
    index: ItemIndex | None = None,
) -> pl.DataFrame:
    """The k best further items for many users or sessions, from what each did; none of them need be known.

    Args:
        histories: polars or pandas frame, an event a row: session_id or, without such a column, user_id (of any type);
            item_id; and, where there is one, timestamp, by which the events of each are put in order, those of equal
            times in that of the rows. Without it the rows are in order.
        k, exclude_seen, allow, deny, index: as of `recommend_for_history`.
        unknown: what becomes of items that the model does not know: "raise" an error, or "skip" reads the others; who
            has none left gets no list (counted in the log).
    Returns:
        session_id or user_id, in the order of their first rows; rank (from 1), item_id, score.
    Raises:
        ValueError: a column that is missing, a row without an id or time, an unknown item where `unknown` says so, or
            k < 1.
        TypeError: histories that are no frame, or items of another type than the data's.
    """
    name = "recommend_for_histories"
    _, items_map = id_maps(model)
    k = min(require_k(name, k), len(items_map))
    _require_unknown(name, unknown)
    is_out = require_flag(name, "exclude_seen", exclude_seen)
    filters = {each: item_filter(name, each, ids, items_map) for each, ids in (("allow", allow), ("deny", deny))}
    owners, lists = _read(name, require_table(name, "histories", histories), items_map, unknown)
    blocks: list[TopK] = []
    start = 0
    while start < len(owners):
        upto = int(np.searchsorted(lists.offsets, lists.offsets[start] + _ITEMS_A_BLOCK, side="right")) - 1
        end = min(max(upto, start + 1), start + _HISTORIES_A_BLOCK, len(owners))
        blocks.append(_best(model, lists.taken(start, end), k, is_out, filters, index))
        start = end
    places, ranked = ranked_columns(blocks, k, items_map if index is None else index.ids, "item_id")
    return pl.DataFrame([owners.gather(places), *ranked])


class _Histories(NamedTuple):
    """Items in order, as compressed rows: offsets and item indices, int64."""

    offsets: NDArray[np.int64]
    items: NDArray[np.int64]

    def taken(self, start: int, end: int) -> _Histories:
        first, last = int(self.offsets[start]), int(self.offsets[end])
        return _Histories(self.offsets[start : end + 1] - first, self.items[first:last])

    def sets(self, num_items: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Each item of a row once, ascending."""
        count = len(self.offsets) - 1
        owners = np.repeat(np.arange(count), np.diff(self.offsets))
        keys = np.unique(owners * max(num_items, 1) + self.items)
        rows, items = np.divmod(keys, max(num_items, 1))
        offsets = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=count), out=offsets[1:])
        return offsets, items.astype(np.int32)


def _best(
    model: AnyModel,
    histories: _Histories,
    k: int,
    exclude_seen: bool,
    filters: dict[str, Any],
    index: ItemIndex | None,
    ratings: NDArray[np.float32] | None = None,
) -> TopK:
    """Lists [b, k] for a block of histories."""
    asked = torch.from_numpy(histories.offsets), torch.from_numpy(histories.items)
    given = None if ratings is None else torch.from_numpy(ratings)
    scorer = model.scorer(model.encode(Queries(history=asked, ratings=given)))
    met = histories.sets(len(model.item_ids)) if exclude_seen else None
    if index is not None:
        seen = None if met is None else (torch.from_numpy(met[0]), torch.from_numpy(met[1]))
        return by_index(model, index, scorer, k, seen, **filters)
    return topk(scorer, k, seen=None if met is None else KeptLists().on(met, device_of(model)), **filters)


def _read(function: str, frame: pl.DataFrame, items_map: IdMap, unknown: str) -> tuple[pl.Series, _Histories]:
    """Who is asked for, by first row, and their items in order."""
    owner = next((column for column in ("session_id", "user_id") if column in frame.columns), None)
    if owner is None or "item_id" not in frame.columns:
        missing = "item_id" if owner is not None else "session_id or user_id"
        raise ValueError(f"{function}: histories must have a column {missing}, got {listed(frame.columns)}; rename it")
    ids = normalise_ids(stripped_ids(frame.get_column(owner))[0]).alias(owner)
    order = None
    if "timestamp" in frame.columns:
        order, _ = times_of(frame.get_column("timestamp"))
    for column, values in ((owner, ids), ("timestamp", order)):
        if values is not None and values.null_count():
            row = int(values.is_null().arg_max() or 0)
            raise ValueError(
                f"{function}: {column} must be there in every row, got {frame.get_column(column)[row]!r} in row {row}; "
                "drop the row"
            )
    codes = _codes(function, "item_id", frame.get_column("item_id"), items_map, unknown)
    known = np.flatnonzero(codes >= 0)
    owners = ids.unique(maintain_order=True)
    places = pl.DataFrame({owner: owners, "place": np.arange(len(owners))})
    numbers = ids.to_frame().join(places, on=owner, how="left", maintain_order="left")["place"].to_numpy()[known]
    times = np.zeros(len(known)) if order is None else order.to_numpy()[known]
    ordered = np.lexsort((times, numbers))  # stable: then by row
    counts = np.bincount(numbers, minlength=len(owners))
    if without := int((counts == 0).sum()):
        _log.warning("%s: %s of %s have no item that the model knows, and get no list", function, without, len(owners))
    kept = np.flatnonzero(counts)
    offsets = np.concatenate([[0], np.cumsum(counts[kept])])
    return owners.gather(kept), _Histories(offsets, codes[known][ordered].astype(np.int64))


def _require_unknown(function: str, unknown: str) -> None:
    if unknown not in UNKNOWN_ITEMS:
        raise ValueError(f"{function}: unknown must be one of {', '.join(UNKNOWN_ITEMS)}, got {unknown!r}; "
                         f"{did_you_mean(str(unknown), UNKNOWN_ITEMS)}")  # fmt: skip


def _codes(function: str, argument: str, item_ids: Any, items_map: IdMap, unknown: str) -> NDArray[np.int32]:
    """Items by index; -1 for those that the model does not know, where they are to be skipped."""
    index = None if unknown == "raise" else -1
    return codes_of(function, argument, item_ids, items_map, unknown=index, remedy="pass unknown='skip', or drop them")
