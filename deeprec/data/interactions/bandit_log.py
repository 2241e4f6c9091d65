"""A log of what a policy chose, how probable its choice was, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.interactions.interactions import Int64Array
from deeprec.data.interactions.logged import require_propensities


@dataclass(frozen=True, eq=False, repr=False)
class BanditLog:
    """One row a choice of the policy that was logged.

    Args:
        actions: int64 [n], in [0, num_actions).
        rewards: float64 [n], finite: clicks, ratings, money.
        propensities: float64 [n], in (0, 1]: the probability with which the logged policy chose the action then.
        num_actions: how many there are to choose from, >= 1.
        positions: int64 [n], the place on the page, from 0; None where there is one place.
        contexts: what was known before the choice, a frame of n rows; None for nothing.
        action_ids: the external ids of the actions, [num_actions]; None: their numbers.
        action_features: a frame of num_actions rows, or None.
        name: for messages.
    Raises:
        ValueError: columns of unequal length, actions out of range, rewards that are not finite, propensities that are
            zero, missing or above 1; each names the first row.
    """

    actions: Int64Array
    rewards: NDArray[np.float64]
    propensities: NDArray[np.float64]
    num_actions: int
    positions: Int64Array | None = None
    contexts: pl.DataFrame | None = None
    action_ids: pl.Series | None = None
    action_features: pl.DataFrame | None = None
    name: str = "log"

    def __post_init__(self) -> None:
        kinds = {"actions": np.int64, "rewards": np.float64, "propensities": np.float64, "positions": np.int64}
        for label, dtype in kinds.items():
            given = getattr(self, label)
            if given is None:
                continue
            column = np.asarray(given)
            if dtype is np.int64 and column.dtype.kind not in "iu":
                raise ValueError(f"BanditLog: {label} must be whole numbers, got {column.dtype}; number them from 0")
            object.__setattr__(self, label, column.astype(dtype))
            if column.shape != (len(self.actions),):
                raise ValueError(f"BanditLog: {label} must be [{len(self.actions)}], got {list(column.shape)}")
        if self.num_actions < 1:
            raise ValueError(f"BanditLog: num_actions must be >= 1, got {self.num_actions}")
        wrong = (self.actions < 0) | (self.actions >= self.num_actions)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"BanditLog: actions must be in [0, {self.num_actions}), got {self.actions[row]} at row {row}; number "
                "them from 0, or raise num_actions"
            )
        if not np.isfinite(self.rewards).all():
            row = int((~np.isfinite(self.rewards)).argmax())
            raise ValueError(f"BanditLog: rewards must be finite, got {self.rewards[row]} at row {row}; drop the row")
        require_propensities("BanditLog", self.propensities, len(self))
        if self.positions is not None and len(self) and self.positions.min() < 0:
            raise ValueError(f"BanditLog: positions must be >= 0, got {self.positions.min()}; count them from 0")
        for label, rows in (("contexts", len(self)), ("action_ids", self.num_actions),
                            ("action_features", self.num_actions)):  # fmt: skip
            table = getattr(self, label)
            if table is not None and len(table) != rows:
                raise ValueError(f"BanditLog: {label} must have {rows} rows, got {len(table)}")

    def __len__(self) -> int:
        return len(self.actions)

    def __repr__(self) -> str:
        return f"BanditLog({self.name}: {len(self):,} rows, {self.num_actions:,} actions, reward {self.mean:.6g})"

    @property
    def mean(self) -> float:
        """The mean reward: the value of the logged policy, as the log has it; nan of no rows."""
        return float(self.rewards.mean()) if len(self) else float("nan")

    def take(self, index: Any) -> BanditLog:
        """The chosen rows, by a boolean mask [n] or row numbers [m]."""
        rows = np.asarray(index)
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        columns: dict[str, Any] = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if field.name in ("actions", "rewards", "propensities", "positions", "contexts")
            and getattr(self, field.name) is not None
        }
        return replace(self, **columns)
