"""`deeprec schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deeprec._files import write_atomically
from deeprec.cli.console import command, say
from deeprec.cli.options import ReadOptions
from deeprec.cli.settings import read_data_options
from deeprec.data.sets.click_files import DRAFT, drafted_schema


def schema(
    source: Annotated[Path, typer.Argument(help="A file of rows: CSV, TSV, Parquet, ... (.gz).")],
    label: Annotated[str, typer.Option("--label", help="The column that says click or not.")] = "label",
    output: Annotated[Path | None, typer.Option("--output", help="Write it here instead of the screen.")] = None,
    file_format: Annotated[str | None, typer.Option("--format", help="csv, tsv, criteo, parquet, ...")] = None,
    options: ReadOptions = None,
) -> None:
    """Draft a feature schema from the first rows of a file, as YAML to be corrected."""
    how = read_data_options(options, "schema")
    if file_format is not None:
        how["format"] = file_format
    inferred = drafted_schema(source, {"label": label, **{key: how.pop(key) for key in DRAFT if key in how}}, how)
    if output is None:
        typer.echo(inferred.to_yaml())  # as it is, for a file; YAML and its comments escape what a terminal obeys
        return
    write_atomically(output, inferred.to_yaml().encode())
    then = command("train", "deepfm", "--data", source, "--schema", output, *(options or ()))
    say(("written", "green"), f" {output}; correct it, then: {then}")
