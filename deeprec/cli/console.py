"""What every command prints with: consoles, the error line, tables of figures."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def console() -> Console:
    """Standard output; made anew so that it follows a redirected stream."""
    return Console(highlight=False, soft_wrap=True)


def print_error(error: BaseException | str) -> None:
    """One red line on standard error."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join((text or type(error).__name__).split())
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(text)}")


def print_json(value: Any) -> None:
    """JSON and nothing else, for programs; NaN becomes null."""
    console().print(json.dumps(_finite(value), indent=2, default=str), markup=False)


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


def table(*columns: str, title: str | None = None, numbers: Sequence[str] = ()) -> Table:
    """An empty table; the columns called in `numbers` are set flush right."""
    made = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def command(*words: object) -> str:
    """A command line that can be pasted into a shell."""
    return " ".join(shlex.quote(str(word)) for word in ("deeprec", *words))
