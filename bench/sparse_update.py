"""An optimizer's step on row-sparse gradients of 26 tables x 100k x 16, B 4096: `python -m bench sparse_update`.

Given are coalesced gradients, so torch.optim need not coalesce them; dense optimizers get the same gradients dense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness import Case, Contender, Target, Trial, rotating
from bench.machine import COPY, Gather
from bench.workloads import NUM_BATCHES, Tables, distinct, optimizer_of, scale, touched, uniform_ids
from deeprec.kernels.sparse_update import reference
from deeprec.train import optim

LR, EPS, L1 = 0.05, 1e-8, 0.1
ADAM_EPS = 1e-12  # so small that torch's SparseAdam, which does not bias-correct it, computes the same
PARITY_STEPS = 2
DENSE_ADAM = "torch.optim.Adam(fused), dense"

TARGETS = (
    Target("SGD, 26 tables: step", "sgd", "torch.optim.SGD", 1.0),
    Target("Adagrad, 26 tables: step", "adagrad", "torch.optim.Adagrad", 1.0),
    Target("Adam, 26 tables: step", "adam", "torch.optim.SparseAdam", 1.0),
    Target("Adam, 26 tables: step", "adam", DENSE_ADAM, 1.0),
    *(
        Target(f"{group}, 26 tables: step", group, rival, reach, device="cuda")
        for group, rivals in (
            ("sgd", ("torch.optim.SGD",)),
            ("adagrad", ("torch.optim.Adagrad",)),
            ("row-wise-adagrad", ()),
            ("ftrl", ()),
            ("adam", ("torch.optim.SparseAdam", DENSE_ADAM)),
        )
        for rival, reach in ((COPY, 0.6), *((rival, 1.0) for rival in rivals))
    ),
)


@dataclass(frozen=True)
class Gradients:
    """Coalesced gradients of every table, batch by batch: rows [U] and values [U, D]."""

    size: Tables
    weights: list[Tensor]
    batches: list[list[tuple[Tensor, Tensor]]]

    @classmethod
    def draw(cls, size: Tables) -> Gradients:
        batches = []
        for _ in range(NUM_BATCHES):
            rows = [uniform_ids(size.rows, size.batch).unique() for _ in range(size.count)]
            batches.append([(some, torch.randn(len(some), size.dim)) for some in rows])
        return cls(size, [torch.randn(size.rows, size.dim) * 0.1 for _ in range(size.count)], batches)

    def expected(self, step: Callable[[Tensor, dict[str, Tensor], Tensor, Tensor, int], None]) -> list[Tensor]:
        """Rows of the first batch after two steps of the reference in float64."""
        found = []
        for weight, (rows, values) in zip(self.weights, self.batches[0], strict=True):
            wide, every = weight[rows].double(), torch.arange(len(rows))
            state: dict[str, Tensor] = {}
            for number in range(1, PARITY_STEPS + 1):
                step(wide, state, every, values.double(), number)
            found.append(wide)
        return found

    def enter(self, name: str, make: Callable[[Sequence[Tensor]], Any], *, dense: bool = False) -> Contender:
        weights = [weight.clone().requires_grad_() for weight in self.weights]
        optimizer = optimizer_of(make, weights)
        # A dense optimizer visits all rows whichever the gradient holds: two batches say as much as eight.
        batches = [self._grads(batch, dense) for batch in self.batches[: 2 if dense else NUM_BATCHES]]

        def run(grads: list[Tensor]) -> None:
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
            optimizer.step()

        def check() -> list[Tensor]:
            for _ in range(PARITY_STEPS):
                run(batches[0])
            if hasattr(optimizer, "flush"):
                optimizer.flush()
            return touched(weights, [rows for rows, _ in self.batches[0]])

        return Contender(name, rotating(run, batches), check)

    def _grads(self, batch: list[tuple[Tensor, Tensor]], dense: bool) -> list[Tensor]:
        shape = (self.size.rows, self.size.dim)
        sparse = [
            torch.sparse_coo_tensor(r.unsqueeze(0), v, shape, is_coalesced=True, check_invariants=False)
            for r, v in batch
        ]
        return [grad.to_dense() for grad in sparse] if dense else sparse


def _sgd(weight: Tensor, state: dict[str, Tensor], rows: Tensor, grad: Tensor, number: int) -> None:
    reference.sgd_update_reference(weight, None, rows, grad, LR, 0.0, 0.0)


def _adagrad(weight: Tensor, state: dict[str, Tensor], rows: Tensor, grad: Tensor, number: int) -> None:
    total = state.setdefault("sum", torch.zeros_like(weight))
    reference.adagrad_update_reference(weight, total, rows, grad, LR, EPS, 0.0)


def _rowwise_adagrad(weight: Tensor, state: dict[str, Tensor], rows: Tensor, grad: Tensor, number: int) -> None:
    total = state.setdefault("sum", weight.new_zeros(len(weight)))
    reference.rowwise_adagrad_update_reference(weight, total, rows, grad, LR, EPS, 0.0)


def _adam(weight: Tensor, state: dict[str, Tensor], rows: Tensor, grad: Tensor, number: int) -> None:
    moments = (state.setdefault(name, torch.zeros_like(weight)) for name in ("exp_avg", "exp_avg_sq"))
    reference.adam_update_reference(weight, *moments, rows, grad, number, LR, 0.9, 0.999, ADAM_EPS, 0.0)


def _ftrl(weight: Tensor, state: dict[str, Tensor], rows: Tensor, grad: Tensor, number: int) -> None:
    states = (state.setdefault(name, torch.zeros_like(weight)) for name in ("sum", "linear"))
    reference.ftrl_update_reference(weight, *states, rows, grad, LR, L1, 0.0, 1.0)


def _trial(
    size: Tables,
    step: Callable[[Tensor, dict[str, Tensor], Tensor, Tensor, int], None],
    contenders: Sequence[tuple[str, Callable[[Sequence[Tensor]], Any], bool]],
) -> Trial:
    gradients = Gradients.draw(size)
    trial = Trial(gradients.expected(step), tolerance=2e-5)
    for name, make, dense in contenders:
        trial.contenders.append(gradients.enter(name, make, dense=dense))
    return trial


def cases(device: str = "cpu") -> list[Case]:
    """One for each rule; Adam with its dense-equivalent mode."""
    size = Tables.on(device)
    dim = size.dim
    torch.manual_seed(0)
    rows = size.count * distinct(uniform_ids(size.rows, size.batch))
    adagrad, adam = {"lr": LR, "eps": EPS}, {"lr": LR, "eps": ADAM_EPS}
    rules = (
        (
            "sgd",
            _sgd,
            0,
            2,
            [("deeprec", partial(optim.SGD, lr=LR)), ("torch.optim.SGD", partial(torch.optim.SGD, lr=LR))],
        ),
        (
            "adagrad",
            _adagrad,
            4 * dim,
            6,
            [
                ("deeprec", partial(optim.Adagrad, **adagrad)),
                ("torch.optim.Adagrad", partial(torch.optim.Adagrad, **adagrad)),
            ],
        ),
        ("row-wise adagrad", _rowwise_adagrad, 4, 5, [("deeprec", partial(optim.RowWiseAdagrad, **adagrad))]),
        ("ftrl", _ftrl, 8 * dim, 14, [("deeprec", partial(optim.FTRL, lr=LR, l1=L1))]),
        (
            "adam",
            _adam,
            8 * dim,
            12,
            [
                ("deeprec", partial(optim.Adam, **adam)),
                ("deeprec, equal to dense Adam", partial(optim.Adam, mode="dense", **adam)),
                ("torch.optim.SparseAdam", partial(torch.optim.SparseAdam, **adam)),
                (DENSE_ADAM, partial(torch.optim.Adam, fused=True, **adam)),
            ],
        ),
    )
    return [
        Case(
            f"{name}, 26 tables x {size.rows // 1000}k x 16, {rows:,} rows touched",
            name.replace(" ", "-"),
            partial(_trial, size, step, [(who, make, who == DENSE_ADAM) for who, make in contenders]),
            bytes=rows * (8 + 4 * dim + 2 * 4 * dim + 2 * state),
            flops=flops * rows * dim,
            limit=Gather(4 * dim, size.all_rows, writes=True),
            scale=scale(device, str(size), str(Tables.on("cpu"))),
        )
        for name, step, state, flops, contenders in rules
    ]
