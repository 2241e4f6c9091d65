"""Result cards: a figure together with everything needed to trust, repeat and compare it. JSON, written atomically."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from deeprec._files import read_json, write_atomically
from deeprec._hardware import hardware
from deeprec._record import check_fields
from deeprec.evaluate.click_protocol import ClickProtocol
from deeprec.evaluate.metrics import best_first
from deeprec.evaluate.protocols import Protocol, protocol_from_dict

SCHEMA_VERSION = 1
CHECKSUMS = ("sha256", "split_sha256", "user_features_sha256", "item_features_sha256")  # keys of `Card.data`
Figures: TypeAlias = Mapping[str, float | None]  # None: not defined, such as a mean over no rows


@dataclass(frozen=True)
class Card:
    """The result of one training run.

    Attributes:
        model: registered name of the model, such as "neumf".
        config: its options, JSON-ready.
        data: name, sha256, users, items, interactions of the data set; split_sha256 where known; user_features_sha256
            and item_features_sha256 of the tables of side information that the model takes; start_sha256 of the weights
            that `fit_more` went on from, where it did.
        chosen: names of the options whose value the data chose, see `deeprec.config.ByData`.
        protocol: `Protocol.as_dict()` of the resolved protocol.
        metrics: test figures of the epoch that validation chose, such as {"hr@10": 0.69}.
        seed: seed of the training.
        seconds: wall time of the training.
        validation_metrics: validation figures of the same epoch, of the whole part.
        baselines: test figures of the simple methods on the same data, by label such as "popularity".
        best_on_test: {"epoch": n, "metrics": {...}}: what choosing the epoch on the test list would have shown; an
            inflated figure for comparison with papers that report it, never the result. None if not measured.
        samples_per_second: training samples (positives and negatives) a second, None if not measured.
        epoch: epoch that validation chose, from 1, None where there are no epochs.
        select: the figure that chose it, None where not known.
        history: one dict an epoch; its validation figures are those that chose the epoch, of a sample of the users
            where the protocol says so.
        device: where the model was trained and measured, "cpu" or "cuda:0"; None where not known. No part of what makes
            cards comparable.
        versions, hardware: where it ran; filled in on construction.
        schema_version: of this file format.
    """

    model: str
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    protocol: Mapping[str, Any]
    metrics: Figures
    seed: int
    seconds: float
    validation_metrics: Figures = field(default_factory=dict)
    chosen: Sequence[str] = ()
    baselines: Mapping[str, Figures] = field(default_factory=dict)
    best_on_test: Mapping[str, Any] | None = None
    samples_per_second: float | None = None
    epoch: int | None = None
    select: str | None = None
    history: Sequence[Mapping[str, Any]] = ()
    device: str | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    hardware: Mapping[str, Any] = field(default_factory=lambda: hardware())
    schema_version: int = SCHEMA_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Every field, in a form that JSON can hold: NaN and infinities become null."""
        plain = _plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return {"schema_version": plain.pop("schema_version"), **plain}

    def beaten_by(self) -> list[str]:
        """Where a baseline is better, in words, such as "rmse 0.99 is worse than 0.89 of user mean"; the best of them.

        Looked at are the figure that chose the epoch and, of clicks, the log loss.
        """
        headline = self.select or next(iter(self.metrics), "")
        worse = []
        for name in (headline, *(["log_loss"] if headline != "log_loss" else [])):
            mine, values = self.metrics.get(name), {k: figures.get(name) for k, figures in self.baselines.items()}
            known = {label: value for label, value in values.items() if value is not None and math.isfinite(value)}
            if mine is None or not known:
                continue
            best = min(known, key=lambda label: best_first(name, known[label]))
            if not best_first(name, mine) <= best_first(name, known[best]):
                worse.append(f"{name} {mine:.4g} is worse than {known[best]:.4g} of {best}")
        return worse

    def write(self, path: str | Path) -> Path:
        """Write the card as JSON; `path` holds either the old or the whole new file at every moment.

        Raises:
            OSError: the folder is missing, read-only or full; nothing half-written is left behind.
        """
        path = Path(path)
        write_atomically(path, (json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n").encode())
        return path


def _plain(value: Any) -> Any:
    """Dicts, lists, strings, numbers and None out of mappings, sequences, paths and NumPy numbers."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def read_card(path: str | Path) -> Card:
    """The card in a file, or in the `card.json` of a model folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object, lacks fields, or a newer version of deeprec wrote it.
    """
    path = Path(path)
    path = path / "card.json" if path.is_dir() else path
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(
            f"read_card: no card at {path}; a finished `deeprec train --out DIR` writes DIR/card.json"
        )
    values = read_json(path, "read_card", "train again or restore the file")
    version = values.get("schema_version")
    if type(version) is not int or version < 1:
        raise ValueError(
            f"read_card: {path} is no result card: its schema_version is {version!r:.80}; pass a card.json"
        )
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"read_card: {path} has schema version {version}, this deeprec reads up to {SCHEMA_VERSION}; "
            "upgrade deeprec-torch"
        )
    known = {field.name for field in dataclasses.fields(Card)}
    where: dict[str, Any] = {"versions": {}, "hardware": {}}  # those of the run, never of the reader
    try:
        fields = check_fields(Card, {**where, **{k: v for k, v in values.items() if k in known}}, "", optional=True)
        is_click = fields["protocol"].get("task") == "click"
        check_fields(ClickProtocol if is_click else Protocol, fields["protocol"], "protocol", optional=True)
        protocol_from_dict(fields["protocol"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"read_card: {path}: {error}; train again or restore the file") from None
    return Card(**fields)


def versions() -> dict[str, str]:
    """Versions of what made a figure."""
    import deeprec

    return {
        "deeprec": getattr(deeprec, "__version__", "unknown"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def check_comparable(cards: Sequence[Card]) -> None:
    """ValueError naming what differs unless all cards have one protocol and one data set."""
    for card in cards[1:]:
        differences = _differences(cards[0], card)
        if differences:
            raise ValueError(
                f"compare: the figures of {_label(cards[0])} and {_label(card)} are not comparable: "
                f"{'; '.join(differences)}; evaluate both under one protocol and data set"
            )


def _differences(first: Card, second: Card) -> list[str]:
    protocols = [protocol_from_dict(card.protocol) for card in (first, second)]
    differences = [f"protocol {line}" for line in protocols[0].differences(protocols[1])]
    for key in CHECKSUMS:
        ours, theirs = first.data.get(key), second.data.get(key)
        if ours != theirs and (key == "sha256" or None not in (ours, theirs)):
            names = (f"{card.data.get('name')} {str(card.data.get(key))[:12]}" for card in (first, second))
            differences.append(f"data {key}: {' / '.join(names)}")
            break
    return differences


def _label(card: Card) -> str:
    return f"{card.model} (seed {card.seed})"


def compare(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """One row a card: model, seed, every figure, seconds; the best headline figure first.

    A figure that some cards lack is None there.

    Raises:
        ValueError: no cards, or cards of different protocols or data, naming the fields that differ.
    """
    names = _metric_names(cards)
    rows: list[dict[str, Any]] = [
        {
            "model": card.model,
            "seed": card.seed,
            **{name: card.metrics.get(name) for name in names},
            "seconds": card.seconds,
            "samples_per_second": card.samples_per_second,
        }
        for card in cards
    ]
    return sorted(rows, key=lambda row: best_first(names[0], row[names[0]]) if names else 0.0)


def summarise(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """One row for each model and configuration: mean and spread of every figure over the seeds.

    Returns:
        model, config, seeds (a list), then for each figure {"mean": m, "std": s}; s is the sample standard deviation
        (n - 1), None for a single seed. Best headline mean first.
    Raises:
        ValueError: as `compare`, and for two cards of one configuration with the same seed.
    """
    names = _metric_names(cards)
    groups: dict[str, list[Card]] = {}
    for card in cards:
        config = {k: v for k, v in card.config.items() if k != "seed"}
        groups.setdefault(json.dumps([card.model, _plain(config)], sort_keys=True), []).append(card)
    rows: list[dict[str, Any]] = []
    for group in groups.values():
        seeds = [card.seed for card in group]
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"summarise: each seed may come once for {group[0].model}, got seeds {seeds}")
        row: dict[str, Any] = {"model": group[0].model, "config": dict(group[0].config), "seeds": sorted(seeds)}
        for name in (*names, "seconds"):
            row[name] = _mean_and_spread(
                [getattr(c, name, None) if name == "seconds" else c.metrics.get(name) for c in group]
            )
        rows.append(row)
    return sorted(rows, key=lambda row: best_first(names[0], row[names[0]]["mean"]) if names else 0.0)


def _metric_names(cards: Sequence[Card]) -> list[str]:
    """Figures of all cards in the order they first appear, after the check that the cards go together."""
    if not cards:
        raise ValueError("compare: at least one card is needed, got none; pass the folders that training wrote")
    check_comparable(cards)
    return list(dict.fromkeys(name for card in cards for name in card.metrics))


def _mean_and_spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(known)), "std": float(np.std(known, ddof=1)) if len(known) > 1 else None}
