"""`deeprec train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deeprec import models
from deeprec.cli import folder
from deeprec.cli.clicks import train_clicks
from deeprec.cli.console import command, console, say, seconds
from deeprec.cli.display import Display, figures_table
from deeprec.cli.settings import DEVICE_HELP, read_settings
from deeprec.data import Interactions
from deeprec.device import resolve_device
from deeprec.evaluate import Protocol, protocol
from deeprec.models import Recommender
from deeprec.train import FitResult, fit
from deeprec.train.checkpoint import has_checkpoint

_FILES = ("model.safetensors", "config.json", "card.json", "curves.png")
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
        typer.Option("--protocol", help="How to split and measure: full, ncf, random, cdae, rating; clicks: click."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights, order and negatives.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the model, its card and its curves.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Options from a .toml or .json file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the same run in --out, if interrupted.")] = False,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Look for named data sets here first.")] = None,
    select: Annotated[
        str | None, typer.Option(help="Validation figure that chooses the epoch, such as ndcg@10.")
    ] = None,
    best_on_test: Annotated[
        bool, typer.Option("--best-on-test", help="Also report the best epoch on the test list, as papers do.")
    ] = False,
    schema: Annotated[
        Path | None, typer.Option("--schema", help="Clicks: the features, a YAML file (see `deeprec schema`).")
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Clicks: convert the rows into this folder, which --data then takes.")
    ] = None,
    user_features: Annotated[
        Path | None, typer.Option("--user-features", help="Side information for cfn: a table with user_id.")
    ] = None,
    item_features: Annotated[
        Path | None, typer.Option("--item-features", help="The same with item_id: .parquet, .csv or .tsv.")
    ] = None,
    on_bad: Annotated[
        str | None, typer.Option("--on-bad", help="Clicks: raise at a malformed row (the default), or skip it.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
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
    if models.is_click_model(model):
        train_clicks(
            model,
            options or [],
            data=data,
            protocol=protocol_name or "click",
            seed=seed,
            out=out,
            config=config,
            resume=resume,
            data_dir=data_dir,
            select=select,
            schema=schema,
            log_directory=log,
            on_bad=on_bad or "raise",
            device=device,
        )
        return
    settings = read_settings(models.config_class(model), options or [], config)
    if protocol_name == "click":
        raise ValueError(f"train: {model} ranks items, so --protocol must be another than click; see --help")
    rule = protocol(protocol_name or "full", **settings.protocol)
    target = out if out is not None else Path("runs") / f"{model}-{Path(data).stem}-{rule.name}-seed{seed}"
    recommender = models.create(model, **settings.model)
    _require_features_taken(recommender, given)
    interactions = folder.load_data(data, data_dir, settings.data)
    interactions = folder.with_tables(interactions, user_features, item_features)
    rule = rule.resolve(interactions)
    _announce(model, interactions, rule, seed, settings.model, target, resume)
    with Display() as display:
        try:
            result = fit(
                recommender,
                interactions,
                protocol=rule,
                seed=seed,
                out=target,
                resume=resume,
                select=select,
                report_best_on_test=best_on_test,
                on_progress=display.show,
                device=device,
            )
        except KeyboardInterrupt:
            display.stop()
            say(("interrupted", "yellow"), f" after {display.finished} finished epochs; go on with the same command "
                f"and --resume (--out {target})")  # fmt: skip
            raise typer.Exit(INTERRUPTED) from None
    if result.was_finished:
        say(("already finished:", "green"), f" {target}; nothing to resume")
        _say_next(target, interactions)
        return
    written = folder.remember(target, interactions, data, settings.data)
    _report(result, target, written)
    _say_next(target, interactions)


def _require_features_taken(model: Recommender, given: dict[str, Any]) -> None:
    """A model that takes side information may still, with the options it has, not take this table."""
    for name in ("user_features", "item_features"):
        if given[name] is not None and name not in model.features_taken():
            side = name.partition("_")[0]
            raise ValueError(
                f"train: {model.name} does not use --{side}-features with these options; leave it out, or take "
                f"side={side} and name columns of the table with features=COLUMN,..."
            )


def _announce(
    model: str,
    interactions: Interactions,
    rule: Protocol,
    seed: int,
    options: dict[str, Any],
    target: Path,
    resume: bool,
) -> None:
    chosen = " ".join(f"{key}={value}" for key, value in options.items())
    against = "all items" if rule.candidates == "all" else f"{rule.candidates} {rule.negatives} negatives"
    say((model, "bold"), f" {chosen} ", (f"seed {seed}", "dim"))
    say(f"data      {interactions.name}: {len(interactions):,} interactions, "
        f"{interactions.num_users:,} users, {interactions.num_items:,} items")  # fmt: skip
    for repair, count in interactions.repairs.items():
        say("          ", ("repaired", "yellow"), f" {repair}: {count:,}")
    how = f"ranked against {against}, {rule.ties} ties"
    if rule.task == "rating":
        how = f"errors of predicted ratings, {'clamped' if rule.clamp else 'not clamped'}"
    say(f"protocol  {rule.name}: {rule.holdout.replace('_', ' ')}, {how}")
    say(f"out       {target}")
    if not resume and has_checkpoint(target):
        say("          ", ("an unfinished run is there; starting anew (--resume would go on with it)", "yellow"))


def _report(result: FitResult, target: Path, written: list[str]) -> None:
    console().print(figures_table(result.card))
    files = [name for name in _FILES if (target / name).exists()]
    names = ", ".join([*files, *written])
    say(("done", "green"), f" in {seconds(result.card.seconds)}. Written to {target}: {names}")


def _say_next(target: Path, interactions: Interactions) -> None:
    user = interactions.user_ids.decode([0])[0]
    say(f"Next: {command('recommend', target, '--user', user, '-k', 10)}")
    say(f"      {command('evaluate', target)}")
