"""Runs that leave a card each, RESULTS/NAME/LABEL/seed-N.json, and the command that starts what is not there yet."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from deeprec.evaluate import Card
from deeprec.train import Progress


class Sayer:
    """Prints how far a run is: every epoch with a figure, and once in twenty seconds within one.

    Args:
        what: the run.
        figure: a metric of the validation part.
    """

    def __init__(self, what: str, figure: str) -> None:
        self.what, self.figure, self.last = what, figure, time.perf_counter()

    def __call__(self, progress: Progress) -> None:
        """What `fit` tells."""
        where = f"  {self.what}: epoch {progress.epoch} of {progress.num_epochs}"
        if progress.metrics:  # none where the model is trained again on all rows
            said = f"{self.figure} {progress.metrics[self.figure]:.4f}"
            print(f"{where}, loss {progress.loss:.3f}, {said}", flush=True)
        elif time.perf_counter() - self.last > 20:
            print(f"{where}, {progress.done / max(1, progress.total):.0%}", flush=True)
        else:
            return
        self.last = time.perf_counter()


def figure_cells(cards: Sequence[Card], figures: Sequence[str], best: Sequence[float]) -> list[str]:
    """Mean and standard deviation of figures over the cards of a contender, in bold where the mean is the best."""
    cells = []
    for figure, most in zip(figures, best, strict=True):
        values = [float(card.metrics[figure] or 0.0) for card in cards]
        mean = statistics.mean(values)
        text = f"{mean:.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")
        cells.append(f"**{text}**" if mean == most else text)
    return cells


def epochs_cell(cards: Sequence[Card]) -> str:
    """The epochs that were chosen."""
    return ", ".join(str(card.epoch) for card in cards if card.epoch is not None)


def due_runs(
    results: Path,
    names: list[str],
    labels: list[str],
    seeds: list[int],
    fits: Callable[[str, str], bool] = lambda name, label: True,
) -> Iterator[tuple[str, str, int]]:
    """Name, label and seed of each run without a card, seed by seed, so that a part of them is a table already.

    Args:
        fits: whether there is such a run, of name and label.
    """
    for seed in seeds:
        for name in names:
            for label in labels:
                if fits(name, label) and not (results / name / label / f"seed-{seed}.json").exists():
                    yield name, label, seed


def run_command(
    description: str | None,
    results: Path,
    names: Collection[str],
    labels: Collection[str],
    seeds: list[int],
    data_of: Callable[[str], str],
    read: Callable[[str], Any],
    run: Callable[[str, str, int, Any], None],
    write_page: Callable[[], Any],
    fits: Callable[[str, str], bool] = lambda name, label: True,
) -> None:
    """Start what is asked for on the command line and not there yet; the page is written anew after every run.

    Args:
        description: of the command.
        results: folder of the cards.
        names, labels: of all runs; seeds: of those that are started where none are named.
        data_of: name of the data of a run's name, which `read` reads once.
        run: trains one and leaves its card; of name, label, seed and data.
        write_page: of all cards.
        fits: as of `due_runs`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), help="what is learned from")
    parser.add_argument("--labels", nargs="+", choices=labels, default=list(labels), help="contenders")
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--list", action="store_true", help="name the runs that are to do")
    given = parser.parse_args()
    due = list(due_runs(results, given.only, given.labels, given.seeds, fits))
    if given.list:
        print("\n".join(f"{name}, {label}, seed {seed}" for name, label, seed in due))
        return
    data: dict[str, Any] = {}
    for number, (name, label, seed) in enumerate([] if given.page else due):
        source = data_of(name)
        if source not in data:
            data[source] = read(source)
        print(f"run {number + 1} of {len(due)}: {name}, {label}, seed {seed}", flush=True)
        run(name, label, seed, data[source])
        write_page()
    write_page()
