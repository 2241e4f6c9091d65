"""Lookup of single rows and its gradient: `python -m bench embedding`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness import Case, Contender, Target, Trial, rotating
from bench.machine import Gather
from bench.rivals import compiled
from bench.workloads import NUM_BATCHES, compact, distinct, skewed_ids, uniform_ids
from deeprec.kernels.embedding import embedding

NUM_ROWS, NUM_IDS, DIMS = 1_000_000, 65_536, (1, 3, 16, 64, 200)
TARGETS = (
    Target("lookup, D >= 16", "lookup", "limit", 0.7),
    Target("lookup, D >= 16", "lookup", "torch.nn.functional.embedding", 1.0),
    Target("lookup, D 1 and 3", "narrow lookup", "torch.nn.functional.embedding", 1.0),
)


def _lookup(dim: int) -> Trial:
    weight = torch.randn(NUM_ROWS, dim)
    batches = [uniform_ids(NUM_ROWS, NUM_IDS) for _ in range(NUM_BATCHES)]
    trial = Trial([weight[batches[0]].double()], tolerance=0.0)

    def enter(name: str, function: object) -> Contender:
        return Contender(name, rotating(partial(function, weight), batches), lambda: [function(weight, batches[0])])

    trial.contenders.append(enter("deeprec", embedding))
    trial.add_rival("torch.nn.functional.embedding", lambda: enter("torch.nn.functional.embedding", _torch_lookup))
    trial.add_rival("torch.compile", lambda: enter("torch.compile", compiled(_torch_lookup)))
    return trial


def _torch_lookup(weight: Tensor, ids: Tensor) -> Tensor:
    return F.embedding(ids, weight)


def _sparse_grad(dim: int, is_skewed: bool) -> Trial:
    weight = torch.randn(NUM_ROWS, dim, requires_grad=True)
    batches = [(skewed_ids if is_skewed else uniform_ids)(NUM_ROWS, NUM_IDS) for _ in range(NUM_BATCHES)]
    grad = torch.randn(NUM_IDS, dim)
    rows, _, inverse = compact(weight.detach(), batches[0])
    expected = torch.zeros(len(rows), dim, dtype=torch.float64).index_add_(0, inverse, grad.double())
    trial = Trial([expected], tolerance=1e-5)

    def ours(ids: Tensor) -> Tensor:
        weight.grad = None
        embedding(weight, ids, sparse_grad=True).backward(grad)
        return weight.grad

    def theirs(ids: Tensor) -> Tensor:
        weight.grad = None
        F.embedding(ids, weight, sparse=True).backward(grad)
        return weight.grad.coalesce()

    for name, step in (("deeprec", ours), ("torch, sparse=True and coalesce()", theirs)):
        trial.add(name, rotating(step, batches), lambda step=step: [step(batches[0])._values()])
    return trial


def cases() -> list[Case]:
    """Lookup at five widths; forward and backward on uniform and skewed ids."""
    found = [
        Case(
            f"lookup, D {dim}",
            "lookup" if dim >= 16 else "narrow lookup",
            partial(_lookup, dim),
            bytes=NUM_IDS * (8 + 2 * 4 * dim),
            limit=Gather(4 * dim, NUM_ROWS, writes=True) if dim % 8 == 0 else None,
        )
        for dim in DIMS
    ]
    for dim in (16, 64):
        for is_skewed in (False, True):
            torch.manual_seed(0)
            count = distinct((skewed_ids if is_skewed else uniform_ids)(NUM_ROWS, NUM_IDS))
            found.append(
                Case(
                    f"lookup and sparse gradient, D {dim}, {'skewed' if is_skewed else 'uniform'} ids",
                    "gradient",
                    partial(_sparse_grad, dim, is_skewed),
                    bytes=NUM_IDS * (8 + 4 * dim * 3) + count * 4 * dim,
                    flops=NUM_IDS * dim,
                )
            )
    return found
