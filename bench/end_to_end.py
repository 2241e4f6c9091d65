"""A model trained by `fit` on a device, beside plain PyTorch: the same rows, batch, optimizer and epochs.

    python -m bench.end_to_end MODEL --device cuda [--json FILE] [--tiny]

Any registered model; those of PEERS have a rival, `bench/peers/torch_end_to_end.py`, as it is and under torch.compile.
Interactions and ratings are MovieLens-1M where DEEPREC_DATA has it, and synthetic ones of its size otherwise; a log has
Criteo's shape. The first epoch, in which kernels are compiled, is left out of the times. Exit status 3: a package of
deeprec is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "bench" / "peers" / "torch_end_to_end.py"
PEERS = ("autorec", "deepfm", "dnn", "fm", "gmf", "lr", "mlp", "neumf", "wide-deep")
MISSING_PACKAGE = 3
EPOCHS, TINY_EPOCHS, SEED = 4, 2, 1
ML_1M = {"num_users": 6040, "num_items": 3706, "num_interactions": 1_000_209}
TINY = {"num_users": 60, "num_items": 300, "num_interactions": 1500}
LOG_ROWS, ROWS_A_FIELD, TINY_LOG_ROWS, TINY_ROWS_A_FIELD = 1_000_000, 10_000, 2_000, 20

# What ours and theirs are both told; sizes are those of the papers and of the benches on the CPU.
_PAIRS = {"batch_size": 65_536, "lr": 0.001, "optimizer": "adam", "num_negatives": 4}
_CLICKS = {"batch_size": 16_384, "lr": 0.001, "optimizer": "adam"}
_DEEP = {**_CLICKS, "factors": 16, "hidden": (400, 400, 400), "dropout": 0.0, "numerics": "input"}
OPTIONS: dict[str, dict[str, Any]] = {
    "neumf": {**_PAIRS, "factors": 64, "layers": (256, 128, 64)},
    "gmf": {**_PAIRS, "factors": 64},
    "mlp": {**_PAIRS, "layers": (256, 128, 64)},
    "lr": _CLICKS,
    "fm": {**_CLICKS, "factors": 16},
    "dnn": _DEEP,
    "deepfm": _DEEP,
    "wide-deep": {**_DEEP, "wide_optimizer": "adam", "wide_lr": 0.001},
    "autorec": {"batch_size": 512, "lr": 0.001, "optimizer": "adam", "hidden": 500, "l2": 0.0, "from_biases": False,
                "refit": False, "lr_schedule": "constant"},
}  # fmt: skip


def task_of(model: Any, tiny: bool) -> Any:
    """What the model learns from and is measured by."""
    from deeprec.contract import RATES

    if model.reads == "log":
        return model.task_for(click_rows(tiny), None, schema=click_schema())
    data = interactions(tiny)
    return model.task_for(data, "rating" if RATES in model.capabilities else "ncf")


def interactions(tiny: bool) -> Any:
    """MovieLens-1M, or synthetic interactions of its size."""
    from deeprec import data

    if tiny:
        return data.synthetic(**TINY)
    return data.load("ml-1m") if data.find("ml-1m") else data.synthetic(**ML_1M, name="synthetic, ML-1M's size")


def click_rows(tiny: bool) -> Any:
    """A frame of a log of Criteo's shape."""
    import polars as pl

    sys.path.insert(0, str(PEER.parent))
    from click_rows import Rows

    rows, each = (TINY_LOG_ROWS, TINY_ROWS_A_FIELD) if tiny else (LOG_ROWS, ROWS_A_FIELD)
    drawn = Rows.draw(rows, each, SEED)
    columns = {"click": pl.Series(drawn.labels).cast(pl.Int8)}
    columns |= {f"C{n + 1}": pl.Series(drawn.ids[:, n]) for n in range(drawn.ids.shape[1])}
    return pl.DataFrame(columns | {f"I{n + 1}": pl.Series(drawn.values[:, n]) for n in range(drawn.values.shape[1])})


def click_schema() -> Any:
    """Of that frame."""
    from click_rows import FIELDS, NUMERICS

    from deeprec.data import Categorical, FeatureSchema, Numeric

    fields = (Categorical(f"C{n + 1}", min_count=1) for n in range(FIELDS))
    numbers = (Numeric(f"I{n + 1}", transform="none", missing_indicator=False) for n in range(NUMERICS))
    return FeatureSchema((*fields, *numbers), label="click")


