"""`Domains`: interactions of several domains, such as shops, whose users are the same people; apart, or as one set.

As one set, which everything else takes, the domain of an item stands in a column `domain` of the table of items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from deeprec._suggest import did_you_mean, listed
from deeprec.data.interactions.build import from_frame
from deeprec.data.interactions.features import align
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Int32Array, Interactions, OfficialSplit
from deeprec.data.reading.frames import frame_of

DOMAIN = "domain"


class ItemDomains(NamedTuple):
    """The domain of each item.

    Attributes:
        names: of the domains, ascending.
        codes: [num_items], places in `names`.
    """

    names: tuple[str, ...]
    codes: Int32Array

    def place(self, function: str, name: Any) -> int:
        """The place of a domain; ValueError for a name that is none of them."""
        if name not in self.names:
            raise ValueError(
                f"{function}: domain must be one of {listed(self.names)}, got {name!r}; "
                f"{did_you_mean(str(name), self.names)}"
            )
        return self.names.index(name)


def domains_of(data: Interactions) -> ItemDomains:
    """What the column `domain` of the table of items says.

    Raises:
        ValueError: no such column, or an item without a domain.
    """
    table = data.item_features
    if table is None or DOMAIN not in table.columns:
        raise ValueError(
            f"domains: the items of {data.name} must have a column {DOMAIN!r}, got none; read the data with "
            "domain=COLUMN or as NAME=FILE,NAME=FILE, join deeprec.data.Domains, or pass a table of items with it"
        )
    column = table.get_column(DOMAIN).cast(pl.String)
    if column.null_count():
        row = int(column.is_null().arg_max() or 0)
        raise ValueError(
            f"domains: each item must have a {DOMAIN}, got none for {data.item_ids.values[row]!r} and "
            f"{column.null_count()} in all; fill the column of the table of items"
        )
    names = column.unique().sort()
    codes = column.replace_strict(names, pl.int_range(len(names), eager=True), return_dtype=pl.Int32)
    return ItemDomains(tuple(names.to_list()), codes.to_numpy())


@dataclass(frozen=True, eq=False)
class Domains:
    """Interactions by the name of their domain, each with items of its own, under one map of users.

    A user need not be active in every domain: where one is not, there is no row.

    Attributes:
        parts: at least one; made by `of` or `from_frame`, which bring the users together.
    Raises:
        ValueError: no domain, or users numbered otherwise in one of them.
    """

    parts: Mapping[str, Interactions]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("Domains: at least one domain is required, got none")
        for name, part in self.parts.items():
            if part.user_ids is not self.user_ids and part.user_ids != self.user_ids:
                raise ValueError(
                    f"Domains: all domains must have one map of users, got another in {name!r}; use Domains.of"
                )

    @property
    def user_ids(self) -> IdMap:
        """The users of all domains."""
        return next(iter(self.parts.values())).user_ids

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, name: str) -> Interactions:
        if name not in self.parts:
            raise KeyError(f"Domains: no domain {name!r}; {did_you_mean(name, self.parts)}")
        return self.parts[name]

    def active(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each user has a row in each domain, [num_users, domains]."""
        return np.stack([part.user_counts() > 0 for part in self.parts.values()], axis=1)

    @classmethod
    def of(cls, parts: Mapping[str, Interactions]) -> Domains:
        """Domains that were read one by one: the users of the first keep their numbers, others come after them.

        Tables of users become one, a user's row being that of the first domain that has it; columns that only some
        tables have are missing elsewhere.

        Raises:
            TypeError: ids of users of different types.
        """
        named = dict(parts)
        if not named:
            return cls(named)
        users = IdMap(next(iter(named.values())).user_ids.values, "user")
        for part in named.values():
            users = users.grown(part.user_ids.values)
        tables = [part.user_features for part in named.values() if part.user_features is not None]
        features = None
        if tables:
            table = pl.concat(tables, how="diagonal_relaxed")
            features = align(table.with_columns(pl.col("user_id").cast(users.values.dtype)), users)
        made = {}
        for name, part in named.items():
            place = users.encode(part.user_ids.values) if len(part.user_ids) else np.empty(0, dtype=np.int32)
            made[name] = replace(part, users=place[part.users], user_ids=users, user_features=features)
        return cls(made)

    @classmethod
    def from_frame(cls, frame: Any, domain: str = "domain", **options: Any) -> Domains:
        """The domains of one table, in the order in which they appear.

        Args:
            frame: polars or pandas.
            domain: column of their names.
            **options: of `deeprec.data.from_frame`.
        Raises:
            ValueError: no such column, a row without a domain, what `from_frame` raises.
        """
        table = frame_of(frame, "Domains.from_frame")
        if domain not in table.columns:
            raise ValueError(f"Domains: no column {domain!r} of domains; {did_you_mean(domain, table.columns)}")
        if table.get_column(domain).null_count():
            raise ValueError(f"Domains: each row must name its {domain}, got {table[domain].null_count()} without")
        groups = table.partition_by(domain, as_dict=True, include_key=False, maintain_order=True)
        named = {str(name): rows for (name,), rows in groups.items()}
        return cls.of({name: replace(from_frame(rows, **options), name=name) for name, rows in named.items()})

    def joined(self, name: str = "domains") -> Interactions:
        """All rows as one set, domain by domain, with a column `domain` in the table of items.

        Ids of items stay as they are where no two domains share one, and become "DOMAIN:ID" otherwise. An order is kept
        where all domains have times; official splits, if all have one. Tags are left behind.

        Args:
            name: of the set.
        Raises:
            ValueError: a table of items that has a column `domain` already.
        """
        parts = list(self.parts.values())
        starts = np.cumsum([0, *(part.num_items for part in parts)], dtype=np.int64)
        items = [part.items + start for part, start in zip(parts, starts, strict=False)]
        is_timed = all(part.order_kind == "time" for part in parts)
        kinds = dict.fromkeys(kind for part in parts for kind in part.repairs)
        item_ids = self._item_ids()
        return Interactions(
            users=np.concatenate([part.users for part in parts]),
            items=np.concatenate(items).astype(np.int32),
            user_ids=self.user_ids,
            item_ids=item_ids,
            ratings=_column([part.ratings for part in parts]),
            order=_column([part.order for part in parts]) if is_timed else None,
            order_kind="time" if is_timed else None,
            name=name,
            repairs={kind: sum(part.repairs.get(kind, 0) for part in parts) for kind in kinds},
            official=_joined_split(parts, starts),
            user_features=parts[0].user_features,
            item_features=self._item_table(item_ids),
        )

    def _item_ids(self) -> IdMap:
        """The ids of the items of all domains, one domain after the other."""
        ids = [part.item_ids.values for part in self.parts.values()]
        if len({each.dtype for each in ids}) == 1:
            every = pl.concat(ids)
            if every.n_unique() == len(every):
                return IdMap(every, "item")
        return IdMap(pl.concat([name + ":" + each.cast(pl.String) for name, each in zip(self.parts, ids, strict=True)]),
                     "item")  # fmt: skip

    def _item_table(self, item_ids: IdMap) -> pl.DataFrame:
        tables = []
        for name, part in self.parts.items():
            table = (
                part.item_ids.values.alias("item_id").to_frame() if part.item_features is None else part.item_features
            )
            if DOMAIN in table.columns:
                raise ValueError(
                    f"Domains.joined: the table of items of {name!r} has a column {DOMAIN!r} already; rename or drop it"
                )
            tables.append(table.drop("item_id").with_columns(pl.lit(name).alias(DOMAIN)))
        return pl.concat(tables, how="diagonal_relaxed").insert_column(0, item_ids.values.alias("item_id"))


