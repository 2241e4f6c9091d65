"""Claims about embedding_fm, its gradients and its update, on the CPU and (marked gpu) on a GPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deeprec.kernels.embedding_bag import RowUpdate
from deeprec.kernels.embedding_bag.checks import ADAGRAD, ADAM, FTRL, ROWWISE_ADAGRAD, SGD
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.kernels.embedding_fm import reference as ref

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TABLES = ([0], [0, 1, 2], [0, 0, 1, 0], list(range(26)), [1] * 9)  # the table of each feature
BATCHES = [(9, None), (37, None), (0, None), (9, 5), (1, 3), (0, 4)]  # B, most ids a bag (None: one id a bag)


class Batch(NamedTuple):
    weights: list[Tensor]
    linear: list[Tensor]
    ids: Tensor
    offsets: Tensor | None
    values: Tensor | None
    tables: list[int]
    padding: list[int]

    def input(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.ids, self.offsets, self.values

    def plan(self) -> tuple[Tensor, ...]:
        sizes = [w.shape[0] for w in self.weights]
        return torch.ops.deeprec.embedding_bags_plan(self.ids, self.offsets, sizes, self.tables, self.padding)

    def wide(self) -> Batch:
        values = None if self.values is None else self.values.double()
        return self._replace(
            weights=[w.double() for w in self.weights], linear=[w.double() for w in self.linear], values=values
        )


def batch_of(
    tables: list[int],
    shape: tuple[int, int | None],
    dim: int,
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int64,
    *,
    linear: bool = True,
    scaled: bool = False,
    pad: int = -1,
    rows: int = 20,
    seed: int = 0,
) -> Batch:
    torch.manual_seed(seed)
    weights = [torch.randn(rows + t, dim).to(dtype) for t in range(max(tables) + 1)]
    linears = [torch.randn(w.shape[0], *((1,) * (t % 2))).to(dtype) for t, w in enumerate(weights)] if linear else []
    count, length = shape
    offsets = None
    if length is None:
        ids = torch.stack([torch.randint(0, weights[t].shape[0], (count,)) for t in tables]).to(index)
    else:
        lengths = torch.randint(0, length + 1, (len(tables), count))
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)]).to(index)
        some = zip(tables, lengths, strict=True)
        ids = torch.cat([torch.randint(0, weights[t].shape[0], (int(n.sum()),)) for t, n in some]).to(index)
    values = torch.randn(ids.shape).to(dtype) if scaled else None
    return Batch(weights, linears, ids, offsets, values, tables, [pad] * len(tables))


def entries_of(b: Batch, sample: int) -> list[tuple[int, Tensor, float]]:
    """(table, id, x) of each entry of a sample, read one by one."""
    count = b.ids.shape[1] if b.offsets is None else (b.offsets.shape[0] - 1) // len(b.tables)
    out = []
    for f, table in enumerate(b.tables):
        bag = f * count + sample
        places = [bag] if b.offsets is None else range(int(b.offsets[bag]), int(b.offsets[bag + 1]))
        for p in places:
            i = int(b.ids.reshape(-1)[p])
            if i != b.padding[f]:
                out.append((table, i, 1.0 if b.values is None else float(b.values.reshape(-1)[p])))
    return out


def close(got: Tensor, want: Tensor, slack: float = 1.0) -> None:
    """Within a few roundings of the dtype, and of the float32 sum of terms around 1."""
    assert got.shape == want.shape
    eps = torch.finfo(got.dtype).eps
    wide = torch.finfo(torch.float64 if got.dtype == torch.float64 else torch.float32).eps
    size = float(want.double().abs().max()) if want.numel() else 0.0
    torch.testing.assert_close(got.double(), want.double(), rtol=2 * eps, atol=max(eps, 64 * wide) * slack * (1 + size))


@pytest.mark.parametrize("shape", [(5, None), (5, 4)])
@pytest.mark.parametrize("scaled", [False, True])
def test_reference_is_rendles_equation_entry_by_entry(shape: Any, scaled: bool) -> None:
    b = batch_of([0, 1, 0], shape, 3, torch.float64, scaled=scaled, pad=2)
    out, sums, embeddings = ref.embedding_fm_reference(b.weights, b.linear, *b.input(), b.tables, b.padding, True)
    for sample in range(5):
        entries = [(b.weights[t][i] * x, b.linear[t].view(-1)[i] * x) for t, i, x in entries_of(b, sample)]
        pairs = sum((v @ u for (v, _), (u, _) in itertools.combinations(entries, 2)), torch.zeros(()))
        torch.testing.assert_close(out[sample], pairs + sum(w for _, w in entries), check_dtype=False)
        total = sum((v for v, _ in entries), torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(sums[sample], total)
        torch.testing.assert_close(embeddings[sample].sum(0), total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize(
    ("dim", "linear", "scaled", "pad"), [(16, True, False, -1), (10, True, True, 3), (1, False, False, 3)]
)
def test_forward_and_gradients_match_float64_reference(
    tables: list[int],
    shape: Any,
    dim: int,
    linear: bool,
    scaled: bool,
    pad: int,
    dtype: torch.dtype,
    index: torch.dtype,
) -> None:
    b = batch_of(tables, shape, dim, dtype, index, linear=linear, scaled=scaled, pad=pad)
    check_against_reference(b, dtype)


def check_against_reference(b: Batch, dtype: torch.dtype) -> None:
    features, wide = (b.tables, b.padding), b.wide()
    got = torch.ops.deeprec.embedding_fm(b.weights, b.linear, *b.input(), *features, True)
    want = ref.embedding_fm_reference(wide.weights, wide.linear, *wide.input(), *features, True)
    for a, expected in zip(got, want, strict=True):
        close(a, expected)
    assert got[1].dtype == wide_dtype(dtype)

    grad, more = torch.randn(got[0].shape).to(dtype), torch.randn(got[2].shape).to(dtype)
    for e in (None, more):
        given = (grad, got[1], e, *b.input())
        exact = (grad.double(), want[1], None if e is None else e.double(), *wide.input())
        plan, scaled = b.plan(), b.values is not None
        some = torch.ops.deeprec.embedding_fm_grad(b.weights, b.linear, *given, *plan, *features, scaled)
        expected = ref.embedding_fm_grad_reference(wide.weights, wide.linear, *exact, *plan, *features, scaled)
        for a, w in zip(some, expected, strict=True):
            assert a.dtype == dtype
            close(a, w, 8)
        dense = torch.ops.deeprec.embedding_fm_dense_grad(b.weights, b.linear, *given, *features, scaled)
        bounds = plan[-1].tolist()
        for i, (table, a) in enumerate(zip([*b.weights, *b.linear], dense[:-1], strict=True)):
            t = i % len(b.weights)
            scattered = torch.zeros_like(table)
            scattered[plan[0][bounds[t] : bounds[t + 1]].long()] = some[i]
            assert torch.equal(a, scattered)
        assert torch.equal(dense[-1], some[-1])


@given(
    dim=st.integers(1, 140),
    batch=st.integers(0, 30),
    length=st.none() | st.integers(0, 6),
    tables=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    dtype=st.sampled_from(DTYPES),
    linear=st.booleans(),
    scaled=st.booleans(),
    pad=st.sampled_from([-1, 0, 5]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_matches_reference(
    dim: int,
    batch: int,
    length: int | None,
    tables: list[int],
    dtype: torch.dtype,
    linear: bool,
    scaled: bool,
    pad: int,
    seed: int,
) -> None:
    b = batch_of(tables, (batch, length), dim, dtype, linear=linear, scaled=scaled, pad=pad, seed=seed)
    check_against_reference(b, dtype)


@pytest.mark.parametrize("layout", ["batch first", "every second", "slice", "expanded"])
def test_ids_and_values_of_any_layout(layout: str) -> None:
    b = batch_of([0, 1, 0, 2], (50, None), 16, scaled=True)
    base, x = torch.randint(0, 20, (60, 120)), torch.randn(60, 120)
    cut = {
        "batch first": lambda t: t[:50, :4].t(),
        "every second": lambda t: t[:8:2, ::2][:, :50],
        "slice": lambda t: t[3:7, 5:55],
        "expanded": lambda t: t[:4, :1].expand(4, 50),
    }[layout]
    one, two = b._replace(ids=cut(base), values=cut(x)), b._replace(ids=cut(base).clone(), values=cut(x).clone())
    outs = [embedding_fm(c.weights, c.linear, c.ids, values=c.values, tables=c.tables) for c in (one, two)]
    assert torch.equal(*outs)
    check_against_reference(one, torch.float32)


@pytest.mark.parametrize("scaled", [False, True])
def test_samples_of_any_size_side_by_side(scaled: bool) -> None:
    """From none to a thousand entries: the kernel looks ahead a number of entries, across bags and samples."""
    torch.manual_seed(0)
    b = batch_of([0, 1, 0], (1, 1), 16, scaled=scaled, pad=3)
    lengths = torch.tensor([0, 1, 2, 5, 40, 700])[torch.randint(0, 6, (3 * 150,))]
    lengths[150:170] = 0
    lengths.view(3, 150)[:, 60:130] = 0  # no entry for longer than a tile
    ids = torch.randint(0, 20, (int(lengths.sum()),))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    check_against_reference(
        b._replace(ids=ids, offsets=offsets, values=torch.randn(len(ids)) if scaled else None), torch.float32
    )


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("num_features", [1, 2, 5, 300])
def test_bags_of_one_id_and_both_orders_of_ids_are_bitwise_the_same(num_features: int, count: int) -> None:
    b = batch_of([0] * num_features, (count, None), 16, scaled=True, pad=3)
    bounds = torch.arange(num_features * count + 1)
    given = (b.weights, b.linear)
    want = embedding_fm(*given, b.ids, values=b.values, tables=b.tables, padding_idx=b.padding)
    by_sample = b.ids.t().contiguous().t()
    for ids, offsets, values in ((by_sample, None, b.values), (b.ids.flatten(), bounds, b.values.flatten())):
        got = embedding_fm(*given, ids, offsets, values=values, tables=b.tables, padding_idx=b.padding)
        assert torch.equal(got, want)


def test_values_of_padding_are_not_read() -> None:
    b = batch_of([0, 1, 0], (20, None), 8, scaled=True, pad=3)
    values = torch.where(b.ids == 3, torch.nan, b.values)
    assert bool(values.isnan().any())
    outs = [
        embedding_fm(b.weights, b.linear, b.ids, values=some, tables=b.tables, padding_idx=b.padding)
        for some in (b.values, values)
    ]
    assert torch.equal(*outs)


def test_tables_of_any_layout() -> None:
    b = batch_of([0, 1], (30, None), 7)
    wide = [torch.randn(20, 30), torch.randn(30, 20)]
    weights = [wide[0][:, 3:10], wide[1].t()[:, :7]]
    linear = [wide[0][:, 0], wide[1].t()[:, 1:2]]
    check_against_reference(b._replace(weights=weights, linear=linear, ids=b.ids % 20), torch.float32)


@pytest.mark.parametrize("layout", ["expanded", "every second"])
def test_gradients_of_any_layout(layout: str) -> None:
    b = batch_of([0, 0], (30, None), 5)
    leaves = [w.clone().requires_grad_() for w in b.weights]
    grad = torch.tensor(0.5).expand(30) if layout == "expanded" else torch.randn(60)[::2]
    out = embedding_fm(leaves, [], b.ids, tables=b.tables, sparse_grad=False)
    (got,) = torch.autograd.grad(out, leaves, grad)
    plain = leaves[0][b.ids.t()]
    (want,) = torch.autograd.grad((plain[:, 0] * plain[:, 1]).sum(1), leaves, grad)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(6, None), (6, 3)])
@pytest.mark.parametrize("need_embeddings", [False, True])
def test_gradcheck(shape: Any, need_embeddings: bool) -> None:
    b = batch_of([0, 1, 0], shape, 5, torch.float64, scaled=True, pad=3)
    leaves = [t.clone().requires_grad_() for t in [*b.weights, *b.linear, b.values]]

    def call(*tensors: Tensor) -> Any:
        return embedding_fm(
            tensors[:2],
            tensors[2:4],
            b.ids,
            b.offsets,
            values=tensors[4],
            tables=b.tables,
            padding_idx=b.padding,
            need_embeddings=need_embeddings,
            sparse_grad=False,
        )

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("shape", [(40, None), (40, 3)])
def test_sparse_gradients_are_coalesced_and_equal_the_dense_ones(shape: Any) -> None:
    b = batch_of([0, 1, 0], shape, 8)
    leaves = [w.clone().requires_grad_() for w in [*b.weights, *b.linear]]
    grads = []
    for sparse_grad in (True, False):
        out = embedding_fm(leaves[:2], leaves[2:], b.ids, b.offsets, tables=b.tables, sparse_grad=sparse_grad)
        grads.append(torch.autograd.grad(out.square().sum(), leaves))
    for sparse, dense in zip(*grads, strict=True):
        assert sparse.is_sparse
        assert sparse.is_coalesced()
        assert torch.equal(sparse.to_dense(), dense)


def test_a_table_changed_before_its_backward_pass_is_an_error() -> None:
    b = batch_of([0, 1], (4, None), 3)
    leaves = [w.clone().requires_grad_() for w in b.weights]
    out = embedding_fm(leaves, [], b.ids)
    with torch.no_grad():
        leaves[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_two_updates_of_one_table_in_one_graph_are_an_error() -> None:
    b = batch_of([0, 1], (4, None), 3)
    update = RowUpdate(SGD, [], [], torch.tensor(0.1, dtype=torch.float64), torch.tensor(0), [0.0] * 4)
    calls = [embedding_fm(b.weights, b.linear, b.ids, update=update) for _ in range(2)]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(calls).sum().backward()


def options_of(rule: int) -> list[float]:
    """eps, weight_decay, beta1 and beta2; of FTRL beta, 0, l1 and l2."""
    return [1.0, 0.0, 0.05, 0.3] if rule == FTRL else [1e-8, 0.01, 0.9, 0.999]


def states_of(tables: list[Tensor], rule: int) -> tuple[list[Tensor], list[Tensor]]:
    dtype = wide_dtype(tables[0].dtype)
    first = [
        torch.rand(w.shape[:1] if rule == ROWWISE_ADAGRAD else (w.shape[0], w.numel() // w.shape[0])) for w in tables
    ]
    second = (
        [torch.rand(w.shape[0], w.numel() // w.shape[0], dtype=dtype) for w in tables] if rule in (ADAM, FTRL) else []
    )
    return [f.to(dtype) for f in first], second


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM, FTRL])
@pytest.mark.parametrize(
    ("shape", "linear", "max_norm"), [((30, None), True, 0.0), ((30, 4), True, 0.5), ((30, 4), False, 0.0)]
)
def test_update_matches_gradient_and_reference_step(
    shape: Any, linear: bool, max_norm: float, rule: int, dtype: torch.dtype
) -> None:
    b = batch_of([0, 1, 0], shape, 12, dtype, linear=linear, scaled=True, pad=2)
    both = [*b.weights, *b.linear]
    first, second = states_of(both, rule)
    out, sums, _ = torch.ops.deeprec.embedding_fm(b.weights, b.linear, *b.input(), b.tables, b.padding, False)
    given = (torch.randn(out.shape).to(dtype), sums, None, *b.input(), *b.plan(), b.tables, b.padding, True, rule)
    results = []
    for update in (torch.ops.deeprec.embedding_fm_update_, ref.embedding_fm_update_reference):
        groups = [[t.clone() for t in group] for group in (b.weights, b.linear, first, second)]
        step, lr = torch.tensor(3), torch.tensor(0.05, dtype=torch.float64)
        values_grad = update(*groups, *given, lr, step, options_of(rule), max_norm, -1)
        assert int(step) == 4
        results.append([*itertools.chain(*groups), values_grad])
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        close(got, want, 8 if dtype in (torch.float32, torch.float64) or i < len(both) else 4096)


@pytest.mark.parametrize("linear", [True, False])
def test_training_with_update_follows_dense_sgd(linear: bool) -> None:
    b = batch_of([0, 1, 0], (40, None), 6, torch.float64, linear=linear)
    fused, plain = [*b.weights, *b.linear], [w.clone().requires_grad_() for w in [*b.weights, *b.linear]]
    count = len(b.weights)
    update = RowUpdate(SGD, [], [], torch.tensor(0.01, dtype=torch.float64), torch.tensor(0), [0.0, 0.0, 0.0, 0.0])
    optimizer = torch.optim.SGD(plain, lr=0.01)
    for seed in range(20):
        ids = torch.randint(0, 20, (3, 40), generator=torch.Generator().manual_seed(seed))
        out = embedding_fm(fused[:count], fused[count:], ids, tables=b.tables, update=update)
        (out - 1).square().sum().backward()
        optimizer.zero_grad()
        out = embedding_fm(plain[:count], plain[count:], ids, tables=b.tables, sparse_grad=False)
        (out - 1).square().sum().backward()
        optimizer.step()
    for got, want in zip(fused, plain, strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=1e-9, atol=1e-9)
    assert int(update.step) == 20


@pytest.mark.parametrize("bad", [-1, 20, 2**31 - 1])
@pytest.mark.parametrize("with_offsets", [False, True])
def test_out_of_range_id_names_table_value_and_position_and_changes_nothing(bad: int, with_offsets: bool) -> None:
    b = batch_of([0, 1, 0], (700, None), 16)
    ids = b.ids.clone() % 20
    ids[[0, 2], [7, 500]] = bad
    offsets = torch.arange(3 * 700 + 1) if with_offsets else None
    before = [w.clone() for w in [*b.weights, *b.linear]]
    update = RowUpdate(SGD, [], [], torch.tensor(1.0, dtype=torch.float64), torch.tensor(0), [0.0] * 4)
    for options in ({}, {"update": update}):
        with pytest.raises(IndexError, match=rf"table 'item' must be in \[0, 20\), got {bad} at position 7;"):
            embedding_fm(
                b.weights,
                b.linear,
                ids.reshape(-1) if with_offsets else ids,
                offsets,
                tables=b.tables,
                names=("item", "user"),
                **options,
            )
    assert all(map(torch.equal, before, [*b.weights, *b.linear]))


def test_wrong_arguments_are_named() -> None:
    b = batch_of([0, 1], (4, None), 3)
    for message, arguments, options in (
        (r"ids must be \[2, B\]", (b.weights, [], b.ids.t()), {}),
        ("one D", ([b.weights[0], torch.randn(5, 4)], [], b.ids), {}),
        ("linear must have one entry a table", (b.weights, b.linear[:1], b.ids), {}),
        (r"linear must be \[R\] or \[R, 1\]", (b.weights, b.linear[::-1], b.ids), {}),
        (r"values must be \(2, 4\) like ids", (b.weights, [], b.ids), {"values": torch.ones(2, 3)}),
        (r"tables must be in \[0, 2\)", (b.weights, [], b.ids), {"tables": [0, 2]}),
        ("weights must be tables", ([], [], b.ids), {}),
    ):
        with pytest.raises(ValueError, match=message):
            embedding_fm(*arguments, **options)
    with pytest.raises(TypeError, match="ids must be int32 or int64"):
        embedding_fm(b.weights, [], b.ids.float())


@pytest.mark.parametrize("length", [None, 4])
def test_results_are_bitwise_equal_for_any_thread_count(length: int | None) -> None:
    b = batch_of([0, 1, 0, 2, 2, 1], (3001, length), 19, scaled=True, rows=700)
    grad = torch.randn(3001)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = torch.ops.deeprec.embedding_fm(b.weights, b.linear, *b.input(), b.tables, b.padding, True)
            given = (grad, out[1], out[2], *b.input(), *b.plan(), b.tables, b.padding, True)
            tables = [[t.clone() for t in group] for group in (b.weights, b.linear)]
            lr, step = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0)
            torch.ops.deeprec.embedding_fm_update_(*tables, [], [], *given, SGD, lr, step, [0.0] * 4, 1.0, -1)
            grads = torch.ops.deeprec.embedding_fm_grad(b.weights, b.linear, *given)
            results.append([*out, *grads, *tables[0], *tables[1]])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    for b in (batch_of([0, 1, 0], shape, 5, scaled=True) for shape in ((6, None), (6, 3))):
        features = (b.tables, b.padding)
        for need_embeddings in (False, True):
            yield "embedding_fm", (b.weights, b.linear, *b.input(), *features, need_embeddings)
        _, sums, embeddings = torch.ops.deeprec.embedding_fm(b.weights, b.linear, *b.input(), *features, True)
        for e in (None, embeddings):
            given = (torch.randn(6), sums, e, *b.input())
            yield "embedding_fm_grad", (b.weights, b.linear, *given, *b.plan(), *features, True)
            yield "embedding_fm_dense_grad", (b.weights, b.linear, *given, *features, True)
            states = states_of([*b.weights, *b.linear], ADAM)
            rule = (ADAM, torch.tensor(0.1, dtype=torch.float64), torch.tensor(0), [1e-8, 0.0, 0.9, 0.99], 0.0, -1)
            yield "embedding_fm_update_", (b.weights, b.linear, *states, *given, *b.plan(), *features, True, *rule)


@pytest.mark.parametrize("shape", [(6, None), (6, 3)])
def test_compiles_whole_for_inference_and_training(shape: Any) -> None:
    b = batch_of([0, 1, 0], shape, 5)

    def loss(
        weights: list[Tensor], linear: list[Tensor], ids: Tensor, offsets: Tensor | None, **options: Any
    ) -> Tensor:
        out, e = embedding_fm(weights, linear, ids, offsets, tables=b.tables, need_embeddings=True, **options)
        return (out.square() * 2).sum() + e.sin().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(b.weights, b.linear, b.ids, b.offsets), loss(b.weights, b.linear, b.ids, b.offsets)
    )
    leaves = [w.clone().requires_grad_() for w in [*b.weights, *b.linear]]
    grads = [
        torch.autograd.grad(f(leaves[:2], leaves[2:], b.ids, b.offsets, sparse_grad=False), leaves)
        for f in (compiled, loss)
    ]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="use sparse_grad=False"):
        compiled(leaves[:2], leaves[2:], b.ids, b.offsets)


def test_update_compiles_whole() -> None:
    b = batch_of([0, 1, 0], (30, None), 5)
    results = []
    for compile_it in (False, True):
        weights, linear = [w.clone() for w in b.weights], [w.clone() for w in b.linear]
        first = [torch.zeros(w.shape[0], w.numel() // w.shape[0]) for w in [*weights, *linear]]
        update = RowUpdate(
            ADAGRAD, first, [], torch.tensor(0.1, dtype=torch.float64), torch.tensor(0), [1e-8, 0.0, 0.0, 0.0]
        )
        trigger = torch.zeros((), requires_grad=True)

        def loss(
            ids: Tensor, weights: Any = weights, linear: Any = linear, update: Any = update, trigger: Any = trigger
        ) -> Tensor:
            return embedding_fm(weights, linear, ids, tables=b.tables, update=update, trigger=trigger).square().sum()

        step = torch.compile(loss, fullgraph=True, backend="aot_eager") if compile_it else loss
        for _ in range(3):
            step(b.ids).backward()
        results.append([*weights, *linear, *first, update.step])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
        assert bool(got.any())


def test_exports_with_a_dynamic_batch() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(20, 4))

        def forward(self, ids: Tensor) -> Tensor:
            return embedding_fm([self.table], [], ids.t(), tables=[0, 0, 0], sparse_grad=False)

    model = Model()
    ids = torch.randint(0, 20, (8, 3))
    exported = torch.export.export(model, (ids,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    other = torch.randint(0, 20, (11, 3))
    assert torch.equal(exported.module()(other), model(other))
    assert "deeprec.embedding_fm.default" in str(exported.graph)


ISA_PROBE = """
import sys, torch
from deeprec.kernels import _library, embedding_fm
data = torch.load(sys.argv[1])
ops, outs = torch.ops.deeprec, []
for weights, linear, entries, plan, features, grad in data:
    out, sums, e = ops.embedding_fm(weights, linear, *entries, *features, True)
    given = (grad, sums, e, *entries, *plan, *features, True)
    outs.append((out, sums, e, *ops.embedding_fm_grad(weights, linear, *given)))
