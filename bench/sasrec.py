"""Speed of SASRec beside RecBole's: an epoch on ML-1M, its peak memory, and all users over all items, in one run.

    python -m bench.sasrec --recbole-python PYTHON [--settings recbole paper] [--losses full pairs] [--json FILE]

Settings: "recbole" is its default (the last 50 items, two blocks, two heads, layers of 256 within); "paper" reads the
last 200 with one head and layers of 64. Losses: "full" is the softmax over all items; "pairs" a target against one
negative, BCE here and BPR there, which has no BCE. RecBole trains every prefix of a history as a row with one target;
here a window has all of its targets, once an epoch, so times are told by the epoch and by the target. CPU seconds are
those of the process, and hold on a machine that does other work too, where others' do not. Each contender runs in a
process of its own. RecBole wants its own environment: pip install torch recbole==1.2.1 "numpy<2" "setuptools<80"
"pandas<2.2". Data is found in DEEPREC_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.contenders import PEERS, in_turn, keep

SETTINGS: dict[str, dict[str, int]] = {
    "recbole": {"length": 50, "heads": 2, "hidden": 256},
    "paper": {"length": 200, "heads": 1, "hidden": 64},
}
LOSSES: dict[str, tuple[dict[str, Any], str]] = {
    "full": ({"loss": "full"}, "CE"),
    "pairs": ({"loss": "bce", "num_negatives": 1}, "BPR"),
}
DROPOUT = {"recbole": 0.5, "paper": 0.2}
FIGURES = (
    "seconds_per_epoch", "cpu_seconds_per_epoch", "cpu_microseconds_per_target", "peak_mib", "evaluation_seconds",
    "cpu_evaluation_seconds",
)  # fmt: skip


def child(args: argparse.Namespace) -> dict[str, Any]:
    """Train with deeprec's own loop, and rank all items for all users; prints JSON."""
    import torch
    from memory import held, high_water, start_high_water

    from deeprec import __version__
    from deeprec.data import load
    from deeprec.evaluate import evaluate, protocol
    from deeprec.models import create
    from deeprec.train.loop import train_epoch
    from deeprec.train.optimizers import Optimizers

    torch.set_num_threads(args.threads)
    data, rule = load("sasrec-ml-1m"), protocol("next-item")
    sizes, dropout = SETTINGS[args.child], DROPOUT[args.child]
    rates = {"dropout": dropout, "attention_dropout": dropout}
    model = create("sasrec", **sizes, **rates, **LOSSES[args.losses[0]][0], feed_forward="gelu", block="post-norm")
    task = model.task_for(data, rule)
    task.build(model, torch.Generator().manual_seed(args.seed))
    optimizers, batches = Optimizers(model), model.batches(task.train(args.seed), args.seed)
    model.train()
    start_high_water()
    before, seconds, cpu_seconds, losses = held(), [], [], []
    for epoch in range(args.epochs):
        started, cpu_started = time.perf_counter(), time.process_time()
        losses.append(train_epoch(model, optimizers, batches, epoch))
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    memory = high_water() - before
    split = rule.split(data)
    started, cpu_started = time.perf_counter(), time.process_time()
    figures = evaluate(model, split, rule)
    evaluation, cpu_evaluation = time.perf_counter() - started, time.process_time() - cpu_started
    targets = batches.num_examples
    return {
        "version": f"{__version__} (torch {torch.__version__})",
        "seconds_per_epoch": seconds,
        "cpu_seconds_per_epoch": statistics.median(cpu_seconds),
        "cpu_microseconds_per_target": statistics.median(cpu_seconds) / targets * 1e6,
        "targets_per_epoch": targets,
        "peak_mib": memory,
        "evaluation_seconds": evaluation,
        "cpu_evaluation_seconds": cpu_evaluation,
        "loss": losses[-1],
        "figures": figures,
    }


def contenders(args: argparse.Namespace, setting: str, loss: str) -> dict[str, list[str]]:
    """Command line of every contender."""
    run = ["--threads", str(args.threads), "--seed", str(args.seed)]
    ours = [sys.executable, "-m", "bench.sasrec", "--child", setting, "--losses", loss, "--epochs", str(args.epochs)]
    sizes = [word for name, value in SETTINGS[setting].items() for word in (f"--{name}", str(value))]
    rates = ["--dropout", str(DROPOUT[setting]), "--attention-dropout", str(DROPOUT[setting])]
    file = str(Path(os.environ["DEEPREC_DATA"]) / "sasrec" / "ml-1m.txt.gz")
    peer = [args.recbole_python, str(PEERS / "recbole_sasrec.py"), "--file", file, "--loss", LOSSES[loss][1]]
    return {"deeprec": [*ours, *run], "recbole": [*peer, *sizes, *rates, "--batches", str(args.batches), *run]}


def measure(args: argparse.Namespace, setting: str, loss: str) -> list[dict[str, Any]]:
    """Every contender `args.repeat` times, in turn."""
    rows = []
    for name, runs in in_turn(contenders(args, setting, loss), args.repeat, f"{setting}, {loss}").items():
        row: dict[str, Any] = {"setting": setting, "loss": loss, "contender": name, "version": runs[0]["version"]}
        for figure in FIGURES:
            values = [value for run in runs for value in _list(run[figure])]
            row[figure] = statistics.median(values)
        row["seconds_per_epoch_range"] = [
            pick(value for run in runs for value in run["seconds_per_epoch"]) for pick in (min, max)
        ]
        rows.append({**row, "targets_per_epoch": runs[0]["targets_per_epoch"]})
    return rows


def _list(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: each row with how many times RecBole's figure is ours."""
    names = "epoch, s | CPU | a target, CPU us | peak, MiB | evaluation, s | CPU"
    lines = [f"| setting | loss | contender | {names} |", "|---" * (3 + len(FIGURES)) + "|"]
    for row in rows:
        same = [each for each in rows if (each["setting"], each["loss"]) == (row["setting"], row["loss"])]
        cells = [row["setting"], row["loss"], row["contender"]]
        for figure in FIGURES:
            (rival,) = (each[figure] for each in same if each["contender"] == "recbole")
            over = f" ({rival / max(row[figure], 1e-9):.1f}x)" if row["contender"] == "deeprec" else ""
            cells.append(f"{row[figure]:.1f}{over}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recbole-python", help="interpreter of the environment that has RecBole")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--epochs", type=int, default=2, help="of ours")
    parser.add_argument("--batches", type=int, default=5, help="of 2048 rows that RecBole is timed for")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args)))
        return
    if args.recbole_python is None:
        parser.error("--recbole-python is needed: there is nothing to compare with otherwise")
    rows = [row for setting in args.settings for loss in args.losses for row in measure(args, setting, loss)]
    print(table(rows))
    keep(args.json, args, ("epochs", "batches", "repeat", "threads", "seed"), rows)


if __name__ == "__main__":
    main()
