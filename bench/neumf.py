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
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.contenders import PEERS, bars, epochs_of, in_turn, keep


def deeprec_epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Train with deeprec's own loop; called in a child process."""
    import torch

    from deeprec.models import NeuMF

    options: dict[str, Any] = {"factors": args.factors, "layers": tuple(args.layers), "lr": args.lr}
    options |= {"precision": args.precision, "batch_size": args.batch[0], "num_negatives": 4}
    generator = torch.Generator().manual_seed(args.seed)
    result = epochs_of(lambda schema: NeuMF(schema, generator=generator, **options), args)
    return {"peer": f"deeprec {args.precision}", **result}


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
    results = in_turn(contenders(args, split, batch), args.repeat, f"batch {batch}")
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

    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "split.npz"
        from_triple(args.ncf, seed=args.seed).save(split)
        rows = [row for batch in args.batch for row in measure(args, split, batch)]
    print(table(rows))
    keep(args.json, args, ("factors", "layers", "lr", "epochs", "repeat", "threads", "seed"), rows)
    if args.plot:
        lengths = {f"{row['contender']}, batch {row['batch']}": row["seconds"] for row in rows}
        title, label = "NeuMF, one epoch of ML-1M, 4 negatives", "seconds an epoch (shorter is better)"
        bars(args.plot, lengths, title=title, label=label, shown="{:.1f} s")


if __name__ == "__main__":
    main()
