"""I-AutoRec beside dense PyTorch: an epoch of forward, backward and Adam; working memory; where the dense path wins.

    python -m bench masked_autoencoder_loss
    python -m bench.masked_autoencoder_loss crossover|memory [--results DIR]

`crossover` times both paths over density and catalogue size, draws the border and writes JSON beside it; `memory`
measures the resident memory that one step adds to parameters and optimizer states, each contender in a process of its
own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.autoencoders import (
    ADDMM,
    DENSE,
    DENSE_COMPILED,
    GATHER,
    HIDDEN,
    ML_1M,
    Rows,
    layers,
    ml_1m,
    synthetic,
    workloads,
)
from bench.harness import Case, Contender, Target, Trial
from bench.machine import machine, versions
from bench.rivals import compiled
from bench.workloads import optimizer_of, row_update
from deeprec.kernels.embedding_bag import RowUpdate
from deeprec.kernels.masked_autoencoder_loss import DENSE_FROM, masked_autoencoder_loss

LR, EPS = 1e-3, 1e-2  # so large an eps that a gradient of nothing but rounding errors moves no weight
ADAM = 3
TORCH_ADAM = partial(torch.optim.Adam, lr=LR, eps=EPS, fused=True)
TARGETS = (
    Target("I-AutoRec, H 500, ML-1M, B 512: an epoch with Adam", "ML-1M epoch", DENSE_COMPILED, 6.0),
    Target("I-AutoRec, H 500, ML-1M, B 512: an epoch with Adam", "ML-1M epoch", DENSE, 6.0),
    Target("same, 0.5% density, 50k columns", "50k columns", DENSE_COMPILED, 20.0),
    Target("same, 0.5% density, 50k columns", "50k columns", DENSE, 20.0),
    *(
        Target(f"I-AutoRec, H 500, {work} with Adam", group, rival, 1.0, device="cuda")
        for work, group in (("ML-1M's shape: an epoch", "ML-1M epoch"), ("50k columns: two steps", "50k columns"))
        for rival in (DENSE_COMPILED, DENSE, ADDMM)
    ),
)
Step = Callable[[Rows, Sequence[Tensor]], Tensor]


def adam(weight: Tensor) -> RowUpdate:
    """Adam on the touched rows."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    return row_update(ADAM, [first], [second], LR, [EPS, 0.0, 0.9, 0.999])


def our_epoch(batches: Sequence[Rows], parameters: list[Tensor], path: str = "auto") -> Callable[[], Any]:
    """Forward, backward and update, batch after batch; the steps on the tables are taken in the backward pass."""
    encoder, encoder_bias, decoder, decoder_bias = parameters
    encoder_bias.requires_grad_()
    updates = {
        "update_encoder": adam(encoder),
        "update_decoder": adam(decoder),
        "update_decoder_bias": adam(decoder_bias.view(-1, 1)),
    }
    optimizer = optimizer_of(TORCH_ADAM, [encoder_bias])

    def epoch() -> Tensor:
        total = encoder.new_zeros(())
        for rows in batches:
            optimizer.zero_grad(set_to_none=True)
            loss, _ = masked_autoencoder_loss(*rows[:3], *parameters, path=path, **updates)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total

    return epoch


