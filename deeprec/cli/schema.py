"""`deeprec schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deeprec._files import write_atomically
from deeprec.cli.console import command, say
from deeprec.data.columns.schema_inference import infer
from deeprec.data.reading.sources import open_source


def schema(
    source: Annotated[Path, typer.Argument(help="A file of rows: CSV, TSV, Parquet, ... (.gz).")],
    label: Annotated[str, typer.Option("--label", help="The column that says click or not.")] = "label",
    output: Annotated[Path | None, typer.Option("--output", help="Write it here instead of the screen.")] = None,
    file_format: Annotated[str | None, typer.Option("--format", help="csv, tsv, criteo, parquet, ...")] = None,
) -> None:
    """Draft a feature schema from the first rows of a file, as YAML to be corrected."""
    inferred = infer(open_source(source, format=file_format), label=label)
    if output is None:
        typer.echo(inferred.to_yaml())  # as it is, for a file; YAML and its comments escape what a terminal obeys
        return
    write_atomically(output, inferred.to_yaml().encode())
    then = command("train", "deepfm", "--data", source, "--schema", output)
    say(("written", "green"), f" {output}; correct it, then: {then}")
