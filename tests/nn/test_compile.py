"""The layers under torch.compile with its default backend, and exported, saved and loaded by another process."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprec.nn import Embedding, EmbeddingBag, EmbeddingCollection, FactorizationMachine, FMInteraction, Table
from deeprec.train import optim

ROWS = 30
SHARED = Table("all", ROWS, 4, features=("a", "b", "c"))
TABLES = [Table("user", ROWS, 4), Table("tags", ROWS, 6, "mean", padding_idx=0)]


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    """What one test traced or gave up tracing is of no account to the next."""
    torch._dynamo.reset()


class Model(nn.Module):
    """Every layer with the options that change what is traced, and dense layers around them."""

    def __init__(self, *, sparse: bool = False, step: Callable[..., Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain = Embedding(ROWS, 5, sparse=sparse)
        self.padded = Embedding(ROWS, 5, padding_idx=3, scale_grad_by_freq=True, sparse=sparse)
        self.weighted = EmbeddingBag(ROWS, 5, mode="sum", max_norm=0.9, sparse=sparse)
        self.best = EmbeddingBag(ROWS, 5, mode="max", padding_idx=2, sparse=sparse)
        self.many = EmbeddingCollection(TABLES, sparse=sparse, optimizer_in_backward=step)
        self.pairs = FMInteraction()
        self.machine = FactorizationMachine([SHARED], return_embeddings=True, sparse=sparse, optimizer_in_backward=step)
        self.gate, self.out = nn.Linear(3, 3), nn.Linear(15, 1)

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        scale = self.gate(features).sigmoid()
        bags = [self.plain(ids[:, 0]), self.padded(ids[:, 1]), self.weighted(ids, None, scale), self.best(ids)]
        pooled = self.many({"user": ids[:, 0], "tags": ids})
        logit, rows = self.machine(ids)
        deep = torch.cat([pooled, self.pairs(torch.stack(bags, 1)).unsqueeze(1), rows.prod(1)], 1)
        return logit + self.out(deep.tanh()).squeeze(1)


def batch_of(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, ROWS, (count, 3), generator=generator), torch.randn(count, 3, generator=generator)


def test_inference_compiles_whole_for_any_batch() -> None:
    model = Model().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for count in (7, 12):
            torch.testing.assert_close(compiled(*batch_of(count)), model(*batch_of(count)))


def test_training_with_dense_gradients_compiles_whole() -> None:
    model, eager = Model(), Model()
    compiled = torch.compile(model, fullgraph=True)
    for some in (compiled, eager):
        some(*batch_of(7)).square().sum().backward()
    for (name, got), want in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(got.grad, want.grad, msg=lambda text, name=name: f"{name}: {text}")


class Pooled(nn.Module):
    """Layers whose steps are taken in the backward pass, and a dense one."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.many = EmbeddingCollection(TABLES, optimizer_in_backward=step)
        self.machine = FactorizationMachine([SHARED], optimizer_in_backward=step)
        self.out = nn.Linear(10, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.machine(ids) + self.out(self.many({"user": ids[:, 0], "tags": ids}).tanh()).squeeze(1)

    def optimizers(self) -> list[Any]:
        return [self.many.optimizer, self.machine.optimizer]


@pytest.mark.parametrize(
    "step",
    [
        partial(optim.SGD, lr=0.1, momentum=0.9),
        partial(optim.RowWiseAdagrad, lr=0.1, max_grad_norm=0.5),
        partial(optim.Adam, lr=0.1),
        partial(optim.FTRL, lr=0.1, l1=0.01),
    ],
    ids=["SGD", "RowWiseAdagrad", "Adam", "FTRL"],
)
def test_step_in_backward_compiles_whole_and_a_schedule_does_not_compile_it_again(step: Callable[..., Any]) -> None:
    model, eager = Pooled(step), Pooled(step)
    compiled = torch.compile(model, fullgraph=True)
    optimizers = [*model.optimizers(), *eager.optimizers()]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in optimizers]
    for number in range(4):
        ids, _ = batch_of(7, seed=number)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            for some in (compiled, eager):
                some(ids).square().sum().backward()
        for schedule in schedules:
            schedule.step()
    tables = [*model.many.weights(), *model.machine.weights(), *model.machine.linear_weights()]
    assert all(weight.grad is None for weight in tables)
    for got, want in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(got, want)
    fresh = Pooled(step)
    for table, before in zip(tables, [*fresh.many.weights(), *fresh.machine.weights()], strict=False):
        assert (table - before).abs().max() > 1e-3


