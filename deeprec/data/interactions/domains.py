"""`Domains`: interactions of several domains, such as shops, whose users are the same people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from deeprec._suggest import did_you_mean
from deeprec.data.interactions.build import from_frame
from deeprec.data.interactions.features import align
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Interactions
from deeprec.data.reading.frames import frame_of


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
