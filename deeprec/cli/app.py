"""The command line put together: commands, the one place that turns user errors into a line, global options."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import deeprec
from deeprec._visible import visible
from deeprec.cli.console import print_error

# What a wrong name, value, file or folder raises. Anything else is our fault and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, KeyError, IndexError, OSError, ImportError)


@contextmanager
def _usage_errors_visible() -> Iterator[None]:
    """Typer repeats what the user typed in its own messages about wrong options."""
    try:
        yield
    except Exception as error:
        wrong: Any = error
        if hasattr(wrong, "format_message") and isinstance(getattr(wrong, "message", None), str):
            wrong.message = visible(wrong.message)
        raise


class _Formatter(logging.Formatter):
    """Lines of the library's log, whose names and values come from data."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))


# Where each command is, and the first sentence of its help: a command is imported when it is called, so that the others
# need not wait for it, or for torch.
_COMMANDS = {
    "train": ("train:train", "Train a model, choose the epoch on validation, and measure it once on the test part."),
    "tune": (
        "tune:tune",
        "Search a model's options by the validation part, which needs Optuna; the test part is not looked at.",
    ),
    "fit-more": (
        "fit_more:fit_more",
        "Go on training a saved model on rows that came later; new users, items and values get rows of their own.",
    ),
    "evaluate": (
        "evaluate:evaluate",
        "Measure a trained model again on its test part, by its own protocol or another.",
    ),
    "recommend": (
        "recommend:recommend",
        "Recommend items to users of the data, or to new ones by a history, ratings, tags or columns.",
    ),
    "index": (
        "index:index",
        "Write an index of a model's items into its folder, and say how much of the exact answer it gives, how fast.",
    ),
    "pipeline": (
        "pipeline:app",
        "Fit, measure, compare and ask whole pipelines, from candidates to lists that say why, by a YAML file.",
    ),
    "predict": (
        "predict:predict",
        "Write the click probability of every row of a file, by the features of training; no label is needed.",
    ),
    "serve": (
        "serve:serve",
        "Serve a model or pipeline over HTTP: recommendations, similar items, scores, events, metrics.",
    ),
    "schema": ("schema:schema", "Draft a feature schema from the first rows of a file, as YAML to be corrected."),
    "features": (
        "features:app",
        "Vectors of the media of items (image, audio, video, text): deeprec features extract.",
    ),
    "compare": (
        "compare:compare",
        "Put results side by side; runs that differ in the seed only also as mean and spread.",
    ),
    "models": ("tools:models", "List the models, or the options of one."),
    "recipes": (
        "tools:recipes",
        "List the recipes of the result pages: how their figures were made, for deeprec train --recipe.",
    ),
    "doctor": (
        "tools:doctor",
        "Say which implementation serves each operator and why, what is installed, and which data sets were found.",
    ),
    "data": (
        "data:app",
        "Data sets: which are known, where they are, how to get them, and which files train, schema, predict take.",
    ),
}


class _Commands(TyperGroup):
    """Commands whose user errors end in one line and status 2; `--debug` may stand anywhere.

    The context is click's, which some releases of typer bring along and others depend on, hence Any.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        names: Any = dict.fromkeys(_COMMANDS)  # what a mistyped name is compared with
        self.commands = names

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"deeprec.cli.{module}"), attribute)
        if not isinstance(command, typer.Typer):
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            alone.command(cmd_name)(command)
            command = alone
        made = typer.main.get_command(command)
        made.name = cmd_name
        return made

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(word for word in args if word != "--debug")]
        with _usage_errors_visible():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _usage_errors_visible():
                return super().invoke(ctx)
        except USER_ERRORS as error:
            if ctx.params.get("debug"):
                raise
            print_error(error)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # a bracket in a help text or in what the user typed is a bracket
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"deeprec {deeprec.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the library's log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Deep recommender models for PyTorch on fused kernels.

    Start with: deeprec train neumf --data synthetic --protocol ncf --out runs/first
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, handlers=[handler])
