"""Claims about embedding_plan, embedding and their gradients, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deeprec.kernels.embedding import embedding, embedding_plan
from deeprec.kernels.embedding.reference import embedding_grad_reference, embedding_plan_reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INDEX_DTYPES = (torch.int32, torch.int64)
# Shapes: a round one, odd ones around the vector widths, a column, no ids, one row.
SHAPES = [(100, 64, 256), (7, 1, 40), (50, 3, 9), (33, 17, 123), (5, 123, 123), (1, 600, 5), (10, 8, 0)]


def ids_of(num_embeddings: int, nnz: int, dtype: torch.dtype = torch.int64, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, num_embeddings, (nnz,), generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize(
    ("num_embeddings", "nnz"),
    [(5, 0), (1, 1), (6040, 256), (6040, 20_480), (100_000, 100_000), (7, 100_000), (10**7, 70_000), (2**31 - 1, 300)],
)
def test_plan_matches_reference_exactly(num_embeddings: int, nnz: int, dtype: torch.dtype) -> None:
    ids = ids_of(num_embeddings, nnz, dtype)
    for got, want in zip(
        embedding_plan(ids, num_embeddings), embedding_plan_reference(ids, num_embeddings), strict=True
    ):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


def test_plan_serves_tables_beyond_int32_rows() -> None:
    ids = torch.tensor([2**40 - 1, 3, 2**33, 3])
    plan = embedding_plan(ids, 2**40)
    assert plan.rows.tolist() == [3, 2**33, 2**40 - 1]
    assert plan.order.tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
@pytest.mark.parametrize(("num_embeddings", "dim", "nnz"), SHAPES)
def test_lookup_is_exact(num_embeddings: int, dim: int, nnz: int, dtype: torch.dtype, index_dtype: torch.dtype) -> None:
    weight = torch.randn(num_embeddings, dim).to(dtype)
    ids = ids_of(num_embeddings, nnz, index_dtype)
    assert torch.equal(embedding(weight, ids), weight[ids.long()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_embeddings", "dim", "nnz"), SHAPES)
@pytest.mark.parametrize("sparse_grad", [True, False])
def test_grad_matches_float64_reference(
    num_embeddings: int, dim: int, nnz: int, dtype: torch.dtype, sparse_grad: bool
) -> None:
    weight = torch.randn(num_embeddings, dim).to(dtype).requires_grad_()
    ids, grad = ids_of(num_embeddings, nnz), torch.randn(nnz, dim).to(dtype)
    (got,) = torch.autograd.grad(embedding(weight, ids, sparse_grad=sparse_grad), weight, grad)
    want = torch.zeros(num_embeddings, dim, dtype=torch.float64).index_add_(0, ids, grad.double())
    assert got.is_sparse == sparse_grad
    if sparse_grad:
        assert got.is_coalesced()
        assert torch.equal(got._indices()[0], ids.unique())
    # One rounding of the float32 sum to the dtype, plus the float32 summation error.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.to_dense().double(), want, rtol=eps, atol=1e-12 if dtype == torch.float64 else 2e-5)


class Densify(torch.autograd.Function):
    """Identity whose gradient is made dense: gradcheck wants gradients laid out like their inputs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.to_dense()


def test_gradcheck() -> None:
    weight = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 3, 3], [5, 0, 0]])
    assert torch.autograd.gradcheck(lambda w: embedding(Densify.apply(w), ids), weight)
    assert torch.autograd.gradcheck(lambda w: embedding(w, ids, sparse_grad=False), weight)


def test_gradient_differentiated_by_what_came_in_is_the_lookup() -> None:
    weight = torch.randn(6, 5, requires_grad=True)
    grad = torch.ones(2, 5, requires_grad=True)
    ids, other = torch.tensor([1, 2]), torch.randn(6, 5)
    (first,) = torch.autograd.grad(embedding(weight, ids, sparse_grad=False), weight, grad, create_graph=True)
    (second,) = torch.autograd.grad(first, grad, other)
    assert torch.equal(second, other[ids])


@pytest.mark.parametrize("sparse_grad", [True, False])
@pytest.mark.parametrize("planned", [True, False])
def test_ids_changed_before_the_backward_pass_and_a_second_pass_are_errors(sparse_grad: bool, planned: bool) -> None:
    weight, ids = torch.randn(6, 5, requires_grad=True), torch.tensor([1, 2, 2])
    out = embedding(weight, ids, embedding_plan(ids, 6) if planned else None, sparse_grad=sparse_grad)
    out.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()
    out = embedding(weight, ids, embedding_plan(ids, 6) if planned else None, sparse_grad=sparse_grad)
    ids.fill_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("layout", ["expanded", "column slice", "transposed", "row stride"])
def test_gradients_of_any_layout(layout: str) -> None:
    weight = torch.randn(20, 6, requires_grad=True)
    ids = ids_of(20, 50)
    grad = {
        "expanded": torch.tensor(0.5).expand(50, 6),
        "column slice": torch.randn(50, 13)[:, 4:10],
        "transposed": torch.randn(6, 50).t(),
        "row stride": torch.randn(100, 6)[::2],
    }[layout]
    (got,) = torch.autograd.grad(embedding(weight, ids), weight, grad)
    torch.testing.assert_close(got.to_dense(), torch.zeros(20, 6).index_add_(0, ids, grad))


def test_weights_and_ids_of_any_layout() -> None:
    table, ids = torch.randn(20, 30), ids_of(20, 24).reshape(4, 6).t()[1::2]
    for weight in (table[:, 5:12], table.t(), table[::3].expand(7, 30), table[:1].expand(20, 30)):
        some = ids % weight.shape[0]
        assert torch.equal(embedding(weight, some), weight[some])


