"""`deeprec compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import deeprec
from deeprec.cli.console import console, figure, print_json, rate, say, seconds, table

if TYPE_CHECKING:
    from deeprec.evaluate import Card


def compare(
    places: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Model folders or card files.")],
    table_file: Annotated[
        Path | None,
        typer.Option("--table", help="Add mean and spread of each model to this .csv or .json, for papers."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Put results side by side; runs that differ in the seed only also as mean and spread.

    Cards of different protocols or data are refused.
    """
    if table_file is not None:
        deeprec.evaluate.require_table(table_file)
    cards = [deeprec.evaluate.read_card(place) for place in places]
    groups = deeprec.evaluate.summarise(cards)
    if table_file is not None:
        deeprec.evaluate.add_to_table(table_file, deeprec.evaluate.table_of_means(cards))
    if as_json:
        print_json({"runs": deeprec.evaluate.compare(cards), "summary": groups})
        return
    varying = _varying(cards)
    names = list(dict.fromkeys(name for card in cards for name in card.metrics))
    first = cards[0]
    out = console()
    rule = deeprec.evaluate.protocol_from_dict(first.protocol)
    say(f"data {first.data.get('name')}, protocol {rule.name}, test part")
    out.print(_runs(cards, varying, names))
    if any(len(group["seeds"]) > 1 for group in groups):
        out.print(_summary(groups, varying, names))
    if table_file is not None:
        say(("written", "green"), f" to {table_file}")


def _varying(cards: Sequence[Card]) -> list[str]:
    """Options in which the cards differ, so that rows can be told apart."""
    keys = dict.fromkeys(key for card in cards for key in card.config)
    return [key for key in keys if len({repr(card.config.get(key)) for card in cards}) > 1]


def _runs(cards: Sequence[Card], varying: list[str], names: list[str]) -> Any:
    columns = ["model", *varying, "seed", *names, "epoch", "time", "samples"]
    rows = table(*columns, title="runs, best first", numbers=[c for c in columns if c != "model"])
    headline = names[0] if names else ""
    for card in sorted(cards, key=lambda c: deeprec.evaluate.metrics.best_first(headline, c.metrics.get(headline))):
        rows.add_row(
            card.model,
            *(_option(card.config.get(key)) for key in varying),
            str(card.seed),
            *(figure(card.metrics.get(name)) for name in names),
            str(card.epoch or "-"),
            seconds(card.seconds),
            rate(card.samples_per_second),
        )
    return rows


def _summary(groups: Sequence[dict[str, Any]], varying: list[str], names: list[str]) -> Any:
    columns = ["model", *varying, "seeds", *names]
    rows = table(*columns, title="mean and spread (standard deviation) over seeds", numbers=columns[1:])
    for group in groups:
        figures = (_with_spread(group[name]) for name in names)
        options = (_option(group["config"].get(key)) for key in varying)
        rows.add_row(group["model"], *options, str(len(group["seeds"])), *figures)
    return rows


def _with_spread(value: dict[str, float | None]) -> str:
    return figure(value["mean"]) + (f" ± {figure(value['std'])}" if value["std"] is not None else "")


def _option(value: Any) -> str:
    return "-" if value is None else str(value)
