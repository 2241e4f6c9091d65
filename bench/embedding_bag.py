"""Pooled lookup, many tables in one call, and the optimizer's step inside the backward pass.

python -m bench embedding_bag [--cases "26 tables"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import embedding_bag_layer
from bench.embedding_bag_layer import TORCH_BAG, bag_batches, our_bag, pooled, torch_bag
from bench.harness import Case, Contender, Target, Trial, no_grad, rotating
from bench.machine import COPY, Gather
from bench.rivals import compiled, fbgemm_name, fbgemm_tables, torchrec_tables
from bench.workloads import (
    NUM_BATCHES,
    AdamReference,
    RowWiseAdagradReference,
    Tables,
    compact,
    distinct,
    optimizer_of,
    row_grad,
    row_update,
    scale,
    skewed_ids,
    stepped,
    touched,
    uniform_ids,
)
from deeprec.kernels.embedding_bag import embedding_bags
from deeprec.train import optim

LR, EPS = 0.05, 1e-8
ADAM_EPS = 1e-12  # so small that torch's SparseAdam, which does not bias-correct it, computes the same
PARITY_STEPS = 2
ROWWISE_ADAGRAD, ADAM = 2, 3
TORCHREC, COMPILED, AUTOTUNED = "TorchRec EmbeddingBagCollection", "torch.compile", "torch.compile, max-autotune"
SPARSE_ADAM, DENSE_ADAM = "torch.optim.SparseAdam", embedding_bag_layer.DENSE_ADAM
POOLED = {"cpu": Tables(1_000_000, 4096, 1), "cuda": Tables(10_000_000, 65_536, 1)}
FBGEMM, TBE = fbgemm_name("cpu"), fbgemm_name("cuda")

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
    *(
        Target(work, group, rival, reach, device="cuda")
        for work, group, fraction, rivals in (
            ("26 tables, forward", "26 tables forward", 0.85, (TBE, COMPILED, AUTOTUNED)),
            ("26 tables, + backward + row-wise Adagrad, uniform ids", "26 tables Adagrad uniform", 0.6, (TBE,)),
            ("26 tables, + backward + row-wise Adagrad, skewed ids", "26 tables Adagrad skewed", 0.6, (TBE,)),
            ("26 tables, + backward + Adam", "26 tables Adam", 0.6, (TBE, SPARSE_ADAM, DENSE_ADAM)),
            ("pooled bags, forward", "pooled forward", 0.85, (TBE, TORCH_BAG)),
            ("pooled bags, forward + backward + update", "pooled training", 0.6, (TBE,)),
        )
        for rival, reach in ((COPY, fraction), *((rival, 1.0) for rival in rivals))
    ),
    Target("EmbeddingBag drop-in: the slowest case", "drop-in", TORCH_BAG, 1.0, device="cuda"),
)


# 26 tables: ids [T, B], one id a bag; the result is [B, T * D].


def _weights(size: Tables) -> list[Tensor]:
    return [torch.randn(size.rows, size.dim) * 0.1 for _ in range(size.count)]


def _copies(weights: Sequence[Tensor], requires_grad: bool = False) -> list[Tensor]:
    return [weight.clone().requires_grad_(requires_grad) for weight in weights]


def _concatenated(weights: Sequence[Tensor], ids: Tensor, sparse: bool = False) -> Tensor:
    """The loop over tables that a model without a fused layer has."""
    return torch.cat([F.embedding(some, weight, sparse=sparse) for some, weight in zip(ids, weights, strict=True)], 1)


def _fbgemm_batch(ids: Tensor) -> tuple[Tensor, Tensor]:
    return ids.flatten(), torch.arange(ids.numel() + 1, device=ids.device)


def _forward_trial(size: Tables, device: str) -> Trial:
    weights, tbe = _weights(size), fbgemm_name(device)
    batches = [uniform_ids(size.rows, size.count, size.batch) for _ in range(NUM_BATCHES)]
    trial = Trial([_concatenated([w.double() for w in weights], batches[0])], tolerance=0.0)

    def enter(name: str, run: Callable[[Any], Tensor], prepare: Callable[[Tensor], Any] = lambda ids: ids) -> Contender:
        prepared, run = [prepare(ids) for ids in batches], no_grad(run)
        return Contender(name, rotating(run, prepared), lambda: [run(prepared[0])])

    def torchrec() -> Contender:
        forward, prepare = torchrec_tables(weights)
        return enter(TORCHREC, forward, prepare)

    def fbgemm() -> Contender:
        module = fbgemm_tables(weights)
        return enter(tbe, lambda batch: module(*batch), _fbgemm_batch)

    trial.contenders.append(enter("deeprec", lambda ids: embedding_bags(weights, ids)[0]))
    trial.add_rival(tbe, fbgemm)
    trial.add_rival(TORCHREC, torchrec)
    trial.add_rival("torch, eager", lambda: enter("torch, eager", partial(_concatenated, weights)))
    trial.add_rival(COMPILED, lambda: enter(COMPILED, partial(compiled(_concatenated), weights)))
    if device == "cuda":
        tuned = partial(compiled, _concatenated, max_autotune=True)
        trial.add_rival(AUTOTUNED, lambda: enter(AUTOTUNED, partial(tuned(), weights)))
    return trial


@dataclass(frozen=True)
class Training:
    """A training step of the 26 tables: batches, the gradient of the result, and what the rows must become."""

    size: Tables
    device: str
    weights: list[Tensor]
    batches: list[Tensor]
    grad: Tensor
    rows: list[Tensor]
    expected: list[Tensor]

    @classmethod
    def make(
        cls, size: Tables, device: str, draw: Callable[..., Tensor], reference: Callable[[Tensor], Any]
    ) -> Training:
        weights, dim = _weights(size), size.dim
        batches = [draw(size.rows, size.count, size.batch) for _ in range(NUM_BATCHES)]
        grad = torch.randn(size.batch, size.count * dim)
        rows, expected = [], []
        for table, weight in enumerate(weights):
            some, wide, inverse = compact(weight, batches[0][table])
            rows.append(some)
            gradient = row_grad(grad[:, table * dim : (table + 1) * dim], inverse, len(some))
            expected.append(stepped(reference(wide), gradient, PARITY_STEPS))
        return cls(size, device, weights, batches, grad, rows, expected)

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
        first = [w.new_zeros(len(w)) if rule == ROWWISE_ADAGRAD else torch.zeros_like(w) for w in weights]
        second = [] if rule == ROWWISE_ADAGRAD else [torch.zeros_like(w) for w in weights]
        eps = EPS if rule == ROWWISE_ADAGRAD else ADAM_EPS
        update = row_update(rule, first, second, LR, [eps, 0.0, 0.9, 0.999])

        def run(ids: Tensor) -> None:
            embedding_bags(weights, ids, update=update)[0].backward(self.grad)

        return self.enter("deeprec", run, lambda: weights)

    def fbgemm(self, optimizer: str, eps: float) -> Contender:
        """FBGEMM's update inside the backward pass."""
        module = fbgemm_tables(self.weights, optimizer=optimizer, lr=LR, eps=eps)

        def run(ids: Tensor) -> None:
            module(*_fbgemm_batch(ids)).backward(self.grad)

        return self.enter(fbgemm_name(self.device), run, module.split_embedding_weights)

    def optimizer(
        self, name: str, make: Callable[[Sequence[Tensor]], Any], forward: Callable[..., Tensor]
    ) -> Contender:
        """A forward pass, autograd, and an optimizer."""
        weights = _copies(self.weights, requires_grad=True)
        optimizer = optimizer_of(make, weights)

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