def test_shared_plan_gives_the_same_gradient() -> None:
    ids = ids_of(40, 300)
    plan = embedding_plan(ids, 40)
    for dim in (8, 32):
        weight = torch.randn(40, dim, requires_grad=True)
        grad = torch.randn(300, dim)
        (a,) = torch.autograd.grad(embedding(weight, ids, plan), weight, grad)
        (b,) = torch.autograd.grad(embedding(weight, ids), weight, grad)
        assert torch.equal(a.to_dense(), b.to_dense())


@pytest.mark.parametrize("bad", [-1, 20, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
def test_out_of_range_id_is_an_index_error_with_table_value_and_position(bad: int, dtype: torch.dtype) -> None:
    weight = torch.randn(20, 3)
    ids = torch.tensor([[1, 2], [bad, 3]], dtype=dtype)
    for call in (
        lambda: embedding(weight, ids, name="user"),
        lambda: embedding(weight.clone().requires_grad_(), ids, name="user"),
        lambda: embedding_plan(ids, 20, name="user"),
    ):
        with pytest.raises(IndexError, match=rf"'user' must be in \[0, 20\), got {bad} at position 2"):
            call()


def test_first_of_many_bad_ids_is_named_whatever_the_threads() -> None:
    weight, ids = torch.randn(20, 64), torch.zeros(50_000, dtype=torch.int64)
    ids[[123, 30_000, 49_999]] = 99
    with pytest.raises(IndexError, match="position 123;"):
        embedding(weight, ids)


def test_wrong_arguments_are_named() -> None:
    weight = torch.randn(4, 3)
    with pytest.raises(TypeError, match=r"ids must be int32 or int64, got torch\.float32"):
        embedding(weight, torch.zeros(2))
    with pytest.raises(ValueError, match=r"weight must be \[R, D\]"):
        embedding(weight[0], torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="plan must be made from these ids, got the plan of others"):
        embedding(weight, torch.zeros(2, dtype=torch.int64), embedding_plan(torch.zeros(3, dtype=torch.int64), 4))


def test_forward_and_gradient_are_bitwise_equal_for_any_thread_count() -> None:
    weight = torch.randn(3000, 33, requires_grad=True)
    ids, grad = ids_of(3000, 50_000) % 777, torch.randn(50_000, 33)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = embedding(weight, ids)
            (got,) = torch.autograd.grad(out, weight, grad)
            results.append((out.detach(), *embedding_plan(ids, 3000), got._indices(), got._values()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    for ids in (ids_of(100, 24).reshape(4, 6), ids_of(100, 0)):
        yield "embedding_plan", (ids, 100)
        yield "embedding", (torch.randn(100, 7), ids)
        yield "embedding_grad", (torch.randn(ids.numel(), 7), *embedding_plan(ids, 100))
        yield "embedding_dense_grad", (torch.randn(ids.numel(), 7), ids, 100)


def test_compiles_whole_for_inference_and_for_training_with_dense_gradient() -> None:
    weight, ids = torch.randn(50, 6, requires_grad=True), ids_of(50, 12)
    with torch.no_grad():
        inference = torch.compile(lambda w, i: embedding(w, i) * 2, fullgraph=True, backend="aot_eager")
        assert torch.equal(inference(weight, ids), weight[ids] * 2)
    training = torch.compile(
        lambda w, i: (embedding(w, i, sparse_grad=False) ** 2).sum(), fullgraph=True, backend="aot_eager"
    )
    (got,) = torch.autograd.grad(training(weight, ids), weight)
    (want,) = torch.autograd.grad((weight[ids] ** 2).sum(), weight)
    torch.testing.assert_close(got, want)


def test_sparse_gradient_under_compile_runs_outside_the_graph_or_says_so() -> None:
    weight, ids = torch.randn(50, 6, requires_grad=True), ids_of(50, 12)

    def loss(w: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return (embedding(w, i) ** 2).sum()

    with pytest.raises(torch._dynamo.exc.Unsupported, match="use sparse_grad=False"):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(weight, ids)
    (got,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(weight, ids), weight)
    (want,) = torch.autograd.grad((weight[ids] ** 2).sum(), weight)
    torch.testing.assert_close(got.to_dense(), want)


@given(num_embeddings=st.integers(1, 300), dim=st.integers(1, 70), nnz=st.integers(0, 400), seed=st.integers(0, 2**31))
def test_any_shape_matches_reference(num_embeddings: int, dim: int, nnz: int, seed: int) -> None:
    ids = ids_of(num_embeddings, nnz, seed=seed)
    plan = embedding_plan(ids, num_embeddings)
    assert all(map(torch.equal, plan, embedding_plan_reference(ids, num_embeddings)))
    weight, grad = torch.randn(num_embeddings, dim), torch.randn(nnz, dim)
    assert torch.equal(embedding(weight, ids), weight[ids])
    got = torch.ops.deeprec.embedding_grad(grad, *plan)
    torch.testing.assert_close(got, embedding_grad_reference(grad, *plan), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_rows_beyond_2_31_elements_are_read_right() -> None:
    num_embeddings, dim = 2**25 + 3, 64  # 2^31 + 192 elements, 4 GiB
    weight = torch.empty(num_embeddings, dim, dtype=torch.bfloat16)
    ids = torch.tensor([num_embeddings - 1, 0, 2**25, num_embeddings - 1])
    weight[ids] = torch.arange(1, 5, dtype=torch.bfloat16)[:, None].expand(4, dim)
    assert torch.equal(embedding(weight, ids), weight[ids])
    assert embedding_plan(ids, num_embeddings).rows.tolist() == [0, 2**25, num_embeddings - 1]
