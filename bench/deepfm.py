"""Training speed of DeepFM beside DeepCTR-Torch: 26 categorical and 13 numeric columns, D 16, MLP 400-400-400, Adam.

    python -m bench.deepfm [--rows 1000 100000] [--repeat 3] [--json FILE] [--plot FILE]

Every contender runs in a process of its own, in turn, on the same rows from the same first weights; reading and
shuffling the input is part of the time. Before anything is compared, the log loss of the first batch must be the same,
and that of the first epoch no worse. DeepCTR-Torch 0.3.0 trains by its own `fit`: once with the same loss and nothing
else, once as its README does it (default L2, metrics of each batch).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.contenders import PEERS, bars, in_turn, keep

RIVAL, README = "DeepCTR-Torch", "DeepCTR-Torch, as in its README"
TARGETS = {1_000: 4.0, 100_000: 10.0}  # times the rival's speed, by rows a field
FIRST_LOSS = {"float32": 1e-5, "bfloat16": 1e-3}  # by how much the loss of the first batch may differ
EPOCH_LOSS = 0.02  # share by which the loss of the first epoch may be worse; batches in another order make 0.01


def deeprec_epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Train the model of deeprec by its own batches and optimizers; called in a child process."""
    import torch
    from click_rows import FIELDS, NUMERICS, Rows, log_loss, of_arguments

    from deeprec import __version__
    from deeprec.data.clicks.part import ClickPart
    from deeprec.data.columns.inputs import Encoded, Field, Inputs
    from deeprec.models.click import ClickBatch
    from deeprec.models.deepfm import DeepFM
    from deeprec.train.optimizers import Optimizers

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train, weights = of_arguments(args, args.rows[0])
    inputs = Inputs(tuple(Field(f"C{f}", args.rows[0]) for f in range(FIELDS)), tuple(f"I{p}" for p in range(NUMERICS)))
    model = DeepFM(
        inputs,
        factors=args.dim,
        hidden=tuple(args.hidden),
        numerics="input",
        dropout=0.0,
        optimizer=args.optimizer,
        lr=args.lr,
        batch_size=args.batch,
        precision=args.precision,
        step_in_backward=True,
    )
    fm, mlp = model.terms.fm, model.mlp
    pairs = [*zip(fm.weights(), weights.tables, strict=True)]
    pairs += [(w, array[:, None]) for w, array in zip(fm.linear_weights(), weights.linear, strict=True)]
    for layer, (weight, bias) in zip(mlp.layers, weights.layers, strict=True):
        pairs += [(layer.weight, weight), (layer.bias, bias)]
    pairs.append((mlp.output.weight, weights.output))
    with torch.no_grad():
        for parameter, array in pairs:
            assert parameter.shape == array.shape
            parameter.copy_(torch.from_numpy(array))
    part = ClickPart(Encoded(train.ids, train.values, labels=train.labels))

    def probabilities(rows: Rows) -> Any:
        with torch.no_grad():
            return model(ClickBatch.of(Encoded(rows.ids, rows.values))).sigmoid().numpy()

    model.eval()
    first = Rows(*(array[: args.batch] for array in train))
    first_loss = log_loss(probabilities(first), first.labels)
    optimizers = Optimizers(model)
    model.train()
    seconds, losses = [], []
    for epoch in range(args.epochs):
        started, total = time.perf_counter(), 0.0
        for rows in part.batches(args.batch, seed=args.seed, epoch=epoch):
            optimizers.clear()
            loss = model.loss(ClickBatch.of(rows))
            loss.backward()
            optimizers.step()
            total += loss.item() * len(rows)
        optimizers.flush()
        seconds.append(time.perf_counter() - started)
        losses.append(total / len(part))
    return {
        "version": __version__,
        "first_loss": first_loss,
        "seconds_per_epoch": seconds,
        "loss": losses,
    }


