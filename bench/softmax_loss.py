"""Softmax over a catalogue beside PyTorch's cross-entropy: forward and backward, and the memory that a step adds.

    python -m bench softmax_loss
    python -m bench.softmax_loss memory [--results DIR]

The second form measures how much resident memory one step adds to its inputs, each contender in a process of its own,
and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness import Case, Contender, Target, Trial
from bench.machine import machine, versions
from bench.rivals import compiled, linear_losses
from bench.workloads import scale
from deeprec.kernels.sample_negatives import AliasTable, alias_table, sample_negatives
from deeprec.kernels.softmax_loss import sampled_softmax_loss, softmax_loss

EAGER, COMPILED, CHUNKED = "F.cross_entropy", "torch.compile", "chunks with checkpoints"
ROWS_OF_CHUNK = 128
CATALOGUE, IN_BATCH, UNIFORM, POPULAR = "100k items", "in-batch", "drawn uniformly", "drawn by popularity"
BFLOAT16 = "100k items in bfloat16"
GATHER, NUM_NEGATIVES = "gather of rows", 100
TARGETS = (
    *(
        Target("softmax over 100k items in bfloat16, forward + backward", BFLOAT16, rival, 1.0)
        for rival in (EAGER, COMPILED, CHUNKED)
    ),
    Target("softmax over 100k items, forward + backward", CATALOGUE, EAGER, 1.0),
    Target("softmax over 100k items, forward + backward", CATALOGUE, COMPILED, 1.0),
    Target("softmax over 100k items, forward + backward", CATALOGUE, CHUNKED, 1.0),
    Target("in-batch softmax, forward + backward", IN_BATCH, EAGER, 1.0),
    Target("100 negatives a row, drawn uniformly", UNIFORM, GATHER, 1.0),
    Target("100 negatives a row, drawn by popularity", POPULAR, GATHER, 1.0),
    Target("100 negatives a row, by popularity beside uniformly", POPULAR, UNIFORM, 1 / 1.2),
    *(
        Target(work, group, rival, 1.0, device="cuda")
        for work, group, rivals in (
            ("softmax over 100k items", CATALOGUE, (EAGER, COMPILED, CHUNKED, *linear_losses("cuda"))),
            ("softmax over 100k items in bfloat16", BFLOAT16, (EAGER, COMPILED, CHUNKED, *linear_losses("cuda"))),
            ("in-batch softmax", IN_BATCH, (EAGER, COMPILED)),
            ("100 negatives a row, drawn uniformly", UNIFORM, (GATHER,)),
            ("100 negatives a row, drawn by popularity", POPULAR, (GATHER,)),
        )
        for rival in rivals
    ),
)
SHAPES = (
    (CATALOGUE, 1024, 100_000, 64),
    (CATALOGUE, 1024, 100_000, 128),
    (CATALOGUE, 4096, 100_000, 64),
    (CATALOGUE, 8192, 100_000, 128),
    (BFLOAT16, 1024, 100_000, 64),
    (BFLOAT16, 4096, 100_000, 128),
    (IN_BATCH, 1024, 1024, 64),
    (IN_BATCH, 8192, 8192, 128),
)
DRAWN = {"cpu": (1024, 100_000), "cuda": (16_384, 100_000)}  # rows and items where negatives are drawn
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """No logits in memory."""
    return softmax_loss(queries, items, targets)


def plain(queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """All logits."""
    return F.cross_entropy(queries @ items.T, targets)


def chunked(queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """The logits of ROWS_OF_CHUNK rows at a time, made again for the gradients."""

    def part(q: Tensor, v: Tensor, at: Tensor) -> Tensor:
        return F.cross_entropy(q @ v.T, at, reduction="sum")

    pairs = zip(queries.split(ROWS_OF_CHUNK), targets.split(ROWS_OF_CHUNK), strict=True)
    losses = [torch.utils.checkpoint.checkpoint(part, q, items, at, use_reentrant=False) for q, at in pairs]
    return torch.stack(losses).sum() / len(targets)


def _inputs(batch: int, num_items: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, items and targets on torch's default device, the same for all."""
    draw = torch.Generator().manual_seed(0)
    with torch.device("cpu"):
        queries = torch.randn(batch, dim, generator=draw)
        items = torch.randn(num_items, dim, generator=draw) * dim**-0.5
        targets = torch.randint(num_items, (batch,), generator=draw)
    queries, items = (torch.as_tensor(x.to(dtype)).requires_grad_() for x in (queries, items))
    return queries, items, torch.as_tensor(targets)


