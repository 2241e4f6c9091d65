"""The decoder of an autoencoder and its loss at the observed entries: loss alone, and with every gradient.

python -m bench sampled_linear_loss
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.autoencoders import ADDMM, DENSE, DENSE_COMPILED, HIDDEN, Rows, workloads
from bench.harness import Case, Contender, Target, Trial, no_grad, rotating
from bench.rivals import compiled
from deeprec.kernels.sampled_linear_loss import sampled_linear_loss

GATHER = "gather of rows"
TARGETS = (
    Target("decoder + loss, H 500, ML-1M, B 512: forward", "forward", ADDMM, 1.0),
    Target("decoder + loss, H 500, ML-1M, B 512: forward", "forward", DENSE_COMPILED, 1.0),
    Target("same, forward + backward, dense gradients", "forward + backward", ADDMM, 1.0),
    Target("same, forward + backward, dense gradients", "forward + backward", DENSE_COMPILED, 1.0),
    *(
        Target(f"decoder + loss, H 500, {what}: {group}", group + suffix, rival, 1.0, device="cuda")
        for what, suffix in (("ML-1M's shape", ""), ("50k columns", ", 50k columns"))
        for group in ("forward", "forward + backward")
        for rival in (ADDMM, DENSE_COMPILED)
    ),
)
Loss = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def ours(rows: Rows, codes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One pass over the entries."""
    return sampled_linear_loss(codes, weight, bias, *rows[:3], sparse_grad=False)[0]


def gathered(given: tuple[Rows, Tensor], codes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Both rows of every entry side by side, [nnz, H]."""
    rows, row_of = given
    logits = (codes[row_of] * weight[rows.indices]).sum(1) + bias[rows.indices]
    return (logits - rows.values).square().sum()


def sampled(given: tuple[Rows, Tensor], codes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """torch.sparse.sampled_addmm onto zeros at the entries."""
    rows, zeros = given
    logits = torch.sparse.sampled_addmm(zeros, codes, weight.T).values() + bias[rows.indices]
    return (logits - rows.values).square().sum()


def masked(given: tuple[Tensor, Tensor], codes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every output, then a mask."""
    x, mask = given
    return (mask * (torch.addmm(bias, codes, weight.T) - x)).square().sum()


def _trial(batches: Callable[[], list[Rows]], is_training: bool) -> Trial:
    given = batches()
    num_columns = given[0].num_columns
    start = [
        torch.rand(max(len(rows.indptr) - 1 for rows in given), HIDDEN),
        torch.randn(num_columns, HIDDEN) * 0.05,
        torch.randn(num_columns) * 0.1,
    ]
    parameters = [t.requires_grad_(is_training) for t in start]

    def run(loss_of: Loss, x: Any, some: list[Tensor]) -> list[Tensor]:
        loss = loss_of(x, *some)
        return [loss.detach(), *torch.autograd.grad(loss, some)] if is_training else [loss]

    first = given[0]
    wide = [t.detach().double().requires_grad_(is_training) for t in parameters]
    x, mask = first.dense()
    trial = Trial([t.detach() for t in run(masked, (x.double(), mask.double()), wide)], tolerance=2e-5)

    def enter(name: str, loss_of: Loss, prepare: Callable[[Rows], Any]) -> Contender:
        inputs = [prepare(rows) for rows in given]

        def call(some: Any) -> list[Tensor]:
            return run(loss_of, some, parameters)

        timed = call if is_training else no_grad(call)
        return Contender(name, rotating(timed, inputs), lambda: [t.detach().to_dense() for t in call(inputs[0])])

    trial.contenders.append(enter("deeprec", ours, lambda rows: rows))
    makers = {
        ADDMM: lambda: enter(
            ADDMM, sampled, lambda rows: (rows, rows._replace(values=torch.zeros_like(rows.values)).csr())
        ),
        GATHER: lambda: enter(GATHER, gathered, lambda rows: (rows, rows.rows)),
        DENSE: lambda: enter(DENSE, masked, Rows.dense),
        DENSE_COMPILED: lambda: enter(DENSE_COMPILED, compiled(masked), Rows.dense),
    }
    for name, make in makers.items():
        trial.add_rival(name, make)
    return trial


def cases(device: str = "cpu") -> list[Case]:
    """A batch of MovieLens-1M, and one of 50,000 columns."""
    found = []
    for name, group, factor, is_training in (
        ("forward", "forward", 2.0, False),
        ("forward + backward, dense gradients", "forward + backward", 6.0, True),
    ):
        for work in workloads(device, 2):
            case, build = f"decoder + loss, H 500, {work.name}, {name}", partial(_trial, work.batches, is_training)
            flops = factor * work.nnz * HIDDEN
            found.append(Case(case, group + work.group, build, 0, flops, scale=work.scale))
    return found
