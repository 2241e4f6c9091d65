"""What every command prints with: consoles, the error line, tables of figures.

Nothing is markup here. Words that come from data, files or the user are text; styles are arguments:

    say(("done", "green"), " in ", seconds(card.seconds))
    rows.add_row("found", (folder, "green"))

So what looks like markup, an emoji code or a terminal's command is shown as it is written.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deeprec._visible import visible

Words = str | tuple[object, str]  # text, or what is shown and its style

_LONGEST_LINE, _LONGEST_CELL = 4000, 200


def text(*parts: Words, limit: int = _LONGEST_LINE) -> Text:
    """Parts one after the other, each with at most `limit` characters."""
    made = Text()
    for part in parts:
        words, style = part if isinstance(part, tuple) else (part, "")
        made.append(visible(words, limit), style)
    return made


class _Screen(Console):
    """A console to which plain text is text, wherever rich meets it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text, _LONGEST_LINE), **{**options, "markup": False, "emoji": False})


def console() -> Console:
    """Standard output; made anew so that it follows a redirected stream."""
    return _Screen()


def say(*parts: Words) -> None:
    """Print a line of parts."""
    console().print(text(*parts))


def print_error(error: BaseException | str) -> None:
    """One red line on standard error."""
    words = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    words = " ".join((words or type(error).__name__).split())
    _Screen(stderr=True).print(text(("error:", "bold red"), f" {words}"))


def print_json(value: Any) -> None:
    """JSON and nothing else, for programs; NaN becomes null. Its escapes leave nothing that a terminal obeys."""
    typer.echo(json.dumps(_finite(value), indent=2, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figure(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def rate(samples_per_second: float | None) -> str:
    """1.23M/s, 45.6k/s, 789/s, or a dash."""
    if samples_per_second is None:
        return "-"
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if samples_per_second >= limit:
            return f"{samples_per_second / limit:.3g}{letter}/s"
    return f"{samples_per_second:.0f}/s"


def seconds(value: float) -> str:
    """4.1 s, 2 min 03 s, 1 h 05 min."""
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole // 60 % 60:02d} min"


class Rows(Table):
    """A table whose cells are text, shortened where it is very long, or tables."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(_cell(cell) for cell in cells), **options)


def _cell(cell: Any) -> Any:
    return text(cell, limit=_LONGEST_CELL) if isinstance(cell, str | tuple) else cell


def table(*columns: str, title: str | None = None, numbers: Sequence[str] = (), show_header: bool = True) -> Rows:
    """An empty table; the columns called in `numbers` are set flush right."""
    heading = None if title is None else text(title)
    made = Rows(box=SIMPLE_HEAD, title=heading, title_justify="left", pad_edge=False, show_header=show_header)
    for column in columns:
        justify: Any = "right" if column in numbers else "left"
        made.add_column(_cell(column), justify=justify, overflow="fold")
    return made


def progress(*more: ProgressColumn) -> Progress:
    """A bar that goes away at its end, with these columns behind it; the percentage and the time left by default."""
    shown = more or (TextColumn("{task.percentage:>3.0f}%", markup=False), TimeRemainingColumn())
    description = TextColumn("{task.description}", markup=False)
    return Progress(description, BarColumn(bar_width=30), *shown, console=console(), transient=True)


def command(*words: object) -> str:
    """A command line that can be pasted into a shell; what a line cannot hold is for the user to write."""
    words = tuple("..." if visible(word, _LONGEST_CELL) != str(word) else word for word in words)
    return " ".join(shlex.quote(str(word)) for word in ("deeprec", *words))
