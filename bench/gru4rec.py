"""Mini-batches a second of GRU4Rec beside plain PyTorch, on the sessions of Diginetica, in one run.

    python -m bench.gru4rec [--units 100] [--lanes 32] [--negatives 2048] [--threads 2] [--json FILE]

Cross-entropy over the targets of all lanes and the drawn items, constrained item vectors, AdaGrad: the setting in which
the authors' PyTorch does about 400 mini-batches a second on an A30 and their Theano 1,380. Both train the same sessions
from the same start, in blocks of steps that take turns; batches, draws and optimizer included. The median block counts,
and the losses of all blocks are printed beside, so that speed bought with quality shows. Work: 6 H (n + 2B) B for the
scores and their gradients and 36 H^2 B for the network, in multiplications and additions, which by the measured speed
of a matrix product is the bound. Data is found in DEEPREC_DATA.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.contenders import keep
from bench.machine import machine
from deeprec.batches import Histories
from deeprec.contract import Schema
from deeprec.data import Interactions, load
from deeprec.models import GRU4Rec
from deeprec.train.optimizers import Optimizers

# isort: split
from torch_gru4rec import PlainTraining  # bench.contenders makes the peers importable

RATE = 0.1


class Training:
    """deeprec's model while it is trained: `step()` is one mini-batch, as the training loop takes it."""

    def __init__(self, data: Interactions, args: argparse.Namespace) -> None:
        self.model = GRU4Rec(
            Schema(data.num_users, data.num_items),
            generator=torch.Generator().manual_seed(args.seed),
            factors=args.units,
            batch_size=args.lanes,
            num_negatives=args.negatives,
            lr=RATE,
        )
        self.model.train()
        self.batches = self.model.batches(data, args.seed).epoch(0)
        self.optimizers = Optimizers(self.model)

    def step(self) -> float:
        """Its loss."""
        loss = float(self.model.backward(next(self.batches)))
        self.optimizers.step()
        self.optimizers.clear()
        return loss


def training_sessions() -> Interactions:
    """Diginetica without its test sessions."""
    data = load("diginetica")
    assert data.official is not None
    return data.take(data.official.train_index)


def matrix_rate(args: argparse.Namespace) -> float:
    """Multiplications and additions a second of the largest product of a step."""
    states, rows = torch.randn(args.lanes, args.units), torch.randn(args.lanes + args.negatives, args.units)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        for _ in range(10):
            states @ rows.T
        times.append((time.perf_counter() - started) / 10)
    return 2 * states.numel() * len(rows) / min(times)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Blocks of steps of both in turn."""
    torch.set_num_threads(args.threads)
    data = training_sessions()
    offsets, items = Histories.of(data)
    sizes = {"units": args.units, "num_lanes": args.lanes, "num_negatives": args.negatives}
    ours = Training(data, args)
    plain = PlainTraining(offsets, items, data.item_counts(), **sizes, alpha=0.5, lr=RATE)
    plain.model.items.weight.data.copy_(ours.model.items.weight.data)
    plain.model.cell.load_state_dict(
        {name.removesuffix("_l0"): value for name, value in ours.model.layers[0].state_dict().items()}
    )
    steps: dict[str, Callable[[], float]] = {"deeprec": ours.step, "plain PyTorch": plain.step}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(args.blocks + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            losses[name].append(statistics.fmean(step() for _ in range(args.steps)))
            if block:  # the first warms up
                seconds[name].append((time.perf_counter() - started) / args.steps)
    lanes, units, candidates = args.lanes, args.units, args.lanes + args.negatives
    work = 6 * lanes * units * candidates + 36 * lanes * units**2
    bound = matrix_rate(args) / work
    return [
        {
            "contender": name,
            "batches_per_second": 1 / statistics.median(seconds[name]),
            "slowest": 1 / max(seconds[name]),
            "fastest": 1 / min(seconds[name]),
            "bound": bound,
            "losses": losses[name],
        }
        for name in steps
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| | mini-batches/s (median, range) | of the bound | mean loss by block |", "|---|---|---|---|"]
    for row in rows:
        losses = " ".join(f"{loss:.3f}" for loss in row["losses"])
        lines.append(
            f"| {row['contender']} | {row['batches_per_second']:.0f} ({row['slowest']:.0f}-{row['fastest']:.0f}) | "
            f"{row['batches_per_second'] / row['bound']:.0%} of {row['bound']:.0f} | {losses} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--negatives", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="in a block")
    parser.add_argument("--blocks", type=int, default=7, help="of each, after one to warm up")
    parser.add_argument("--seed", type=int, default=1)
    kept = Path(__file__).with_name("results") / "gru4rec.json"
    parser.add_argument("--json", type=Path, default=kept, help="write the result there")
    args = parser.parse_args()
    rows = measure(args)
    print(table(rows))
    print(machine())
    keep(args.json, args, ("units", "lanes", "negatives", "threads", "steps", "blocks", "seed"), rows)


if __name__ == "__main__":
    main()