def dense_loss(x: Tensor, mask: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The loss as a tutorial writes it: every output, then a mask."""
    encoder, encoder_bias, decoder, decoder_bias = parameters
    codes = torch.sigmoid(torch.addmm(encoder_bias, x, encoder))
    return (mask * (torch.addmm(decoder_bias, codes, decoder.T) - x)).square().sum()


def gathered_loss(rows: Rows, row_of: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Encoder by F.embedding_bag, decoder by a gather of rows for every entry."""
    encoder, encoder_bias, decoder, decoder_bias = parameters
    sums = F.embedding_bag(
        rows.indices, encoder, rows.indptr, mode="sum", per_sample_weights=rows.values, include_last_offset=True
    )
    codes = torch.sigmoid(sums + encoder_bias)
    logits = (codes[row_of] * decoder[rows.indices]).sum(1) + decoder_bias[rows.indices]
    return (logits - rows.values).square().sum()


def sampled_loss(rows: Rows, zeros: Tensor, csr: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Encoder by torch.sparse.mm, decoder by torch.sparse.sampled_addmm."""
    encoder, encoder_bias, decoder, decoder_bias = parameters
    codes = torch.sigmoid(torch.sparse.mm(csr, encoder) + encoder_bias)
    logits = torch.sparse.sampled_addmm(zeros, codes, decoder.T).values() + decoder_bias[rows.indices]
    return (logits - rows.values).square().sum()


def their_epoch(inputs: Sequence[Any], parameters: list[Tensor], loss_of: Callable[..., Tensor]) -> Callable[[], Any]:
    """Forward, backward and torch's fused Adam."""
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = optimizer_of(TORCH_ADAM, parameters)

    def epoch() -> Tensor:
        total = parameters[0].new_zeros(())
        for given in inputs:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(*given, parameters)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total

    return epoch


def _expected(rows: Rows, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Loss of the first batch, and what one step of Adam adds to the parameters, in float64."""
    wide = [parameter.double().requires_grad_() for parameter in parameters]
    codes = torch.sigmoid(
        torch.zeros(len(rows.indptr) - 1, wide[0].shape[1], dtype=torch.float64).index_add(
            0, rows.rows, wide[0][rows.indices] * rows.values.double().unsqueeze(1)
        )
        + wide[1]
    )
    parts = [
        (codes[row] * wide[2][columns]).sum(1) + wide[3][columns]
        for row, columns in zip(rows.rows.split(1 << 15), rows.indices.split(1 << 15), strict=True)
    ]
    loss = (torch.cat(parts) - rows.values.double()).square().sum()
    grads = torch.autograd.grad(loss, wide)
    return [loss.detach(), *(-LR * grad / (grad.abs() + EPS) for grad in grads)]


def _trial(batches: Callable[[], Sequence[Rows]], rivals: Sequence[str]) -> Trial:
    given = batches()
    start = layers(given[0].num_columns)
    trial = Trial(_expected(given[0], start), tolerance=5e-3)

    def enter(name: str, make: Callable[[list[Tensor], Sequence[Rows]], Callable[[], Any]]) -> Contender:
        def check() -> list[Tensor]:
            mine = [parameter.clone() for parameter in start]
            loss = make(mine, given[:1])()
            return [loss, *(a.detach() - b for a, b in zip(mine, start, strict=True))]

        return Contender(name, make([parameter.clone() for parameter in start], given), check)

    def dense(loss: Callable[..., Tensor], mine: list[Tensor], some: Sequence[Rows]) -> Callable[[], Any]:
        return their_epoch([rows.dense() for rows in some], mine, loss)

    def gather(mine: list[Tensor], some: Sequence[Rows]) -> Callable[[], Any]:
        return their_epoch([(rows, rows.rows) for rows in some], mine, gathered_loss)

    def addmm(mine: list[Tensor], some: Sequence[Rows]) -> Callable[[], Any]:
        inputs = [(rows, rows._replace(values=torch.zeros_like(rows.values)).csr(), rows.csr()) for rows in some]
        return their_epoch(inputs, mine, sampled_loss)

    trial.contenders.append(enter("deeprec", lambda mine, some: our_epoch(some, mine)))
    makers = {
        DENSE: lambda: enter(DENSE, partial(dense, dense_loss)),
        DENSE_COMPILED: lambda: enter(DENSE_COMPILED, partial(dense, compiled(dense_loss))),
        GATHER: lambda: enter(GATHER, gather),
        ADDMM: lambda: enter(ADDMM, addmm),
    }
    for name in rivals:
        trial.add_rival(name, makers[name])
    return trial


def cases(device: str = "cpu") -> list[Case]:
    """The epochs of issue 5; flops are those of the sparse way, five products of nnz x H."""
    most, flops = (DENSE, DENSE_COMPILED, ADDMM), 10.0 * HIDDEN
    narrow, wide = workloads(device, 2)
    return [
        Case(
            "I-AutoRec, H 500, ML-1M (4.5% dense), B 512: an epoch, forward + backward + Adam",
            "ML-1M epoch",
            partial(_trial, partial(ml_1m, device), most),
            0,
            flops * ML_1M[2],
            scale=narrow.scale,
        ),
        Case(
            "the first of its batches alone",
            "ML-1M step",
            partial(_trial, lambda: ml_1m(device)[:1], (*most, GATHER)),
            0,
            flops * narrow.nnz,
            scale=narrow.scale,
        ),
        Case(
            f"I-AutoRec, H 500, {wide.name}: two steps, forward + backward + Adam",
            "50k columns",
            partial(_trial, wide.batches, most),
            0,
            flops * 2 * wide.nnz,
            scale=wide.scale,
        ),
    ]


# Memory: one contender a process.


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field))


def added_memory(name: str) -> int:
    """Bytes that two training steps add to parameters, optimizer states and the compressed data, at their peak."""
    batches = [synthetic(50_000, 0.005, seed=seed) for seed in range(2)]
    parameters = layers(50_000)
    if name == "deeprec":
        epoch = our_epoch(batches, parameters)
    else:
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer = torch.optim.Adam(parameters, lr=LR, eps=EPS, fused=True)
        for parameter in parameters:  # the states, which come with the first step
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        def epoch() -> None:
            for rows in batches:
                optimizer.zero_grad(set_to_none=True)
                dense_loss(*rows.dense(), parameters).backward()
                optimizer.step()

    for state in parameters:
        state.detach().add_(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before = _resident("VmRSS:")
    epoch()
    return _resident("VmHWM:") - before


def memory(folder: Path) -> dict[str, Any]:
    """Working memory of ours and of the dense way, and their ratio."""
    found: dict[str, Any] = {"machine": machine(), "versions": versions(), "columns": 50_000, "density": 0.005}
    for name in ("deeprec", DENSE):
        code = f"from bench.masked_autoencoder_loss import added_memory; print(added_memory({name!r}))"
        found[name] = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    found["ratio"] = found[DENSE] / found["deeprec"]
    (folder / "masked_autoencoder_loss-memory.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


# The border between the paths.

SIZES, DENSITIES = (1_000, 10_000, 100_000), (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
CROSSOVER_BATCH = 256


def _seconds(epoch: Callable[[], Any], budget: float) -> float:
    """The shortest of a few runs."""
    epoch()
    best, spent, runs = float("inf"), 0.0, 0
    while runs < 2 or (spent < budget and runs < 20):
        started = time.perf_counter()
        epoch()
        taken = time.perf_counter() - started
        best, spent, runs = min(best, taken), spent + taken, runs + 1
    return best


def crossover(folder: Path, budget: float = 0.5) -> dict[str, Any]:
    """Seconds of a step on either path over density and size, as JSON and as a chart."""
    points = []
    for size in SIZES:
        start = layers(size)
        for density in DENSITIES:
            rows = [synthetic(size, density, CROSSOVER_BATCH)]
            taken = {path: _seconds(our_epoch(rows, [t.clone() for t in start], path), budget) for path in PATHS}
            points.append({"columns": size, "density": density, **taken})
            print(f"{size:>7,} columns, {density:6.1%}: sparse {taken['sparse']:.4f} s, dense {taken['dense']:.4f} s")
    found = {
        "machine": machine(),
        "versions": versions(),
        "work": f"forward, backward and Adam, H = {HIDDEN}, B = {CROSSOVER_BATCH}, float32",
        "rule": f"dense from {DENSE_FROM:.0%} on",
        "points": points,
    }
    name = "masked_autoencoder_loss-crossover"
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _draw(points, folder / f"{name}.png")
    return found


PATHS = ("sparse", "dense")


def _draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for size, colour in zip(SIZES, ("#1b6ca8", "#e07b39", "#5a9e6f"), strict=True):
        some = [point for point in points if point["columns"] == size]
        for way, style in zip(PATHS, ("o-", "s--"), strict=True):
            where, taken = [p["density"] * 100 for p in some], [p[way] * 1e3 for p in some]
            axes.plot(where, taken, style, color=colour, ms=4, label=f"{size:,} columns, {way}")
    axes.axvline(DENSE_FROM * 100, color="grey", lw=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(which="major", lw=0.3)
    axes.set_xlabel("observed entries, %; the grey line is where path='auto' turns dense")
    axes.set_ylabel(f"milliseconds a step, H = {HIDDEN}, B = {CROSSOVER_BATCH}, with Adam")
    figure.legend(loc="outside upper left", ncols=3, fontsize=7, frameon=False)
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.masked_autoencoder_loss", description=__doc__)
    parser.add_argument("what", choices=["crossover", "memory"])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder")
    arguments = parser.parse_args()
    if arguments.what == "crossover":
        crossover(arguments.results)
    else:
        found = memory(arguments.results)
        print({name: f"{found[name] / 1e6:.1f} MB" for name in ("deeprec", DENSE)}, f"{found['ratio']:.0f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
