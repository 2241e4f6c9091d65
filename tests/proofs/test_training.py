"""Training with the fused layers and optimizers is training with PyTorch's: weights agree after 500 steps on MovieLens.

The model is matrix factorisation with item biases and the mean of the user's last items, so that both layers, ragged
bags, empty ones, rows that miss hundreds of steps and rows that occur many times a batch take part.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deeprec import data
from deeprec.nn import Embedding, EmbeddingBag, EmbeddingCollection, Table
from deeprec.train import optim

STEPS, BATCH, DIM, LAST = 500, 64, 8, 5


class Batch(NamedTuple):
    users: Tensor  # [B]
    items: Tensor  # [B]
    last: Tensor  # [nnz], items that the user rated before, the latest five
    bounds: Tensor  # [B + 1]
    ratings: Tensor  # [B]

    def halves(self) -> list[Batch]:
        half, middle = len(self.users) // 2, int(self.bounds[len(self.users) // 2])
        return [
            Batch(
                self.users[:half], self.items[:half], self.last[:middle], self.bounds[: half + 1], self.ratings[:half]
            ),
            Batch(
                self.users[half:],
                self.items[half:],
                self.last[middle:],
                self.bounds[half:] - middle,
                self.ratings[half:],
            ),
        ]


class Work(NamedTuple):
    sizes: dict[str, int]
    batches: list[Batch]


@pytest.fixture(scope="module")
def work() -> Work:
    """MovieLens-100K in the order of time; where it is not at hand, synthetic interactions of its size."""
    log = data.load("ml-100k") if data.find("ml-100k") else data.synthetic(943, 1682, 100_000)
    assert log.order is not None
    assert log.ratings is not None
    rows = np.argsort(log.order, kind="stable")[: STEPS * BATCH]
    before: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=LAST))
    batches = []
    for some in rows.reshape(STEPS, BATCH):
        users, items, last, bounds = log.users[some], log.items[some], [], [0]
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            last += before[user]
            bounds.append(len(last))
            before[user].append(item)
        ids = [torch.from_numpy(np.asarray(x, dtype=np.int64)) for x in (users, items, last, bounds)]
        batches.append(Batch(*ids, torch.from_numpy(log.ratings[some])))
    sizes = {"user": log.num_users, "item": log.num_items, "last": log.num_items, "bias": log.num_items}
    return Work(sizes, batches)


def dims_of(sizes: dict[str, int]) -> dict[str, int]:
    return {name: 1 if name == "bias" else DIM for name in sizes}


class Factors(nn.Module):
    """score = (p_u + mean of q'_j over the last items) . q_i + b_i, by four modules."""

    def __init__(self, embedding: Any, bag: Any, sizes: dict[str, int], dtype: torch.dtype, sparse: bool) -> None:
        super().__init__()
        options = {"sparse": sparse, "dtype": dtype}
        for name, dim in dims_of(sizes).items():
            if name == "last":
                table = bag(sizes[name], dim, mode="mean", include_last_offset=True, **options)
            else:
                table = embedding(sizes[name], dim, **options)
            self.add_module(name, table)
        start(self)

    def forward(self, batch: Batch) -> Tensor:
        user = self.user(batch.users) + self.last(batch.last, batch.bounds)
        return score(user, self.item(batch.items), self.bias(batch.items))


class Together(nn.Module):
    """The same by one collection."""

    def __init__(
        self, sizes: dict[str, int], dtype: torch.dtype, sparse: bool, make: Callable[..., Any] | None
    ) -> None:
        super().__init__()
        tables = [Table(n, sizes[n], d, "mean" if n == "last" else "sum") for n, d in dims_of(sizes).items()]
        self.tables = EmbeddingCollection(tables, optimizer_in_backward=make, sparse=sparse, dtype=dtype)
        start(self)

    def forward(self, batch: Batch) -> Tensor:
        ids = {"user": batch.users, "item": batch.items, "last": (batch.last, batch.bounds), "bias": batch.items}
        rows = self.tables.split(self.tables(ids))
        return score(rows["user"] + rows["last"], rows["item"], rows["bias"])


def score(user: Tensor, item: Tensor, bias: Tensor) -> Tensor:
    return (user * item).sum(1) + bias.squeeze(1)


def start(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))


def train(
    model: nn.Module,
    optimizer: Any,
    work: Work,
    *,
    decay: float = 0.5,
    accumulate: bool = False,
    steps: bool = True,
) -> list[Tensor]:
    """The weights after STEPS steps with a learning rate that falls by `decay` four times.

    `steps`: call the optimizer's.
    """
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, STEPS // 5, decay)
    for batch in work.batches:
        optimizer.zero_grad()
        for part in batch.halves() if accumulate else [batch]:
            loss = (model(part) - part.ratings).square().sum() / BATCH
            loss.backward()
        if steps:
            optimizer.step()
        schedule.step()
    if hasattr(optimizer, "flush"):
        optimizer.flush()
    return [weight.detach() for weight in model.parameters()]


