"""`deeprec models` and `deeprec doctor`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated

import typer

from deeprec import models as registry
from deeprec.cli.console import command, console, print_json, say, table
from deeprec.config import taken_options
from deeprec.contract import CAPABILITIES


def models(
    name: Annotated[str | None, typer.Argument(help="Show the options of this model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List the models, or the options of one."""
    out = console()
    if name is None:
        summaries = {each: _summary(registry.model_class(each)) for each in registry.names()}
        if as_json:
            print_json(summaries)
            return
        rows = table("model", "what it is")
        for each, summary in summaries.items():
            rows.add_row((each, "bold"), summary)
        out.print(rows)
        say(f"Options of one: {command('models', 'neumf')}")
        return
    config = registry.config_class(name)
    taken = taken_options(config)
    options = {
        field.name: (str(field.type), field.default) for field in dataclasses.fields(config) if field.name in taken
    }
    if as_json:
        print_json({key: {"type": kind, "default": default} for key, (kind, default) in options.items()})
        return
    rows = table("option", "type", "default", title=f"{name}: {_summary(registry.model_class(name))}")
    for key, (kind, default) in options.items():
        rows.add_row((key, "bold"), kind, repr(default))
    out.print(rows)
    can = registry.model_class(name).capabilities
    say(f"It {', '.join(words for each, words in CAPABILITIES.items() if each in can)}.")
    say(f"Set one with key=value: {command('train', name, '--data', 'synthetic', '--out', 'DIR', 'epochs=5')}")


def _summary(model: type) -> str:
    """First line of the docstring of the model's file, without its name."""
    line = (inspect.getdoc(inspect.getmodule(model)) or "").partition("\n")[0]
    return line.partition(": ")[2] or line


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False) -> None:
    """Say which implementation serves each operator and why, what is installed, and which data sets were found."""
    from deeprec import doctor as facts

    report = facts.report()
    if as_json:
        print_json(report)
    else:
        console().print(facts.render(report))
