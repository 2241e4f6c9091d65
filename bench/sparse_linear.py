"""The encoder of an autoencoder on observed entries: forward, and forward + backward with a gradient by row.

python -m bench sparse_linear
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.autoencoders import HIDDEN, Rows, workloads
from bench.harness import Case, Contender, Target, Trial, no_grad, rotating
from deeprec.kernels.sparse_linear import sparse_linear

BAG, SPARSE_MM, GEMM = "F.embedding_bag", "torch.sparse.mm", "dense product"
TARGETS = (
    Target("encoder, H 500, ML-1M, B 512: forward", "forward", BAG, 1.0),
    Target("encoder, H 500, ML-1M, B 512: forward", "forward", SPARSE_MM, 1.0),
    Target("same, forward + backward, dense gradient", "forward + backward", BAG, 1.0),
    *(
        Target(f"encoder, H 500, {what}: {group}", group + suffix, rival, 1.0, device="cuda")
        for what, suffix in (("ML-1M's shape", ""), ("50k columns", ", 50k columns"))
        for group in ("forward", "forward + backward")
        for rival in (BAG, SPARSE_MM, GEMM)
    ),
)
Encode = Callable[[Any, Tensor, Tensor], Tensor]


def ours(rows: Rows, weight: Tensor, bias: Tensor) -> Tensor:
    """Sums, bias and sigmoid in one call."""
    return sparse_linear(*rows[:3], weight, bias, activation="sigmoid", sparse_grad=False)


def bags(rows: Rows, weight: Tensor, bias: Tensor) -> Tensor:
    """torch's bags with the entries as per-sample weights."""
    sums = F.embedding_bag(
        rows.indices, weight, rows.indptr, mode="sum", per_sample_weights=rows.values, include_last_offset=True
    )
    return torch.sigmoid(sums + bias)


def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A sparse or dense matrix times the weights."""
    return torch.sigmoid(torch.mm(x, weight) + bias)


def _trial(batches: Callable[[], list[Rows]], is_training: bool) -> Trial:
    given = batches()
    weight = (torch.randn(given[0].num_columns, HIDDEN) * 0.01).requires_grad_(is_training)
    bias = (torch.randn(HIDDEN) * 0.1).requires_grad_(is_training)
    grad = torch.randn(max(len(rows.indptr) - 1 for rows in given), HIDDEN)

    def run(encode: Encode, x: Any, mine: Tensor, some: Tensor) -> list[Tensor]:
        out = encode(x, mine, some)
        if not is_training:
            return [out]
        return [out.detach(), *torch.autograd.grad(out, [mine, some], grad[: len(out)].to(out.dtype))]

    first = given[0]
    wide = [t.detach().double().requires_grad_(is_training) for t in (weight, bias)]
    trial = Trial([t.detach() for t in run(product, first.dense()[0].double(), *wide)], tolerance=2e-5)

    def enter(name: str, encode: Encode, prepare: Callable[[Rows], Any]) -> Contender:
        inputs = [prepare(rows) for rows in given]
        step: Callable[[Any], Any] = partial(run, encode)

        def call(x: Any) -> list[Tensor]:
            return step(x, weight, bias)

        timed = call if is_training else no_grad(call)
        return Contender(name, rotating(timed, inputs), lambda: [t.detach().to_dense() for t in call(inputs[0])])

    trial.contenders.append(enter("deeprec", ours, lambda rows: rows))
    trial.add_rival(BAG, lambda: enter(BAG, bags, lambda rows: rows))
    trial.add_rival(SPARSE_MM, lambda: enter(SPARSE_MM, product, Rows.csr))
    trial.add_rival(GEMM, lambda: enter(GEMM, product, lambda rows: rows.dense()[0]))
    return trial


def cases(device: str = "cpu") -> list[Case]:
    """A batch of MovieLens-1M, and one of 50,000 columns."""
    found = []
    for name, group, factor, is_training in (
        ("forward", "forward", 2.0, False),
        ("forward + backward, dense gradient", "forward + backward", 4.0, True),
    ):
        for work in workloads(device, 4):
            case, build = f"encoder, H 500, {work.name}, {name}", partial(_trial, work.batches, is_training)
            flops = factor * work.nnz * HIDDEN
            found.append(Case(case, group + work.group, build, 0, flops, scale=work.scale))
    return found
