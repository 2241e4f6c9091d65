"""Claims about masked_autoencoder_loss: both paths are the masked dense autoencoder, and a rule picks one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import deeprec.kernels.masked_autoencoder_loss as module
from deeprec.kernels.embedding_bag import RowUpdate
from deeprec.kernels.masked_autoencoder_loss import (
    masked_autoencoder_loss,
    masked_autoencoder_loss_reference,
    takes_dense_path,
)
from deeprec.kernels.sampled_linear_loss import ACTIVATIONS, LOSSES, csr_plan

KINDS = [(a, k) for a in ACTIVATIONS for k in LOSSES if k != "cross_entropy" or a == "sigmoid"]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EXACT = {torch.float64: 1e-12, torch.float32: 2e-5}


def csr(
    batch: int, columns: int, share: float, index: torch.dtype, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A random matrix as indptr, indices and values in {-1, 1}; row 1 is empty."""
    mask = torch.rand(batch, columns, generator=draw) < share
    mask[1:2] = False
    rows, indices = mask.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    values = torch.where(torch.rand(len(rows), generator=draw) < 0.5, -1.0, 1.0)
    return indptr.to(index), indices.to(index), values


@dataclass
class Problem:
    """An autoencoder, its input rows, other positions for the loss, and weights of these."""

    inputs: tuple[Tensor, Tensor, Tensor]
    outputs: tuple[Tensor, Tensor, Tensor]
    layers: list[Tensor]
    weights: Tensor

    @classmethod
    def make(
        cls,
        batch: int = 6,
        columns: int = 40,
        dim: int = 33,
        dtype: torch.dtype = torch.float32,
        index: torch.dtype = torch.int64,
        share: float = 0.3,
        seed: int = 0,
    ) -> Problem:
        draw = torch.Generator().manual_seed(seed)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        indptr, indices, values = csr(batch, columns, share, index, draw)
        out_indptr, out_indices, targets = csr(batch, columns, share, index, draw)
        normal = partial(torch.randn, generator=draw, dtype=torch.float64)
        layers = [normal(columns, dim), normal(dim), normal(columns, dim) / dim**0.5, normal(columns)]
        return cls(
            (indptr, indices, values.to(dtype)),
            (out_indptr, out_indices, targets.to(wide)),
            [layer.to(dtype).requires_grad_() for layer in layers],
            torch.rand(len(targets), generator=draw).to(wide),
        )

    def ours(self, **options: Any) -> tuple[Tensor, Tensor]:
        """The loss at the other positions."""
        out_indptr, out_indices, targets = self.outputs
        where = {"out_indptr": out_indptr, "out_indices": out_indices, "targets": targets}
        options = {"entry_weights": self.weights} | where | options
        return masked_autoencoder_loss(*self.inputs, *self.layers, **options)

    def autoencoded(self, **options: Any) -> tuple[Tensor, Tensor]:
        """The loss at the entries themselves."""
        return masked_autoencoder_loss(*self.inputs, *self.layers, **options)

    def exact(self, code: str, activation: str, loss: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Loss, predictions and gradients of the layers by the dense reference with autograd."""
        layers = [layer.detach().to(dtype).requires_grad_() for layer in self.layers]
        kinds = (ACTIVATIONS.index(code), ACTIVATIONS.index(activation), LOSSES.index(loss))
        total, predictions = masked_autoencoder_loss_reference(
            self.inputs, self.outputs, *layers, self.weights.to(dtype), *kinds
        )
        return total.detach(), predictions.detach(), list(torch.autograd.grad(total, layers))


def error(got: Tensor, want: Tensor, least: float = 1e-3) -> float:
    """The largest difference, as a fraction of the largest value, or of `least` where that is more."""
    want = want.double()
    return (
        float((got.to_dense().double() - want).abs().max() / want.abs().max().clamp(min=least)) if want.numel() else 0
    )


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("code", ACTIVATIONS)
@pytest.mark.parametrize(("activation", "loss"), KINDS)
@pytest.mark.parametrize("dtype", EXACT)
def test_both_paths_are_the_dense_autoencoder(
    dtype: torch.dtype, activation: str, loss: str, code: str, path: str
) -> None:
    problem = Problem.make(dtype=dtype)
    total, predictions = problem.ours(code_activation=code, activation=activation, loss=loss, path=path)
    want, exact_predictions, grads = problem.exact(code, activation, loss, torch.float64)
    assert error(total.detach(), want) < EXACT[dtype]
    assert error(predictions, exact_predictions) < EXACT[dtype]
    for got, exact in zip(torch.autograd.grad(total * 0.5, problem.layers), grads, strict=True):
        assert error(got, exact * 0.5) < 3 * EXACT[dtype]


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_as_good_as_the_dense_layers_in_it(dtype: torch.dtype, path: str) -> None:
    problem = Problem.make(16, 60, 128, dtype)
    total, _ = problem.ours(path=path)
    want, _, exact = problem.exact("sigmoid", "identity", "squared", torch.float64)
    layers = [layer.detach().requires_grad_() for layer in problem.layers]
    x = torch.zeros(16, 60, dtype=dtype)
    rows = [torch.repeat_interleave(torch.arange(16), some[0].diff()) for some in (problem.inputs, problem.outputs)]
    x[rows[0], problem.inputs[1]] = problem.inputs[2]
    z = (torch.sigmoid(x @ layers[0] + layers[1]) @ layers[2].T + layers[3])[rows[1], problem.outputs[1]]
    honest = ((z - problem.outputs[2].to(dtype)) ** 2 * problem.weights.to(dtype)).sum()
    unit = torch.finfo(dtype).eps
    assert error(total.detach(), want) <= error(honest.detach(), want) + unit
    grads = torch.autograd.grad(total, problem.layers), torch.autograd.grad(honest, layers)
    for ours, other, true in zip(*grads, exact, strict=True):
        assert error(ours, true) <= error(other, true) + 2 * unit


@given(
    batch=st.integers(0, 6),
    columns=st.integers(1, 40),
    dim=st.sampled_from([1, 2, 7, 16, 31, 64, 100, 131, 257, 500]),
    index=st.sampled_from([torch.int32, torch.int64]),
    share=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    path=st.sampled_from(["sparse", "dense"]),
    sparse=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    batch: int, columns: int, dim: int, index: torch.dtype, share: float, path: str, sparse: bool, seed: int
) -> None:
    problem = Problem.make(batch, columns, dim, torch.float32, index, share, seed)
    total, predictions = problem.ours(path=path, sparse_grad=sparse)
    want, exact_predictions, grads = problem.exact("sigmoid", "identity", "squared", torch.float64)
    # The terms of these sums are of the order of one, and where there is a single sum they may cancel.
    assert error(total.detach(), want, 1.0) < 2e-5
    assert error(predictions, exact_predictions, 1.0) < 2e-5
    got = torch.autograd.grad(total, problem.layers)
    assert [g.is_sparse for g in got] == [sparse, False, sparse, False]
    for some, exact in zip(got, grads, strict=True):
        assert error(some, exact, 1.0) < 5e-5


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_gradcheck(path: str) -> None:
    problem = Problem.make(4, 7, 5, torch.float64)
    options = {"path": path, "sparse_grad": False, "activation": "tanh", "entry_weights": None}

    def run(*layers: Tensor) -> Tensor:
        return Problem(problem.inputs, problem.outputs, list(layers), problem.weights).ours(**options)[0]

    assert torch.autograd.gradcheck(run, problem.layers)


# 3,000 columns of 500: beyond the tile that stays in the second-level cache, for the encoder and the decoder. With so
# few entries a row as in the other case the tile is larger than that cache.
@pytest.mark.parametrize(("rows", "columns", "share"), [(12, 3000, 0.4), (256, 6000, 0.008)])
def test_tiles_of_columns_change_nothing(rows: int, columns: int, share: float) -> None:
    problem = Problem.make(rows, columns, 500, share=share)
    total, predictions = problem.ours(path="sparse")
    want, exact_predictions, grads = problem.exact("sigmoid", "identity", "squared", torch.float64)
    assert error(total.detach(), want) < 2e-5
    assert error(predictions, exact_predictions) < 2e-5
    for got, exact in zip(torch.autograd.grad(total, problem.layers), grads, strict=True):
        assert error(got, exact) < 5e-5


def test_results_are_bitwise_the_same_for_any_threads() -> None:
    problem = Problem.make(60, 3000, 300, share=0.2)

    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        total, predictions = problem.ours(path="sparse", activation="sigmoid")
        return [total.detach(), predictions, *(g.to_dense() for g in torch.autograd.grad(total, problem.layers))]

    before = torch.get_num_threads()
    try:
        want = run(1)
        for threads in (2, 3):
            assert all(torch.equal(a, b) for a, b in zip(run(threads), want, strict=True))
    finally:
        torch.set_num_threads(before)


def rule(weight: Tensor, number: int) -> RowUpdate:
    """SGD (0), row-wise Adagrad (2) or Adam (3)."""
    first = {0: [], 2: [torch.zeros(len(weight))], 3: [torch.zeros_like(weight)]}[number]
    second = [torch.zeros_like(weight)] if number == 3 else []
    lr, step = torch.tensor(0.05, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    return RowUpdate(number, first, second, lr, step, [1e-8, 0.01, 0.9, 0.999])


@pytest.mark.parametrize("number", [0, 2, 3])
def test_steps_in_backward_are_the_same_on_both_paths(number: int) -> None:
    results = []
    for path in ("sparse", "dense"):
        problem = Problem.make(8, 50, 20, share=0.1)
        tables = [layer.detach() for layer in problem.layers]
        tables[3] = tables[3].view(-1, 1)
        before = [table.clone() for table in tables]
        updates = [rule(tables[k], number) for k in (0, 2, 3)]
        names = ("update_encoder", "update_decoder", "update_decoder_bias")
        for _ in range(2):
            total, _ = problem.autoencoded(path=path, **dict(zip(names, updates, strict=True)))
            total.backward()
        assert problem.layers[0].grad is None
        untouched = torch.ones(50, dtype=torch.bool)
        untouched[problem.inputs[1]] = False
        assert bool(untouched.any())
        for table, old in zip((tables[0], tables[2], tables[3]), (before[0], before[2], before[3]), strict=True):
            assert torch.equal(table[untouched], old[untouched])
            assert not torch.equal(table, old)
        results.append([*tables, problem.layers[1].grad])
    for sparse, dense in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5)


def test_the_rule_picks_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert takes_dense_path(700, 10, 100)
    assert takes_dense_path(512 * 5000, 512, 6040)
    assert not takes_dense_path(0, 0, 6040)
    assert not takes_dense_path(125_000, 512, 6040)  # MovieLens-1M: 4%
    assert not takes_dense_path(20_000, 1000, 10_000_000)
    taken = []
    dense = module._dense_loss
    monkeypatch.setattr(module, "_dense_loss", lambda *args: taken.append("dense") or dense(*args))
    results = {}
    for share, path in ((0.9, "auto"), (0.9, "sparse"), (0.01, "auto"), (0.01, "dense")):
        taken.clear()
        problem = Problem.make(64, 200, 8, share=share)
        results[share, path] = problem.ours(path=path)[0].detach(), list(taken)
    assert [found for _, found in results.values()] == [["dense"], [], [], ["dense"]]
    torch.testing.assert_close(results[0.9, "auto"][0], results[0.9, "sparse"][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[0.01, "auto"][0], results[0.01, "dense"][0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_rows_and_batches_without_observations(path: str) -> None:
    problem = Problem.make(3, 10, 4, share=0.0)
    total, predictions = problem.autoencoded(path=path, sparse_grad=False)
    assert float(total.detach()) == 0.0
    assert predictions.shape == (0,)
    total.backward()
    assert all(float(layer.grad.abs().max()) == 0.0 for layer in problem.layers)
    nobody = Problem.make(0, 10, 4, share=0.0)
    assert float(nobody.autoencoded(path=path)[0].detach()) == 0.0


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("where", ["others", "entries", "corrupted"])
def test_compiles_in_one_graph(path: str, where: str) -> None:
    problem = Problem.make()
    indptr, indices, values = problem.inputs
    corrupted = partial(problem.autoencoded, out_indptr=indptr, out_indices=indices, targets=2 * values)
    call = {"others": problem.ours, "entries": problem.autoencoded, "corrupted": corrupted}[where]
    want = call(path=path, sparse_grad=False)
    want_grads = torch.autograd.grad(want[0], problem.layers)
    backend = "inductor" if where == "others" else "aot_eager"  # a C++ compiler for one of what is traced alike
    got = torch.compile(partial(call, path=path, sparse_grad=False), fullgraph=True, backend=backend)()
    torch.testing.assert_close(got[0], want[0])
    for some, other in zip(torch.autograd.grad(got[0], problem.layers), want_grads, strict=True):
        torch.testing.assert_close(some, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("has_updates", [False, True])
def test_sparse_gradients_under_compile_run_outside_the_graph_or_say_so(path: str, has_updates: bool) -> None:
    results = []
    for is_compiled in (False, True):
        problem = Problem.make(8, 50, 20, share=0.1)
        updates = {}
        if has_updates:
            problem.layers = [layer.detach().requires_grad_(k % 2 == 1) for k, layer in enumerate(problem.layers)]
            updates = {f"update_{name}": rule(problem.layers[k], 3) for name, k in (("encoder", 0), ("decoder", 2))}
        call = partial(problem.ours, path=path, **updates)
        if is_compiled:
            torch._dynamo.reset()  # or what broke the graph of the other parameters is remembered as no graph at all
            with pytest.raises(torch._dynamo.exc.Unsupported, match=r"autoencoder_loss: .*use sparse_grad=False"):
                torch.compile(call, fullgraph=True, backend="aot_eager")()
            call = torch.compile(call, backend="aot_eager")
        total, _ = call()
        total.backward()
        grads = [layer.grad.to_dense() for layer in problem.layers if layer.grad is not None]
        results.append([total.detach(), *(layer.detach() for layer in problem.layers), *grads])
    assert len(results[0]) == len(results[1])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize(
    ("indices", "kind", "message"),
    [
        ([1, 4, 2, 0, 3], ValueError, "ascend without repetition, got 2 after 4 in row 0 at position 2"),
        ([1, 2, 4, 3, 3], ValueError, "ascend without repetition, got 3 after 3 in row 2 at position 4"),
        ([1, 2, 9, 0, 3], IndexError, r"must be in \[0, 9\), got 9 at position 2"),
        ([1, 2, 4, -1, 3], IndexError, r"must be in \[0, 9\), got -1 at position 3"),
    ],
)
def test_a_corrupted_matrix_changes_nothing(indices: list[int], kind: type[Exception], message: str, path: str) -> None:
    problem = Problem.make(3, 9, 4)
    tables = [layer.detach().clone() for layer in problem.layers]
    updates = {"update_encoder": rule(tables[0], 0), "update_decoder": rule(tables[2], 0)}
    bad = (torch.tensor([0, 3, 3, 5]), torch.tensor(indices), torch.ones(5))
    with pytest.raises(kind, match=message):
        masked_autoencoder_loss(*bad, *tables, path=path, **updates)
    good = (torch.tensor([0, 3, 3, 5]), torch.tensor([1, 2, 4, 0, 3]), torch.ones(5))
    outputs = {"out_indptr": bad[0], "out_indices": bad[1], "targets": bad[2]}
    with pytest.raises(kind, match=message.split(",")[0].replace("ascend", r"out_indices of a row must ascend")[:20]):
        masked_autoencoder_loss(*good, *tables, path=path, **outputs, **updates)
    assert all(torch.equal(a, b) for a, b in zip(tables, problem.layers, strict=True))
    for bounds in ([0, 3, 2, 5], [1, 3, 3, 5], [0, 3, 3, 4]):
        with pytest.raises(ValueError, match="indptr must ascend from 0 to 5"):
            masked_autoencoder_loss(torch.tensor(bounds), *good[1:], *tables, path=path)


def test_bad_arguments_are_refused() -> None:
    problem = Problem.make()
    for options, message in (
        ({"path": "csr"}, "path must be one of auto, sparse, dense, got 'csr'"),
        ({"loss": "poisson"}, "loss must be one of squared"),
        ({"code_activation": "relu"}, "code_activation must be one of identity"),
        ({"loss": "cross_entropy"}, "needs activation 'sigmoid'"),
        ({"update_encoder": rule(problem.layers[0], 0)}, "go together"),
        ({"targets": None}, "must be given together"),
        ({"entry_weights": torch.ones(3)}, "entry_weights must be"),
        ({"out_indptr": problem.outputs[0][:-1]}, "out_indptr must"),
    ):
        with pytest.raises(ValueError, match=message):
            problem.ours(**options)
    indptr, indices, values = problem.inputs
    with pytest.raises(TypeError, match="both be int32 or both int64"):
        masked_autoencoder_loss(indptr.int(), indices, values, *problem.layers)
    with pytest.raises(ValueError, match=r"values must be \(\d+,\) in torch.float32"):
        masked_autoencoder_loss(indptr, indices, values.double(), *problem.layers)
    with pytest.raises(ValueError, match=r"encoder and decoder must be \[N, H\]"):
        masked_autoencoder_loss(indptr, indices, values, problem.layers[0], None, problem.layers[2][:-1], None)
    with pytest.raises(ValueError, match=r"decoder_bias must be \[40\]"):
        masked_autoencoder_loss(*problem.inputs, *problem.layers[:3], torch.ones(3))


def test_ten_million_columns_need_no_dense_row() -> None:
    # Dense, 50,000 x 10 million float32 outputs would be 2 TB, and as much again for inputs and gradients.
    columns, batch, each, dim = 10_000_000, 50_000, 5, 4
    draw = torch.Generator().manual_seed(0)
    indptr = torch.arange(batch + 1) * each
    indices = torch.randint(columns // each, (batch, each), generator=draw) + torch.arange(each) * (columns // each)
    indices = indices.flatten()
    values = torch.randn(batch * each, generator=draw)
    encoder, decoder = torch.zeros(columns, dim), torch.zeros(columns, dim)
    for layer in (encoder, decoder):
        layer[indices] = torch.randn(len(indices), dim, generator=draw)
        layer.requires_grad_()
    plan = csr_plan(indptr, indices, columns)
    total, _ = masked_autoencoder_loss(indptr, indices, values, encoder, None, decoder, None, plan=plan)
    total.backward()
    rows, where = indices.unique(return_inverse=True)
    e, d = (t.detach()[rows].double().requires_grad_() for t in (encoder, decoder))
    mine = torch.repeat_interleave(torch.arange(batch), each)
    sums = torch.zeros(batch, dim, dtype=torch.float64).index_add(0, mine, e[where] * values.double().unsqueeze(1))
    want = (((torch.sigmoid(sums)[mine] * d[where]).sum(1) - values) ** 2).sum()
    want.backward()
    assert error(total.detach(), want.detach()) < 1e-5
    for table, exact in ((encoder, e), (decoder, d)):
        grad = table.grad.coalesce()
        assert torch.equal(grad.indices()[0], rows)
        assert error(grad.values(), exact.grad) < 1e-5