def _adagrad_trial(size: Tables, device: str, draw: Callable[..., Tensor]) -> Trial:
    training = Training.make(size, device, draw, partial(RowWiseAdagradReference, lr=LR, eps=EPS))
    trial = Trial(training.expected, tolerance=2e-5)
    trial.contenders.append(training.fused(ROWWISE_ADAGRAD))
    trial.contenders.append(
        training.optimizer("deeprec, optimizer apart", partial(optim.RowWiseAdagrad, lr=LR, eps=EPS), _our_forward)
    )
    trial.add_rival(fbgemm_name(device), partial(training.fbgemm, "EXACT_ROWWISE_ADAGRAD", EPS))
    return trial


def _adam_trial(size: Tables, device: str) -> Trial:
    training = Training.make(size, device, uniform_ids, partial(AdamReference, lr=LR, eps=ADAM_EPS))
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
    if device == "cuda":  # FBGEMM has no Adam on the CPU
        trial.add_rival(TBE, partial(training.fbgemm, "ADAM", ADAM_EPS))
    return trial


# One table, bags of L ids.


def _pooled_forward(dim: int, size: Tables, length: int, device: str) -> Trial:
    weight, tbe = torch.randn(size.rows, dim) * 0.1, fbgemm_name(device)
    batches = bag_batches(size.rows, size.batch, length)
    trial = Trial([pooled(weight, batches[0][0], length)], tolerance=1e-5)

    def enter(name: str, run: Callable[[Any], Tensor]) -> Contender:
        run = no_grad(run)
        return Contender(name, rotating(run, batches), lambda: [run(batches[0])])

    def fbgemm() -> Contender:
        module = fbgemm_tables([weight])
        return enter(tbe, lambda batch: module(*batch))

    trial.contenders.append(enter("deeprec", partial(our_bag, weight)))
    trial.add_rival(tbe, fbgemm)
    trial.add_rival(TORCH_BAG, lambda: enter(TORCH_BAG, partial(torch_bag, weight)))
    return trial