def arrays_of(task: Any) -> dict[str, Any]:
    """The rows that ours is trained on and tested with, for the rival."""
    import numpy as np

    if hasattr(task, "log"):
        train, test, inputs = task.train(SEED), task.log.parts["test"], task.log.inputs
        parts = {f"{name}_{column}": getattr(part, column) for name, part in (("train", train), ("test", test))
                 for column in ("ids", "values", "labels")}  # fmt: skip
        return {"kind": "clicks", "sizes": np.array([field.size for field in inputs.fields]), **parts}
    train, test, data = task.split.train, task.split.test, task.data
    sizes = {"num_users": data.num_users, "num_items": data.num_items}
    pairs = {"train_users": train.users, "train_items": train.items, "test_users": test.users, "test_items": test.items}
    if task.protocol.task == "rating":
        return {"kind": "ratings", **sizes, **pairs, "train_ratings": train.ratings, "test_ratings": test.ratings}
    return {"kind": "pairs", **sizes, **pairs, "candidates": task.split.test_negatives}


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Train by `fit`; called in a child process."""
    import numpy as np
    import torch

    from deeprec.models import create
    from deeprec.train import fit

    model = create(args.model, **options_of(args))
    task = task_of(model, args.tiny)
    if args.arrays:
        np.savez(args.arrays, **arrays_of(task))
    card = fit(model, task, seed=SEED, device=args.device, baselines=False).card
    history = [entry for entry in card.history if "refit" not in entry]
    return {
        "device": card.device,
        "data": task.name,
        "options": {name: value for name, value in card.config.items() if name in options_of(args)},
        "epoch_seconds": [entry["seconds"] for entry in history] or [card.seconds],
        "samples_per_second": [entry["samples_per_second"] for entry in history],
        "metrics": {name: value for name, value in card.metrics.items() if value is not None},
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Those of OPTIONS, and the number of epochs where the model has epochs."""
    from deeprec.registry import model_class

    options: dict[str, Any] = dict(OPTIONS.get(args.model, {}))
    if args.tiny and "batch_size" in options:
        options["batch_size"] = 64
    if model_class(args.model).trains_by_gradient:
        options["epochs"] = TINY_EPOCHS if args.tiny else EPOCHS
    return options


def child(command: list[str]) -> tuple[dict[str, Any] | None, str]:
    """The last line of a process, JSON; or None and why."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return None, lines[-1].strip()[:300] if lines else f"exit status {done.returncode}"
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result, ""


def row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """A contender's line: medians over the epochs after the first."""
    after = slice(1, None) if len(result["epoch_seconds"]) > 1 else slice(None)
    speeds = result["samples_per_second"][after]
    speed = statistics.median(speeds) if speeds else None
    seconds = statistics.median(result["epoch_seconds"][after])
    figures = ", ".join(f"{key} {value:.4f}" for key, value in result["metrics"].items())
    says = f"{figures}, fitted in {seconds:.3g} s" if speed is None else f"{figures}, {speed:,.0f} samples/s"
    return {**result, "name": name, "epoch_seconds": seconds, "samples_per_second": speed, "says": says}


def measure(args: argparse.Namespace, arrays: Path) -> dict[str, Any]:
    """Ours, then the rivals on the same rows.

    Raises:
        RuntimeError: ours failed.
    """
    own = [sys.executable, "-m", "bench.end_to_end", args.model, "--device", args.device, "--child"]
    own += ["--tiny"] * args.tiny + ["--arrays", str(arrays)] * (args.model in PEERS)
    result, why = child(own)
    if result is None:
        raise RuntimeError(f"{args.model}: {why}")
    rows, missing = [row("deeprec", result)], {}
    rivals = {"torch": [], **({} if args.tiny else {"torch.compile": ["--compile"]})} if args.model in PEERS else {}
    for name, more in rivals.items():
        told = json.dumps({**result["options"], "epochs": len(result["epoch_seconds"])})
        command = [sys.executable, str(PEER), args.model, "--arrays", str(arrays), "--device", args.device]
        found, why = child([*command, "--options", told, *more])
        if found is None:
            missing[name] = why
        else:
            rows.append(row(name, found))
    return {"schema": "deeprec-end-to-end/1", "model": args.model, "device": args.device, "data": result["data"],
            "rows": rows, "missing": missing}  # fmt: skip


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a registered name")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few rows: to see that all works")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--arrays", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        import deeprec.models
    except ModuleNotFoundError as error:
        print(f"bench.end_to_end: {error.name} is not installed, which reading and keeping data needs; carry its wheel",
              file=sys.stderr)  # fmt: skip
        return MISSING_PACKAGE
    del deeprec
    if args.child:
        print(json.dumps(ours(args)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = measure(args, Path(folder) / "arrays.npz")
        except RuntimeError as error:
            print(f"bench.end_to_end: {error}", file=sys.stderr)
            return 1
    print("\n".join(f"{each['name']}: {each['says']}" for each in result["rows"]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
