"""`deeprec train` for click models, and `deeprec schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deeprec import models
from deeprec._files import write_atomically
from deeprec.cli import folder
from deeprec.cli.console import command, console, figure, print_json, progress, say, seconds, table
from deeprec.cli.display import Display, figures_table
from deeprec.cli.settings import read_settings
from deeprec.data.clicks.log import ClickLog
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.schema_inference import infer
from deeprec.data.reading.sources import open_source
from deeprec.data.sets.click_datasets import IN_MEMORY_BYTES, list_click_datasets, load_clicks
from deeprec.evaluate import Card, ClickProtocol
from deeprec.models.click import ClickModel
from deeprec.train.checkpoint import has_checkpoint
from deeprec.train.clicks import evaluate_clicks, fit_clicks

_FILES = ("model.safetensors", "encoder", "config.json", "card.json", "curves.png", "reliability.png")
INTERRUPTED = 130


def train_clicks(
    name: str,
    options: list[str],
    *,
    data: str,
    protocol: str,
    seed: int,
    out: Path | None,
    config: Path | None,
    resume: bool,
    data_dir: Path | None,
    select: str | None,
    schema: Path | None,
    log_directory: Path | None,
    on_bad: str,
    device: str,
) -> None:
    """`deeprec train` with a click model; arguments as there."""
    if protocol != "click":
        raise ValueError(f"train: {name} predicts clicks, so --protocol must be click, got {protocol}; leave it out")
    settings = read_settings(models.config_class(name), options, config, protocol=ClickProtocol)
    rule = ClickProtocol(**settings.protocol)
    target = out if out is not None else Path("runs") / f"{name}-{Path(data).stem}-click-seed{seed}"
    model = models.create(name, **settings.model)
    features = None if schema is None else FeatureSchema.from_yaml(schema)
    log = _load(data, features, rule, data_dir, _directory(data, log_directory, target), on_bad, settings.data)
    _announce(name, log, rule, seed, settings.model, target)
    if not resume and has_checkpoint(target):
        say("          ", ("an unfinished run is there; starting anew (--resume would go on with it)", "yellow"))
    with Display() as display:
        try:
            result = fit_clicks(
                model,
                log,
                protocol=rule,
                seed=seed,
                out=target,
                resume=resume,
                select=select,
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
        return
    folder.remember_source(target, data, settings.data)
    console().print(figures_table(result.card))
    files = [file for file in _FILES if (target / file).exists()]
    say(("done", "green"), f" in {seconds(result.card.seconds)}. Written to {target}: {', '.join(files)}")
    say(f"Next: {command('predict', target, '--input', 'ROWS', '--output', 'scores.parquet')}")


def evaluate_click_model(
    directory: Path, model: ClickModel, card: Card, *, data: str | None, data_dir: Path | None, as_json: bool
) -> None:
    """`deeprec evaluate` with a click model: the figures of its test part once more."""
    rule = ClickProtocol.from_dict(card.protocol)
    source, options = (data, {}) if data is not None else folder.source_of(directory)
    converted = directory / "log"
    place = converted if converted.is_dir() and data is None else None
    schema = None if place else model.encoder.schema
    log = _load(str(place or source), schema, rule, data_dir, None, "raise", {} if place else options)
    if log.sha256 != card.data.get("sha256"):
        raise ValueError(
            f"evaluate: {log.name} is not what {directory} was trained on (its SHA-256 is another), so its test part "
            "may hold training rows; pass the same data"
        )
    figures = evaluate_clicks(model, log.parts["test"], rule.metrics)
    if as_json:
        print_json({"model": card.model, "data": card.data, "protocol": rule.as_dict(), "metrics": figures})
        return
    columns = ["figure", "test", "on the card"]
    rows = table(*columns, title=f"{card.model} on {card.data.get('name')}, protocol {rule.name}", numbers=columns[1:])
    for name, value in figures.items():
        rows.add_row(name, figure(value), figure(card.metrics.get(name)))
    console().print(rows)


def _directory(data: str, asked: Path | None, target: Path) -> Path | None:
    """Where the log is converted to; None keeps it in memory."""
    if asked is not None:
        return asked
    path = Path(data)
    return target / "log" if path.is_file() and path.stat().st_size > IN_MEMORY_BYTES else None


def _load(
    data: str,
    schema: FeatureSchema | None,
    rule: ClickProtocol,
    data_dir: Path | None,
    directory: Path | None,
    on_bad: str,
    options: dict[str, Any],
) -> ClickLog:
    folder.require_named(data, data_dir, [entry.name for entry in list_click_datasets()])
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        return load_clicks(
            data,
            schema,
            holdout=rule.holdout,
            shares=(rule.validation_share, rule.test_share),
            seed=rule.seed,
            data_dir=data_dir,
            directory=directory,
            on_bad=on_bad,  # type: ignore[arg-type]
            progress=show,
            **options,
        )


def _announce(name: str, log: ClickLog, rule: ClickProtocol, seed: int, options: dict[str, Any], target: Path) -> None:
    chosen = " ".join(f"{key}={value}" for key, value in options.items())
    say((name, "bold"), f" {chosen} ", (f"seed {seed}", "dim"))
    inputs = log.inputs
    kinds = f"{len(inputs.fields)} fields, {len(inputs.numerics)} numerics, {len(inputs.bags)} bags"
    rows = ", ".join(f"{part} {len(some):,}" for part, some in log.parts.items())
    say(f"data      {log.name}: {rows} rows; {kinds}")
    if log.directory is not None:
        say(f"          converted to {log.directory}, which --data takes next time")
    if log.bad:
        say("          ", ("skipped", "yellow"), f" {log.bad:,} bad rows")
    train = log.parts["train"]
    say(f"          {train.positives / max(1, len(train)):.2%} clicks in the train part")
    kept = "" if rule.negative_rate == 1 else f", {rule.negative_rate:.0%} of the negatives kept for training"
    say(f"protocol  {rule.name}: {log.split['kind']}{kept}")
    say(f"out       {target}")


def schema(
    source: Annotated[Path, typer.Argument(help="A file of rows: CSV, TSV, Parquet, ... (.gz).")],
    label: Annotated[str, typer.Option("--label", help="The column that says click or not.")] = "label",
    output: Annotated[Path | None, typer.Option("--output", help="Write it here instead of the screen.")] = None,
    file_format: Annotated[str | None, typer.Option("--format", help="csv, tsv, criteo, parquet, ...")] = None,
) -> None:
    """Draft a feature schema from the first rows of a file, as YAML to be corrected."""
    found = infer(open_source(source, format=file_format), label=label)
    if output is None:
        typer.echo(found.to_yaml())  # as it is, for a file; YAML and its comments escape what a terminal obeys
        return
    write_atomically(output, found.to_yaml().encode())
    then = command("train", "deepfm", "--data", source, "--schema", output)
    say(("written", "green"), f" {output}; correct it, then: {then}")
