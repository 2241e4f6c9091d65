"""Claims about the two sparse layers of an autoencoder: sparse_linear and sampled_linear_loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deeprec.kernels.embedding_bag import RowUpdate
from deeprec.kernels.sampled_linear_loss import ACTIVATIONS, LOSSES, csr_plan, sampled_linear_loss
from deeprec.kernels.sampled_linear_loss.reference import entry_losses, sampled_linear_loss_reference
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.kernels.sparse_linear.reference import sparse_linear_reference

KINDS = [(a, k) for a in ACTIVATIONS for k in LOSSES if k != "cross_entropy" or a == "sigmoid"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass
class Problem:
    """Hidden rows, a decoder, and positions with targets and weights."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    indptr: Tensor
    indices: Tensor
    targets: Tensor
    weights: Tensor

    @classmethod
    def make(
        cls, lengths: list[int], columns: int, dim: int, dtype: torch.dtype, index: torch.dtype, seed: int = 0
    ) -> Problem:
        draw = torch.Generator().manual_seed(seed)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        indptr = torch.tensor([0, *lengths]).cumsum(0).to(index)
        nnz = sum(lengths)
        normal = partial(torch.randn, generator=draw, dtype=torch.float64)
        return cls(
            (normal(len(lengths), dim) / dim**0.5).to(dtype).requires_grad_(),
            normal(columns, dim).to(dtype).requires_grad_(),
            normal(columns).to(dtype).requires_grad_(),
            indptr,
            torch.randint(columns, (nnz,), generator=draw).to(index),
            torch.where(normal(nnz) > 0, 1.0, -1.0).to(wide),
            torch.rand(nnz, generator=draw).to(wide),
        )

    def ours(self, activation: str, loss: str, **options: Any) -> tuple[Tensor, Tensor]:
        positions = (self.indptr, self.indices, self.targets)
        options = {"entry_weights": self.weights} | options
        return sampled_linear_loss(
            self.hidden, self.weight, self.bias, *positions, activation=activation, loss=loss, **options
        )

    def rows(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self.indptr) - 1), self.indptr.diff().long())

    def exact(self, activation: str, loss: str) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Loss, predictions and gradients by autograd in float64, from a gather of whole rows."""
        h, w, b = (t.detach().double().requires_grad_() for t in (self.hidden, self.weight, self.bias))
        columns = self.indices.long()
        z = (h[self.rows()] * w[columns]).sum(1) + b[columns]
        kind = (ACTIVATIONS.index(activation), LOSSES.index(loss))
        each, predictions, _ = entry_losses(z, self.targets.double(), *kind)
        total = (each * self.weights.double()).sum()
        return total.detach(), predictions.detach(), torch.autograd.grad(total, [h, w, b])


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Within tolerance of the largest value that is wanted."""
    scale = float(want.abs().max()) if want.numel() else 0.0
    torch.testing.assert_close(got.to_dense().double(), want, rtol=tolerance, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize(("activation", "loss"), KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_value_and_gradients_are_those_of_autograd_in_float64(dtype: torch.dtype, activation: str, loss: str) -> None:
    problem = Problem.make([3, 0, 17, 1, 40, 8], 25, 70, dtype, torch.int64)
    total, predictions = problem.ours(activation, loss)
    want, exact_predictions, grads = problem.exact(activation, loss)
    close(total, want, TOLERANCE[dtype])
    close(predictions, exact_predictions, TOLERANCE[dtype])
    got = torch.autograd.grad(total * 0.5, [problem.hidden, problem.weight, problem.bias])
    for some, exact in zip(got, grads, strict=True):
        close(some, exact * 0.5, 3 * TOLERANCE[dtype])


@given(
    lengths=st.lists(st.integers(0, 20), max_size=6),
    columns=st.integers(1, 30),
    dim=st.sampled_from([1, 2, 7, 16, 31, 64, 100, 257]),
    index=st.sampled_from([torch.int32, torch.int64]),
    kind=st.sampled_from(KINDS),
    sparse=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    lengths: list[int], columns: int, dim: int, index: torch.dtype, kind: tuple[str, str], sparse: bool, seed: int
) -> None:
    problem = Problem.make(lengths, columns, dim, torch.float32, index, seed)
    plan = csr_plan(problem.indptr, problem.indices, columns) if seed % 2 else None
    total, predictions = problem.ours(*kind, sparse_grad=sparse, plan=plan)
    want, exact_predictions, grads = problem.exact(*kind)
    close(total, want, 1e-5)
    close(predictions, exact_predictions, 1e-5)
    got = torch.autograd.grad(total, [problem.hidden, problem.weight, problem.bias])
    assert got[1].is_sparse == sparse
    for some, exact in zip(got, grads, strict=True):
        close(some, exact, 2e-5)


@pytest.mark.parametrize(("activation", "loss"), KINDS)
def test_the_kernel_is_the_reference(activation: str, loss: str) -> None:
    problem = Problem.make([3, 0, 17, 9], 25, 33, torch.float32, torch.int32)
    kind = (ACTIVATIONS.index(activation), LOSSES.index(loss))
    given = [problem.hidden, problem.weight, problem.bias, problem.indptr, problem.indices, problem.targets]
    arguments = [t.detach() for t in given]
    for weights in (None, problem.weights):
        for need_grad in (False, True):
            got = torch.ops.deeprec.sampled_linear_loss(*arguments, weights, *kind, need_grad)
            want = sampled_linear_loss_reference(*arguments, weights, *kind, need_grad)
            for some, other in zip(got, want, strict=True):
                torch.testing.assert_close(some, other, rtol=1e-5, atol=1e-5)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[800.0], [-800.0], [90.0]])
    indptr, indices = torch.tensor([0, 3]), torch.arange(3)
    for activation, loss in KINDS:
        targets = torch.tensor([-1.0, 1.0, -1.0]) if loss != "cross_entropy" else torch.tensor([0.0, 1.0, 0.0])
        total, _ = sampled_linear_loss(hidden, weight, None, indptr, indices, targets, activation=activation, loss=loss)
        (grad,) = torch.autograd.grad(total, hidden)
        assert bool(total.isfinite())
        assert bool(grad.isfinite())
        if loss == "cross_entropy":
            assert float(total) == pytest.approx(1690.0)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_bitwise_the_same_for_any_threads(threads: int) -> None:
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 300, (400,), generator=draw).tolist()
    problem = Problem.make(lengths, 500, 65, torch.float32, torch.int32)

    def run() -> list[Tensor]:
        total, predictions = problem.ours("sigmoid", "squared")
        hidden, weight, bias = torch.autograd.grad(total, [problem.hidden, problem.weight, problem.bias])
        return [total.detach(), predictions, hidden, weight.to_dense(), bias]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = run()
        torch.set_num_threads(threads)
        for got, some in zip(run(), want, strict=True):
            assert torch.equal(got, some)
    finally:
        torch.set_num_threads(before)