class ByRow(torch.optim.Optimizer):
    """Rules that torch has not: momentum and one Adagrad accumulator a row, both on touched rows only."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.0, eps: float = 1e-10) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                grad = weight.grad.coalesce()
                rows, values, state = grad.indices()[0], grad.values(), self.state[weight]
                if group["momentum"]:
                    buffer = state.setdefault("buffer", torch.zeros_like(weight))
                    buffer[rows] = group["momentum"] * buffer[rows] + values
                    weight[rows] -= group["lr"] * buffer[rows]
                else:
                    sums = state.setdefault("sums", torch.zeros_like(weight[:, 0]))
                    sums[rows] += values.square().mean(1)
                    weight[rows] -= group["lr"] * values / (sums[rows].sqrt() + group["eps"]).unsqueeze(1)


class Proximal(torch.optim.Optimizer):
    """FTRL-proximal as published, in plain PyTorch on sparse and dense gradients (McMahan et al. 2013, algorithm 1).

    Weights that do not start at 0 bring the z that stands for them.
    """

    def __init__(self, params: Any, lr: float, l1: float, l2: float, beta: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "l1": l1, "l2": l2, "beta": beta})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alpha, l1, l2, beta = (group[key] for key in ("lr", "l1", "l2", "beta"))
            for w in group["params"]:
                g, state = w.grad.to_dense(), self.state[w]
                if not state:
                    state["n"], state["z"] = torch.zeros_like(w), -w * (beta / alpha + l2) - l1 * w.sign()
                n, z = state["n"], state["z"]
                z += g - ((n + g * g).sqrt() - n.sqrt()) / alpha * w
                n += g * g
                w.copy_((l1 * z.sign() - z) / ((beta + n.sqrt()) / alpha + l2) * (z.abs() > l1))


class Pair(NamedTuple):
    """Our optimizer and its rival, whether each gets sparse gradients, and by what the learning rate falls."""

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    sparse: tuple[bool, bool]
    decay: float = 0.5


PAIRS = {
    "SGD": Pair(partial(optim.SGD, lr=0.2), partial(torch.optim.SGD, lr=0.2), (True, True)),
    "SGD, momentum, dense": Pair(
        partial(optim.SGD, lr=0.05, momentum=0.9), partial(torch.optim.SGD, lr=0.05, momentum=0.9), (False, False)
    ),
    "SGD, nesterov, dense": Pair(
        partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        (False, False),
    ),
    "SGD, dampening, dense": Pair(
        partial(optim.SGD, lr=0.1, momentum=0.9, dampening=0.5),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5),
        (False, False),
    ),
    "SGD, momentum by row": Pair(
        partial(optim.SGD, lr=0.05, momentum=0.9), partial(ByRow, lr=0.05, momentum=0.9), (True, True)
    ),
    "Adagrad": Pair(partial(optim.Adagrad, lr=0.1), partial(torch.optim.Adagrad, lr=0.1), (True, True)),
    "Adagrad, dense": Pair(partial(optim.Adagrad, lr=0.1), partial(torch.optim.Adagrad, lr=0.1), (False, False)),
    "RowWiseAdagrad": Pair(partial(optim.RowWiseAdagrad, lr=0.1), partial(ByRow, lr=0.1), (True, True)),
    "FTRL": Pair(
        partial(optim.FTRL, lr=0.5, l1=1e-3, l2=0.1), partial(Proximal, lr=0.5, l1=1e-3, l2=0.1), (True, False), 1.0
    ),
    "FTRL, dense": Pair(
        partial(optim.FTRL, lr=0.5, l1=1e-3, l2=0.1), partial(Proximal, lr=0.5, l1=1e-3, l2=0.1), (False, False), 1.0
    ),
    # Their eps differs in its bias correction, see `adam_update_`: so small that it shows nowhere.
    "SparseAdam": Pair(
        partial(optim.Adam, lr=0.02, eps=1e-20), partial(torch.optim.SparseAdam, lr=0.02, eps=1e-20), (True, True)
    ),
    "Adam": Pair(partial(optim.Adam, lr=0.02, mode="dense"), partial(torch.optim.Adam, lr=0.02), (True, False)),
    "Adam, dense": Pair(partial(optim.Adam, lr=0.02), partial(torch.optim.Adam, lr=0.02), (False, False)),
    "Adam, amsgrad": Pair(
        partial(optim.Adam, lr=0.02, amsgrad=True, mode="dense"),
        partial(torch.optim.Adam, lr=0.02, amsgrad=True),
        (True, False),
    ),
    "AdamW": Pair(partial(optim.AdamW, lr=0.02, mode="dense"), partial(torch.optim.AdamW, lr=0.02), (True, False)),
    "AdamW, dense": Pair(partial(optim.AdamW, lr=0.02), partial(torch.optim.AdamW, lr=0.02), (False, False)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tables are small: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PAIRS)
def test_weights_are_those_of_torch_after_500_steps(name: str, work: Work) -> None:
    pair = PAIRS[name]
    run = partial(train, work=work, decay=pair.decay)
    rival = Factors(nn.Embedding, nn.EmbeddingBag, work.sizes, torch.float64, pair.sparse[1])
    want = run(rival, pair.theirs(rival.parameters()))

    layers = Factors(Embedding, EmbeddingBag, work.sizes, torch.float64, pair.sparse[0])
    got = {"accumulated in two halves": run(layers, pair.ours(layers.parameters()), accumulate=True)}
    if pair.sparse[0]:
        fused = Together(work.sizes, torch.float64, True, pair.ours)
        got["step in backward"] = run(fused, fused.tables.optimizer, steps=False)
    for way, weights in got.items():
        for ours, theirs in zip(weights, want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10, msg=lambda text, way=way: f"{way}: {text}")

    single = Together(work.sizes, torch.float32, pair.sparse[0], None)
    for ours, theirs in zip(run(single, pair.ours(single.parameters()), accumulate=True), want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=5e-5)
