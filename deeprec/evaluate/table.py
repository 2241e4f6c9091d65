"""Figures as a table for papers: CSV or JSON, a row a result, added to the file that is there."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeprec._files import one_at_a_time, read_regular, write_atomically
from deeprec.evaluate.card import Card, Figures, summarise
from deeprec.evaluate.click_protocol import ClickProtocol
from deeprec.evaluate.protocols import PROTOCOLS, protocol_from_dict
from deeprec.registry import config_class, names

SUFFIXES = (".csv", ".json")
_REMEDY = "take another file"


def table_row(card: Card, figures: Figures | None = None, protocol: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """model, data, protocol, seed, options, epoch, each test figure, and seconds of the training.

    `protocol` says what differs from the one of its name, `options` what differs from the model's defaults.

    Args:
        figures, protocol: where these were measured anew; those of the card by default.
    """
    measured = card.metrics if figures is None else figures
    return {
        **_head(card.model, card, protocol, card.config),
        "seed": card.seed,
        "epoch": card.epoch,
        **measured,
        "seconds": round(card.seconds, 3),
    }


def table_of_means(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """A row for each model and configuration: the mean of each figure over seeds, and FIGURE_std, its spread.

    Raises:
        ValueError: as `deeprec.evaluate.summarise`.
    """
    figures = dict.fromkeys(name for card in cards for name in card.metrics)
    rows = []
    for group in summarise(cards):
        row = {**_head(group["model"], cards[0], None, group["config"]), "seeds": len(group["seeds"])}
        for name in (*figures, "seconds"):
            row |= {name: group[name]["mean"], f"{name}_std": group[name]["std"]}
        rows.append(row)
    return rows


def _head(model: str, card: Card, protocol: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "data": card.data.get("name"),
        "protocol": _protocol_words(protocol_from_dict(card.protocol if protocol is None else protocol).as_dict()),
        "options": _changed(config, _defaults(model)),
    }


def _defaults(model: str) -> dict[str, Any]:
    if model not in names():
        return {}
    return {field.name: field.default for field in dataclasses.fields(config_class(model))}


def _protocol_words(protocol: Mapping[str, Any]) -> str:
    name = str(protocol["name"])
    usual = ClickProtocol().as_dict() if name == "click" else PROTOCOLS[name].as_dict() if name in PROTOCOLS else {}
    resolved = [key for key, value in usual.items() if value == "auto"]  # by the data
    shown = {key: value for key, value in protocol.items() if key not in (*resolved, "name")}
    return f"{name} {_changed(shown, usual)}".strip()


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """key=value of the values that are not the default, as the command line takes them."""
    plain: Mapping[str, Any] = json.loads(json.dumps(dict(defaults), default=str))
    return " ".join(
        f"{key}={_typed(value)}"
        for key, value in values.items()
        if key not in plain or json.loads(json.dumps(value, default=str)) != plain[key]
    )


def _typed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_typed, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def require_table(path: str | Path) -> Path:
    """The path of a table that can be written to.

    Raises:
        ValueError: another kind of file, a folder that there is not, or a file that holds no such table.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"table: a file must end in {' or '.join(SUFFIXES)}, got {path.name}")
    if not path.parent.is_dir():
        raise ValueError(f"table: a file must lie in a folder there is, got {path.parent}; make it first")
    _read(path)
    return path


def add_to_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Add rows to a table, or begin one; a row that is there already is not added again.

    Args:
        path: .csv, whose columns must be those of the rows, or .json, a list of objects.
    Returns:
        rows added.
    Raises:
        ValueError: as `require_table`, or columns that differ.
    """
    path = require_table(path)
    with one_at_a_time(path.parent):
        known = _read(path)
        fresh = [row for row in (_plain(row, path.suffix) for row in rows) if row not in known]
        if path.suffix == ".csv" and known and fresh and [*known[0]] != [*fresh[0]]:
            raise ValueError(
                f"table: the columns of {path} must be {', '.join(fresh[0])}, got {', '.join(known[0])}; {_REMEDY}"
            )
        if fresh:
            write_atomically(path, _text([*known, *fresh], path.suffix).encode())
    return len(fresh)


def _plain(row: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """A row as it is read back."""
    if suffix == ".json":
        plain: dict[str, Any] = json.loads(json.dumps(dict(row), default=str))
        return plain
    return {str(key): "" if value is None else str(value) for key, value in row.items()}


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, none where there is no file."""
    if not path.exists():
        return []
    content = read_regular(path, "table", _REMEDY)
    try:
        if path.suffix == ".json":
            rows = json.loads(content.decode("utf-8"))
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError("it is no list of objects")
            return rows
        return list(csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"table: {path} must hold a table of figures, got {error}; {_REMEDY}") from None


def _text(rows: Sequence[Mapping[str, Any]], suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(rows, indent=2) + "\n"
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
