"""`deeprec train`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from deeprec import models
from deeprec.cli.console import console, say, seconds
from deeprec.cli.display import Display, figures_table
from deeprec.cli.options import BestOnTest, DataDir, ItemFeatures, Logger, OnBad, Resume, Select, UserFeatures
from deeprec.cli.settings import DEVICE_HELP, read_settings
from deeprec.cli.sources import Request, source_for
from deeprec.device import resolve_device
from deeprec.evaluate import PROTOCOLS
from deeprec.train import FitResult, fit
from deeprec.train.checkpoint import has_checkpoint
from deeprec.train.loggers import logger_by_name

_FILES = ("model.safetensors", "encoder", "config.json", "card.json", "curves.png", "reliability.png", "metrics.csv")
INTERRUPTED = 130  # what a shell reports after Ctrl-C


def train(
    model: Annotated[str, typer.Argument(help="One of `deeprec models`.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options such as epochs=20 factors=32.")
    ] = None,
    data: Annotated[
        str, typer.Option("--data", help="A name of `deeprec data list`, a file or a folder.")
    ] = "synthetic",
    protocol_name: Annotated[
        str | None,
        typer.Option("--protocol", help=f"How to split and measure: {', '.join(PROTOCOLS)}; clicks: click."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights, order and negatives.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the model, its card and its curves.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Options from a .toml or .json file.")] = None,
    resume: Resume = False,
    data_dir: DataDir = None,
    select: Select = None,
    best_on_test: BestOnTest = False,
    schema: Annotated[
        Path | None, typer.Option("--schema", help="Clicks: the features, a YAML file (see `deeprec schema`).")
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Clicks: convert the rows into this folder, which --data then takes.")
    ] = None,
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    on_bad: OnBad = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    logger: Logger = None,
) -> None:
    """Train a model, choose the epoch on validation, and measure it once on the test part.

    Options of the model are written KEY=VALUE (see `deeprec models MODEL`); protocol.KEY=VALUE and data.KEY=VALUE
    change the protocol and the reader of the data.
    """
    resolve_device(device, "train")  # before the data is read
    given = {
        "select": select,
        "best_on_test": best_on_test or None,
        "schema": schema,
        "log": log,
        "on_bad": on_bad,
        "user_features": user_features,
        "item_features": item_features,
    }
    words = {f"--{name.replace('_', '-')}": name for name, value in given.items() if value is not None}
    models.require_taken(models.model_class(model), words, "train")
    kind = models.model_class(model)
    source = source_for(kind)
    settings = read_settings(kind.config_class, options or [], config, protocol=source.protocol_class)
    request = Request(
        data,
        protocol_name,
        settings,
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
    loggers = [logger_by_name(each, target) for each in dict.fromkeys(logger or ())]
    trained = models.create(model, **settings.model)
    task = source.open(trained, rule, request, target)
    chosen = " ".join(f"{key}={value}" for key, value in settings.model.items())
    say((model, "bold"), f" {chosen} ", (f"seed {seed}", "dim"))
    source.announce(task)
    run: dict[str, Any] = {
        "seed": seed,
        "resume": resume,
        "select": select,
        "report_best_on_test": best_on_test,
        "device": device,
        "callbacks": loggers,
    }
    train_and_tell(partial(fit, trained, task, **run), source, task, request, target, resume=resume)


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
