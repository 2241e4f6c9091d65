"""Speed of alternating least squares beside the package implicit: sweeps over users and items, in one run.

    python -m bench.als --implicit-python PYTHON [--data ml-1m ...] [--factors 64 128] [--solver cg cholesky]
                        [--epochs 5] [--repeat 3] [--json FILE]

The same factors, confidences, regulariser, steps of conjugate gradient (3), sweeps and threads; each in a process of
its own, one after the other, and scored after each sweep on the same held-out candidates, so that speed bought with
quality shows. The first sweep of a process, which warms it up, is run but not counted. CPU seconds stand beside the
wall clock; threads that wait count in them. implicit's environment: pip install implicit scipy.

`--data` takes names of data sets and files of lists, `user item item ...` a line.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.contenders import PEERS, epochs_of, in_turn, keep

SHARED = ("alpha", "l2", "threads", "seed")


def deeprec_epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Train with deeprec's own loop; called in a child process."""
    import torch

    from deeprec.models import ALS

    options = {"factors": args.factors[0], "solver": args.solver[0], "alpha": args.alpha, "l2": args.l2}
    generator = torch.Generator().manual_seed(args.seed)
    return {"peer": "deeprec", **epochs_of(lambda schema: ALS(schema, generator=generator, **options), args)}


def pairs_of(data: str, data_dir: str | None) -> Any:
    """Distinct (user, item) pairs [n, 2] with ids from 0 on, of users with at least 5."""
    import numpy as np
    import polars as pl

    from deeprec.data import from_frame, load, positives

    if Path(data).is_file():
        opener = gzip.open if data.endswith(".gz") else open
        with opener(data, "rt") as lines:
            rows = [[int(word) for word in line.split()] for line in lines]
        users = [row[0] for row in rows for _ in row[1:]]
        frame = pl.DataFrame({"user_id": users, "item_id": [item for row in rows for item in row[1:]]})
        read = positives(from_frame(frame.unique(maintain_order=True)), min_interactions=5)
    else:
        read = load(data, data_dir=data_dir, min_interactions=5)
    return np.stack([read.users, read.items], 1).astype(np.int64)


def measure(args: argparse.Namespace, data: str, split: Path, factors: int, solver: str) -> list[dict[str, Any]]:
    """Both contenders `args.repeat` times, in turn."""
    words = ["--split", str(split), "--factors", str(factors), "--solver", solver, "--epochs", str(args.epochs + 1)]
    words += [word for name in SHARED for word in (f"--{name}", str(getattr(args, name)))]
    commands = {
        "deeprec": [sys.executable, "-m", "bench.als", "--child", *words],
        "implicit": [args.implicit_python, str(PEERS / "implicit_als.py"), *words],
    }
    rows = []
    for name, runs in in_turn(commands, args.repeat, f"{data}, {factors}, {solver}").items():
        seconds = [value for run in runs for value in run["seconds_per_epoch"][1:]]
        rows.append(
            {
                "data": data,
                "factors": factors,
                "solver": solver,
                "contender": name,
                "version": runs[0]["version"],
                "seconds": statistics.median(seconds),
                "seconds_min": min(seconds),
                "seconds_max": max(seconds),
                "cpu_seconds": statistics.median(x for run in runs for x in run["cpu_seconds_per_epoch"][1:]),
                "validation_hr@10": statistics.median(run["validation_hr@10"][-1] for run in runs),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with the speed-up over implicit."""
    lines = [
        "| data | factors | solver | contender | s a sweep (median, range) | CPU s | HR@10 | over implicit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = [r for r in rows if all(r[key] == row[key] for key in ("data", "factors", "solver"))]
        (rival,) = (r["seconds"] for r in same if r["contender"] == "implicit")
        lines.append(
            f"| {Path(row['data']).parent.name or row['data']} | {row['factors']} | {row['solver']} | "
            f"{row['contender']} {row['version']} | {row['seconds']:.3f} "
            f"({row['seconds_min']:.3f}-{row['seconds_max']:.3f}) | {row['cpu_seconds']:.3f} | "
            f"{row['validation_hr@10']:.4f} | {rival / row['seconds']:.1f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["ml-1m"], help="names, or files of lists")
    parser.add_argument("--data-dir", help="where named sets lie; by default as `deeprec data list` finds them")
    parser.add_argument("--factors", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--solver", nargs="+", choices=("cg", "cholesky"), default=["cg", "cholesky"])
    parser.add_argument("--alpha", type=float, default=10.0)
    parser.add_argument("--l2", type=float, default=40.0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--implicit-python", help="interpreter of the environment that has implicit")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--split", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(deeprec_epochs(args)))
        return
    if args.implicit_python is None:
        parser.error("--implicit-python is needed: there is nothing to compare with otherwise")
    from ncf_split import from_pairs

    rows = []
    for data in args.data:
        with tempfile.TemporaryDirectory() as folder:
            split = Path(folder) / "split.npz"
            from_pairs(pairs_of(data, args.data_dir), seed=args.seed).save(split)
            for factors in args.factors:
                for solver in args.solver:
                    rows += measure(args, data, split, factors, solver)
    print(table(rows))
    keep(args.json, args, ("alpha", "l2", "epochs", "repeat", "threads", "seed"), rows)


if __name__ == "__main__":
    main()