torch.save((_library.cpu_isa(), outs), sys.argv[2])
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])  # the best of this machine serves the other tests
def test_lesser_instruction_sets_match_the_reference(isa: str, tmp_path: Path) -> None:
    data, wants = [], []
    for dim, dtype, shape in itertools.product((16, 75, 3), DTYPES, [(20, None), (9, 4)]):
        b = batch_of([0, 1, 0], shape, dim, dtype, scaled=True)
        features, grad = (b.tables, b.padding), torch.randn(shape[0]).to(dtype)
        data.append((b.weights, b.linear, b.input(), b.plan(), features, grad))
        out = ref.embedding_fm_reference(b.weights, b.linear, *b.input(), *features, True)
        given = (grad, *out[1:], *b.input(), *b.plan(), *features, True)
        wants.append((*out, *ref.embedding_fm_grad_reference(b.weights, b.linear, *given)))
    torch.save(data, tmp_path / "in.pt")
    command = [sys.executable, "-c", ISA_PROBE, tmp_path / "in.pt", tmp_path / "out.pt"]
    subprocess.run(command, env={**os.environ, "DEEPREC_ISA": isa}, check=True, cwd=Path(__file__).parents[2])
    ran, outs = torch.load(tmp_path / "out.pt")
    if ran != isa:
        pytest.skip(f"this processor or build has no {isa} kernels, {ran or 'the reference'} ran")
    for got, want in zip(outs, wants, strict=True):
        for a, w in zip(got, want, strict=True):
            close(a, w, 8)


