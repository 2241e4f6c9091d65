"""`deeprec fit-more`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import deeprec
from deeprec import cli
from deeprec.cli.console import say
from deeprec.cli.options import (
    BestOnTest,
    DataDir,
    ItemFeatures,
    Logger,
    OnBad,
    Resume,
    Select,
    Table,
    TestData,
    UserFeatures,
    ValidationData,
)
from deeprec.cli.settings import DEVICE_HELP, add_parts, read_settings
from deeprec.config import make_config
from deeprec.registry import require_taken

_AGAIN = ("epochs", "lr")  # the options of a model that may be others than before


def fit_more(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `deeprec train` wrote.")],
    data: Annotated[str, typer.Option("--data", help="The later rows: a name, a file or a folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model that comes out.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="epochs=5 or lr=0.0005; others stay.")
    ] = None,
    validation_data: ValidationData = None,
    test_data: TestData = None,
    protocol_name: Annotated[
        str | None, typer.Option("--protocol", help="How to split and measure; that of the card by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of new rows of weights, order and negatives.")] = 0,
    resume: Resume = False,
    data_dir: DataDir = None,
    select: Select = None,
    best_on_test: BestOnTest = False,
    log: Annotated[
        Path | None, typer.Option("--log", help="Clicks: convert the rows into this folder, as they are encoded.")
    ] = None,
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    on_bad: OnBad = None,
    table_file: Table = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    logger: Logger = None,
) -> None:
    """Go on training a saved model on rows that came later; new users, items and values get rows of their own.

    Such as: deeprec fit-more runs/monday --data tuesday.csv --out runs/tuesday epochs=3

    What the model knew keeps its place, and the weights that it had win where no epoch is better. autorec and cfn need
    the old and the new rows together.
    """
    cli.running.require_ready("fit-more", device, table_file)
    loggers = cli.running.loggers_of(logger, out)
    model, card = deeprec.load(directory, device=device), deeprec.evaluate.read_card(directory)
    given = {
        "select": select,
        "best_on_test": best_on_test or None,
        "log": log,
        "on_bad": on_bad,
        "user_features": user_features,
        "item_features": item_features,
    }
    words = {f"--{name.replace('_', '-')}": name for name, value in given.items() if value is not None}
    require_taken(type(model), words, "fit-more")
    source = cli.sources.source_for(model)
    settings = read_settings(type(model.config), options or [], protocol=source.protocol_class)
    add_parts(settings, validation_data, test_data)
    for key in settings.model:
        if key not in _AGAIN:
            raise ValueError(
                f"fit-more: {key} stays what {directory} was trained with, got {key}={settings.model[key]}; only "
                f"{' and '.join(_AGAIN)} may be others"
            )
    make_config(type(model.config), model.config, settings.model)  # before the data is read
    request = cli.sources.Request(
        data,
        protocol_name,
        settings,
        out,
        seed,
        data_dir,
        user_features,
        item_features,
        log=log,
        on_bad=on_bad or "raise",
        start=directory,
    )
    task = source.open(model, source.rule_again(card, request), request, out)
    chosen = " ".join(f"{key}={value}" for key, value in settings.model.items())
    say((model.name, "bold"), f" of {directory} {chosen} ", (f"seed {seed}", "dim"))
    source.announce(task)
    source.announce_new(model, task)
    run: dict[str, Any] = {
        "seed": seed,
        "resume": resume,
        "select": select,
        "report_best_on_test": best_on_test,
        "device": device,
        "callbacks": loggers,
    }
    start = partial(deeprec.train.fit_more, model, task, **settings.model, **run)
    cli.running.train_and_tell(start, source, task, request, out, resume=resume)
    cli.running.write_row(table_file, out)
