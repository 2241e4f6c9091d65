"""The protocol of click prediction: which rows are held out, and what is measured on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deeprec._suggest import did_you_mean
from deeprec.evaluate.click_metrics import CLICK_METRICS

HOLDOUTS = ("auto", "random", "tail", "official")
# What is reported, or done to the training rows only, does not change what a figure means.
_NOT_COMPARED = ("name", "metrics", "negative_rate")


@dataclass(frozen=True)
class ClickProtocol:
    """One way to measure a click model; immutable, checked on construction.

    Attributes:
        name: how it was asked for ("click").
        task: "click".
        holdout: "random": random shares of the rows; "tail": the last rows of the log, in its order; "official": the
            parts that came with the data; "auto": official where there are any, random otherwise.
        test_share, validation_share: of all rows, in (0, 1), for "random" and "tail"; where an official split has no
            validation part, `validation_share` of its training rows becomes one.
        seed: of the random parts, >= 0.
        negative_rate: share of the negatives that training keeps, in (0, 1]; the model's logits are corrected for it.
        metrics: of `click_metrics.CLICK_METRICS`; "gauc" is measured where the schema has a group.
    """

    name: str = "click"
    holdout: str = "auto"
    test_share: float = 0.1
    validation_share: float = 0.1
    seed: int = 0
    negative_rate: float = 1.0
    metrics: tuple[str, ...] = CLICK_METRICS
    task: str = "click"

    def __post_init__(self) -> None:
        if self.holdout not in HOLDOUTS:
            raise ValueError(f"protocol: unknown holdout {self.holdout!r}; {did_you_mean(self.holdout, HOLDOUTS)}")
        metrics = (self.metrics,) if isinstance(self.metrics, str) else tuple(self.metrics)
        object.__setattr__(self, "metrics", metrics)
        for metric in metrics:
            if metric not in CLICK_METRICS:
                raise ValueError(f"protocol: unknown metric {metric!r}; {did_you_mean(metric, CLICK_METRICS)}")
        self._require(bool(metrics), "metrics must name at least one metric", metrics)
        self._require(self.task == "click", "task must be 'click'", self.task)
        for field in ("test_share", "validation_share"):
            self._require(0.0 < getattr(self, field) < 1.0, f"{field} must lie in (0, 1)", getattr(self, field))
        shares = self.test_share + self.validation_share
        self._require(shares < 1.0, "test_share + validation_share must be below 1", shares)
        self._require(0.0 < self.negative_rate <= 1.0, "negative_rate must lie in (0, 1]", self.negative_rate)
        self._require(isinstance(self.seed, int) and self.seed >= 0, "seed must be a whole number >= 0", self.seed)

    @staticmethod
    def _require(condition: bool, requirement: str, value: Any) -> None:
        if not condition:
            raise ValueError(f"protocol: {requirement}, got {value!r}")

    def as_dict(self) -> dict[str, Any]:
        """Every field, JSON-ready; `from_dict` takes it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClickProtocol:
        """The protocol that `as_dict` wrote.

        Raises:
            ValueError: an unknown key, named with the closest known one.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"protocol: unknown field {key!r}; {did_you_mean(key, known)}")
        return cls(**values)

    def differences(self, other: Any) -> list[str]:
        """Fields in which the two disagree as "field: ours / theirs", but for those that change no figure's meaning."""
        ours, theirs = self.as_dict(), other.as_dict()
        if theirs.get("task") != self.task:
            return [f"task: {self.task!r} / {theirs.get('task')!r}"]
        ignored = set(_NOT_COMPARED)
        if self.holdout == other.holdout == "official":
            ignored |= {"test_share", "validation_share", "seed"}
        if self.holdout == other.holdout == "tail":
            ignored.add("seed")
        return [f"{k}: {ours[k]!r} / {theirs[k]!r}" for k in ours if k not in ignored and ours[k] != theirs[k]]

    def same_as(self, other: Any) -> bool:
        """Whether figures of the two may be compared."""
        return not self.differences(other)

    @property
    def headline(self) -> str:
        """The figure that chooses the epoch and leads a table."""
        return self.metrics[0]
