"""Training speed of NeuMF beside plain PyTorch and RecBole: one epoch of the NCF split of ML-1M, in one run.

    python -m bench.neumf --ncf DIR/ml-1m [--recbole-python PYTHON] [--batch 4096 256] [--json FILE] [--plot FILE]

Every contender runs in a process of its own, one after the other, on the same training pairs, and is scored on the
same validation candidates, so that speed bought with quality shows. RecBole 1.2.1 wants its own environment: pip
install torch recbole==1.2.1 "numpy<2" "setuptools<80" "pandas<2.2".
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))


def deeprec_epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Train with deeprec's own loop; called in a child process."""
    import numpy as np
    import torch
    from ncf_split import NcfSplit, hit_rate

    from deeprec import __version__
    from deeprec.batches.pairs import PairwiseBatches
    from deeprec.data import IdMap, Interactions
    from deeprec.models import Schema, create
    from deeprec.train.loop import train_epoch
    from deeprec.train.optimizers import Optimizers

    torch.set_num_threads(args.threads)
    split = NcfSplit.load(args.split)
    train = Interactions(
        split.users.astype(np.int32),
        split.items.astype(np.int32),
        IdMap.from_values(np.arange(split.num_users), "user"),
        IdMap.from_values(np.arange(split.num_items), "item"),
    )
    options = {"factors": args.factors, "layers": tuple(args.layers), "lr": args.lr, "precision": args.precision}
    generator = torch.Generator().manual_seed(args.seed)
    model = create(
        "neumf",
        schema=Schema(split.num_users, split.num_items),
        batch_size=args.batch[0],
        generator=generator,
        **options,
    )
    optimizers = Optimizers(model)
    seconds, losses, hits = [], [], []
    for epoch in range(args.epochs):
        started = time.perf_counter()
        batches = PairwiseBatches(train, batch_size=args.batch[0], num_negatives=4, seed=args.seed)
        losses.append(train_epoch(model, optimizers, batches, epoch))
        seconds.append(time.perf_counter() - started)
        hits.append(hit_rate(split, lambda u, i: model.score_pairs(torch.from_numpy(u), torch.from_numpy(i)).numpy()))
    return {
        "peer": f"deeprec {args.precision}",
        "version": __version__,
        "seconds_per_epoch": seconds,
        "loss": losses,
        "validation_hr@10": hits,
        "examples_per_epoch": len(split.users) * 5,
    }


def contenders(args: argparse.Namespace, split: Path, batch: int) -> dict[str, list[str]]:
    """Command line of every contender."""
    sizes = ["--factors", str(args.factors), "--batch", str(batch), "--lr", str(args.lr)]
    run = [
        "--split",
        str(split),
        "--epochs",
        str(args.epochs),
        "--threads",
        str(args.threads),
        "--seed",
        str(args.seed),
    ]
    layers = [str(width) for width in args.layers]
    ours = [sys.executable, "-m", "bench.neumf", "--child", *sizes, *run, "--layers", *layers]
    found = {
        "deeprec float32": [*ours, "--precision", "float32"],
        "deeprec bfloat16": [*ours, "--precision", "bfloat16"],
        "torch": [sys.executable, str(PEERS / "torch_neumf.py"), *sizes, *run, "--layers", *layers],
    }
    if args.recbole_python and batch in args.recbole_batch:
        mlp = ["--mlp-embedding", str(args.layers[0] // 2), "--hidden", *layers[1:]]
        found["recbole"] = [args.recbole_python, str(PEERS / "recbole_neumf.py"), *sizes, *run, *mlp]
    return found


def measure(args: argparse.Namespace, split: Path, batch: int) -> list[dict[str, Any]]:
    """Every contender `args.repeat` times, in turn."""
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(args.repeat):
        for name, command in contenders(args, split, batch).items():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
            results.setdefault(name, []).append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"batch {batch}: {name} {results[name][-1]['seconds_per_epoch']}", file=sys.stderr, flush=True)
    rows = []
    for name, runs in results.items():
        seconds = [value for run in runs for value in run["seconds_per_epoch"]]
        rows.append(
            {
                "batch": batch,
                "contender": name,
                "version": runs[0]["version"],
                "seconds": statistics.median(seconds),
                "seconds_min": min(seconds),
                "seconds_max": max(seconds),
                "samples_per_second": runs[0]["examples_per_epoch"] / statistics.median(seconds),
                "validation_hr@10": statistics.median(run["validation_hr@10"][-1] for run in runs),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with the speed-up over each rival."""
    lines = [
        "| batch | contender | s an epoch (median, range) | samples/s | validation HR@10 | over torch | over RecBole |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = {other["contender"]: other["seconds"] for other in rows if other["batch"] == row["batch"]}
        over = [f"{same[rival] / row['seconds']:.1f}x" if rival in same else "-" for rival in ("torch", "recbole")]
        lines.append(
            f"| {row['batch']} | {row['contender']} {row['version']} | {row['seconds']:.2f} "
            f"({row['seconds_min']:.2f}-{row['seconds_max']:.2f}) | {row['samples_per_second']:,.0f} | "
            f"{row['validation_hr@10']:.4f} | {over[0]} | {over[1]} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of seconds an epoch, one group a batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [f"{row['contender']}, batch {row['batch']}" for row in rows]
    colours = ["#c44e52" if row["contender"].startswith("deeprec") else "#9aa5b1" for row in rows]
    bars = axes.barh(names, [row["seconds"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.1f s", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="seconds an epoch (shorter is better)", title="NeuMF, one epoch of ML-1M, 4 negatives")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=140)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ncf", type=Path, help="prefix of the NCF triple, for instance DIR/ml-1m")
    parser.add_argument("--split", type=Path, help=".npz of the split, instead of --ncf")
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs="+", default=[256, 128, 64], help="as the authors' --layers")
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 256])
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--recbole-python", help="interpreter of the environment that has RecBole")
    parser.add_argument("--recbole-batch", type=int, nargs="+", default=[4096])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(deeprec_epochs(args)))
        return
    from ncf_split import from_triple

    from deeprec.evaluate.card import hardware, versions

    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "split.npz"
        from_triple(args.ncf, seed=args.seed).save(split)
        rows = [row for batch in args.batch for row in measure(args, split, batch)]
    print(table(rows))
    if args.json:
        settings = {
            key: getattr(args, key) for key in ("factors", "layers", "lr", "epochs", "repeat", "threads", "seed")
        }
        result = {"settings": settings, "rows": rows, "versions": versions(), "hardware": hardware()}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
