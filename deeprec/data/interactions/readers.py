"""Readers of interactions: a file of any layout, several files, MovieLens, the NCF authors' triples."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.interactions.build import Duplicates, build, from_table
from deeprec.data.interactions.domains import Domains
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Interactions, OfficialSplit
from deeprec.data.interactions.layouts import Rows, file_options, read_rows
from deeprec.data.interactions.parts import joined
from deeprec.data.reading.errors import naming
from deeprec.data.reading.text import OnBad, parse_numbers, read_bytes, with_gz

_log = logging.getLogger("deeprec")

_MOVIELENS: dict[str, Any] = {"user": 0, "item": 1, "rating": 2, "timestamp": 3}
_LARGEST_RANK = 1_000_000  # Unix times of this century are above 9e8, ranks within a user far below


def read_file(path: Path, *, name: str, duplicates: Duplicates | None = None, **options: Any) -> Interactions:
    """One file of interactions of any layout.

    A column of places in each user's own sequence instead of times (`ratings_rank.dat`) is recognised by its values,
    where the text has no names of columns, and taken as order: 1 is the earliest; 0, not placed, goes first.

    Args:
        duplicates: as in `from_frame`; None: "keep" too for files of sessions.
        **options: of `file_options`; with `domain` the rows of each domain are read apart and joined, see `Domains`;
            with `session` and no `user` nobody knows whose the sessions are.
    """
    if options.get("session") is not None and options.get("user") is None:
        options["user"] = options["session"]
    how = file_options(**options)
    rows = read_rows(path, how)
    names = dict(rows.columns) if rows.has_names else {role: role for role in rows.columns}  # for messages
    if rows.columns.get("session") == rows.columns["user"]:
        del names["user"]
    table = pl.DataFrame(
        {names[role]: rows.frame.get_column(column) for role, column in rows.columns.items() if role in names}
    )
    domain = names.get("domain")
    if duplicates is None and rows.of_sessions:
        duplicates = "keep"
    how_built: dict[str, Any] = {role: column for role, column in names.items() if role != "domain"}
    how_built |= {"time_format": how.time_format, "on_bad": how.on_bad, "duplicates": duplicates}
    if domain is not None:
        return _by_domain(table, domain, rows, name, how_built)
    data = from_table(table, name=name, place=rows.place, dropped=rows.dropped, **how_built)
    if data.order is None:
        return data
    is_rank = rows.order_kind == "rank" or (not rows.has_names and _is_rank(data.users, data.order))
    if "rank" in path.name and not is_rank:
        _log.warning("%s: called rank, but its fourth field holds times; taken as times", path)
    return replace(data, order_kind="rank") if is_rank else data


def _by_domain(table: pl.DataFrame, domain: str, rows: Rows, name: str, how: dict[str, Any]) -> Interactions:
    """The rows of a table with a column of domains as one set, whose table of items says the domain of each."""
    values = table.get_column(domain).cast(pl.String)
    missing, dropped = np.flatnonzero(values.is_null().to_numpy()), rows.dropped
    if len(missing) and how["on_bad"] == "raise":
        raise ValueError(
            f"load: {name}, {rows.place(int(missing[0]))}: each row must name its {domain}, got {len(missing):,} "
            "without; correct them or pass on_bad='skip'"
        )
    dropped += len(missing)
    parts = {}
    for value in values.drop_nulls().unique(maintain_order=True).to_list():
        own = np.flatnonzero((values == value).fill_null(False).to_numpy())
        place = partial(_place_of, rows, own)
        parts[value] = from_table(table[own], name=f"{name} ({value})", place=place, dropped=dropped, **how)
        dropped = 0
    if not parts:
        raise ValueError(f"load: {name} must have rows that name their {domain}, got none")
    return Domains.of(parts).joined(name)


def _place_of(rows: Rows, taken: NDArray[np.int64], row: int) -> str:
    return rows.place(int(taken[row]))


def read_movielens(path: Path, **options: Any) -> Interactions:
    """MovieLens ratings: `user::item::rating::time` (1M, .dat) or tab-separated (100K, u.data), ids whole numbers;
    options as of `read_file`."""
    return read_file(path, header=False, integers=True, **_MOVIELENS, **options)


def _is_rank(users: NDArray[Any], order: NDArray[Any]) -> bool:
    """Whether `order` counts places within each user (1, 2, ...; 0 = not placed) rather than seconds."""
    if order.min() < 0 or order.max() > _LARGEST_RANK:
        return False
    placed = order > 0
    pairs = users[placed].astype(np.int64) * (_LARGEST_RANK + 1) + order[placed]
    pairs.sort()
    return bool((pairs[1:] != pairs[:-1]).all())  # a place is taken once


def read_fold(base: Path, test: Path, *, name: str, has_time: bool = True, **options: Any) -> Interactions:
    """A published split as two files (u1.base and u1.test of MovieLens 100K): all rows, with it as `official`.

    The files hold user, item, rating and, with `has_time`, the time, separated by tabs; ids are whole numbers.
    """
    columns: dict[str, Any] = {role: place for role, place in _MOVIELENS.items() if has_time or role != "timestamp"}
    return read_parts([base], None, test, name=name, header=False, integers=True, **columns, **options)


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


def read_path(path: Path, **options: Any) -> Interactions:
    """Interactions from one file, see `read_file`; of an NCF triple any of its three names them all."""
    options.setdefault("name", path.name.removesuffix(".gz"))
    with naming(path):
        stem = path.name.removesuffix(".gz")
        if stem.endswith((".train.rating", ".test.rating", ".test.negative")):
            return read_triple(path.parent, stem.rsplit(".", 2)[0], **options)
        return read_file(path, **options)


def read_parts(
    train: list[Path],
    validation: Path | None,
    test: Path | None,
    *,
    name: str,
    duplicates: Duplicates | None = None,
    **options: Any,
) -> Interactions:
    """Several files of one layout as one set; with files for testing and choosing as its official split.

    A pair of user and item in a later part is taken out of the earlier ones (counted; duplicates="raise" refuses it).
    Users and items that only a test or validation file knows stay, and are counted in the log.

    Args:
        train: whose rows follow each other.
        **options: of `file_options`, the same for all files.
    Raises:
        ValueError: as `read_file` does.
    """
    files = [*train, *(path for path in (validation, test) if path is not None)]
    if options.get("domain") is not None:
        raise ValueError(
            f"load: a column of domains is read from one file, got {len(files)} files; name a file a domain as "
            "NAME=FILE,NAME=FILE"
        )
    parts = []
    for path in files:
        with naming(path):
            parts.append(read_file(path, name=path.name.removesuffix(".gz"), duplicates=duplicates, **options))
    of_sessions = options.get("session") is not None or options.get("format") in ("sessions", "prefixes", "rsc15")
    duplicates = duplicates or ("keep" if of_sessions else "latest")
    return joined(parts, len(train), validation is not None, test is not None, name=name, duplicates=duplicates)


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
