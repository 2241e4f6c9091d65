"""Pooled lookup, many tables in one call, and the optimizer's step inside the backward pass.

python -m bench embedding_bag [--cases "26 tables"]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness import Case, Contender, Target, Trial, rotating
from bench.machine import Gather
from bench.rivals import compiled, fbgemm_tables, torchrec_tables
from bench.workloads import (
    NUM_BATCHES,
    AdamReference,
    RowWiseAdagradReference,
    compact,
    distinct,
    row_grad,
    skewed_ids,
    stepped,
    touched,
    uniform_ids,
)
from deeprec.kernels.embedding_bag import RowUpdate, embedding_bag, embedding_bags
from deeprec.train import optim

T, R, D, B = 26, 100_000, 16, 4096
LR, EPS = 0.05, 1e-8
ADAM_EPS = 1e-12  # so small that torch's SparseAdam, which does not bias-correct it, computes the same
PARITY_STEPS = 2
ROWWISE_ADAGRAD, ADAM = 2, 3
FBGEMM, TORCH_BAG = "FBGEMM CPU", "torch.nn.EmbeddingBag"
SPARSE_ADAM, DENSE_ADAM = "torch.optim.SparseAdam", "torch.optim.Adam(fused), dense"

TARGETS = (
    Target("26 tables x 100k x 16, B 4096: forward", "26 tables forward", FBGEMM, 4.0),
    Target("same + backward + row-wise Adagrad, uniform ids", "26 tables Adagrad uniform", FBGEMM, 3.5),
    Target("same + backward + row-wise Adagrad, skewed ids", "26 tables Adagrad skewed", FBGEMM, 15.0),
    Target("same + backward + Adam", "26 tables Adam", SPARSE_ADAM, 150.0),
    Target("same + backward + Adam", "26 tables Adam", DENSE_ADAM, 80.0),
    Target("pooled bags, L 20, D 64 and 128, 1M rows: forward", "pooled forward", FBGEMM, 1.3),
    Target("same, forward + backward + update", "pooled training", FBGEMM, 2.0),
    Target("EmbeddingBag drop-in, D 1 to 200, L 1 to 100: the slowest case", "drop-in", TORCH_BAG, 1.0),
    Target("EmbeddingBag drop-in", "drop-in", TORCH_BAG, 2.0, over="median"),
    Target("26 tables, forward: bandwidth", "26 tables forward", "limit", 0.7),
    Target("pooled bags, forward: bandwidth", "pooled forward", "limit", 0.7),
)


def no_grad(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function without the cost of recording a graph."""

    def run(batch: Any) -> Any:
        with torch.no_grad():
            return function(batch)

    return run


# 26 tables: ids [T, B], one id a bag; the result is [B, T * D].


def _tables() -> list[Tensor]:
    return [torch.randn(R, D) * 0.1 for _ in range(T)]


def _copies(weights: Sequence[Tensor], requires_grad: bool = False) -> list[Tensor]:
    return [weight.clone().requires_grad_(requires_grad) for weight in weights]


def _concatenated(weights: Sequence[Tensor], ids: Tensor, sparse: bool = False) -> Tensor:
    """The loop over tables that a model without a fused layer has."""
    return torch.cat([F.embedding(some, weight, sparse=sparse) for some, weight in zip(ids, weights, strict=True)], 1)


def _fbgemm_batch(ids: Tensor) -> tuple[Tensor, Tensor]:
    return ids.flatten(), torch.arange(ids.numel() + 1)


