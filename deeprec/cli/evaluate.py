"""`deeprec evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import deeprec
from deeprec import cli
from deeprec.cli.console import console, figure, print_json, say, table
from deeprec.cli.options import PROTOCOLS, Table
from deeprec.cli.settings import DEVICE_HELP, read_settings
from deeprec.config import TrainConfig


def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `deeprec train` wrote.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as protocol.cutoffs=5,10,20.")
    ] = None,
    protocol_name: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help=f"Another way to measure: {', '.join(PROTOCOLS)}; the rows held out stay those of training.",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="The data, if it lies elsewhere now.")] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Look for named data sets here first.")] = None,
    table_file: Table = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Measure a trained model again on its test part, by its own protocol or another."""
    if table_file is not None:
        deeprec.evaluate.require_table(table_file)  # before anything is measured
    model = deeprec.load(directory, device=device)
    card = deeprec.evaluate.read_card(directory)
    source = cli.sources.source_for(model)
    settings = read_settings(TrainConfig, options or [], protocol=source.protocol_class)
    if settings.model:
        raise ValueError(
            f"evaluate: {next(iter(settings.model))!r} is an option of training; protocol.KEY=VALUE fits here"
        )
    task = source.reopen(
        directory,
        model,
        card,
        name=protocol_name,
        overrides=settings.protocol,
        data=data,
        data_dir=data_dir,
        options=settings.data,
    )
    rule, trained = task.protocol, deeprec.evaluate.protocol_from_dict(card.protocol)
    figures = deeprec.train.evaluate_model(model, None, task)
    if table_file is not None:
        deeprec.evaluate.add_to_table(table_file, [deeprec.evaluate.table_row(card, figures, rule.as_dict())])
    if as_json:
        print_json({"model": card.model, "data": card.data, "protocol": rule.as_dict(), "metrics": figures})
        return
    same = rule.same_as(trained)
    columns = ["figure", "test", *(["on the card"] if same else [])]
    title = f"{card.model} on {card.data.get('name')}, protocol {rule.name}"
    rows = table(*columns, title=title, numbers=columns[1:])
    for name, value in figures.items():
        rows.add_row(name, figure(value), *([figure(card.metrics.get(name))] if same else []))
    console().print(rows)
    if table_file is not None:
        say(("written", "green"), f" to {table_file}")
    if not same:
        say(f"Not comparable with the card: {'; '.join(rule.differences(trained))}")