def _step(loss_of: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    loss = loss_of(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, inputs[:2])]


def _exact(inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """In float64, a few rows at a time: all logits of the largest case would take 13 GB."""
    queries, items = (x.detach().double().requires_grad_() for x in inputs[:2])
    total = torch.zeros((), dtype=torch.float64)
    of_queries, of_items = torch.zeros_like(queries), torch.zeros_like(items)
    for rows in torch.arange(len(queries)).split(ROWS_OF_CHUNK):
        loss = F.cross_entropy(queries[rows] @ items.T, inputs[2][rows], reduction="sum") / len(queries)
        for grad, more in zip((of_queries, of_items), torch.autograd.grad(loss, [queries, items]), strict=True):
            grad += more
        total += loss.detach()
    return [total, of_queries, of_items]


def _trial(batch: int, num_items: int, dim: int, device: str, dtype: torch.dtype) -> Trial:
    inputs = _inputs(batch, num_items, dim, dtype)
    trial = Trial(_exact(inputs), tolerance=1e-4 if dtype == torch.float32 else 2e-2)
    trial.add("deeprec", partial(_step, ours, inputs))
    rivals = {EAGER: lambda: plain, CHUNKED: lambda: chunked, COMPILED: lambda: compiled(plain)}
    for name, loss_of in {**rivals, **linear_losses(device)}.items():
        trial.add_rival(name, lambda name=name, loss_of=loss_of: Contender(name, partial(_step, loss_of(), inputs)))
    return trial


def _drawn_trial(batch: int, num_items: int, by_popularity: bool) -> Trial:
    """Negatives of each row's own, corrected: drawn in the kernel, or first and then gathered."""
    queries, items, targets = inputs = _inputs(batch, num_items, 64)
    popularity = _popularity(num_items) if by_popularity else None
    chances = popularity.probabilities() if popularity else torch.full((num_items,), 1 / num_items)
    log_q = (NUM_NEGATIVES * chances.double()).log().unsqueeze(1)
    nobody = torch.zeros(batch, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)

    def drawn(q: Tensor, v: Tensor, at: Tensor) -> Tensor:
        return sampled_softmax_loss(q, v, at, NUM_NEGATIVES, seed=1, popularity=popularity)

    def gathered(q: Tensor, v: Tensor, at: Tensor) -> Tensor:
        ids = sample_negatives(*nobody, len(v), NUM_NEGATIVES, seed=1, popularity=popularity)
        rows = F.embedding(torch.cat([at.unsqueeze(1), ids], 1), v, sparse=True)
        logits = torch.bmm(rows, q.unsqueeze(2)).squeeze(2)
        logits = logits - F.pad(F.embedding(ids, log_q.to(v.dtype)).squeeze(2), (1, 0))
        is_positive = F.pad(ids == at.unsqueeze(1), (1, 0))  # which the loss leaves out
        return F.cross_entropy(logits.masked_fill(is_positive, -torch.inf), torch.zeros_like(at))

    def dense(results: list[Tensor]) -> list[Tensor]:
        return [x.to_dense() for x in results]

    wide = (queries.detach().double().requires_grad_(), items.detach().double().requires_grad_(), targets)
    trial = Trial(dense(_step(gathered, wide)), tolerance=1e-4)
    for name, loss_of in (("deeprec", drawn), (GATHER, gathered)):
        step = partial(_step, loss_of, inputs)
        trial.add(name, step, lambda step=step: dense(step()))
    if by_popularity:  # other negatives, whose results the case of uniform ones checks
        trial.add(UNIFORM, partial(_step, _uniform, inputs), lambda: trial.expected)
    return trial


def _popularity(num_items: int) -> AliasTable:
    return alias_table(1 / torch.arange(1.0, num_items + 1), 0.75)


def _uniform(queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    return sampled_softmax_loss(queries, items, targets, NUM_NEGATIVES, seed=1)


def _popular(num_items: int) -> Loss:
    table = _popularity(num_items)
    return lambda q, v, at: sampled_softmax_loss(q, v, at, NUM_NEGATIVES, seed=1, popularity=table)


def _dtype(group: str) -> torch.dtype:
    return torch.bfloat16 if group == BFLOAT16 else torch.float32


def cases(device: str = "cpu") -> list[Case]:
    """The catalogue at the sizes that a two-tower model trains with, the batch against itself, and drawn negatives."""
    rows, of_items = DRAWN[device]
    entries = rows * (1 + NUM_NEGATIVES)
    drawn = [
        Case(
            f"{NUM_NEGATIVES} negatives {group}, B {rows}, N {of_items}, D 64, forward + backward",
            group,
            partial(_drawn_trial, rows, of_items, group == POPULAR),
            3 * entries * 64 * 4,  # every row twice, and its gradient once
            6 * entries * 64,
            scale=scale(device, f"B {rows}", f"B {DRAWN['cpu'][0]}"),
            turns=1,
        )
        for group in (UNIFORM, POPULAR)
    ]
    return drawn + [
        Case(
            f"{group}, B {batch}, N {num_items}, D {dim}, forward + backward",
            group,
            partial(_trial, batch, num_items, dim, device, _dtype(group)),
            2 * _dtype(group).itemsize * dim * (batch + num_items),  # queries, items and their gradients, once
            6 * batch * num_items * dim,  # a product forwards, two backwards
            effort=0.25 if batch * num_items > 200_000_000 else 1.0,
            turns=1,
        )
        for group, batch, num_items, dim in SHAPES
    ]


# Memory: one contender a process.

CONTENDERS: dict[str, Callable[[int], Loss]] = {
    "deeprec": lambda _: ours,
    EAGER: lambda _: plain,
    CHUNKED: lambda _: chunked,
    COMPILED: lambda _: compiled(plain),
    UNIFORM: lambda _: _uniform,
    POPULAR: _popular,
}


def _resident(field: str) -> int:
    """Bytes that this process holds (VmRSS:) or held at most (VmHWM:)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field))


def added_memory(name: str, batch: int, num_items: int, dim: int, dtype: torch.dtype) -> int:
    """Bytes that a step of a contender adds to its inputs, its result included, at their peak."""
    loss_of = CONTENDERS[name](num_items)
    inputs = _inputs(batch, num_items, dim, dtype)
    # What the compiler takes is none of the step's; of the others only what the process takes once.
    _step(loss_of, inputs if name in (COMPILED, UNIFORM, POPULAR) else _inputs(8, 64, dim, dtype))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before = _resident("VmRSS:")
    _step(loss_of, inputs)
    return _resident("VmHWM:") - before


def memory(folder: Path) -> dict[str, Any]:
    """Memory of a step of each contender, and that of the others as multiples of the first."""
    report: dict[str, Any] = {"machine": machine(), "versions": versions(), "cases": []}
    full = tuple(name for name in CONTENDERS if name not in (UNIFORM, POPULAR))
    work = [(*shape, full) for shape in SHAPES if shape[0] in (CATALOGUE, BFLOAT16) and shape[1] <= 4096]
    for group, *shape, names in (*work, (UNIFORM, *DRAWN["cpu"], 64, (UNIFORM, POPULAR))):
        dtype = _dtype(group)
        row: dict[str, Any] = {"group": group, **dict(zip(("batch", "items", "dim"), shape, strict=True))}
        for name in names:
            arguments = f"{name!r}, *{shape}, {dtype}"
            code = f"import torch; from bench.softmax_loss import added_memory; print(added_memory({arguments}))"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            row[name] = int(done.stdout.split()[-1]) if done.returncode == 0 else None
        row["ratio"] = {name: row[name] / row[names[0]] for name in names if row[name] and row[names[0]]}
        report["cases"].append(row)
    (folder / "softmax_loss-memory.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.softmax_loss", description=__doc__)
    parser.add_argument("what", choices=["memory"])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder to write to")
    for row in memory(parser.parse_args().results)["cases"]:
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
