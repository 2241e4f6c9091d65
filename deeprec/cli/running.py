"""What `deeprec train` and `deeprec fit-more` do alike: train, showing how far it is, and tell what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from deeprec.cli.console import console, say, seconds
from deeprec.cli.display import Display, figures_table
from deeprec.cli.sources import Request
from deeprec.device import resolve_device
from deeprec.evaluate import add_to_table, read_card, require_table, table_row
from deeprec.train import Callback, FitResult
from deeprec.train.checkpoint import has_checkpoint
from deeprec.train.loggers import logger_by_name

_FILES = ("model.safetensors", "encoder", "config.json", "card.json", "curves.png", "reliability.png", "metrics.csv")
INTERRUPTED = 130  # what a shell reports after Ctrl-C


def require_ready(function: str, device: str, table: Path | None) -> None:
    """Raise ValueError, before the data is read, for a device or a table that cannot be."""
    resolve_device(device, function)
    if table is not None:
        require_table(table)


def loggers_of(names: Sequence[str] | None, target: Path) -> list[Callback]:
    """The loggers of --logger, each once."""
    return [logger_by_name(each, target) for each in dict.fromkeys(names or ())]


def write_row(table: Path | None, target: Path) -> None:
    """Add the figures of a finished run to a table, if there is to be one."""
    if table is not None:
        add_to_table(table, [table_row(read_card(target))])
        say(("written", "green"), f" to {table}")


def train_and_tell(
    start: Callable[..., FitResult], source: Any, task: Any, request: Request, target: Path, *, resume: bool
) -> None:
    """Train, showing how far it is, remember the data in the folder, and say what came out.

    Args:
        start: trains, given `out` and `on_progress`.
        source: of `deeprec.cli.sources`, whose `task` it is.
        target: the folder.
    """
    say(f"out       {target}")
    if not resume and has_checkpoint(target):
        say("          ", ("an unfinished run is there; starting anew (--resume would go on with it)", "yellow"))
    with Display() as display:
        try:
            result = start(out=target, on_progress=display.show)
        except KeyboardInterrupt:
            display.stop()
            say(("interrupted", "yellow"), f" after {display.finished} finished epochs; go on with the same command "
                f"and --resume (--out {target})")  # fmt: skip
            raise typer.Exit(INTERRUPTED) from None
    if result.was_finished:
        say(("already finished:", "green"), f" {target}; nothing to resume")
    else:
        written = source.remember(target, task, request)
        chosen = {name: result.card.config[name] for name in result.card.chosen}
        if chosen:
            say("by data   ", " ".join(f"{name}={value}" for name, value in chosen.items()))
        console().print(figures_table(result.card))
        files = [name for name in _FILES if (target / name).exists()]
        say(("done", "green"), f" in {seconds(result.card.seconds)}. Written to {target}: "
            f"{', '.join([*files, *written])}")  # fmt: skip
    source.say_next(target, task)
