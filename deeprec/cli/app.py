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


class _Commands(TyperGroup):
    """Commands whose user errors end in one line and status 2; `--debug` may stand anywhere.

    The context is click's, which some releases of typer bring along and others depend on, hence Any.
    """

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


def _assemble() -> None:
    from deeprec.cli import compare, evaluate, fit_more, predict, recommend, schema, tools, train

    app.command("train")(train.train)
    app.command("fit-more")(fit_more.fit_more)
    app.command("evaluate")(evaluate.evaluate)
    app.command("recommend")(recommend.recommend)
    app.command("predict")(predict.predict)
    app.command("schema")(schema.schema)
    app.command("compare")(compare.compare)
    app.command("models")(tools.models)
    app.command("doctor")(tools.doctor)
    app.add_typer(importlib.import_module("deeprec.cli.data").app, name="data")


_assemble()