def _column(columns: list[np.ndarray[Any, Any] | None]) -> np.ndarray[Any, Any] | None:
    present = [column for column in columns if column is not None]
    return np.concatenate(present) if len(present) == len(columns) else None


def _joined_split(parts: list[Interactions], starts: np.ndarray[Any, np.dtype[np.int64]]) -> OfficialSplit | None:
    """The official splits of all parts as that of their rows one after the other; None unless each has one."""
    splits = [part.official for part in parts if part.official is not None]
    if len(splits) < len(parts):
        return None
    rows = np.cumsum([0, *(len(part) for part in parts)])
    lists = [split.test_negatives for split in splits]
    widths = {None if each is None else each.shape[1] for each in lists}
    negatives = None
    if len(widths) == 1 and None not in widths:
        moved = [each + start for each, start in zip(lists, starts, strict=False) if each is not None]
        negatives = np.concatenate(moved).astype(np.int32)
    chosen = [(split.validation_index, row) for split, row in zip(splits, rows, strict=False)]
    own = [index + row for index, row in chosen if index is not None]
    return OfficialSplit(
        np.concatenate([split.train_index + row for split, row in zip(splits, rows, strict=False)]),
        np.concatenate([split.test_index + row for split, row in zip(splits, rows, strict=False)]),
        negatives,
        " and ".join(split.source for split in splits),
        np.concatenate(own) if own else None,
    )
