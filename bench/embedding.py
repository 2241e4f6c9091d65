"""Lookup of single rows and its gradient: `python -m bench embedding`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness import Case, Contender, Target, Trial, no_grad, rotating
from bench.machine import COPY, Gather
from bench.rivals import compiled, fbgemm_tables
from bench.workloads import NUM_BATCHES, compact, distinct, scale, skewed_ids, uniform_ids
from deeprec.kernels.embedding import embedding

DIMS = (1, 3, 16, 64, 200)
EAGER, COMPILED, AUTOTUNED = "torch.nn.functional.embedding", "torch.compile", "torch.compile, max-autotune"
FBGEMM = "FBGEMM TBE"
TARGETS = (
    Target("lookup, D >= 16", "lookup", "limit", 0.7),
    Target("lookup, D >= 16", "lookup", EAGER, 1.0),
    Target("lookup, D 1 and 3", "narrow lookup", EAGER, 1.0),
    Target("lookup, D >= 16", "lookup", COPY, 0.85, device="cuda"),
    *(Target("lookup, D >= 16", "lookup", rival, 1.0, device="cuda") for rival in (FBGEMM, COMPILED, AUTOTUNED, EAGER)),
    Target("lookup, D 1 and 3", "narrow lookup", EAGER, 1.0, device="cuda"),
)


class Size(NamedTuple):
    """Rows of the table and ids of a batch."""

    rows: int
    ids: int

    @classmethod
    def on(cls, device: str, dim: int) -> Size:
        """On a GPU a table far beyond its L2 cache, and ids for more than a launch."""
        return cls(1_000_000, 65_536) if device == "cpu" else cls(max(10_000_000, (1 << 26) // dim), 1 << 21)

    def __str__(self) -> str:
        return f"{self.rows:,} rows, {self.ids:,} ids"


def _lookup(dim: int, size: Size, device: str) -> Trial:
    weight = torch.randn(size.rows, dim)
    batches = [uniform_ids(size.rows, size.ids) for _ in range(NUM_BATCHES)]
    trial = Trial([weight[batches[0]].double()], tolerance=0.0)

    def enter(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Contender:
        return Contender(name, rotating(partial(function, weight), batches), lambda: [function(weight, batches[0])])

    def fbgemm() -> Contender:
        module = fbgemm_tables([weight], pooling="none")
        given = [(ids, torch.tensor([0, len(ids)], device=ids.device)) for ids in batches]
        run = no_grad(lambda batch: module(*batch))
        return Contender(FBGEMM, rotating(run, given), lambda: [run(given[0])])

    trial.contenders.append(enter("deeprec", embedding))
    trial.add_rival(EAGER, lambda: enter(EAGER, _torch_lookup))
    trial.add_rival(COMPILED, lambda: enter(COMPILED, compiled(_torch_lookup)))
    if device == "cuda":
        trial.add_rival(AUTOTUNED, lambda: enter(AUTOTUNED, compiled(_torch_lookup, max_autotune=True)))
        trial.add_rival(FBGEMM, fbgemm)
    return trial


def _torch_lookup(weight: Tensor, ids: Tensor) -> Tensor:
    return F.embedding(ids, weight)


def _sparse_grad(dim: int, size: Size, is_skewed: bool) -> Trial:
    weight = torch.randn(size.rows, dim, requires_grad=True)
    batches = [(skewed_ids if is_skewed else uniform_ids)(size.rows, size.ids) for _ in range(NUM_BATCHES)]
    grad = torch.randn(size.ids, dim)
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


def cases(device: str = "cpu") -> list[Case]:
    """Lookup at five widths; forward and backward on uniform and skewed ids."""
    found = []
    for dim in DIMS:
        size = Size.on(device, dim)
        found.append(
            Case(
                f"lookup, D {dim}",
                "lookup" if dim >= 16 else "narrow lookup",
                partial(_lookup, dim, size, device),
                bytes=size.ids * (8 + 2 * 4 * dim),
                limit=Gather(4 * dim, size.rows, writes=True) if dim % 8 == 0 else None,
                scale=scale(device, str(size), str(Size.on("cpu", dim))),
            )
        )
    for dim in (16, 64):
        size = Size.on(device, dim)
        for is_skewed in (False, True):
            torch.manual_seed(0)
            count = distinct((skewed_ids if is_skewed else uniform_ids)(size.rows, size.ids))
            found.append(
                Case(
                    f"lookup and sparse gradient, D {dim}, {'skewed' if is_skewed else 'uniform'} ids",
                    "gradient",
                    partial(_sparse_grad, dim, size, is_skewed),
                    bytes=size.ids * (8 + 4 * dim * 3) + count * 4 * dim,
                    flops=size.ids * dim,
                    scale=scale(device, str(size), str(Size.on("cpu", dim))),
                )
            )
    return found