def _forward_trial() -> Trial:
    weights = _tables()
    batches = [uniform_ids(R, T, B) for _ in range(NUM_BATCHES)]
    trial = Trial([_concatenated([w.double() for w in weights], batches[0])], tolerance=0.0)

    def enter(name: str, run: Callable[[Any], Tensor], prepare: Callable[[Tensor], Any] = lambda ids: ids) -> Contender:
        prepared, run = [prepare(ids) for ids in batches], no_grad(run)
        return Contender(name, rotating(run, prepared), lambda: [run(prepared[0])])

    def torchrec() -> Contender:
        forward, prepare = torchrec_tables(weights)
        return enter("TorchRec EmbeddingBagCollection", forward, prepare)

    def fbgemm() -> Contender:
        module = fbgemm_tables(weights)
        return enter(FBGEMM, lambda batch: module(*batch), _fbgemm_batch)

    trial.contenders.append(enter("deeprec", lambda ids: embedding_bags(weights, ids)[0]))
    trial.add_rival(FBGEMM, fbgemm)
    trial.add_rival("TorchRec EmbeddingBagCollection", torchrec)
    trial.add_rival("torch, eager", lambda: enter("torch, eager", partial(_concatenated, weights)))
    trial.add_rival("torch.compile", lambda: enter("torch.compile", partial(compiled(_concatenated), weights)))
    return trial


