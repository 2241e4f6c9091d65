"""`deeprec predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

import deeprec
from deeprec.cli.console import command, console
from deeprec.models.click import ClickModel
from deeprec.serve.predict import predict_file


def predict(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `deeprec train` wrote.")],
    source: Annotated[Path, typer.Option("--input", help="Rows to score: .parquet, .csv, .tsv, libSVM, ... (.gz).")],
    output: Annotated[Path, typer.Option("--output", help="Where to write: .parquet, .csv or .tsv.")],
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="A column of the input to write too, such as an id; repeat it.")
    ] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="csv, tsv, criteo, libsvm, libffm, parquet; by the name otherwise.")
    ] = None,
) -> None:
    """Write the click probability of every row of a file, by the features of training; no label is needed."""
    model = deeprec.load(directory)
    if not isinstance(model, ClickModel):
        raise ValueError(
            f"predict: {directory} holds {model.name}, which ranks items for users; use "
            f"{command('recommend', directory)}"
        )
    options = {} if file_format is None else {"format": file_format}
    with Progress(console=console(), transient=True) as bar:
        task = bar.add_task("predicting", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        rows = predict_file(model, source, output, keep=keep or (), on_progress=show, **options)
    console().print(f"[green]done[/]: {rows:,} probabilities written to {escape(str(output))}")
