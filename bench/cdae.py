"""Training speed of CDAE beside RecBole: an epoch over the likes of ML-1M, in one run.

    python -m bench.cdae --recbole-python PYTHON [--data-dir DIR] [--batch 2048 256] [--repeat 3] [--json FILE]

Ours scores the likes and 5 sampled items for each, as the paper does; RecBole scores every item of every user. Same
users, hidden size, users a step, Adam; each in a process of its own, one after the other, and scored after each epoch
on the same held-out candidates, so that speed bought with quality shows. The first epoch of a process, which warms it
up, is run but not counted. RecBole's environment: see `bench/neumf.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.contenders import PEERS, epochs_of, in_turn, keep


def deeprec_epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Train with deeprec's own loop; called in a child process."""
    import torch

    from deeprec.models import CDAE

    options: dict[str, Any] = {"hidden": args.hidden, "corruption": args.corruption, "batch_size": args.batch[0]}
    options |= {"lr": args.lr, "optimizer": args.optimizer, "l2": 0.0}
    generator = torch.Generator().manual_seed(args.seed)
    return {"peer": "deeprec", **epochs_of(lambda schema: CDAE(schema, generator=generator, **options), args)}


def measure(args: argparse.Namespace, split: Path, batch: int) -> list[dict[str, Any]]:
    """Both contenders `args.repeat` times, in turn."""
    options = {key: getattr(args, key) for key in ("hidden", "corruption", "optimizer", "lr", "threads", "seed")}
    shared = ["--split", str(split), "--batch", str(batch), "--epochs", str(args.epochs + 1)]
    shared += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    commands = {
        "deeprec": [sys.executable, "-m", "bench.cdae", "--child", *shared],
        "recbole": [args.recbole_python, str(PEERS / "recbole_cdae.py"), *shared],
    }
    results = in_turn(commands, args.repeat, f"batch {batch}")
    rows = []
    for name, runs in results.items():
        seconds = [value for run in runs for value in run["seconds_per_epoch"][1:]]
        rows.append(
            {
                "batch": batch,
                "contender": name,
                "version": runs[0]["version"],
                "seconds": statistics.median(seconds),
                "seconds_min": min(seconds),
                "seconds_max": max(seconds),
                "scored_per_epoch": runs[0]["examples_per_epoch"],
                "validation_hr@10": statistics.median(run["validation_hr@10"][-1] for run in runs),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with the speed-up over RecBole."""
    lines = [
        "| users a step | contender | s an epoch (median, range) | outputs scored | validation HR@10 | over RecBole |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        (rival,) = (r["seconds"] for r in rows if r["batch"] == row["batch"] and r["contender"] == "recbole")
        lines.append(
            f"| {row['batch']} | {row['contender']} {row['version']} | {row['seconds']:.3f} "
            f"({row['seconds_min']:.3f}-{row['seconds_max']:.3f}) | {row['scored_per_epoch']:,} | "
            f"{row['validation_hr@10']:.4f} | {rival / row['seconds']:.1f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="where ml-1m lies; by default as `deeprec data list` finds it")
    parser.add_argument("--min-rating", type=float, default=4.0, help="least rating that is a like")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--corruption", type=float, default=0.5)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--batch", type=int, nargs="+", default=[2048, 256], help="users a step; 2048 is RecBole's own")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--recbole-python", help="interpreter of the environment that has RecBole")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--split", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(deeprec_epochs(args)))
        return
    if args.recbole_python is None:
        parser.error("--recbole-python is needed: there is nothing to compare with otherwise")
    import numpy as np
    from ncf_split import from_pairs

    from deeprec.data import load

    likes = load("ml-1m", data_dir=args.data_dir, min_rating=args.min_rating, min_interactions=5)
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "split.npz"
        from_pairs(np.stack([likes.users, likes.items], 1).astype(np.int64), seed=args.seed).save(split)
        rows = [row for batch in args.batch for row in measure(args, split, batch)]
    print(table(rows))
    names = ("min_rating", "hidden", "corruption", "optimizer", "lr", "epochs", "repeat", "threads", "seed")
    keep(args.json, args, names, rows)


if __name__ == "__main__":
    main()