def _pooled_training(dim: int, size: Tables, length: int, device: str) -> Trial:
    weight, tbe = torch.randn(size.rows, dim) * 0.1, fbgemm_name(device)
    batches = bag_batches(size.rows, size.batch, length)
    grad = torch.randn(size.batch, dim)
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
        update = row_update(ROWWISE_ADAGRAD, [mine.new_zeros(size.rows)], [], LR, [EPS, 0.0, 0.0, 0.0])

        def run(batch: tuple[Tensor, Tensor]) -> None:
            embedding_bags([mine], *batch, update=update)[0].backward(grad)

        return enter("deeprec", run, lambda: [mine])

    def fbgemm() -> Contender:
        module = fbgemm_tables([weight], lr=LR, eps=EPS)

        def run(batch: tuple[Tensor, Tensor]) -> None:
            module(*batch).backward(grad)

        return enter(tbe, run, module.split_embedding_weights)

    trial.contenders.append(ours())
    trial.add_rival(tbe, fbgemm)
    return trial


def _update_bytes(nnz: int, touched_rows: int, dim: int, state: int) -> int:
    """Forward, gradient of the result read, rows and states read and written."""
    return nnz * (8 + 3 * 4 * dim) + touched_rows * (2 * 4 * dim + 2 * state)


def _table_cases(device: str) -> list[Case]:
    size = Tables.on(device)
    nnz, dim, limit = size.nnz, size.dim, Gather(4 * size.dim, size.all_rows, writes=True)
    how_large = scale(device, str(size), str(Tables.on("cpu")))
    torch.manual_seed(0)
    uniform, skewed = (
        sum(distinct(draw(size.rows, size.batch)) for _ in range(size.count)) for draw in (uniform_ids, skewed_ids)
    )
    build, moved = partial(_forward_trial, size, device), nnz * (8 + 8 * dim)
    found = [Case("26 tables, forward", "26 tables forward", build, moved, limit=limit, scale=how_large)]
    for name, draw, rows in (("uniform", uniform_ids, uniform), ("skewed", skewed_ids, skewed)):
        found.append(
            Case(
                f"26 tables, forward + backward + row-wise Adagrad, {name} ids",
                f"26 tables Adagrad {name}",
                partial(_adagrad_trial, size, device, draw),
                _update_bytes(nnz, rows, dim, 4),
                flops=nnz * dim + 5 * rows * dim,
                limit=limit,
                scale=how_large,
            )
        )
    found.append(
        Case(
            "26 tables, forward + backward + Adam",
            "26 tables Adam",
            partial(_adam_trial, size, device),
            _update_bytes(nnz, uniform, dim, 8 * dim),
            nnz * dim + 10 * uniform * dim,
            limit,
            scale=how_large,
        )
    )
    return found


def _pooled_cases(device: str, length: int = 20) -> list[Case]:
    size, found = POOLED[device], []
    nnz, how_large = size.batch * length, scale(device, str(size), str(POOLED["cpu"]))
    for dim in (64, 128):
        limit = Gather(4 * dim, size.rows, writes=False)
        moved = nnz * (8 + 4 * dim) + size.batch * 4 * dim
        name = f"pooled bags, L {length}, D {dim}, {size.rows // 10**6}M rows"
        build = partial(_pooled_forward, dim, size, length, device)
        found.append(Case(f"{name}, forward", "pooled forward", build, moved, nnz * dim, limit, scale=how_large))
        moved += nnz * 8 + size.batch * 4 * dim + nnz * (2 * 4 * dim + 8)  # nearly every row is touched once
        build = partial(_pooled_training, dim, size, length, device)
        limit, name = Gather(4 * dim, size.rows, writes=True), f"{name}, forward + backward + update"
        found.append(Case(name, "pooled training", build, moved, 7 * nnz * dim, limit, scale=how_large))
    return found


def cases(device: str = "cpu") -> list[Case]:
    """The cases of issue 3 that look up and pool."""
    return [*_table_cases(device), *_pooled_cases(device), *embedding_bag_layer.cases(device)]
