"""ncf_loss against its float64 reference: values, gradients, determinism, precision, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels import _library
from deeprec.kernels.embedding import embedding_plan
from deeprec.kernels.ncf_loss import ncf_logits_reference, ncf_loss, ncf_loss_reference

NUM_USERS, NUM_ITEMS = 23, 41


@dataclass
class Case:
    """A batch and a model with seeded, well-scaled values."""

    tables: list[Tensor | None]
    users: Tensor
    items: Tensor
    labels: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    out_weight: Tensor
    out_bias: Tensor

    def parameters(self) -> list[Tensor]:
        given = [table for table in self.tables if table is not None]
        return [*given, *self.weights, *self.biases, self.out_weight, self.out_bias]

    def to(self, dtype: torch.dtype) -> Case:
        def convert(x: Tensor) -> Tensor:
            return x.detach().to(dtype).requires_grad_()

        return Case(
            [None if table is None else convert(table) for table in self.tables],
            self.users,
            self.items,
            self.labels.to(dtype),
            [convert(x) for x in self.weights],
            [convert(x) for x in self.biases],
            convert(self.out_weight),
            convert(self.out_bias),
        )

    def loss(self, **options: str | bool) -> Tensor:
        return ncf_loss(
            *self.tables,
            self.users,
            self.items,
            self.labels,
            self.weights,
            self.biases,
            self.out_weight,
            self.out_bias,
            **options,
        )

    def plain_loss(self, reduction: str = "mean", bfloat16: bool = False) -> Tensor:
        tables = [torch.zeros(1, 0, dtype=self.labels.dtype) if x is None else x for x in self.tables]
        if self.tables[0] is None:
            tables[0], tables[1] = (x.new_zeros(len(x), 0) for x in tables[2:])
        logits = ncf_logits_reference(
            *tables, self.users, self.items, self.weights, self.biases, self.out_weight, self.out_bias, bfloat16
        )
        return F.binary_cross_entropy_with_logits(logits, self.labels, reduction=reduction)


def make(groups: int, negatives: int, gmf: int, mlp: tuple[int, int], hidden: list[int], index=torch.int64) -> Case:
    rng = torch.Generator().manual_seed(groups * 1000 + negatives * 100 + gmf + sum(hidden))

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=rng, dtype=torch.float64) * scale).requires_grad_()

    tables: list[Tensor | None] = [None] * 4
    if gmf:
        tables[:2] = normal(NUM_USERS, gmf), normal(NUM_ITEMS, gmf)
    if hidden:
        tables[2:] = normal(NUM_USERS, mlp[0]), normal(NUM_ITEMS, mlp[1])
    widths = [sum(mlp), *hidden]
    weights = [normal(out, width, scale=width**-0.5) for width, out in zip(widths, hidden, strict=False)]
    last = gmf + (hidden[-1] if hidden else 0)
    labels = torch.zeros(groups, 1 + negatives, dtype=torch.float64)
    labels[:, :1] = 1
    return Case(
        tables,
        torch.randint(NUM_USERS, (groups,), generator=rng, dtype=index),
        torch.randint(NUM_ITEMS, (groups, 1 + negatives), generator=rng, dtype=index),
        labels,
        weights,
        [normal(out, scale=0.1) for out in hidden],
        normal(last, scale=last**-0.5),
        normal(1),
    )


def dense_gradients(case: Case, loss: Tensor, grad_output: float = 1.0) -> list[Tensor]:
    parameters = case.parameters()
    gradients = torch.autograd.grad(loss, parameters, torch.tensor(grad_output, dtype=loss.dtype))
    return [gradient.to_dense() for gradient in gradients]


def error(got: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    if expected.numel() == 0:
        return 0.0
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


SHAPES = [
    pytest.param(17, 4, 8, (16, 16), [32, 16, 8], id="NeuMF-8"),
    pytest.param(130, 4, 64, (64, 64), [256, 128, 64], id="NeuMF-64"),
    pytest.param(29, 4, 16, (0, 0), [], id="GMF"),
    pytest.param(29, 3, 0, (12, 12), [20, 10], id="MLP"),
    pytest.param(61, 2, 7, (5, 9), [13], id="one layer, odd"),
    pytest.param(37, 5, 1, (3, 1), [33, 17, 9, 5], id="four layers, odd"),
    pytest.param(40, 0, 5, (6, 6), [7, 3], id="pairs"),
    pytest.param(2, 301, 3, (4, 4), [50, 21], id="many negatives"),
    pytest.param(1, 0, 3, (4, 4), [5, 6], id="one example"),
    pytest.param(0, 4, 3, (4, 4), [5, 6], id="empty"),
    pytest.param(1500, 4, 10, (16, 8), [24, 12], id="many chunks"),
]


@pytest.mark.parametrize(("groups", "negatives", "gmf", "mlp", "hidden"), SHAPES)
def test_loss_and_gradients_match_float64(groups, negatives, gmf, mlp, hidden):
    case = make(groups, negatives, gmf, mlp, hidden, torch.int32)
    low = case.to(torch.float32)
    for reduction in ("mean", "sum"):
        expected, got = case.plain_loss(reduction), low.loss(reduction=reduction)
        if groups == 0:
            assert float(got.detach()) == 0
            expected = expected.nan_to_num(0)
        assert error(got.detach(), expected.detach()) < 1e-6
        for a, b in zip(dense_gradients(low, got, 0.5), dense_gradients(case, expected, 0.5), strict=True):
            assert error(a, b.nan_to_num(0)) < 2e-5


@pytest.mark.parametrize(("groups", "negatives", "gmf", "mlp", "hidden"), SHAPES)
def test_reference_operator_matches_autograd(groups, negatives, gmf, mlp, hidden):
    case = make(groups, negatives, gmf, mlp, hidden)
    got, expected = case.loss(reduction="sum"), case.plain_loss("sum")
    assert error(got.detach(), expected.detach()) < 1e-12
    for a, b in zip(dense_gradients(case, got, 2.0), dense_gradients(case, expected, 2.0), strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize(("groups", "negatives", "gmf", "mlp", "hidden"), SHAPES[:8])
def test_bfloat16_error_is_that_of_an_honest_bfloat16_run(groups, negatives, gmf, mlp, hidden):
    case = make(groups, negatives, gmf, mlp, hidden)
    low = case.to(torch.float32)
    got, expected = low.loss(precision="bfloat16"), case.plain_loss()
    honest = low.plain_loss(bfloat16=True)
    assert error(got.detach(), expected.detach()) <= error(honest.detach(), expected.detach()) + 1e-3
    gradients = zip(
        dense_gradients(low, got), dense_gradients(low, honest), dense_gradients(case, expected), strict=True
    )
    for a, b, exact in gradients:
        # The kernel also rounds the gradients that enter a product (2^-9 relative); the honest run's do not.
        assert error(a, exact) <= 1.5 * error(b, exact) + 1e-2


def test_gradients_match_finite_differences():
    # torch.autograd.gradcheck cannot follow: sparse gradients of dense tables, and backward runs once.
    case, step = make(3, 2, 3, (2, 4), [5, 4]), 1e-6
    gradients = dense_gradients(case, case.loss())
    for parameter, gradient in zip(case.parameters(), gradients, strict=True):
        flat, numeric = parameter.data.view(-1), torch.empty(parameter.numel(), dtype=torch.float64)
        for i in range(len(flat)):
            value = float(flat[i])
            flat[i] = value + step
            above = float(case.loss().detach())
            flat[i] = value - step
            numeric[i] = (above - float(case.loss().detach())) / (2 * step)
            flat[i] = value
        torch.testing.assert_close(gradient.reshape(-1), numeric, atol=1e-8, rtol=1e-6)


def test_table_gradients_are_coalesced_rows_of_the_batch():
    case = make(9, 4, 4, (4, 4), [8]).to(torch.float32)
    case.loss().backward()
    user, item = case.tables[0].grad, case.tables[3].grad
    assert user._indices()[0].tolist() == sorted(set(case.users.tolist()))
    assert item._indices()[0].tolist() == sorted(set(case.items.flatten().tolist()))


def test_only_needed_gradients_are_returned():
    case = make(9, 4, 4, (4, 4), [8]).to(torch.float32)
    case.out_weight.requires_grad_(False)
    case.tables[2].requires_grad_(False)
    case.loss().backward()
    assert case.out_weight.grad is None
    assert case.tables[2].grad is None
    assert case.tables[3].grad is not None


def test_second_backward_is_refused():
    loss = make(9, 4, 4, (4, 4), [8]).to(torch.float32).loss()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward must run once"):
        loss.backward()


def test_accumulate_grad_does_what_backward_does():
    case = make(9, 4, 4, (4, 4), [8]).to(torch.float32)
    loss = case.loss()
    (2 * loss).backward()
    other = case.to(torch.float32)
    other.biases[0].requires_grad_(False)
    for _ in range(2):
        direct = other.loss(accumulate_grad=True)
    assert torch.equal(direct, loss.detach())
    assert not direct.requires_grad
    assert other.biases[0].grad is None
    for a, b in zip(other.parameters(), case.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad.to_dense(), b.grad.to_dense())
    other.weights[0] = other.weights[0] * 2
    with pytest.raises(ValueError, match="accumulate_grad needs leaf parameters"):
        other.loss(accumulate_grad=True)


def test_output_weight_of_a_linear_is_taken_as_it_is():
    case = make(9, 4, 4, (4, 4), [8]).to(torch.float32)
    expected = dense_gradients(case, case.loss())
    case.out_weight = case.out_weight.detach()[None].requires_grad_()
    got = dense_gradients(case, case.loss())
    assert torch.equal(got[-2], expected[-2][None])


def test_tables_catch_up_before_they_are_read():
    case = make(9, 4, 4, (4, 4), [8]).to(torch.float32)
    seen = []
    case.tables[1]._deeprec_catch_up = seen.append
    case.loss()
    assert [rows.tolist() for rows in seen] == [sorted(set(case.items.flatten().tolist()))]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bitwise_the_same_for_any_number_of_threads(precision):
    case = make(700, 4, 24, (16, 16), [48, 32, 8]).to(torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for num in (1, 2, 3, 1, 2):
            torch.set_num_threads(num)
            loss = case.loss(precision=precision)
            results.append([loss.detach(), *dense_gradients(case, loss)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def operator_arguments(case: Case) -> tuple[object, ...]:
    tables = [x.detach() for x in case.tables]
    plans = *embedding_plan(case.users, NUM_USERS), *embedding_plan(case.items, NUM_ITEMS)
    weights, biases = [x.detach() for x in case.weights], [x.detach() for x in case.biases]
    return (*tables, *plans, case.labels, weights, biases, case.out_weight.detach(), case.out_bias.detach(), 0.1, False)


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    yield "ncf_loss", operator_arguments(make(9, 2, 3, (4, 4), [6, 5]).to(torch.float32))


def test_operator_matches_reference_output_by_output():
    arguments = operator_arguments(make(50, 2, 3, (4, 4), [6, 5]).to(torch.float32))
    torch.testing.assert_close(torch.ops.deeprec.ncf_loss(*arguments), ncf_loss_reference(*arguments))


def test_compile_traces_the_reference_with_dense_gradients():
    case = make(9, 2, 3, (4, 4), [6, 5]).to(torch.float32)
    eager = case.loss()
    compiled = torch.compile(lambda: case.loss(), fullgraph=True, backend="aot_eager")()
    torch.testing.assert_close(compiled, eager)
    gradients = torch.autograd.grad(compiled, case.parameters())
    assert not gradients[0].is_sparse
    for a, b in zip(gradients, dense_gradients(case, eager), strict=True):
        torch.testing.assert_close(a, b)


def test_non_contiguous_and_expanded_inputs_are_read_right():
    case = make(12, 4, 6, (5, 5), [7, 6]).to(torch.float32)
    expected = case.loss().detach()
    case.tables[0] = case.tables[0].detach().T.contiguous().T
    case.weights[1] = case.weights[1].detach().T.contiguous().T
    case.items = case.items.T.contiguous().T
    case.labels = case.labels[:1].expand(12, 5)
    assert torch.equal(case.loss().detach(), expected)


def test_extreme_logits_give_the_stable_loss():
    case = make(4, 3, 2, (0, 0), []).to(torch.float64)
    case.out_bias = torch.tensor([90.0], dtype=torch.float64, requires_grad=True)
    low = case.to(torch.float32)
    assert error(low.loss().detach(), case.plain_loss().detach()) < 1e-6
    case.out_bias = torch.tensor([float("nan")], dtype=torch.float64, requires_grad=True)
    low = case.to(torch.float32)
    loss = low.loss()
    assert loss.isnan()
    assert dense_gradients(low, loss)[-1].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": torch.zeros(2, 2, dtype=torch.int64)}, r"users must be \[G\], got \(2, 2\)"),
        ({"items": torch.zeros(5, dtype=torch.int64)}, r"items must be \[9, 1 \+ n\], got \(5,\)"),
        ({"labels": torch.zeros(9, 4)}, r"labels must be \(9, 3\).*got \(9, 4\)"),
        ({"weights": [torch.zeros(6, 7), torch.zeros(5, 6)]}, r"weights\[0\] must be \[H, 8\], got \(6, 7\)"),
        ({"biases": [torch.zeros(6)]}, "biases must be 2.*got 1"),
        ({"biases": [torch.zeros(6), torch.zeros(4)]}, r"biases\[1\] must be \[5\], got \(4,\)"),
        ({"out_weight": torch.zeros(8, 1)}, r"out_weight must be \[8\] or \[1, 8\].*got \(8, 1\)"),
        ({"out_weight": torch.zeros(8).double()}, "must be torch.float32, got torch.float64"),
        ({"out_bias": torch.zeros(2)}, r"out_bias must be \[1\] or None, got \(2,\)"),
        ({"weights": [], "biases": []}, "MLP tables and weights go together, got 0 weights"),
        ({"tables": [None] * 4}, "needs GMF tables, MLP tables or both"),
    ],
)
def test_bad_arguments_name_argument_value_and_remedy(change, message):
    case = make(9, 2, 3, (4, 4), [6, 5]).to(torch.float32)
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ValueError, match=f"ncf_loss: .*{message}"):
        case.loss()


def test_bad_options_and_ids_are_refused():
    case = make(9, 2, 3, (4, 4), [6, 5]).to(torch.float32)
    with pytest.raises(ValueError, match="reduction must be"):
        case.loss(reduction="none")
    with pytest.raises(ValueError, match="precision must be"):
        case.loss(precision="fp8")
    case.items[4, 1] = NUM_ITEMS
    with pytest.raises(IndexError, match=f"got {NUM_ITEMS} at position 13"):
        case.loss()


def test_operator_refuses_a_broken_plan():
    if _library.load_error():
        pytest.skip(f"needs the compiled kernels: {_library.load_error()}")
    arguments = list(operator_arguments(make(9, 2, 3, (4, 4), [6, 5]).to(torch.float32)))
    arguments[9] = torch.zeros_like(arguments[9])
    with pytest.raises(RuntimeError, match="embedding_plan"):
        torch.ops.deeprec.ncf_loss(*arguments)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_lesser_instruction_sets_match(isa):
    # The best one of this machine serves the other tests.
    if _library.load_error():
        pytest.skip(f"needs the compiled kernels: {_library.load_error()}")
    if os.environ.get("DEEPREC_ISA"):
        pytest.skip("already inside the run for one instruction set")
    selection = "match_float64 or bfloat16_error or any_number_of_threads or extreme"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", selection]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "DEEPREC_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_l2_adds_the_squared_norms_of_every_examples_rows():
    torch.manual_seed(0)
    user = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    item = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    users, items = torch.tensor([3, 0, 3]), torch.tensor([[1, 8], [1, 2], [4, 1]])
    labels, h = torch.rand(3, 2, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    logits = (user[users].unsqueeze(1) * item[items]).sum(-1)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    norms = 2 * user[users].square().sum() + item[items].square().sum()
    expected = torch.autograd.grad(bce + 0.15 * norms, (user, item))
    loss = ncf_loss(user, item, None, None, users, items, labels, [], [], h, reduction="sum", l2=0.3)
    torch.testing.assert_close(loss, bce + 0.15 * norms)
    loss.backward()
    for parameter, gradient in zip((user, item), expected, strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), gradient)
