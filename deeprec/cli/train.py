"""`deeprec train`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import deeprec
from deeprec import cli, registry
from deeprec.cli import recipe
from deeprec.cli.console import say
from deeprec.cli.options import (
    PROTOCOLS,
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


def train(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="One of `deeprec models`; not needed with --recipe.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options such as epochs=20 factors=32.")
    ] = None,
    recipe_name: Annotated[
        str | None,
        typer.Option("--recipe", help="Options of a result page, one of `deeprec recipes`, for its data or --data."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A name of `deeprec data list`, a file, files with commas, or a folder; see data; or synthetic.",
        ),
    ] = None,
    validation_data: ValidationData = None,
    test_data: TestData = None,
    protocol_name: Annotated[
        str | None,
        typer.Option("--protocol", help=f"How to split and measure: {', '.join(PROTOCOLS)}; clicks: click."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of weights, order and negatives; 0, of recipes 1.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the model, its card and its curves.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Options from a .toml or .json file.")] = None,
    resume: Resume = False,
    data_dir: DataDir = None,
    select: Select = None,
    best_on_test: BestOnTest = False,
    schema: Annotated[
        Path | None,
        typer.Option("--schema", help="What columns mean, a YAML file: of clicks (see `deeprec schema`), or towers."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Clicks: convert the rows into this folder, which --data then takes.")
    ] = None,
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    on_bad: OnBad = None,
    table_file: Table = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    logger: Logger = None,
) -> None:
    """Train a model, choose the epoch on validation, and measure it once on the test part.

    Options of the model are written KEY=VALUE (see `deeprec models MODEL`); protocol.KEY=VALUE and data.KEY=VALUE
    change the protocol and the reader of the data. What stands beside --recipe wins over the recipe's, and data of
    one's own is read as it would be without.
    """
    cli.running.require_ready("train", device, table_file)
    model, words, known = recipe.chosen(model, options or [], recipe_name)
    given = {
        "select": select,
        "best_on_test": best_on_test or None,
        "schema": schema,
        "log": log,
        "on_bad": on_bad,
        "user_features": user_features,
        "item_features": item_features,
    }
    spelled = {f"--{name.replace('_', '-')}": name for name, value in given.items() if value is not None}
    registry.require_taken(registry.model_class(model), spelled, "train")
    kind = registry.model_class(model)
    source = cli.sources.source_for(kind)
    settings = read_settings(kind.config_class, words, config, protocol=source.protocol_class)
    add_parts(settings, validation_data, test_data)
    trained = recipe.model_of(model, settings, known)
    asked = recipe.Asked(settings, data, protocol_name, select, seed)
    asked = asked if known is None else recipe.completed(asked, known)
    data, seed = asked.data or "synthetic", asked.seed or 0
    request = cli.sources.Request(
        data,
        asked.protocol,
        asked.settings,
        out,
        seed,
        data_dir,
        user_features,
        item_features,
        schema,
        log,
        on_bad or "raise",
    )
    rule = source.rule(model, request)
    target = out if out is not None else Path("runs") / f"{model}-{Path(data).stem}-{rule.name}-seed{seed}"
    loggers = cli.running.loggers_of(logger, target)
    task = source.open(trained, rule, request, target)
    chosen = " ".join(f"{key}={value}" for key, value in settings.model.items())
    say((model, "bold"), f" {chosen} ", (f"seed {seed}", "dim"))
    if known is not None:
        recipe.announce(known)
    source.announce(task)
    run: dict[str, Any] = {
        "seed": seed,
        "resume": resume,
        "select": asked.select,
        "report_best_on_test": best_on_test,
        "device": device,
        "callbacks": loggers,
    }
    start = partial(deeprec.train.fit, trained, task, **run)
    cli.running.train_and_tell(start, source, task, request, target, resume=resume)
    cli.running.write_row(table_file, target)