def contenders(args: argparse.Namespace, rows: int) -> dict[str, list[str]]:
    """Command line of every contender."""
    sizes = ["--rows", str(rows), "--hidden", *map(str, args.hidden)]
    for name in ("dim", "batch", "batches", "lr", "epochs", "threads", "seed"):
        sizes += [f"--{name}", str(getattr(args, name))]
    ours = [sys.executable, "-m", "bench.deepfm", "--child", *sizes]
    theirs = [sys.executable, str(PEERS / "deepctr_deepfm.py"), *sizes]
    return {
        "deeprec bfloat16": [*ours, "--precision", "bfloat16"],
        "deeprec bfloat16, Adam lazy": [*ours, "--precision", "bfloat16", "--optimizer", "lazy-adam"],
        "deeprec float32": [*ours, "--precision", "float32"],
        RIVAL: theirs,
        README: [*theirs, "--as-in-readme"],
    }


def measure(args: argparse.Namespace, rows: int) -> list[dict[str, Any]]:
    """Every contender `args.repeat` times, in turn."""
    commands = {name: each for name, each in contenders(args, rows).items() if not args.only or name in args.only}
    results = in_turn(commands, args.repeat, f"{rows} rows", args.before.split())
    check({name: runs[0] for name, runs in results.items()})
    examples, table = args.batches * args.batch, []
    for name, runs in results.items():
        seconds = [value for run in runs for value in run["seconds_per_epoch"]]
        table.append(
            {
                "rows": rows,
                "contender": name,
                "version": runs[0]["version"],
                "rows_per_second": examples / statistics.median(seconds),
                "slowest": examples / max(seconds),
                "fastest": examples / min(seconds),
                "first_loss": runs[0]["first_loss"],
                "epoch_loss": statistics.median(run["loss"][0] for run in runs),
            }
        )
    return table


def check(results: dict[str, dict[str, Any]]) -> None:
    """Raise RuntimeError where contenders do not compute the same network, or train it worse."""
    if RIVAL not in results:
        return
    rival = results[RIVAL]
    for name, found in results.items():
        allowed = FIRST_LOSS["bfloat16" if "bfloat16" in name else "float32"]
        if abs(found["first_loss"] - rival["first_loss"]) > allowed:
            raise RuntimeError(f"{name}: first log loss {found['first_loss']}, {RIVAL} has {rival['first_loss']}")
        if found["loss"][0] > rival["loss"][0] * (1 + EPOCH_LOSS) and name != README:  # which has its L2 in it
            raise RuntimeError(f"{name}: loss of an epoch {found['loss'][0]}, {RIVAL} has {rival['loss'][0]}")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with the speed-up over the rival."""
    lines = [
        "| rows a field | contender | rows/s (median, range) | first loss | epoch loss | over DeepCTR-Torch | over its "
        "README | target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speeds = {other["contender"]: other["rows_per_second"] for other in rows if other["rows"] == row["rows"]}
        over = [f"{row['rows_per_second'] / speeds[name]:.2f}x" if name in speeds else "-" for name in (RIVAL, README)]
        target = (
            f"{TARGETS[row['rows']]:g}x" if row["rows"] in TARGETS and row["contender"] == "deeprec bfloat16" else ""
        )
        lines.append(
            f"| {row['rows']:,} | {row['contender']} {row['version']} | {row['rows_per_second']:,.0f} "
            f"({row['slowest']:,.0f} - {row['fastest']:,.0f}) | {row['first_loss']:.5f} | {row['epoch_loss']:.4f} | "
            f"{over[0]} | {over[1]} | {target} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    from click_rows import add_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000], help="of each field")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of contenders")
    parser.add_argument("--before", default="", help="put before each command, for instance 'taskset -c 0,1'")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--optimizer", choices=["adam", "lazy-adam"], default="adam", help="adam equals dense Adam")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    add_arguments(parser)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(deeprec_epochs(args)))
        return
    rows = [row for size in args.rows for row in measure(args, size)]
    print(table(rows))
    keep(args.json, args, ("dim", "hidden", "batch", "batches", "lr", "epochs", "repeat", "threads", "seed"), rows)
    if args.plot:
        lengths = {f"{row['contender']}, {row['rows']:,} rows a field": row["rows_per_second"] for row in rows}
        title = "DeepFM, 26 + 13 columns, D 16, 400-400-400, batch 4096"
        bars(args.plot, lengths, title=title, label="rows a second (longer is better)", shown="{:,.0f}")


if __name__ == "__main__":
    main()
