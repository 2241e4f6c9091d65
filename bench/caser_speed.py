"""Training speed of Caser beside plain PyTorch: epochs of the training part of ML-1M's histories, in one run.

    python -m bench.caser_speed [--data sasrec-ml-1m] [--epochs 1] [--repeat 3] [--max-batches 300] [--json FILE]

The protocol caser makes the training part. Each contender runs in a process of its own, one after the other, with the
options of the authors' code (d 50, L 5, T 3, 16 and 4 filters, 3 negatives a target, batch 512, Adam, L2 1e-6); an
epoch holds the drawing of its negatives. The rival draws them with NumPy, or one after the other as the author's port
does; with --max-batches it runs a part of an epoch, and its seconds are those of a whole one by proportion.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.contenders import PEERS, in_turn, keep

SHARED = ("epochs", "threads", "seed", "max_batches")


def deeprec_epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Train with deeprec's own loop; called in a child process."""
    import numpy as np
    import polars as pl
    import torch

    from deeprec import __version__
    from deeprec.data import from_frame
    from deeprec.models import create
    from deeprec.train.loop import train_epoch
    from deeprec.train.optimizers import Optimizers

    torch.set_num_threads(args.threads)
    given = np.load(args.sequences)
    frame = pl.DataFrame({"user_id": given["users"], "item_id": given["items"]}).with_row_index("timestamp")
    train = from_frame(frame)
    model = create("caser", loss=args.loss, **({} if args.loss == "softmax" else {"num_negatives": 3}))
    model.build(model.schema_for(train), torch.Generator().manual_seed(args.seed))
    model.train()
    optimizers, batches = Optimizers(model), model.batches(train, args.seed)
    seconds, losses = [], []
    for epoch in range(args.epochs):
        started = time.perf_counter()
        losses.append(train_epoch(model, optimizers, batches, epoch))
        seconds.append(round(time.perf_counter() - started, 3))
    return {
        "peer": "deeprec",
        "version": f"{__version__} (torch {torch.__version__})",
        "windows": sum(len(batch.users) for batch in batches.epoch(0)),
        "seconds_per_epoch": seconds,
        "loss": losses,
    }


def measure(args: argparse.Namespace, sequences: Path) -> list[dict[str, Any]]:
    """Every contender `args.repeat` times, in turn."""
    words = ["--sequences", str(sequences)]
    words += [word for name in SHARED for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    ours = [sys.executable, "-m", "bench.caser_speed", "--child", *words]
    rival = [sys.executable, str(PEERS / "torch_caser.py"), *words]
    commands = {
        "deeprec": ours,
        "torch, negatives by NumPy": rival,
        "torch, negatives one by one": [*rival, "--negatives", "loop"],
        "deeprec, softmax over all items": [*ours, "--loss", "softmax"],
    }
    rows = []
    for name, runs in in_turn(commands, args.repeat, "caser").items():
        seconds = [value for run in runs for value in run["seconds_per_epoch"]]
        rows.append(
            {
                "contender": name,
                "version": runs[0]["version"],
                "windows": runs[0]["windows"],
                "seconds": statistics.median(seconds),
                "seconds_min": min(seconds),
                "seconds_max": max(seconds),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with the speed-up of each over the rival in its best form."""
    (rival,) = (row["seconds"] for row in rows if row["contender"] == "torch, negatives by NumPy")
    lines = ["| contender | s an epoch (median, range) | windows/s | beside torch |", "|---|---|---|---|"]
    lines += [
        f"| {row['contender']} {row['version']} | {row['seconds']:.1f} ({row['seconds_min']:.1f}-"
        f"{row['seconds_max']:.1f}) | {row['windows'] / row['seconds']:,.0f} | {rival / row['seconds']:.1f}x |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sasrec-ml-1m")
    parser.add_argument("--sequences", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--loss", default="bce", help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-batches", type=int, default=0, help="of the rival")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(deeprec_epochs(args)))
        return
    import numpy as np

    from deeprec.data import load
    from deeprec.evaluate import protocol

    train = protocol("caser").split(load(args.data)).train
    order = np.lexsort((train.order, train.users))
    with tempfile.TemporaryDirectory() as folder:
        sequences = Path(folder) / "sequences.npz"
        np.savez(sequences, users=train.users[order], items=train.items[order])
        rows = measure(args, sequences)
    print(table(rows))
    keep(args.json, args, ("data", "epochs", "repeat", "threads", "seed", "max_batches"), rows)


if __name__ == "__main__":
    main()
