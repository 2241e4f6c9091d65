"""What `deeprec train` shows of a run, whatever the model: progress, epochs, figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.progress import TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from deeprec.cli.console import figure, progress, rate, seconds, table, text

if TYPE_CHECKING:
    from deeprec.evaluate import Card
    from deeprec.train import Progress as State


class Display:
    """A line for each finished epoch, and below them a bar with throughput and the time left."""

    def __init__(self) -> None:
        self.finished = 0
        self._stage = ""
        self._task: TaskID | None = None
        self._bar = progress(
            TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(),
        )

    def __enter__(self) -> Display:
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


def _epoch_line(state: State) -> Text:
    width = len(str(state.num_epochs))
    figures = "  ".join(f"{name} {figure(value)}" for name, value in list((state.metrics or {}).items())[:3])
    took = seconds(state.total / state.samples_per_second) if state.samples_per_second else "-"
    validation = "" if state.validation_seconds is None else f" + {seconds(state.validation_seconds)} of validation"
    return text(
        f"{state.stage} epoch {state.epoch:>{width}}/{state.num_epochs}  loss {state.loss:.4f}"
        f"{'  validation ' + figures if figures else ''}  {took} {rate(state.samples_per_second)}{validation}",
        ("  best" if state.is_best else "", "green"),
    )


def figures_table(card: Card) -> Any:
    """Test figures of a card beside those of validation and of the baselines, and the labelled best on test."""
    columns = ["figure", "test", "validation"]
    best = card.best_on_test
    if best:
        columns.append(f"best on test (epoch {best['epoch']}; not a result)")
    columns += list(card.baselines)
    chosen = f", epoch {card.epoch}" if card.epoch else ""
    rows = table(*columns, title=f"{card.model} on {card.data.get('name')}{chosen}", numbers=columns[1:])
    for name, value in card.metrics.items():
        beside = [figure(figures.get(name)) for figures in card.baselines.values()]
        cells = [figure(value), figure(card.validation_metrics.get(name))]
        rows.add_row(name, *cells, *([figure(best["metrics"].get(name))] if best else []), *beside)
    return rows