LAYERS = {
    "Embedding": lambda: Embedding(ROWS, 4, sparse=True),
    "Embedding, padding": lambda: Embedding(ROWS, 4, padding_idx=1, sparse=True),
    "EmbeddingBag": lambda: EmbeddingBag(ROWS, 4, sparse=True),
    "EmbeddingCollection": lambda: EmbeddingCollection([SHARED], sparse=True),
    "FactorizationMachine": lambda: FactorizationMachine([SHARED], bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_sparse_gradients_run_outside_the_graph_or_say_so(name: str) -> None:
    layer, (ids, _) = LAYERS[name](), batch_of(5)

    def loss(ids: Tensor) -> Tensor:
        return (layer(ids) * 2).square().sum()

    with pytest.raises(torch._dynamo.exc.Unsupported, match="use sparse_grad=False"):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(ids)
    grads = []
    for some in (loss, torch.compile(loss, backend="aot_eager")):
        layer.zero_grad()
        some(ids).backward()
        grads.append(next(layer.parameters()).grad)
    assert grads[1].is_sparse
    torch.testing.assert_close(grads[1].to_dense(), grads[0].to_dense())


def test_dense_adam_in_backward_runs_outside_the_graph_or_says_so() -> None:
    step = partial(optim.Adam, lr=0.1, mode="dense")
    model, eager = Pooled(step), Pooled(step)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")(batch_of(7)[0])
    compiled = torch.compile(model, backend="aot_eager")
    for number in range(4):
        for some in (compiled, eager):
            some(batch_of(7, seed=number)[0]).square().sum().backward()
    for optimizer in (*model.optimizers(), *eager.optimizers()):
        optimizer.flush()
    for got, want in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(got, want)


def test_id_out_of_range_is_named_in_a_compiled_graph_and_changes_nothing() -> None:
    model = Pooled(partial(optim.Adagrad, lr=0.1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids, _ = batch_of(7)
    compiled(ids).sum().backward()
    before = copy.deepcopy(model.many.state_dict())
    bad = ids.clone()
    bad[4, 0] = ROWS
    # The kernels' own exception crosses the graph: a RuntimeError that says IndexError, and the table by its number.
    with pytest.raises(RuntimeError, match=rf"IndexError: .* table 0 must be in \[0, 30\), got {ROWS} at position 4"):
        compiled(bad)
    for key, value in model.many.state_dict().items():
        assert torch.equal(value, before[key])


LOAD = """
import sys, torch
import deeprec.nn  # declares the operators
program = torch.export.load(sys.argv[1]).module()
inputs, wants = torch.load(sys.argv[2])
for arguments, want in zip(inputs, wants, strict=True):
    torch.testing.assert_close(program(*arguments), want)
"""


class Ragged(nn.Module):
    """Bags by offsets and a collection with rows that are not pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = EmbeddingBag(ROWS, 5, include_last_offset=True, sparse=True)
        self.many = EmbeddingCollection([*TABLES, Table("words", ROWS, 3, "none")])

    def forward(self, ids: Tensor, offsets: Tensor, matrix: Tensor) -> Tensor:
        pooled, rows = self.many(matrix)
        return torch.cat([self.bag(ids, offsets), pooled, rows["words"]], 1)


def test_exported_models_are_loaded_by_another_process_for_any_batch(tmp_path: Path) -> None:
    auto = torch.export.Dim.AUTO

    def ragged(count: int) -> tuple[Tensor, Tensor, Tensor]:
        bounds = torch.tensor([0, *range(2, 2 * count + 1, 2)])
        bounds[1] = 0  # an empty bag
        return torch.arange(2 * count) % ROWS, bounds, batch_of(count)[0]

    for number, (model, make, shapes) in enumerate(
        [
            (Model(sparse=True), batch_of, ({0: auto}, {0: auto})),
            (Ragged(), ragged, ({0: auto}, {0: auto}, {0: auto})),
        ]
    ):
        program = torch.export.export(model, make(6), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / f"{number}.pt2")
        inputs = [make(6), make(11)]
        torch.save((inputs, [model(*some).detach() for some in inputs]), tmp_path / f"{number}.pt")
        done = subprocess.run(
            [sys.executable, "-c", LOAD, tmp_path / f"{number}.pt2", tmp_path / f"{number}.pt"],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