@pytest.mark.slow
def test_rows_beyond_2_31_elements_are_read_right() -> None:
    rows, dim = 2**25 + 3, 64  # 2^31 + 192 elements, 4 GiB
    weight = torch.empty(rows, dim, dtype=torch.bfloat16)
    ids = torch.tensor([[rows - 1, 0], [0, 2**25]])
    weight[ids.flatten()] = torch.randn(4, dim).to(torch.bfloat16)
    got = embedding_fm([weight], [], ids, tables=[0, 0])
    torch.testing.assert_close(got, (weight[ids[0]].float() * weight[ids[1]].float()).sum(1).to(torch.bfloat16))
    sums = weight[ids].float().sum(0)
    plan = torch.ops.deeprec.embedding_bags_plan(ids, None, [rows], [0, 0], [-1, -1])
    grad, _ = torch.ops.deeprec.embedding_fm_grad(
        [weight], [], torch.ones(2, dtype=torch.bfloat16), sums, None, ids, None, None, *plan, [0, 0], [-1, -1], False
    )
    torch.testing.assert_close(grad[1], weight[0])


def on_gpu(value: Any) -> Any:
    """A tensor, or the tensors of a list, tuple or batch, on the GPU."""
    if isinstance(value, Tensor):
        return value.cuda()
    if isinstance(value, Batch):
        return Batch(*map(on_gpu, value))
    return type(value)(map(on_gpu, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.gpu
def test_gpu_captures_in_a_cuda_graph() -> None:
    b = on_gpu(batch_of(list(range(26)), (500, None), 16))

    def run() -> Tensor:
        out: Tensor = embedding_fm(b.weights, b.linear, b.ids)
        return out

    with torch.no_grad():
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        for weight in b.weights:
            weight.mul_(2)
        graph.replay()
        assert torch.equal(out, run())
