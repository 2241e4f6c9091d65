"""`deeprec models` and `deeprec doctor`."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Annotated, Any

import typer

from deeprec import registry
from deeprec._first_line import first_line
from deeprec.cli.console import command, console, figure, print_json, say, table
from deeprec.contract import CAPABILITIES
from deeprec.option_help import Option, options_of
from deeprec.recipes import names as recipe_names
from deeprec.recipes import recipe as recipe_of

_WIDTH = 76  # of an explanation, which four blanks precede
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "tuple[int, ...]": "whole numbers, 64,32",
    "tuple[str, ...]": "words, a,b",
    "tuple[float, float] | None": "two numbers, or none",
}


def models(
    name: Annotated[str | None, typer.Argument(help="Show the options of this model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List the models, or the options of one."""
    out = console()
    if name is None:
        summaries = {each: _summary(each) for each in registry.names()}
        if as_json:
            print_json(summaries)
            return
        rows = table("model", "what it is")
        for each, summary in summaries.items():
            rows.add_row((each, "bold"), summary)
        out.print(rows)
        say(f"Options of one: {command('models', 'neumf')}")
        return
    kind = registry.model_class(name)
    options = options_of(kind.config_class)
    if as_json:
        print_json({option.name: _facts(option) for option in options})
        return
    say((name, "bold"), f": {_summary(name)}")
    can = "; ".join(words for each, words in CAPABILITIES.items() if each in kind.capabilities)
    for line in textwrap.wrap(f"It {can}.", _WIDTH):
        say(line)
    say()
    for option in options:
        say((option.name, "bold"), f"={_typed(option.default)}  ", (_KINDS.get(option.kind, option.kind), "dim"))
        for line in textwrap.wrap(f"{option.sentence()}.", _WIDTH):
            say(f"    {line}")
    say()
    say(f"Set one with key=value: {command('train', name, '--data', 'synthetic', '--out', 'DIR', 'epochs=5')}")


def _facts(option: Option) -> dict[str, Any]:
    """What programs are told of an option; `type` is the annotation of its field, or its values."""
    facts = {"type": option.kind, "default": option.default, "meaning": option.meaning}
    more = {"needs": option.needs, "default_by_data": option.by_data}
    return {**facts, **{key: words for key, words in more.items() if words}}


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value)) or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _summary(name: str) -> str:
    """First line of the docstring of a model's file, without its name."""
    line = first_line(registry.module_of(name))
    return line.partition(": ")[2] or line


def recipes(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False) -> None:
    """List the recipes of the result pages: how their figures were made, for deeprec train --recipe."""
    listed = [recipe_of(name) for name in recipe_names()]
    if as_json:
        print_json([dataclasses.asdict(each) for each in listed])
        return
    rows = table("recipe", "data", "protocol", "test figure")
    for each in listed:
        headline = next((f"{name} {figure(value)}" for name, value in each.figures.items()), "-")
        rows.add_row((each.name, "bold"), each.data, each.protocol["name"], headline)
    console().print(rows)
    say(f"Train one again: {command('train', '--recipe', 'frappe-click/deepfm', '--seed', 1)}")
    say(f"On your own:     {command('train', '--recipe', 'frappe-click/deepfm', '--data', 'mine.csv')}")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False) -> None:
    """Say which implementation serves each operator and why, what is installed, and which data sets were found."""
    from deeprec import doctor as facts

    report = facts.report()
    if as_json:
        print_json(report)
    else:
        console().print(facts.render(report))
