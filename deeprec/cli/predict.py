"""`deeprec predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import deeprec
from deeprec.cli.console import progress, say
from deeprec.cli.options import ReadOptions
from deeprec.cli.settings import DEVICE_HELP, read_data_options
from deeprec.contract import PREDICTS


def predict(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `deeprec train` wrote.")],
    source: Annotated[
        Path,
        typer.Option("--input", help="Rows: .parquet, .csv, .tsv, Criteo's text, libSVM, libFFM, each also .gz."),
    ],
    output: Annotated[
        Path, typer.Option("--output", help="Where to write, whole or not at all: .parquet, .csv, .tsv or .jsonl.")
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="A column of the input to write too, such as an id; repeat it for more."),
    ] = None,
    options: ReadOptions = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="Of rows: csv, tsv, criteo, libsvm, libffm or parquet; by the name otherwise."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
) -> None:
    """Write the click probability of every row of a file, by the features of training; no label is needed.

    The column "probability" lies in [0, 1], a row a row of the input, in its order; values that training did not see
    are unknown ones.

    For a model of users and items: what it says of each pair of a table with columns user_id and item_id. The column is
    "rating", within the range of the training ratings, where it predicts ratings, and else "score", where larger is
    better. Users and items that it does not know are an error that names them.

    Such as: deeprec predict runs/first --input rows.csv --output scores.parquet --keep id
    """
    how = read_data_options(options, "predict")
    model = deeprec.load(directory, device=device)
    if PREDICTS not in model.capabilities:
        if file_format is not None:
            raise ValueError(f"predict: --format goes with click models, got {model.name}; leave it out")
        rows, name = deeprec.serve.predict_pairs_file(model, source, output, keep=keep or (), **how)
        say(("done", "green"), f": {rows:,} {name}s written to {output}")
        return
    if file_format is not None:
        how["format"] = file_format
    with progress() as bar:
        task = bar.add_task("predicting", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        rows = deeprec.serve.predict_file(model, source, output, keep=keep or (), on_progress=show, **how)
    say(("done", "green"), f": {rows:,} probabilities written to {output}")
