"""Tasks: what a model learns from and is measured by, as `deeprec.contract.Task` says."""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from deeprec.batches.levels import distinct_levels
from deeprec.batches.log import LogBatch
from deeprec.contract import Facts, Seen
from deeprec.data import Interactions, Split, from_frame
from deeprec.data import load as load_data
from deeprec.data.clicks.log import ClickLog
from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.inputs import Encoded
from deeprec.data.interactions.features import features_sha256
from deeprec.data.random_bits import random_bits
from deeprec.data.sets.click_datasets import load_clicks
from deeprec.data.sets.datasets import is_named
from deeprec.device import ahead, device_of
from deeprec.evaluate.click_metrics import click_figures, correct_for_sampling, plot_reliability, reliability
from deeprec.evaluate.click_protocol import ClickProtocol
from deeprec.evaluate.evaluator import evaluate, require_ratings
from deeprec.evaluate.protocols import Protocol
from deeprec.evaluate.protocols import protocol as protocol_by_name

_LOGIT_ROWS = 1 << 14
_CHOOSING = 7  # a stream of the protocol's seed; those before are of the splits
_BASELINE_ROWS = 1 << 17
_MEANS = {"global mean": "global", "user mean": "user", "item mean": "item", "biases": "both"}


class InteractionTask:
    """Ranking held-out items, or rating them, as the protocol says.

    Attributes:
        name: of the data.
        data: all interactions.
        protocol: resolved for the data.
        split: its parts.
    """

    def __init__(self, data: Interactions, protocol: Protocol) -> None:
        self.data, self.name = data, data.name
        self.protocol = protocol.resolve(data)
        self.split: Split = self.protocol.split(data)

    @classmethod
    def of(cls, data: Any, protocol: Any) -> InteractionTask:
        """From whatever `fit` accepts; protocol None: the task's own, or "full"."""
        if isinstance(data, cls):
            return data if protocol is None else data.under(as_protocol(protocol))
        interactions = as_interactions(data)
        return cls(interactions, as_protocol("full" if protocol is None else protocol))

    def under(self, protocol: Protocol) -> InteractionTask:
        """The same data, cut and measured by another protocol."""
        return type(self)(self.data, protocol)

    def require(self, model: Any) -> None:
        """Raise ValueError unless the model can do it and there are rows; before the training, not after an epoch."""
        require_ratings(model, self.protocol)
        is_rating = self.protocol.task == "rating"
        chooses = is_rating or model.trains_by_gradient
        for name in ("train", "validation", "test") if chooses else ("train", "test"):
            if not len(getattr(self.split, name)):
                what = "a rating" if is_rating else "an interaction"
                raise ValueError(
                    f"fit: the {name} part must hold {what}, got none of the {len(self.data)} of {self.name}; take "
                    "another protocol or more data"
                )

    def require_fitted(self, model: Any) -> None:
        """Raise ValueError unless the model has the ids of the data."""
        if model.user_ids is None or model.item_ids is None:
            raise ValueError(
                f"{model.name}: the model has no id maps; call fit(data) or load one with deeprec.load(dir)"
            )
        ours, theirs = (model.user_ids, model.item_ids), (self.data.user_ids, self.data.item_ids)
        if any(mine.sha256() != other.sha256() for mine, other in zip(ours, theirs, strict=True)):
            raise ValueError(
                f"{model.name}: evaluate needs the data the model was trained on, got other users or items in "
                f"{self.name!r}; train on it first"
            )

    def facts(self) -> Facts:
        """Of the training part."""
        rows, ratings = self.split.train, self.split.train.ratings
        users, items = (int(np.count_nonzero(counts)) for counts in (rows.user_counts(), rows.item_counts()))
        if ratings is None or not len(ratings):
            return Facts(len(rows), users, items)
        bounds = float(ratings.min()), float(ratings.max())
        assert self.data.ratings is not None
        spread = float(ratings.std(dtype=np.float64))
        return Facts(len(rows), users, items, bounds, spread, distinct_levels(self.data.ratings))

    def baselines(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Popularity and item-KNN, or the means and biases of ratings."""
        if self.protocol.task != "rating":
            return {"popularity": ("popularity", {}), "item-knn": ("item-knn", {})}
        return {label: ("bias", {"of": of}) for label, of in _MEANS.items()}

    def for_baselines(self, seed: int) -> InteractionTask:
        """Itself."""
        return self

    def build(self, model: Any, generator: torch.Generator) -> bool:
        """Make the parameters for the users and items."""
        model.build(model.schema_for(self.data), generator)
        return False

    def train(self, seed: int, *, joined: bool = False) -> Interactions:
        """The training part; `joined`: with the validation part."""
        return joined_rows(self.split.train, self.split.validation) if joined else self.split.train

    def validates(self) -> bool:
        """Whether there is a validation part."""
        return len(self.split.validation) > 0

    def figures(self, model: Any, part: str) -> dict[str, float]:
        """Figures of a part."""
        return evaluate(model, self.split, self.protocol, part=cast(Literal["validation", "test"], part))

    def choosing_figures(self, model: Any) -> dict[str, float]:
        """Figures of the validation part, or of its users that the protocol samples."""
        if self._choosing is None:
            return self.figures(model, "validation")
        return evaluate(model, self.split, self.protocol, "validation", users=self._choosing)

    @cached_property
    def _choosing(self) -> NDArray[np.int64] | None:
        """The users whose figures these are; None: all of the part."""
        return choosing_users(self.protocol, self.split.validation)

    def validation_sample(self) -> str:
        """How many users these are."""
        if self._choosing is None:
            return ""
        return f"{len(self._choosing):,} of {len(np.unique(self.split.validation.users)):,} users"

    def checksums(self, model: Any) -> dict[str, str]:
        """Of the data, its split, and the side information that the model takes."""
        tables = {name: getattr(self.data, name) for name in model.features_taken()}
        taken = {f"{name}_sha256": features_sha256(table) for name, table in tables.items() if table is not None}
        if (columns := getattr(model, "columns", None)) is not None:
            taken["columns_sha256"] = hashlib.sha256(columns.to_yaml().encode()).hexdigest()
        return {"sha256": self.data.sha256, "split_sha256": self.split.sha256, **taken}

    def described(self, model: Any, seed: int) -> dict[str, Any]:
        """Name, sizes and checksums."""
        return {
            "name": self.name,
            "users": self.data.num_users,
            "items": self.data.num_items,
            "interactions": len(self.data),
            **self.checksums(model),
        }

    def adopt(self, model: Any) -> None:
        """Give the model its id maps and every item each user has met, held-out ones too, so that it can recommend."""
        model.user_ids, model.item_ids = self.data.user_ids, self.data.item_ids
        model.seen = Seen(*self.data.csr())
        model._fitted_on = self
        model.eval()

    def draw(self, model: Any, directory: Path) -> None:
        """No picture."""


class ClickTask:
    """Predicting the clicks of held-out rows of a log.

    Attributes:
        name: of the log.
        log: with parts "train", "validation" and "test".
        protocol: which figures are measured, and the share of the negatives that training keeps; how the parts were cut
            is the log's, and the protocol's record of it.
    """

    def __init__(self, log: ClickLog, protocol: ClickProtocol) -> None:
        self.log, self.name, self.protocol = log, log.name, protocol
        self._train: tuple[int, ClickPart] | None = None
        self._tested: tuple[Any, NDArray[np.float32]] | None = None  # the model asked last, and its logits

    @classmethod
    def of(cls, data: Any, protocol: Any, schema: Any = None) -> ClickTask:
        """From whatever `fit` accepts; protocol None: the task's own, or "click"."""
        rule = as_click_protocol(protocol)
        if isinstance(data, cls):
            return data if protocol is None else cls(data.log, rule)
        if isinstance(data, ClickLog):
            return cls(data, rule)
        shares = (rule.validation_share, rule.test_share)
        return cls(load_clicks(data, schema, holdout=rule.holdout, shares=shares, seed=rule.seed), rule)

    def require(self, model: Any) -> None:
        """Raise ValueError for a part without rows of both labels, or a protocol that asks for another cut."""
        for name in ("train", "validation", "test"):
            part = self.log.parts.get(name)
            rows = 0 if part is None else len(part)
            clicks = 0 if part is None else part.positives
            if not 0 < clicks < rows:
                raise ValueError(
                    f"fit: the {name} part must hold rows of both labels, got {rows:,} rows with {clicks:,} clicks of "
                    f"{self.name}; take another split, or positive_from in the schema"
                )
        self._require_cut()

    def _require_cut(self) -> None:
        """The log is cut already: what the protocol says of the cut, but for its defaults, must be what was done."""
        kind, (_, validation, test), seed = self.log.split["kind"], self.log.split["shares"], self.log.split["seed"]
        is_drawn = kind == "random" or (kind == "files" and validation > 0)
        done = {
            "holdout": "official" if kind == "files" else kind,
            "test_share": test,
            "validation_share": validation,
            "seed": seed if is_drawn else 0,
        }
        default = ClickProtocol()
        for name, value in done.items():
            asked = getattr(self.protocol, name)
            if asked != getattr(default, name) and asked != value:
                raise ValueError(
                    f"fit: {name}={asked!r} has no effect on {self.name}, whose parts are made already "
                    f"({self.log.split}); leave it out, or cut the rows anew"
                )

    def require_fitted(self, model: Any) -> None:
        """Rows that do not fit the model's columns say so themselves."""

    def facts(self) -> Facts:
        """Of the training rows, those negatives left out that the protocol leaves out."""
        part, inputs = self.log.parts["train"], self.log.inputs
        rows = part.positives + round((len(part) - part.positives) * self.protocol.negative_rate)
        with_ids: tuple[Any, ...] = (*inputs.fields, *inputs.bags, *inputs.sequences)
        columns = len(with_ids) + len(inputs.numerics)
        values = sum(each.size for each in with_ids)
        return Facts(rows, columns=columns, values=values, positives=part.positives)

    def baselines(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The share of clicks, and logistic regression."""
        return {"base rate": ("base-rate", {}), "lr": ("lr", {})}

    def for_baselines(self, seed: int) -> ClickTask:
        """With a random part of the training rows where these are more than 2^17."""
        part = self.log.parts["train"]
        if len(part) <= _BASELINE_ROWS:
            return self
        parts = {**self.log.parts, "train": part.sampled(_BASELINE_ROWS, seed)}
        return ClickTask(replace(self.log, parts=parts), self.protocol)

    def build(self, model: Any, generator: torch.Generator) -> bool:
        """Make the parameters for the columns, and hand over what encodes them."""
        model.build(self.log.inputs, generator)
        facts = self.facts()
        model.start_at(math.log((facts.positives + 0.5) / (facts.rows - facts.positives + 0.5)))
        model.encoder, model.negative_rate = self.log.encoder, self.protocol.negative_rate
        return False

    def train(self, seed: int, *, joined: bool = False) -> ClickPart:
        """The training rows, without the negatives that the protocol leaves out."""
        part: ClickPart = self.log.parts["train"]
        if self.protocol.negative_rate == 1.0:
            return part
        if self._train is None or self._train[0] != seed:
            self._train = seed, part.downsampled(self.protocol.negative_rate, seed)
        return self._train[1]

    def validates(self) -> bool:
        """There are rows that choose the epoch."""
        return True

    def figures(self, model: Any, part: str) -> dict[str, float]:
        """Figures of a part."""
        rows = self.log.parts[part]
        logits = logits_of_part(model, rows)
        self._tested = (weakref.ref(model), logits) if part == "test" else None
        return click_figures(logits, rows.labels, rows.groups, self.protocol.metrics)

    def choosing_figures(self, model: Any) -> dict[str, float]:
        """Figures of the validation rows: all, for to predict a row costs less than to train on one."""
        return self.figures(model, "validation")

    def validation_sample(self) -> str:
        """None."""
        return ""

    def checksums(self, model: Any) -> dict[str, str]:
        """Of the log."""
        return {"sha256": self.log.sha256}

    def described(self, model: Any, seed: int) -> dict[str, Any]:
        """Name, rows and clicks of the parts, schema and split."""
        return {
            "name": self.name,
            "sha256": self.log.sha256,
            "rows": {name: len(part) for name, part in self.log.parts.items()},
            "clicks": {name: part.positives for name, part in self.log.parts.items()},
            "train_rows_used": len(self.train(seed)),
            "schema": self.log.schema.as_dict(),
            "split": self.log.split,
        }

    def adopt(self, model: Any) -> None:
        """Give the model what encodes its rows."""
        model.encoder, model.negative_rate = self.log.encoder, self.protocol.negative_rate
        model.eval()

    def draw(self, model: Any, directory: Path) -> None:
        """The reliability diagram of the test part, from the logits of its figures where these were the last."""
        rows, tested = self.log.parts["test"], self._tested
        is_known = tested is not None and tested[0]() is model
        logits = tested[1] if is_known and tested is not None else logits_of_part(model, rows)
        self._tested = None
        bins = {"test": reliability(logits, rows.labels)}
        plot_reliability(bins, directory / "reliability.png", title=f"{model.name} on {self.name}")


def choosing_users(protocol: Protocol, held_out: Interactions) -> NDArray[np.int64] | None:
    """The users [n] of the validation part who choose the epoch, ascending; None: all.

    Which ones depends on their external ids and the protocol's seed alone, not on the order of the rows.
    """
    count = protocol.validation_users or 0
    users = np.unique(held_out.users).astype(np.int64)
    if not 0 < count < len(users) or protocol.task == "rating":
        return None
    drawn = random_bits(protocol.seed, _CHOOSING, held_out.user_ids.keys()[users])
    return np.sort(users[np.argsort(drawn, kind="stable")[:count]])


def as_interactions(data: Any) -> Interactions:
    """Interactions from whatever `fit` accepts.

    Those that are there already, and sets by name, whose files are published in one order, keep the order of their
    rows; files and frames are put into one that shuffled rows have too, see `Interactions.canonical`.
    """
    if isinstance(data, Interactions):
        return data
    if isinstance(data, str | Path):
        loaded = load_data(str(data))
        return loaded if is_named(str(data)) else loaded.canonical()
    return from_frame(data).canonical()


def as_protocol(protocol: Any) -> Protocol:
    """A protocol for models that rank or rate, from its name or itself.

    Raises:
        TypeError: something else, that of click models too. ValueError: an unknown name.
    """
    chosen = protocol_by_name(protocol) if isinstance(protocol, str) else protocol
    if not isinstance(chosen, Protocol):
        raise TypeError(
            f"fit: protocol must be a name or a Protocol of models that rank or rate, got {protocol!r}; pass 'full'"
        )
    return chosen


def as_click_protocol(protocol: Any) -> ClickProtocol:
    """The protocol, the default one for None or "click"; TypeError for something else."""
    if protocol is None or (isinstance(protocol, str) and protocol == "click"):
        return ClickProtocol()
    if not isinstance(protocol, ClickProtocol):
        raise TypeError(
            f"fit: protocol must be a ClickProtocol, got {protocol!r}; pass deeprec.evaluate.protocol('click')"
        )
    return protocol


def logits_of_part(model: Any, part: ClickPart) -> NDArray[np.float32]:
    """Logits [n] of all rows of a part in their order, corrected for the negatives that training left out."""
    return _logits(model, part.batches(_LOGIT_ROWS))


def logits_of_rows(model: Any, rows: Encoded) -> NDArray[np.float32]:
    """Logits [n] of encoded rows; dropout and the like are off."""
    return _logits(model, [rows])


@torch.no_grad()
def _logits(model: Any, blocks: Iterable[Encoded]) -> NDArray[np.float32]:
    """Logits of the rows of all blocks, computed where the model is; they come from there in one piece."""
    was_training, device = model.training, device_of(model)
    model.eval()
    try:
        pieces = [model(batch).float() for batch in _there(blocks, device)]
    finally:
        model.train(was_training)
    logits: NDArray[np.float32] = torch.cat(pieces).cpu().numpy() if pieces else np.zeros(0, dtype=np.float32)
    return correct_for_sampling(logits, model.negative_rate)


def _there(blocks: Iterable[Encoded], device: torch.device) -> Iterator[LogBatch]:
    """Encoded rows as batches on a device."""
    return ahead(map(LogBatch.of, blocks), lambda batch: batch.to(device), device)


def joined_rows(first: Interactions, second: Interactions) -> Interactions:
    """The rows of two parts over the same id maps; a column that the first lacks is left out."""

    def both(column: str) -> Any:
        left, right = getattr(first, column), getattr(second, column)
        return None if left is None else np.concatenate([left, right])

    return replace(first, **{column: both(column) for column in first.row_columns})
