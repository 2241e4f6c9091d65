"""What the benches of whole models share: contenders in processes of their own, in turn, on the same rows."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))  # which run in other environments too, as single files

Runs = dict[str, list[dict[str, Any]]]


def in_turn(commands: Mapping[str, Sequence[str]], repeat: int, label: str, before: Sequence[str] = ()) -> Runs:
    """The last line of each command's output, JSON, of `repeat` rounds in which every contender runs once.

    Args:
        label: of the round, for the progress.
        before: put before each command, such as ["taskset", "-c", "0,1"].
    Raises:
        RuntimeError: a contender failed; with the end of what it said.
    """
    results: Runs = {name: [] for name in commands}
    for _ in range(repeat):
        for name, command in commands.items():
            done = subprocess.run([*before, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
            results[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"{label}: {name} {results[name][-1]['seconds_per_epoch']}", file=sys.stderr, flush=True)
    return results


def epochs_of(make: Callable[[Any], Any], args: argparse.Namespace) -> dict[str, Any]:
    """Train a model of users and items with deeprec's own loop on the split of `args`; called in a child process.

    Args:
        make: the built model, from its `Schema`.
    """
    import numpy as np
    import torch
    from ncf_split import NcfSplit, hit_rate

    from deeprec import __version__
    from deeprec.data import IdMap, Interactions
    from deeprec.models import Schema
    from deeprec.train.loop import train_epoch
    from deeprec.train.optimizers import Optimizers

    torch.set_num_threads(args.threads)
    split = NcfSplit.load(args.split)
    ids = (IdMap.from_values(np.arange(split.num_users), "user"), IdMap.from_values(np.arange(split.num_items), "item"))
    train = Interactions(split.users.astype(np.int32), split.items.astype(np.int32), *ids)
    model = make(Schema(split.num_users, split.num_items))
    optimizers, batches = Optimizers(model), model.batches(train, args.seed)
    seconds, cpu_seconds, losses, hits = [], [], [], []
    for epoch in range(args.epochs):
        started, cpu_started = time.perf_counter(), time.process_time()
        losses.append(train_epoch(model, optimizers, batches, epoch))
        seconds.append(round(time.perf_counter() - started, 4))
        cpu_seconds.append(round(time.process_time() - cpu_started, 4))
        hits.append(hit_rate(split, lambda u, i: model.score_pairs(torch.from_numpy(u), torch.from_numpy(i)).numpy()))
    return {
        "version": f"{__version__} (torch {torch.__version__})",
        "seconds_per_epoch": seconds,
        "cpu_seconds_per_epoch": cpu_seconds,
        "loss": losses,
        "validation_hr@10": hits,
        "examples_per_epoch": batches.num_examples,
    }


def keep(path: Path | None, args: argparse.Namespace, names: Sequence[str], rows: list[dict[str, Any]]) -> None:
    """Write the rows as JSON beside the settings of these names and the machine; nothing without a path."""
    from deeprec._hardware import hardware
    from deeprec.evaluate.card import versions

    if path is not None:
        settings = {name: getattr(args, name) for name in names}
        result = {"settings": settings, "rows": rows, "versions": versions(), "hardware": hardware()}
        path.write_text(json.dumps(result, indent=2) + "\n")


def bars(path: Path, bars: Mapping[str, float], *, title: str, label: str, shown: str) -> None:
    """A picture of one bar a contender; ours stand out.

    Args:
        bars: name to length.
        label: of the axis. shown: format of a length, such as "{:.1f} s".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 * len(bars) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ["#c44e52" if name.startswith("deeprec") else "#9aa5b1" for name in bars]
    drawn = axes.barh(list(bars), list(bars.values()), color=colours)
    axes.bar_label(drawn, fmt=shown, padding=3)
    axes.invert_yaxis()
    axes.set(xlabel=label, title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.14)
    figure.savefig(path, dpi=140)