@dataclass(frozen=True)
class Training:
    """A training step of the 26 tables: batches, the gradient of the result, and what the rows must become."""

    weights: list[Tensor]
    batches: list[Tensor]
    grad: Tensor
    rows: list[Tensor]
    expected: list[Tensor]

    @classmethod
    def make(cls, draw: Callable[..., Tensor], reference: Callable[[Tensor], Any]) -> Training:
        weights = _tables()
        batches = [draw(R, T, B) for _ in range(NUM_BATCHES)]
        grad = torch.randn(B, T * D)
        rows, expected = [], []
        for table, weight in enumerate(weights):
            some, wide, inverse = compact(weight, batches[0][table])
            rows.append(some)
            gradient = row_grad(grad[:, table * D : (table + 1) * D], inverse, len(some))
            expected.append(stepped(reference(wide), gradient, PARITY_STEPS))
        return cls(weights, batches, grad, rows, expected)

    def enter(self, name: str, run: Callable[[Tensor], Any], weights: Callable[[], Sequence[Tensor]]) -> Contender:
        """A contender whose rows are compared after two steps on one batch; timing goes on from there."""

        def check() -> list[Tensor]:
            for _ in range(PARITY_STEPS):
                run(self.batches[0])
            return touched(weights(), self.rows)

        return Contender(name, rotating(run, self.batches), check)

    def fused(self, rule: int) -> Contender:
        """Ours, with the update inside the backward pass."""
        weights = _copies(self.weights)
        first = [torch.zeros(R) if rule == ROWWISE_ADAGRAD else torch.zeros(R, D) for _ in weights]
        second = [] if rule == ROWWISE_ADAGRAD else [torch.zeros(R, D) for _ in weights]
        options = [EPS if rule == ROWWISE_ADAGRAD else ADAM_EPS, 0.0, 0.9, 0.999]
        lr, count = torch.tensor(LR, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        update = RowUpdate(rule, first, second, lr, count, options, 0.0, -1)

        def run(ids: Tensor) -> None:
            embedding_bags(weights, ids, update=update)[0].backward(self.grad)

        return self.enter("deeprec", run, lambda: weights)

    def optimizer(
        self, name: str, make: Callable[[Sequence[Tensor]], Any], forward: Callable[..., Tensor]
    ) -> Contender:
        """A forward pass, autograd, and an optimizer."""
        weights = _copies(self.weights, requires_grad=True)
        optimizer = make(weights)

        def run(ids: Tensor) -> None:
            optimizer.zero_grad(set_to_none=True)
            forward(weights, ids).backward(self.grad)
            optimizer.step()

        def current() -> list[Tensor]:
            if hasattr(optimizer, "flush"):
                optimizer.flush()
            return weights

        return self.enter(name, run, current)


def _our_forward(weights: Sequence[Tensor], ids: Tensor) -> Tensor:
    for weight, some in zip(weights, ids, strict=True):
        hook = getattr(weight, "_deeprec_catch_up", None)
        if hook is not None:
            hook(some)
    return embedding_bags(weights, ids)[0]


def _adagrad_trial(draw: Callable[..., Tensor]) -> Trial:
    training = Training.make(draw, partial(RowWiseAdagradReference, lr=LR, eps=EPS))
    trial = Trial(training.expected, tolerance=2e-5)

    def fbgemm() -> Contender:
        module = fbgemm_tables(training.weights, lr=LR, eps=EPS)

        def run(ids: Tensor) -> None:
            module(*_fbgemm_batch(ids)).backward(training.grad)

        return training.enter(FBGEMM, run, module.split_embedding_weights)

    trial.contenders.append(training.fused(ROWWISE_ADAGRAD))
    trial.contenders.append(
        training.optimizer("deeprec, optimizer apart", partial(optim.RowWiseAdagrad, lr=LR, eps=EPS), _our_forward)
    )
    trial.add_rival(FBGEMM, fbgemm)
    return trial


def _adam_trial() -> Trial:
    training = Training.make(uniform_ids, partial(AdamReference, lr=LR, eps=ADAM_EPS))
    trial = Trial(training.expected, tolerance=2e-5)
    sparse, dense = partial(_concatenated, sparse=True), _concatenated
    trial.contenders.append(training.fused(ADAM))
    for mode in ("lazy", "dense"):
        name = f"deeprec, optimizer apart, {mode if mode == 'lazy' else 'equal to dense Adam'}"
        make = partial(optim.Adam, lr=LR, eps=ADAM_EPS, mode=mode)
        trial.contenders.append(training.optimizer(name, make, _our_forward))
    for name, make, forward in (
        (SPARSE_ADAM, partial(torch.optim.SparseAdam, lr=LR, eps=ADAM_EPS), sparse),
        (DENSE_ADAM, partial(torch.optim.Adam, lr=LR, eps=ADAM_EPS, fused=True), dense),
    ):
        trial.add_rival(name, partial(training.optimizer, name, make, forward))
    return trial


# One table, bags of L ids.


def _bag_batches(num_rows: int, batch: int, length: int) -> list[tuple[Tensor, Tensor]]:
    offsets = torch.arange(batch + 1) * length
    return [(uniform_ids(num_rows, batch * length), offsets) for _ in range(NUM_BATCHES)]


def _torch_bag(weight: Tensor, batch: tuple[Tensor, Tensor], sparse: bool = False) -> Tensor:
    ids, offsets = batch
    return F.embedding_bag(ids, weight, offsets, mode="sum", sparse=sparse, include_last_offset=True)


def _our_bag(weight: Tensor, batch: tuple[Tensor, Tensor], sparse: bool = False) -> Tensor:
    ids, offsets = batch
    return embedding_bag(weight, ids, offsets, mode="sum", include_last_offset=True, sparse_grad=sparse)


def _pooled(weight: Tensor, ids: Tensor, length: int) -> Tensor:
    """Bags of equal length in float64."""
    return weight[ids].double().view(-1, length, weight.shape[1]).sum(1)


def _pooled_forward(dim: int, num_rows: int, length: int) -> Trial:
    weight = torch.randn(num_rows, dim) * 0.1
    batches = _bag_batches(num_rows, B, length)
    trial = Trial([_pooled(weight, batches[0][0], length)], tolerance=1e-5)

    def enter(name: str, run: Callable[[Any], Tensor]) -> Contender:
        run = no_grad(run)
        return Contender(name, rotating(run, batches), lambda: [run(batches[0])])

    def fbgemm() -> Contender:
        module = fbgemm_tables([weight])
        return enter(FBGEMM, lambda batch: module(*batch))

    trial.contenders.append(enter("deeprec", partial(_our_bag, weight)))
    trial.add_rival(FBGEMM, fbgemm)
    trial.add_rival(TORCH_BAG, lambda: enter(TORCH_BAG, partial(_torch_bag, weight)))
    return trial


def _pooled_training(dim: int, num_rows: int, length: int) -> Trial:
    weight = torch.randn(num_rows, dim) * 0.1
    batches = _bag_batches(num_rows, B, length)
    grad = torch.randn(B, dim)
    rows, wide, inverse = compact(weight, batches[0][0])
    gradient = row_grad(grad.repeat_interleave(length, 0), inverse, len(rows))
    trial = Trial([stepped(RowWiseAdagradReference(wide, LR, EPS), gradient, PARITY_STEPS)], tolerance=2e-5)

    def enter(name: str, run: Callable[[Any], Any], weights: Callable[[], Sequence[Tensor]]) -> Contender:
        def check() -> list[Tensor]:
            for _ in range(PARITY_STEPS):
                run(batches[0])
            return touched(weights(), [rows])

        return Contender(name, rotating(run, batches), check)

    def ours() -> Contender:
        mine = weight.clone()
        lr, count = torch.tensor(LR, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        update = RowUpdate(ROWWISE_ADAGRAD, [torch.zeros(num_rows)], [], lr, count, [EPS, 0.0, 0.0, 0.0], 0.0, -1)

        def run(batch: tuple[Tensor, Tensor]) -> None:
            embedding_bags([mine], *batch, update=update)[0].backward(grad)

        return enter("deeprec", run, lambda: [mine])

    def fbgemm() -> Contender:
        module = fbgemm_tables([weight], lr=LR, eps=EPS)

        def run(batch: tuple[Tensor, Tensor]) -> None:
            module(*batch).backward(grad)

        return enter(FBGEMM, run, module.split_embedding_weights)

    trial.contenders.append(ours())
    trial.add_rival(FBGEMM, fbgemm)
    return trial


# The layer in place of torch.nn.EmbeddingBag.

DROP_IN_ROWS, DROP_IN_BATCH = 100_000, 1024
DROP_IN_DIMS, DROP_IN_LENGTHS = (1, 3, 16, 64, 200), (1, 5, 20, 100)


def _drop_in_forward(dim: int, length: int) -> Trial:
    weight = torch.randn(DROP_IN_ROWS, dim)
    batches = _bag_batches(DROP_IN_ROWS, DROP_IN_BATCH, length)
    trial = Trial([_pooled(weight, batches[0][0], length)], tolerance=1e-5)
    for name, bag in (("deeprec", _our_bag), (TORCH_BAG, _torch_bag)):
        run = no_grad(partial(bag, weight))
        trial.add(name, rotating(run, batches), lambda run=run: [run(batches[0])])
    return trial


def _drop_in_backward(dim: int, length: int, sparse: bool) -> Trial:
    weight = torch.randn(DROP_IN_ROWS, dim, requires_grad=True)
    batches = _bag_batches(DROP_IN_ROWS, DROP_IN_BATCH, length)
    grad = torch.randn(DROP_IN_BATCH, dim)
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

    enter("deeprec", _our_bag, coalesce=False)
    enter(TORCH_BAG, _torch_bag, coalesce=sparse)
    if sparse:
        enter(f"{TORCH_BAG}, gradient not coalesced", _torch_bag, coalesce=False)
    return trial


# One step against the number of rows: bfloat16, 26 columns of ids into one table, one state a row.


def _table_size(num_rows: int) -> Trial:
    weight = torch.full((num_rows, D), 0.01, dtype=torch.bfloat16)
    batches = [uniform_ids(num_rows, T, B) for _ in range(NUM_BATCHES)]
    for ids in batches:
        weight[ids.flatten()] = torch.randn(T * B, D).bfloat16()
    grad = torch.randn(B, T * D).bfloat16()
    rows, wide, inverse = compact(weight, batches[0].flatten())
    by_entry = grad.double().view(B, T, D).transpose(0, 1).reshape(T * B, D)
    expected = stepped(RowWiseAdagradReference(wide, LR, EPS), row_grad(by_entry, inverse, len(rows)), 1)
    trial = Trial([expected], tolerance=2**-8)
    lr, count = torch.tensor(LR, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    update = RowUpdate(ROWWISE_ADAGRAD, [torch.zeros(num_rows)], [], lr, count, [EPS, 0.0, 0.0, 0.0], 0.0, -1)

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
    optimizer = torch.optim.Adam(table.parameters(), lr=LR, fused=True)

    def run(ids: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        table(ids.T).view(B, T * D).backward(grad.float())
        optimizer.step()

    return Contender(DENSE_ADAM, rotating(run, batches), lambda: [expected])


def _update_bytes(nnz: int, touched_rows: int, dim: int, state: int) -> int:
    """Forward, gradient of the result read, rows and states read and written."""
    return nnz * (8 + 3 * 4 * dim) + touched_rows * (2 * 4 * dim + 2 * state)


def _table_cases() -> list[Case]:
    nnz, limit = T * B, Gather(4 * D, T * R, writes=True)
    torch.manual_seed(0)
    uniform, skewed = (sum(distinct(draw(R, B)) for _ in range(T)) for draw in (uniform_ids, skewed_ids))
    found = [
        Case("26 tables, forward", "26 tables forward", _forward_trial, nnz * (8 + 8 * D), limit=limit),
    ]
    for name, draw, rows in (("uniform", uniform_ids, uniform), ("skewed", skewed_ids, skewed)):
        found.append(
            Case(
                f"26 tables, forward + backward + row-wise Adagrad, {name} ids",
                f"26 tables Adagrad {name}",
                partial(_adagrad_trial, draw),
                _update_bytes(nnz, rows, D, 4),
                flops=nnz * D + 5 * rows * D,
                limit=limit,
            )
        )
    size = _update_bytes(nnz, uniform, D, 8 * D)
    flops = nnz * D + 10 * uniform * D
    return [*found, Case("26 tables, forward + backward + Adam", "26 tables Adam", _adam_trial, size, flops, limit)]


def _pooled_cases(num_rows: int = 1_000_000, length: int = 20) -> list[Case]:
    found, nnz = [], B * length
    for dim in (64, 128):
        limit = Gather(4 * dim, num_rows, writes=False)
        size = nnz * (8 + 4 * dim) + B * 4 * dim
        name = f"pooled bags, L {length}, D {dim}, 1M rows"
        build = partial(_pooled_forward, dim, num_rows, length)
        found.append(Case(f"{name}, forward", "pooled forward", build, size, nnz * dim, limit))
        size += nnz * 8 + B * 4 * dim + nnz * (2 * 4 * dim + 8)  # nearly every row is touched once
        build = partial(_pooled_training, dim, num_rows, length)
        limit = Gather(4 * dim, num_rows, writes=True)
        found.append(Case(f"{name}, forward + backward + update", "pooled training", build, size, 7 * nnz * dim, limit))
    return found


def _drop_in_cases() -> list[Case]:
    found = []
    for dim, length in itertools.product(DROP_IN_DIMS, DROP_IN_LENGTHS):
        nnz, out = DROP_IN_BATCH * length, DROP_IN_BATCH * dim * 4
        forward = nnz * (8 + 4 * dim) + out
        both = forward + out + nnz * (8 + 4 * dim)
        name = f"drop-in, D {dim}, L {length}"
        dense = both + DROP_IN_ROWS * dim * 4
        for case, build, size in (
            ("forward", partial(_drop_in_forward, dim, length), forward),
            ("forward + backward, dense gradient", partial(_drop_in_backward, dim, length, False), dense),
            ("forward + backward, sparse gradient", partial(_drop_in_backward, dim, length, True), both),
        ):
            found.append(Case(f"{name}, {case}", "drop-in", build, size, nnz * dim, effort=0.25))
    return found


def cases() -> list[Case]:
    """The cases of issue 3 that look up and pool."""
    nnz = T * B
    sizes = [
        Case(
            f"training step, one table of {rows:,} rows, D 16, bfloat16",
            "rows of the table",
            partial(_table_size, rows),
            nnz * (8 + 3 * 2 * D) + nnz * (2 * 2 * D + 8),
            flops=6 * nnz * D,
            limit=Gather(2 * D, rows, writes=True),
            size=rows,
        )
        for rows in (1_000_000, 10_000_000, 100_000_000)
    ]
    return [*_table_cases(), *_pooled_cases(), *sizes, *_drop_in_cases()]
