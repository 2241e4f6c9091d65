"""`deeprec train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deeprec import models
from deeprec.cli import folder
from deeprec.cli.console import command, console, figure, rate, seconds, table
from deeprec.cli.settings import read_settings
from deeprec.data import Interactions
from deeprec.evaluate import Card, Protocol, protocol
from deeprec.train import FitResult, fit
from deeprec.train import Progress as State

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
        str, typer.Option("--protocol", help="How to split and measure: ncf, full, random, cdae, rating.")
    ] = "full",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights, order and negatives.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the model, its card and its curves.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Options from a .toml or .json file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")] = False,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Look for named data sets here first.")] = None,
    select: Annotated[
        str | None, typer.Option(help="Validation figure that chooses the epoch, such as ndcg@10.")
    ] = None,
    best_on_test: Annotated[
        bool, typer.Option("--best-on-test", help="Also report the best epoch on the test list, as papers do.")
    ] = False,
) -> None:
    """Train a model, choose the epoch on validation, and measure it once on the test part.

    Options of the model are written KEY=VALUE (see `deeprec models MODEL`); protocol.KEY=VALUE and data.KEY=VALUE
    change the protocol and the reader of the data.
    """
    settings = read_settings(models.config_class(model), options or [], config)
    rule = protocol(protocol_name, **settings.protocol)
    target = out if out is not None else Path("runs") / f"{model}-{Path(data).stem}-{rule.name}-seed{seed}"
    if resume and _is_finished(target):
        console().print(f"[green]already finished:[/] {target}; nothing to resume")
        _say_next(target, None)
        return
    recommender = models.create(model, **settings.model)
    interactions = folder.load_data(data, data_dir, settings.data)
    rule = rule.resolve(interactions)
    _announce(model, interactions, rule, seed, settings.model, target, resume)
    with _Display() as display:
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
            )
        except KeyboardInterrupt:
            display.stop()
            console().print(f"[yellow]interrupted[/] after {display.finished} finished epochs; go on with the same "
                            f"command and --resume (--out {escape(str(target))})")  # fmt: skip
            raise typer.Exit(INTERRUPTED) from None
    written = folder.remember(target, interactions, data, settings.data)
    _report(result, target, written)
    _say_next(target, interactions)


def _is_unfinished(target: Path) -> bool:
    return target.is_dir() and any((*target.glob("checkpoint*"), *target.glob("*/checkpoint*")))


def _is_finished(target: Path) -> bool:
    return (target / "config.json").is_file() and (target / "card.json").is_file() and not _is_unfinished(target)


def _announce(
    model: str,
    interactions: Interactions,
    rule: Protocol,
    seed: int,
    options: dict[str, Any],
    target: Path,
    resume: bool,
) -> None:
    out = console()
    chosen = " ".join(f"{key}={value}" for key, value in options.items())
    against = "all items" if rule.candidates == "all" else f"{rule.candidates} {rule.negatives} negatives"
    out.print(f"[bold]{model}[/] {escape(chosen)} [dim]seed {seed}[/]")
    out.print(f"data      {escape(interactions.name)}: {len(interactions):,} interactions, "
              f"{interactions.num_users:,} users, {interactions.num_items:,} items")  # fmt: skip
    for repair, count in interactions.repairs.items():
        out.print(f"          [yellow]repaired[/] {escape(repair)}: {count:,}")
    how = f"ranked against {against}, {rule.ties} ties"
    if rule.task == "rating":
        how = f"errors of predicted ratings, {'clamped' if rule.clamp else 'not clamped'}"
    out.print(f"protocol  {rule.name}: {rule.holdout.replace('_', ' ')}, {how}")
    out.print(f"out       {escape(str(target))}")
    if not resume and _is_unfinished(target):
        out.print("          [yellow]an unfinished run is there; starting anew (--resume would go on with it)[/]")


class _Display:
    """A line for each finished epoch, and below them a bar with throughput and the time left."""

    def __init__(self) -> None:
        self.finished = 0
        self._stage = ""
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console(),
            transient=True,
        )

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away; the epoch lines stay."""
        self._bar.stop()

    def show(self, state: State) -> None:
        """Draw where the run is."""
        if state.stage != self._stage:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._stage = state.stage
            self._task = self._bar.add_task(state.stage, total=state.num_epochs * state.total, rate="")
        assert self._task is not None
        self._bar.update(
            self._task,
            description=f"{state.stage} epoch {state.epoch}/{state.num_epochs}",
            completed=(state.epoch - 1) * state.total + state.done,
            rate=rate(state.samples_per_second),
        )
        if state.metrics is not None:
            self.finished += 1
            self._bar.console.print(_epoch_line(state))


def _epoch_line(state: State) -> str:
    width = len(str(state.num_epochs))
    figures = "  ".join(f"{name} {figure(value)}" for name, value in list((state.metrics or {}).items())[:3])
    took = seconds(state.total / state.samples_per_second) if state.samples_per_second else "-"
    best = "  [green]best[/]" if state.is_best else ""
    return (
        f"{escape(state.stage)} epoch {state.epoch:>{width}}/{state.num_epochs}  loss {state.loss:.4f}"
        f"{'  validation ' + figures if figures else ''}  {took} {rate(state.samples_per_second)}{best}"
    )


def _report(result: FitResult, target: Path, written: list[str]) -> None:
    out = console()
    out.print(figures_table(result.card))
    files = [name for name in _FILES if (target / name).exists()]
    out.print(f"[green]done[/] in {seconds(result.card.seconds)}. Written to {escape(str(target))}: "
              f"{', '.join([*files, *written])}")  # fmt: skip


def figures_table(card: Card) -> Any:
    """Test figures of a card beside those of validation, and the labelled best on test."""
    columns = ["figure", "test", "validation"]
    best = card.best_on_test
    if best:
        columns.append(f"best on test (epoch {best['epoch']}; not a result)")
    chosen = f", epoch {card.epoch}" if card.epoch else ""
    rows = table(*columns, title=f"{card.model} on {card.data.get('name')}{chosen}", numbers=columns[1:])
    for name, value in card.metrics.items():
        cells = [figure(value), figure(card.validation_metrics.get(name))]
        rows.add_row(name, *cells, *([figure(best["metrics"].get(name))] if best else []))
    return rows


def _say_next(target: Path, interactions: Interactions | None) -> None:
    user = interactions.user_ids.decode([0])[0] if interactions is not None else "ID"
    out = console()
    out.print(f"Next: {escape(command('recommend', target, '--user', user, '-k', 10))}")
    out.print(f"      {escape(command('evaluate', target))}")
