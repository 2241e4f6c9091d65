"""Readers of rating files: MovieLens, the NCF authors' triples, CSV, TSV and Parquet. Plain or gzip."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.interactions.build import Duplicates, build, from_table
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Interactions, OfficialSplit
from deeprec.data.reading.errors import did_you_mean, naming
from deeprec.data.reading.tables import read_parquet as read_table
from deeprec.data.reading.tables import read_separated
from deeprec.data.reading.text import OnBad, parse_numbers, read_bytes, with_gz

_log = logging.getLogger("deeprec")

_MOVIELENS = {"user": "i", "item": "i", "rating": "f", "order": "i"}
_LARGEST_RANK = 1_000_000  # Unix times of this century are above 9e8, ranks within a user far below


def read_movielens(
    path: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest"
) -> Interactions:
    """MovieLens ratings: `user::item::rating::time` (1M, .dat) or tab-separated (100K, u.data).

    A fourth field that holds places in each user's own sequence instead of Unix times (`ratings_rank.dat`) is
    recognised by the file's name or by its values and taken as order: 1 is the earliest; 0, not placed, goes first.
    """
    data = read_bytes(path)
    separator = "::" if b"::" in data[:200] else "\t"
    columns, dropped = parse_numbers(data, separator, _MOVIELENS, path, on_bad)
    is_rank = _is_rank(columns["user"], columns["order"])
    if "rank" in path.name and not is_rank:
        _log.warning("%s: called rank, but its fourth field holds times; taken as times", path)
    return build(
        columns["user"],
        columns["item"],
        ratings=columns["rating"],
        order=columns["order"],
        order_kind="rank" if is_rank else "time",
        name=name,
        duplicates=duplicates,
        repairs={"bad_rows_dropped": dropped},
    )


def _is_rank(users: NDArray[Any], order: NDArray[Any]) -> bool:
    """Whether `order` counts places within each user (1, 2, ...; 0 = not placed) rather than seconds."""
    if order.min() < 0 or order.max() > _LARGEST_RANK:
        return False
    placed = order > 0
    pairs = users[placed].astype(np.int64) * (_LARGEST_RANK + 1) + order[placed]
    pairs.sort()
    return bool((pairs[1:] != pairs[:-1]).all())  # a place is taken once


def read_fold(
    base: Path,
    test: Path,
    *,
    name: str,
    on_bad: OnBad = "raise",
    duplicates: Duplicates = "latest",
    has_time: bool = True,
) -> Interactions:
    """A published split as two files (u1.base and u1.test of MovieLens 100K): all rows, with it as `official`.

    The files hold user, item, rating and, with `has_time`, the time, separated by tabs.
    """
    roles = {role: kind for role, kind in _MOVIELENS.items() if has_time or role != "order"}
    parts = [parse_numbers(read_bytes(path), "\t", roles, path, on_bad) for path in (base, test)]
    columns = {role: np.concatenate([part[0][role] for part in parts]) for role in roles}
    data = build(
        columns["user"],
        columns["item"],
        ratings=columns["rating"],
        order=columns.get("order"),
        name=name,
        duplicates="raise" if duplicates == "latest" else duplicates,  # a row in both parts would be a leak
        repairs={"bad_rows_dropped": sum(dropped for _, dropped in parts)},
    )
    border = len(parts[0][0]["user"])
    rows = np.arange(len(data))
    return replace(data, official=OfficialSplit(rows[:border], rows[border:], None, f"{base.name} / {test.name}"))


def read_ncf(
    train: Path, test: Path, negative: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest"
) -> Interactions:
    """The NCF authors' triple: train.rating, test.rating (user, item, rating, perhaps time), test.negative.

    Ids are the files' own, kept in ascending order (0..n-1 stay themselves). Items seen only as negatives belong to
    the catalogue. Order is known only where both rating files have a fourth column.

    Raises ValueError for negatives that do not belong to the test rows, beside the errors of `parse_numbers`.
    """
    (train_columns, train_bad), (test_columns, test_bad) = (_ncf_ratings(path, on_bad) for path in (train, test))
    negatives = _ncf_negatives(negative, test_columns)
    users = np.concatenate([train_columns["user"], test_columns["user"]])
    items = np.concatenate([train_columns["item"], test_columns["item"]])
    has_time = "order" in train_columns and "order" in test_columns
    item_ids = IdMap.from_values(np.concatenate([items, negatives.ravel()]), "item", sort=True)
    data = build(
        users,
        items,
        ratings=np.concatenate([train_columns["rating"], test_columns["rating"]]),
        order=np.concatenate([train_columns["order"], test_columns["order"]]) if has_time else None,
        name=name,
        user_ids=IdMap.from_values(users, "user", sort=True),
        item_ids=item_ids,
        duplicates="keep",
        repairs={"bad_rows_dropped": train_bad + test_bad},
    )
    num_train = len(train_columns["user"])
    keep = _ncf_rows(data, num_train, duplicates)
    dropped = len(data) - len(keep)
    if dropped:
        _log.warning("%s: duplicate_rows_dropped %d", name, dropped)
        repairs = {**data.repairs, "duplicate_rows_dropped": dropped}
        data = replace(data.take(keep), repairs=repairs)
        num_train -= dropped
    rows = np.arange(len(data))
    codes = item_ids.encode(negatives.ravel()).reshape(negatives.shape)
    return replace(
        data, official=OfficialSplit(rows[:num_train], rows[num_train:], codes, f"{train.name} / {test.name}")
    )


def _ncf_rows(data: Interactions, num_train: int, duplicates: Duplicates) -> NDArray[np.int64]:
    """Rows to keep: all test rows; training rows that repeat a pair (also a test pair: a leak) only once or not."""
    rows = np.arange(len(data))
    if duplicates == "keep":
        return rows
    keys = data.pair_keys()
    ascending = np.sort(keys)
    if not (ascending[1:] == ascending[:-1]).any():
        return rows
    last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
    keep = np.union1d(last, rows[num_train:])
    if duplicates == "raise" and len(keep) < len(rows):
        raise ValueError(
            f"read_ncf: each user and item may meet once in {data.name}, got {len(rows) - len(keep)} "
            "repeated training rows; pass duplicates='latest'"
        )
    return keep


def ncf_test(test: Path, negative: Path) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """The test rows (user, item, rating) and their negatives [num_test, n], in the files' own ids."""
    columns, _ = _ncf_ratings(test, "raise")
    return columns, _ncf_negatives(negative, columns)


