"""Cases of `bench.embedding_bag`: the layer in place of torch.nn.EmbeddingBag, and a step against a table's rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness import Case, Contender, Trial, no_grad, rotating
from bench.machine import Gather
from bench.workloads import (
    NUM_BATCHES,
    RowWiseAdagradReference,
    Tables,
    compact,
    optimizer_of,
    row_grad,
    row_update,
    scale,
    stepped,
    touched,
    uniform_ids,
)
from deeprec.kernels.embedding_bag import embedding_bag, embedding_bags

T, D = 26, 16
LR, EPS = 0.05, 1e-8
ROWWISE_ADAGRAD = 2
TORCH_BAG, DENSE_ADAM = "torch.nn.EmbeddingBag", "torch.optim.Adam(fused), dense"
DIMS, LENGTHS = (1, 3, 16, 64, 200), (1, 5, 20, 100)
DROP_IN = {"cpu": Tables(100_000, 1024, 1), "cuda": Tables(1_000_000, 16_384, 1)}
TABLE_ROWS = (1_000_000, 10_000_000, 100_000_000)
BATCH = {"cpu": 4096, "cuda": 65_536}


def bag_batches(num_rows: int, batch: int, length: int) -> list[tuple[Tensor, Tensor]]:
    """Ids and offsets of bags of equal length."""
    offsets = torch.arange(batch + 1) * length
    return [(uniform_ids(num_rows, batch * length), offsets) for _ in range(NUM_BATCHES)]


def torch_bag(weight: Tensor, batch: tuple[Tensor, Tensor], sparse: bool = False) -> Tensor:
    """torch's sums."""
    ids, offsets = batch
    return F.embedding_bag(ids, weight, offsets, mode="sum", sparse=sparse, include_last_offset=True)


def our_bag(weight: Tensor, batch: tuple[Tensor, Tensor], sparse: bool = False) -> Tensor:
    """Our sums."""
    ids, offsets = batch
    return embedding_bag(weight, ids, offsets, mode="sum", include_last_offset=True, sparse_grad=sparse)


def pooled(weight: Tensor, ids: Tensor, length: int) -> Tensor:
    """Bags of equal length in float64."""
    return weight[ids].double().view(-1, length, weight.shape[1]).sum(1)


def _drop_in_forward(dim: int, length: int, size: Tables) -> Trial:
    weight = torch.randn(size.rows, dim)
    batches = bag_batches(size.rows, size.batch, length)
    trial = Trial([pooled(weight, batches[0][0], length)], tolerance=1e-5)
    for name, bag in (("deeprec", our_bag), (TORCH_BAG, torch_bag)):
        run = no_grad(partial(bag, weight))
        trial.add(name, rotating(run, batches), lambda run=run: [run(batches[0])])
    return trial


def _drop_in_backward(dim: int, length: int, size: Tables, sparse: bool) -> Trial:
    weight = torch.randn(size.rows, dim, requires_grad=True)
    batches = bag_batches(size.rows, size.batch, length)
    grad = torch.randn(size.batch, dim)
    rows, _, inverse = compact(weight.detach(), batches[0][0])
    trial = Trial([row_grad(grad.repeat_interleave(length, 0), inverse, len(rows))], tolerance=1e-5)

    def enter(name: str, bag: Callable[..., Tensor], coalesce: bool) -> None:
        def run(batch: tuple[Tensor, Tensor]) -> Tensor:
            weight.grad = None
            bag(weight, batch, sparse).backward(grad)
            return weight.grad.coalesce() if coalesce else weight.grad

        def check() -> list[Tensor]:
            found = run(batches[0])
            return [found.coalesce()._values() if sparse else found[rows]]

        trial.add(name, rotating(run, batches), check)

    enter("deeprec", our_bag, coalesce=False)
    enter(TORCH_BAG, torch_bag, coalesce=sparse)
    if sparse:
        enter(f"{TORCH_BAG}, gradient not coalesced", torch_bag, coalesce=False)
    return trial