def rule(weight: Tensor, number: int) -> RowUpdate:
    """SGD (0) or Adam (3)."""
    states = [torch.zeros_like(weight)] if number == 3 else []
    lr, step = torch.tensor(0.05, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    return RowUpdate(number, states, [s.clone() for s in states], lr, step, [1e-8, 0.0, 0.9, 0.999])


@pytest.mark.parametrize("number", [0, 3])
def test_a_step_in_backward_is_the_step_on_the_gradients(number: int) -> None:
    problem = Problem.make([5, 9, 0, 30], 40, 20, torch.float32, torch.int64)
    total, _ = problem.ours("identity", "squared")
    total.backward()
    hidden = problem.hidden.grad.clone()
    want = [t.detach().clone() for t in (problem.weight, problem.bias)]
    for some, grad in zip(want, (problem.weight.grad, problem.bias.grad), strict=True):
        dense, touched = grad.to_dense(), torch.zeros(40, dtype=torch.bool)
        touched[problem.indices] = True
        step = 0.05 * dense if number == 0 else 0.05 * dense / (dense.abs() + 1e-8)  # Adam's first step
        some[touched] -= step[touched]
    weight, bias = problem.weight.detach().clone(), problem.bias.detach().clone()
    fresh = Problem(**{**vars(problem), "weight": weight, "bias": bias})
    fresh.hidden.grad = None
    total, _ = fresh.ours(
        "identity", "squared", update=rule(weight, number), update_bias=rule(bias.view(-1, 1), number)
    )
    versions = weight._version, bias._version
    total.backward()
    torch.testing.assert_close(fresh.hidden.grad, hidden)
    assert weight._version > versions[0]  # autograd knows that they have changed
    assert bias._version > versions[1]
    torch.testing.assert_close(weight, want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, want[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [-1, 25, 2**31 - 1])
def test_a_column_out_of_range_is_named(bad: int) -> None:
    problem = Problem.make([3, 4], 25, 8, torch.float32, torch.int64)
    problem.indices[5] = bad
    with pytest.raises(IndexError, match=rf"must be in \[0, 25\), got {bad} at position 5"):
        problem.ours("identity", "squared")
    with pytest.raises(IndexError, match=f"got {bad} at position 5"):
        sparse_linear(problem.indptr, problem.indices, torch.ones(7), problem.weight)
    with pytest.raises(IndexError, match=f"got {bad}"):
        csr_plan(problem.indptr, problem.indices, 25)


def test_a_plan_of_another_matrix_is_refused() -> None:
    p = Problem.make([3, 4], 25, 8, torch.float32, torch.int64)
    before = p.weight.detach().clone()
    wide = csr_plan(p.indptr, torch.tensor([0, 1, 999_999, 3, 4, 5, 600_000]), 1_000_000)
    tall = csr_plan(torch.tensor([0, 0, 0, 3, 7]), p.indices, 25)
    for plan in (wide, tall):
        with pytest.raises(ValueError, match="sparse_linear: plan must be made from these ids"):
            sparse_linear(p.indptr, p.indices, torch.ones(7), p.weight, plan=plan)
        with pytest.raises(ValueError, match="sampled_linear_loss: plan must be made from these ids"):
            p.ours("identity", "squared", plan=plan)
        table = before.clone()
        with pytest.raises(ValueError, match="plan must be made from these ids"):
            sampled_linear_loss(
                *(p.hidden, table, None, p.indptr, p.indices, p.targets), plan=plan, update=rule(table, 0)
            )
        assert torch.equal(table, before)


def test_bad_input_is_refused() -> None:
    p = Problem.make([3, 4], 25, 8, torch.float32, torch.int64)
    with pytest.raises(ValueError, match="activation must be one of"):
        p.ours("relu", "squared")
    with pytest.raises(ValueError, match="needs activation 'sigmoid'"):
        p.ours("tanh", "cross_entropy")
    with pytest.raises(ValueError, match=r"entry_weights must be \(7,\)"):
        p.ours("identity", "squared", entry_weights=torch.ones(6))
    with pytest.raises(ValueError, match=r"targets must be \(7,\) in torch.float32"):
        sampled_linear_loss(p.hidden, p.weight, p.bias, p.indptr, p.indices, p.targets.double())
    with pytest.raises(ValueError, match=r"indptr must be \[3\]"):
        sampled_linear_loss(p.hidden, p.weight, p.bias, p.indptr[:2], p.indices, p.targets)
    with pytest.raises(TypeError, match="both be int32 or both int64"):
        sampled_linear_loss(p.hidden, p.weight, p.bias, p.indptr.int(), p.indices, p.targets)
    for broken in ([0, 5, 4], [1, 3, 7], [0, 3, 6]):
        with pytest.raises(ValueError, match=r"^sampled_linear_loss: indptr must"):
            sampled_linear_loss(p.hidden, p.weight, p.bias, torch.tensor(broken), p.indices, p.targets)
        with pytest.raises(ValueError, match=r"^sparse_linear: indptr must"):
            sparse_linear(torch.tensor(broken), p.indices, p.targets, p.weight)


def test_compiles_in_one_graph_with_dense_gradients_only() -> None:
    p = Problem.make([5, 9, 0, 30], 40, 20, torch.float32, torch.int64)
    values, encoder = torch.rand(len(p.indices)), p.weight.detach().clone().requires_grad_()

    def call(sparse_grad: bool) -> Tensor:
        codes = sparse_linear(p.indptr, p.indices, values, encoder, activation="tanh", sparse_grad=sparse_grad)
        return sampled_linear_loss(
            codes, p.weight, p.bias, p.indptr, p.indices, p.targets, activation="sigmoid", sparse_grad=sparse_grad
        )[0]

    leaves = [encoder, p.weight, p.bias]
    want = torch.autograd.grad(call(False), leaves)
    for sparse_grad in (False, True):
        compiled = torch.compile(call, fullgraph=not sparse_grad, backend="aot_eager")
        for got, exact in zip(torch.autograd.grad(compiled(sparse_grad), leaves), want, strict=True):
            torch.testing.assert_close(got.to_dense(), exact)
    for function in (
        lambda: sparse_linear(p.indptr, p.indices, values, encoder),
        lambda: sampled_linear_loss(p.hidden, p.weight, p.bias, p.indptr, p.indices, p.targets)[0],
    ):
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"do not pass torch.compile; use sparse_grad=False"):
            torch.compile(function, fullgraph=True, backend="aot_eager")()


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    problem = Problem.make([3, 0, 4], 25, 8, torch.float32, torch.int64)
    arguments = (problem.hidden, problem.weight, problem.bias, problem.indptr, problem.indices, problem.targets)
    for need_grad in (False, True):
        yield "sampled_linear_loss", (*(t.detach() for t in arguments), problem.weights, 1, 0, need_grad)
    values, bias = torch.rand(7), torch.rand(8)
    for kind, some in enumerate((None, bias, bias)):
        yield "sparse_linear", (problem.indptr, problem.indices, values, problem.weight.detach(), some, kind)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sparse_linear_is_the_dense_product(activation: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    dense = torch.randn(7, 30, generator=draw, dtype=torch.float64) * (torch.rand(7, 30, generator=draw) < 0.3)
    dense[2] = 0
    csr = dense.to(dtype).to_sparse_csr()
    weight = torch.randn(30, 19, generator=draw).to(dtype).requires_grad_()
    bias = torch.randn(19, generator=draw).to(dtype).requires_grad_()
    values = csr.values().clone().requires_grad_()
    out = sparse_linear(csr.crow_indices(), csr.col_indices(), values, weight, bias, activation=activation)
    x, w, b = (t.detach().double().requires_grad_() for t in (csr.to_dense(), weight, bias))
    z = x @ w + b
    want = {"identity": z, "sigmoid": torch.sigmoid(z), "tanh": torch.tanh(z)}[activation]
    close(out, want.detach(), 3 * TOLERANCE[dtype])
    grad = torch.randn(7, 19, generator=draw).to(dtype)
    got = torch.autograd.grad(out, [values, weight, bias], grad)
    d_x, d_w, d_b = torch.autograd.grad(want, [x, w, b], grad.double())
    rows = torch.repeat_interleave(torch.arange(7), csr.crow_indices().diff())
    for some, exact in zip(got, (d_x[rows, csr.col_indices()], d_w, d_b), strict=True):
        close(some, exact, 5 * TOLERANCE[dtype])


@given(
    lengths=st.lists(st.integers(0, 40), max_size=6),
    columns=st.integers(1, 30),
    dim=st.sampled_from([1, 2, 7, 16, 31, 64, 100, 131, 257, 500]),
    index=st.sampled_from([torch.int32, torch.int64]),
    dtype=st.sampled_from(list(TOLERANCE)),
    activation=st.sampled_from(range(3)),
    seed=st.integers(0, 2**31),
)
def test_the_sparse_linear_kernel_is_the_reference(
    lengths: list[int], columns: int, dim: int, index: torch.dtype, dtype: torch.dtype, activation: int, seed: int
) -> None:
    problem = Problem.make(lengths, columns, dim, dtype, index, seed)
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(lengths), generator=draw).to(dtype)
    bias = torch.randn(dim, generator=draw).to(dtype) if seed % 2 else None
    arguments = (problem.indptr, problem.indices, values, problem.weight.detach(), bias, activation)
    got, want = torch.ops.deeprec.sparse_linear(*arguments), sparse_linear_reference(*arguments)
    assert got.dtype == dtype
    close(got, want.double(), TOLERANCE[dtype])


def test_ten_million_columns_need_no_dense_row() -> None:
    # Dense, 1,000 x 10 million float32 outputs would be 40 GB, and as much again for their gradient.
    columns, batch, each = 10_000_000, 1000, 20
    draw = torch.Generator().manual_seed(0)
    indptr = torch.arange(batch + 1) * each
    indices = torch.randint(columns, (batch * each,), generator=draw)
    encoder, decoder = torch.zeros(columns, 4), torch.zeros(columns, 4)
    encoder[indices] = torch.randn(len(indices), 4, generator=draw)
    decoder[indices] = torch.randn(len(indices), 4, generator=draw)
    encoder.requires_grad_()
    decoder.requires_grad_()
    values = torch.randn(len(indices), generator=draw)
    plan = csr_plan(indptr, indices, columns)
    hidden = sparse_linear(indptr, indices, values, encoder, activation="sigmoid", plan=plan)
    total, _ = sampled_linear_loss(hidden, decoder, None, indptr, indices, values, plan=plan)
    total.backward()
    rows, where = indices.unique(return_inverse=True)
    e, d = (t.detach()[rows].double().requires_grad_() for t in (encoder, decoder))
    mine = torch.repeat_interleave(torch.arange(batch), each)
    h = torch.sigmoid(torch.zeros(batch, 4).double().index_add(0, mine, e[where] * values.double().unsqueeze(1)))
    want = (((h[mine] * d[where]).sum(1) - values) ** 2).sum()
    want.backward()
    close(total.detach(), want.detach(), 1e-5)
    for table, exact in ((encoder, e), (decoder, d)):
        grad = table.grad.coalesce()
        assert torch.equal(grad.indices()[0], rows)
        close(grad.values(), exact.grad, 1e-5)
