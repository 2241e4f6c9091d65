"""What each option of a model means, read from where it is declared: config classes, their docstrings and rules.

One source for `deeprec models NAME`, `help(NeuMF)` and the signature of every model's class.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any, NamedTuple

from deeprec.config import defaults_by_data, taken_options

_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")
_SECTION = re.compile(r"^Attributes\b.*\n", re.MULTILINE)
_CHOICES = ("optimizer", "lr_schedule")  # how names of options end whose values `optimizers`, `lr_schedules` list
_WIDTH = 76  # what pydoc leaves of 80 columns


class Option(NamedTuple):
    """An option of a model.

    Attributes:
        name: of the field of its config class.
        kind: its annotation, such as "int", or its values, such as "adam | sgd".
        default: where the data chooses none.
        meaning: what it is, with its range; without a full stop.
        needs: what gives it an effect, such as "pretrain=True"; "" where it always has one.
        by_data: how its default is chosen by the data; "" where it is not.
    """

    name: str
    kind: str
    default: Any
    meaning: str
    needs: str = ""
    by_data: str = ""

    def sentence(self) -> str:
        """The meaning, and what else is to be known."""
        parts = [self.meaning]
        if self.needs:
            parts.append(f"has an effect with {self.needs}")
        if self.by_data:
            parts.append(f"where it is not given, the data chooses it: {self.by_data}")
        return "; ".join(part for part in parts if part)


def options_of(config_class: type[Any]) -> tuple[Option, ...]:
    """Options that a model takes, in the order of declaration; those that it never uses are left out."""
    meanings: dict[str, str] = {}
    needs: dict[str, str] = {}
    for owner in reversed(config_class.__mro__):
        meanings |= _attributes(vars(owner).get("__doc__") or "")
        needs |= {name: rule.needs for rule in vars(owner).get("conditions", ()) for name in rule.options}
    rules = defaults_by_data(config_class)
    taken = taken_options(config_class)
    return tuple(
        Option(
            field.name,
            _kind(config_class, field),
            field.default,
            meanings.get(field.name, ""),
            needs.get(field.name, ""),
            rules[field.name].how if field.name in rules else "",
        )
        for field in dataclasses.fields(config_class)
        if field.name in taken
    )


def _kind(config_class: type[Any], field: dataclasses.Field[Any]) -> str:
    listed = [f"{end}s" for end in _CHOICES if field.name.endswith(end)]
    return " | ".join(getattr(config_class, listed[0])) if listed else str(field.type)


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of the section "Attributes" of a docstring, each in one line without a full stop."""
    _, *section = _SECTION.split(inspect.cleandoc(docstring), maxsplit=1)
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent("".join(section)).splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry is not None:
            names = entry[1].split(", ")
            entries |= dict.fromkeys(names, entry[2])
        elif line.startswith(" ") and names:
            entries |= dict.fromkeys(names, f"{entries[names[0]]} {line.strip()}")
    return {name: words.removesuffix(".") for name, words in entries.items()}


def show_options(model: Any) -> None:
    """Put the options of a class of models into its docstring and signature, where help() looks."""
    own = vars(model)
    takes_options = any(each.kind == each.VAR_KEYWORD for each in _parameters(model.__init__))
    config_class = getattr(model, "config_class", None) if takes_options else None
    if "config_class" in own and config_class is not None:
        model.__doc__ = _with_options(own.get("__doc__") or f"The model {model.name}.", config_class)
    if "config_class" in own or "__init__" in own:
        model.__signature__ = _signature(model.__init__, config_class)


def _parameters(init: Any) -> list[inspect.Parameter]:
    """Of a class, by its `__init__`."""
    return list(inspect.signature(init).parameters.values())[1:]


def _with_options(docstring: str, config_class: type[Any]) -> str:
    """A docstring with a section for the options."""
    entries = [
        textwrap.fill(
            f"{option.name} ({option.kind}, default {option.default!r}): {option.sentence()}.",
            _WIDTH,
            initial_indent="    ",
            subsequent_indent="        ",
        )
        for option in options_of(config_class)
    ]
    return "\n".join([inspect.cleandoc(docstring), "", "Options:", *(entries or ["    none"])])


def _signature(init: Any, config_class: type[Any] | None) -> inspect.Signature:
    """That of an `__init__`, with the options of a config class in place of **options."""
    if config_class is None:
        return inspect.Signature(_parameters(init))
    types = {field.name: field.type for field in dataclasses.fields(config_class)}
    options = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=types[each.name])
        for each in options_of(config_class)
    ]
    return inspect.Signature([each for each in _parameters(init) if each.kind != each.VAR_KEYWORD] + options)
