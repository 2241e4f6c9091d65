"""One process of test_ddp.py: trains the model of each case on its share of the batches and saves what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deeprec.nn import Embedding, EmbeddingBag, EmbeddingCollection, FactorizationMachine, Table
from deeprec.train import optim

CASES = ("sparse, Adam dense", "sparse, Adagrad", "dense, SGD")
STEPS, BATCH, LENGTH, ROWS = 8, 12, 4, 40


class Model(nn.Module):
    """All layers that hold tables, one table shared by two of them, and a dense layer."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.item = Embedding(ROWS, 6, padding_idx=0, sparse=sparse)
        self.bag = EmbeddingBag(ROWS, 6, mode="mean", sparse=sparse)
        self.bag.weight = self.item.weight
        self.many = EmbeddingCollection([Table("a", ROWS, 3), Table("b", ROWS, 5, "max")], sparse=sparse)
        self.machine = FactorizationMachine([Table("all", ROWS, 3, features=("p", "q", "r", "s"))], sparse=sparse)
        self.out = nn.Linear(14, 1)
        for weight in self.parameters():
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / 2)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.item(ids[:, 0]) + self.bag(ids[:, 1:])
        deep = torch.cat([rows, self.many({"a": ids, "b": ids})], 1).tanh()
        return self.machine(ids) + self.out(deep).squeeze(1)


def batches() -> list[tuple[Tensor, Tensor]]:
    """Ids and targets; the halves of a batch overlap in some rows only, and rows miss steps."""
    generator = torch.Generator().manual_seed(1)
    out = []
    for step in range(STEPS):
        ids = (ROWS * torch.rand(BATCH, LENGTH, generator=generator, dtype=torch.float64) ** 3).long()
        ids[: BATCH // 2] = (ids[: BATCH // 2] + 7 * step) % ROWS
        out.append((ids, torch.randn(BATCH, generator=generator, dtype=torch.float64)))
    return out


def train(case: str, rank: int | None) -> dict[str, Any]:
    """The state of the model after training on one half of each batch, or on all of it (rank None)."""
    gradients, _, rule = case.partition(", ")
    model = Model(gradients == "sparse")
    optimizer = {
        "Adam dense": lambda p: optim.Adam(p, lr=0.05, mode="dense"),
        "Adagrad": lambda p: optim.Adagrad(p, lr=0.1),
        "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    }[rule](model.parameters())
    network = model if rank is None else DistributedDataParallel(model)
    half = BATCH // 2
    for ids, target in batches():
        mine = slice(None) if rank is None else slice(rank * half, (rank + 1) * half)
        optimizer.zero_grad()
        (network(ids[mine]) - target[mine]).square().mean().backward()
        assert model.item.weight.grad.is_sparse == (gradients == "sparse")
        optimizer.step()
    optimizer.flush()
    return model.state_dict()


def join(rank: int, rendezvous: Path) -> None:
    """Meet the other process.

    By default two threads of gloo reduce gradients at once, and where some are sparse that corrupts the heap now and
    then: torch.nn.Embedding(sparse=True) beside a Linear under DDP dies within some thousand steps (torch 2.13). One
    thread does not.
    """
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="localhost")]
    options._threads = 1
    store = dist.FileStore(str(rendezvous), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, pg_options=options)


if __name__ == "__main__":
    number, folder = int(sys.argv[1]), Path(sys.argv[2])
    join(number, folder / "rendezvous")
    torch.save({case: train(case, number) for case in CASES}, folder / f"{number}.pt")
    dist.destroy_process_group()