def _ncf_ratings(path: Path, on_bad: OnBad) -> tuple[dict[str, NDArray[Any]], int]:
    data = read_bytes(path)
    width = data[: data.find(b"\n")].count(b"\t") + 1
    columns = {"user": "i", "item": "i", "rating": "f"}
    if width > 3:
        columns["order"] = "i"
    return parse_numbers(data, "\t", columns, path, on_bad)


def _ncf_negatives(path: Path, test: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Lines `(user,item)<TAB>negative<TAB>...`, one for each test row and in the same order: int64 [num_test, n]."""
    data = read_bytes(path).translate(bytes.maketrans(b",", b"\t"), delete=b"()")
    width = data[: data.find(b"\n")].rstrip().count(b"\t") + 1
    kinds = {"user": "i", "item": "i", **{f"negative {place}": "i" for place in range(1, width - 1)}}
    columns, _ = parse_numbers(data, "\t", kinds, path)
    if len(columns["user"]) != len(test["user"]):
        raise ValueError(
            f"read_ncf: {path} must have one line for each of {len(test['user'])} test rows, "
            f"got {len(columns['user'])}; take both files from one source"
        )
    wrong = np.flatnonzero((columns["user"] != test["user"]) | (columns["item"] != test["item"]))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"read_ncf: {path}, line {row + 1} must be for ({test['user'][row]},{test['item'][row]}), got "
            f"({columns['user'][row]},{columns['item'][row]}); take both files from one source"
        )
    return np.stack([columns[label] for label in list(kinds)[2:]], axis=1)


def ncf_split_of_movielens(data: Interactions, test: Path, negative: Path) -> OfficialSplit:
    """The NCF authors' split of MovieLens-1M over its original ids.

    The authors number users by UserID - 1 and items by first appearance in ratings.dat, which is how `data` numbers
    them. Checked: each test pair must be in `data` with the same rating.

    Raises ValueError where a test pair is missing or rated otherwise: then the file is not the published ratings.dat.
    """
    columns, negatives = ncf_test(test, negative)
    users = data.user_ids.encode(columns["user"] + 1)
    largest = int(max(columns["item"].max(), negatives.max()))
    keys = data.pair_keys()
    by_key = np.argsort(keys, kind="stable")
    pairs = users.astype(np.int64) * data.num_items + columns["item"]
    at = by_key[np.minimum(np.searchsorted(keys, pairs, sorter=by_key), len(keys) - 1)]
    agree = keys[at] == pairs
    if data.ratings is not None:
        agree &= data.ratings[at] == columns["rating"].astype(np.float32)
    if largest >= data.num_items or not agree.all():
        raise ValueError(
            f"ncf split: every test pair of {test} must be in {data.name} with its rating, got "
            f"{int((~agree).sum())} that are not; the ratings are not the published ml-1m"
        )
    train = np.ones(len(data), dtype=np.bool_)
    train[at] = False
    return OfficialSplit(np.flatnonzero(train), at, negatives.astype(np.int32), f"{test.name} (He et al. 2017)")


def read_csv(path: Path, *, name: str, separator: str | None = None, **columns: Any) -> Interactions:
    """CSV or TSV with a header line. `columns` and the rest as in `from_frame`.

    Ids that are all plain integers become integers; anything else ("007", "a1") stays text.
    """
    table = read_separated(path, separator, columns.get("on_bad", "raise"))
    frame = table.frame.with_columns(_integers_where_plain(column) for column in table.frame.get_columns())
    return from_table(
        frame, name=name, place=lambda row: f"line {table.line_of(row)}", dropped=table.dropped, **columns
    )


def _integers_where_plain(column: pl.Series) -> pl.Series:
    head = column.drop_nulls().head(100)
    if not head.str.contains(r"^-?\d+$").all():
        return column
    numbers = column.cast(pl.Int64, strict=False)
    same = numbers.null_count() == column.null_count() and (numbers.cast(pl.String) == column).all()
    return numbers if same else column


def read_parquet(path: Path, *, name: str, **columns: Any) -> Interactions:
    """Parquet; `columns` and the rest as in `from_frame`."""
    return from_table(read_table(path), name=name, **columns)


def read_path(path: Path, **options: Any) -> Interactions:
    """Interactions from one file, by its name: .dat, u.data, *.train.rating, .csv, .tsv, .txt, .parquet; all but the
    last also with .gz."""
    options.setdefault("name", path.name.removesuffix(".gz"))
    with naming(path):
        return _read_path(path, options)


def _read_path(path: Path, options: dict[str, Any]) -> Interactions:
    stem = path.name.removesuffix(".gz")
    if stem.endswith((".train.rating", ".test.rating", ".test.negative")):
        prefix = stem.rsplit(".", 2)[0]
        return read_triple(path.parent, prefix, **options)
    if stem.endswith((".dat", ".base", ".test", "u.data")):
        return read_movielens(path, **options)
    if stem.endswith(".parquet"):
        return read_parquet(path, **options)
    if stem.endswith((".csv", ".tsv", ".txt")):
        return read_csv(path, **options)
    known = [".dat", ".csv", ".tsv", ".txt", ".parquet", ".train.rating"]
    raise ValueError(
        f"load: the name must end in one of {known} (or with .gz behind it), got {path.name!r}"
        f"{did_you_mean(Path(stem).suffix, known)}"
    )


def read_triple(folder: Path, prefix: str, **options: Any) -> Interactions:
    """`<prefix>.train.rating`, `.test.rating` and `.test.negative` in a folder; FileNotFoundError names the missing."""
    names = [f"{prefix}.{part}" for part in ("train.rating", "test.rating", "test.negative")]
    paths = [with_gz(folder / name) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        raise FileNotFoundError(
            f"load: an NCF data set is three files in one folder, got none called {missing} (or with .gz) in {folder}"
        )
    train, test, negative = (path for path in paths if path is not None)
    return read_ncf(train, test, negative, **options)