# One step against the number of rows: bfloat16, 26 columns of ids into one table, one state a row.


def _table_size(num_rows: int, batch: int) -> Trial:
    weight = torch.full((num_rows, D), 0.01, dtype=torch.bfloat16)
    batches = [uniform_ids(num_rows, T, batch) for _ in range(NUM_BATCHES)]
    for ids in batches:
        weight[ids.flatten()] = torch.randn(T * batch, D).bfloat16()
    grad = torch.randn(batch, T * D).bfloat16()
    rows, wide, inverse = compact(weight, batches[0].flatten())
    by_entry = grad.double().view(batch, T, D).transpose(0, 1).reshape(T * batch, D)
    expected = stepped(RowWiseAdagradReference(wide, LR, EPS), row_grad(by_entry, inverse, len(rows)), 1)
    trial = Trial([expected], tolerance=2**-8)
    update = row_update(ROWWISE_ADAGRAD, [torch.zeros(num_rows)], [], LR, [EPS, 0.0, 0.0, 0.0])

    def run(ids: Tensor) -> None:
        embedding_bags([weight], ids, tables=[0] * T, update=update)[0].backward(grad)

    def check() -> list[Tensor]:
        run(batches[0])
        return touched([weight], [rows])

    trial.add("deeprec", rotating(run, batches), check)
    if num_rows <= 10_000_000:
        trial.add_rival(DENSE_ADAM, lambda: _dense_adam(num_rows, batches, grad, expected, rows, wide))
    else:
        trial.missing[DENSE_ADAM] = f"weights, gradient and moments would take {num_rows * D * 16 / 1e9:.0f} GB"
    return trial


def _dense_adam(num_rows: int, batches: list[Tensor], grad: Tensor, expected: Tensor, *_: Any) -> Contender:
    """What a table costs whose optimizer visits every row; another rule, so it is not compared with the reference."""
    table = nn.Embedding(num_rows, D)
    optimizer = optimizer_of(partial(torch.optim.Adam, lr=LR, fused=True), list(table.parameters()))

    def run(ids: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        table(ids.T).view(len(grad), T * D).backward(grad.float())
        optimizer.step()

    return Contender(DENSE_ADAM, rotating(run, batches), lambda: [expected])


def _drop_in_cases(device: str) -> list[Case]:
    size, found = DROP_IN[device], []
    for dim, length in itertools.product(DIMS, LENGTHS):
        nnz, out = size.batch * length, size.batch * dim * 4
        forward = nnz * (8 + 4 * dim) + out
        both = forward + out + nnz * (8 + 4 * dim)
        name = f"drop-in, D {dim}, L {length}"
        dense = both + size.rows * dim * 4
        for case, build, moved in (
            ("forward", partial(_drop_in_forward, dim, length, size), forward),
            ("forward + backward, dense gradient", partial(_drop_in_backward, dim, length, size, False), dense),
            ("forward + backward, sparse gradient", partial(_drop_in_backward, dim, length, size, True), both),
        ):
            how_large = scale(device, str(size), str(DROP_IN["cpu"]))
            found.append(Case(f"{name}, {case}", "drop-in", build, moved, nnz * dim, effort=0.25, scale=how_large))
    return found


def cases(device: str) -> list[Case]:
    """A step on tables of three sizes, and the layer over widths and lengths of bags."""
    batch = BATCH[device]
    nnz = T * batch
    sizes = [
        Case(
            f"training step, one table of {rows:,} rows, D 16, bfloat16",
            "rows of the table",
            partial(_table_size, rows, batch),
            nnz * (8 + 3 * 2 * D) + nnz * (2 * 2 * D + 8),
            flops=6 * nnz * D,
            limit=Gather(2 * D, rows, writes=True),
            size=rows,
            scale=scale(device, f"B {batch:,}", f"B {BATCH['cpu']:,}"),
        )
        for rows in TABLE_ROWS
    ]
    return [*sizes, *_drop_in_cases(device)]
