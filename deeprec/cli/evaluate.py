"""`deeprec evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

import deeprec
from deeprec.cli import folder
from deeprec.cli.clicks import evaluate_click_model
from deeprec.cli.console import console, figure, print_json, say, table
from deeprec.cli.settings import DEVICE_HELP, read_settings
from deeprec.evaluate import Protocol, protocol, read_card
from deeprec.models import ClickModel, TrainConfig

# What decides which rows the model was trained on: testing on other rows would test what it has seen.
_SPLIT_FIELDS = ("holdout", "test_share", "validation", "validation_share", "seed")


def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `deeprec train` wrote.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as protocol.cutoffs=5,10,20.")
    ] = None,
    protocol_name: Annotated[
        str | None, typer.Option("--protocol", help="Another way to measure; the rows held out stay those of training.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="The data, if it lies elsewhere now.")] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Look for named data sets here first.")] = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Measure a trained model again on its test part, by its own protocol or another."""
    model = deeprec.load(directory, device=device)
    card = read_card(directory)
    if isinstance(model, ClickModel):
        if options or protocol_name:
            raise ValueError(f"evaluate: {model.name} is measured by the protocol of its training; leave options out")
        evaluate_click_model(directory, model, card, data=data, data_dir=data_dir, as_json=as_json)
        return
    settings = read_settings(TrainConfig, options or [])
    if settings.model:
        raise ValueError(
            f"evaluate: {next(iter(settings.model))!r} is an option of training; protocol.KEY=VALUE fits here"
        )
    trained = Protocol.from_dict(card.protocol)
    rule = _protocol(trained, protocol_name, settings.protocol)
    source, data_options = (data, {}) if data is not None else folder.source_of(directory)
    interactions = folder.load_data(source, data_dir, {**data_options, **settings.data})
    if interactions.sha256 != card.data.get("sha256"):
        raise ValueError(
            f"evaluate: {interactions.name} is not what {directory} was trained on (its SHA-256 is another), so its "
            "test part may hold training rows; pass the same data"
        )
    rule = rule.resolve(interactions)
    figures = model.evaluate(rule, interactions)
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
    if not same:
        say(f"Not comparable with the card: {'; '.join(rule.differences(trained))}")


def _protocol(trained: Protocol, name: str | None, overrides: dict[str, object]) -> Protocol:
    """The protocol asked for, on the rows that training held out."""
    for key in overrides:
        if key in _SPLIT_FIELDS:
            raise ValueError(
                f"evaluate: protocol.{key} would test rows that the model has trained on; train anew with it"
            )
    if name is None:
        return trained.changed(**overrides)
    kept = {field: getattr(trained, field) for field in _SPLIT_FIELDS}
    return dataclasses.replace(protocol(name, **overrides), **kept)
