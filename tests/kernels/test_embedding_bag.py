"""Claims about embedding_bags, its plan, gradients and updates, on the CPU and (marked gpu) on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.embedding_bag import RowUpdate, checks, embedding_bag, embedding_bags
from deeprec.kernels.embedding_bag import reference as ref

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Dims of the tables, table of each feature, mode of each (sum 0, mean 1, max 2, none 3).
COLLECTIONS = [
    ([16], [0], [0]),
    ([1, 3, 16], [0, 1, 2], [1, 2, 3]),
    ([200, 7], [0, 1, 0], [0, 3, 2]),
    ([130, 33, 8, 4], [3, 2, 1, 0], [3, 2, 1, 0]),
]
BATCHES = [(0, 4), (1, 3), (9, 5), (13, None), (0, None)]  # B, most ids a bag (None: one id a bag, no offsets)


class Batch(NamedTuple):
    weights: list[Tensor]
    ids: Tensor
    offsets: Tensor | None
    scale: Tensor | None
    tables: list[int]
    modes: list[int]
    padding: list[int]

    def sizes(self) -> list[int]:
        return [w.shape[0] for w in self.weights]


def batch_of(
    collection: tuple[list[int], list[int], list[int]],
    shape: tuple[int, int | None],
    dtype: torch.dtype,
    index: torch.dtype = torch.int64,
    *,
    scaled: bool = False,
    pad: int = -1,
    seed: int = 0,
) -> Batch:
    torch.manual_seed(seed)
    dims, tables, modes = collection
    weights = [torch.randn(20 + i, d).to(dtype) for i, d in enumerate(dims)]
    count, length = shape
    if scaled:
        modes = [0] * len(modes)
    if length is None:
        ids = torch.stack([torch.randint(0, weights[t].shape[0], (count,)) for t in tables]).to(index)
        offsets = None
    else:
        lengths = torch.randint(0, length + 1, (len(tables), count))
        bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
        offsets = bounds.to(index)
        ids = torch.cat(
            [torch.randint(0, weights[t].shape[0], (int(n.sum()),)) for t, n in zip(tables, lengths, strict=True)]
        ).to(index)
    scale = torch.randn(ids.shape).to(dtype) if scaled else None
    return Batch(weights, ids, offsets, scale, tables, modes, [pad] * len(tables))


def close(got: Tensor, want: Tensor, slack: float = 1.0) -> None:
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, want, rtol=8 * eps * slack, atol=(64 * eps) * slack)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("collection", COLLECTIONS)
@pytest.mark.parametrize(("scaled", "pad"), [(False, -1), (False, 3), (True, 3)])
def test_forward_plan_and_gradients_match_reference(
    collection: Any, shape: Any, dtype: torch.dtype, index: torch.dtype, scaled: bool, pad: int
) -> None:
    b = batch_of(collection, shape, dtype, index, scaled=scaled, pad=pad)
    call = (b.tables, b.modes, b.padding)
    out = torch.ops.deeprec.embedding_bags(b.weights, b.ids, b.offsets, b.scale, *call)
    want = ref.embedding_bags_reference(b.weights, b.ids, b.offsets, b.scale, *call)
    assert [(x.shape, x.dtype) for x in out] == [(x.shape, x.dtype) for x in want]
    close(out[0], want[0])
    assert torch.equal(out[1], want[1])
    for got, expected in zip(out[2:], want[2:], strict=True):
        assert torch.equal(got, expected)

    plan = torch.ops.deeprec.embedding_bags_plan(b.ids, b.offsets, b.sizes(), b.tables, b.padding)
    expected_plan = ref.embedding_bags_plan_reference(b.ids, b.offsets, b.sizes(), b.tables, b.padding)
    for got, expected in zip(plan, expected_plan, strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)

    grad = torch.randn(out[0].shape).to(dtype)
    given = (grad, [torch.randn(x.shape).to(dtype) for x in out[2:]], want[1], b.ids, b.offsets, b.scale)
    sparse = torch.ops.deeprec.embedding_bags_grad(b.weights, *given, *plan, *call, scaled)
    for got, expected in zip(
        sparse, ref.embedding_bags_grad_reference(b.weights, *given, *plan, *call, scaled), strict=True
    ):
        close(got, expected, 8)
    dense = torch.ops.deeprec.embedding_bags_dense_grad(b.weights, *given, *call, scaled)
    for got, expected in zip(
        dense, ref.embedding_bags_dense_grad_reference(b.weights, *given, *call, scaled), strict=True
    ):
        close(got, expected, 8)


def states_of(weights: list[Tensor], rule: int) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(5)
    dtype = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
    first = [torch.rand(w.shape[:1] if rule == checks.ROWWISE_ADAGRAD else w.shape, dtype=dtype) for w in weights]
    return first, [torch.rand(w.shape, dtype=dtype) for w in weights] if rule in (checks.ADAM, checks.FTRL) else []


def options_of(rule: int, decay: float = 0.01) -> list[float]:
    """eps, weight_decay, beta1 and beta2; of FTRL beta, 0, l1 and l2."""
    return [1.0, 0.0, 0.05, 0.3] if rule == checks.FTRL else [1e-8, decay, 0.9, 0.999]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [checks.SGD, checks.ADAGRAD, checks.ROWWISE_ADAGRAD, checks.ADAM, checks.FTRL])
@pytest.mark.parametrize("shape", [(9, 5), (13, None)])
@pytest.mark.parametrize("collection", COLLECTIONS)
@pytest.mark.parametrize(("max_norm", "seed"), [(0.0, -1), (0.5, -1), (0.0, 7)])
def test_update_matches_reference(
    collection: Any, shape: Any, rule: int, dtype: torch.dtype, max_norm: float, seed: int
) -> None:
    b = batch_of(collection, shape, dtype, pad=3)
    call = (b.tables, b.modes, b.padding)
    out = torch.ops.deeprec.embedding_bags(b.weights, b.ids, b.offsets, None, *call)
    plan = torch.ops.deeprec.embedding_bags_plan(b.ids, b.offsets, b.sizes(), b.tables, b.padding)
    grad = torch.randn(out[0].shape).to(dtype)
    given = (grad, [torch.randn(x.shape).to(dtype) for x in out[2:]], out[1], b.ids, b.offsets, None)
    results = []
    for update in (torch.ops.deeprec.embedding_bags_update_, ref.embedding_bags_update_reference):
        weights = [w.clone() for w in b.weights]
        first, second = states_of(weights, rule)
        lr, step = torch.tensor(0.1, dtype=torch.float64), torch.tensor(3)
        options = options_of(rule)
        update(weights, first, second, *given, *plan, *call, False, rule, lr, step, options, max_norm, seed)
        assert int(step) == 4
        results.append([*weights, *first, *second])
    for got, want in zip(*results, strict=True):
        close(got, want, 64)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("dim", [1, 3, 16, 64, 200])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding_bag_matches_torch_in_value_and_gradient(mode: str, dim: int, padding_idx: int | None) -> None:
    torch.manual_seed(0)
    ids, offsets = torch.randint(0, 30, (57,)), torch.tensor([0, 4, 4, 20, 21, 50])
    weight = torch.randn(30, dim)
    grad = torch.randn(6, dim)
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    out = embedding_bag(ours, ids, offsets, mode=mode, padding_idx=padding_idx)
    want = F.embedding_bag(ids, theirs, offsets, mode=mode, padding_idx=padding_idx)
    torch.testing.assert_close(out, want)
    out.backward(grad)
    want.backward(grad)
    assert ours.grad is not None
    assert ours.grad.is_sparse
    torch.testing.assert_close(ours.grad.to_dense(), theirs.grad)


def test_per_sample_weights_get_their_gradient() -> None:
    torch.manual_seed(0)
    ids, offsets = torch.randint(0, 30, (57,)), torch.tensor([0, 4, 4, 20, 21, 50])
    weight, scale, grad = torch.randn(30, 5), torch.randn(57), torch.randn(6, 5)
    pairs = []
    for bag in (
        lambda w, s: embedding_bag(w, ids, offsets, mode="sum", per_sample_weights=s, sparse_grad=False),
        lambda w, s: F.embedding_bag(ids, w, offsets, mode="sum", per_sample_weights=s),
    ):
        w, s = weight.clone().requires_grad_(), scale.clone().requires_grad_()
        bag(w, s).backward(grad)
        pairs.append((w.grad, s.grad))
    torch.testing.assert_close(pairs[0], pairs[1])


def plain_sgd() -> RowUpdate:
    return RowUpdate(checks.SGD, [], [], torch.tensor(0.1, dtype=torch.float64), torch.tensor(0), [0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("training", ["sparse", "dense", "update"])
@pytest.mark.parametrize("changed", ["table", "ids", "scale"])
def test_what_the_backward_pass_reads_again_may_not_change_before_it(training: str, changed: str) -> None:
    table, ids, scale = torch.randn(6, 2), torch.tensor([[0, 1, 3]]), torch.randn(1, 3)
    update = plain_sgd() if training == "update" else None
    leaves = [table.clone().requires_grad_(update is None), scale.clone().requires_grad_()]
    pooled, _ = embedding_bags(
        leaves[:1], ids, per_sample_weights=leaves[1], sparse_grad=training == "sparse", update=update
    )
    with torch.no_grad():
        {"table": leaves[0], "ids": ids, "scale": leaves[1]}[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pooled.sum().backward()


def test_two_updates_of_one_table_in_one_graph_are_right_or_an_error() -> None:
    ids, scale = torch.tensor([[0, 1, 3]]), torch.ones(1, 3, requires_grad=True)
    for weights, is_right in ((None, True), (scale, False)):
        table, update = torch.ones(6, 2), plain_sgd()
        calls = [embedding_bags([table], ids, per_sample_weights=weights, update=update)[0] for _ in range(2)]
        if is_right:  # the gradient of a sum does not read the table
            sum(calls).sum().backward()
            torch.testing.assert_close(table[:4], torch.tensor([0.8, 0.8, 1.0, 0.8]).unsqueeze(1).expand(4, 2))
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                sum(calls).sum().backward()


@pytest.mark.parametrize("sparse_grad", [False, True])
def test_gradcheck(sparse_grad: bool) -> None:
    b = batch_of(([3, 2], [0, 1, 0], [0, 1, 2]), (4, 3), torch.float64)

    def f(*weights: Tensor) -> Tensor:
        pooled, _ = embedding_bags(weights, b.ids, b.offsets, modes=["sum", "mean", "max"], tables=[0, 1, 0])
        return pooled

    if sparse_grad:
        tables = [w.requires_grad_() for w in b.weights]
        f(*tables).square().sum().backward()
        for table in tables:
            assert table.grad is not None
        return
    dense = lambda *w: embedding_bags(  # noqa: E731
        w, b.ids, b.offsets, modes=["sum", "mean", "max"], tables=[0, 1, 0], sparse_grad=False
    )[0]
    torch.autograd.gradcheck(dense, [w.requires_grad_() for w in b.weights])


@pytest.mark.parametrize("rule", [checks.SGD, checks.ADAGRAD, checks.ROWWISE_ADAGRAD, checks.ADAM, checks.FTRL])
@pytest.mark.parametrize("threads", [1, 2])
def test_update_in_backward_is_the_same_for_any_threads(rule: int, threads: int) -> None:
    results = []
    before = torch.get_num_threads()
    for count in (1, threads):
        torch.set_num_threads(count)
        b = batch_of(([64, 48, 16], [0, 1, 2, 0], [0, 1, 2, 0]), (3000, 4), torch.float32)
        first, second = states_of(b.weights, rule)
        update = RowUpdate(
            rule,
            first,
            second,
            torch.tensor(0.1, dtype=torch.float64),
            torch.tensor(0),
            options_of(rule, 0.0),
            max_norm=0.3,
        )
        modes = ["sum", "mean", "max", "sum"]
        pooled, _ = embedding_bags(b.weights, b.ids, b.offsets, modes=modes, tables=b.tables, update=update)
        pooled.square().sum().backward()
        results.append([*b.weights, *first, *second])
    torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", range(3))
@pytest.mark.parametrize("dim", [1, 3, 8, 16, 20, 33, 64, 130, 300])
def test_one_table_without_gradient_gives_the_same_bits(
    dtype: torch.dtype, index: torch.dtype, mode: int, dim: int
) -> None:
    torch.manual_seed(dim)
    weight = torch.randn(40, dim).to(dtype)
    for lengths in ([0, 3, 1, 7, 0], [4] * 6, [1] * 5, [0, 0], [2, 2, 2, 5], []):
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(index)
        ids = torch.randint(0, 40, (sum(lengths),)).to(index)
        scale = torch.randn(len(ids)).to(dtype)
        for pad, scaled in ((-1, None), (5, None), *([(-1, scale), (5, scale)] if mode == 0 else [])):
            want = torch.ops.deeprec.embedding_bags([weight], ids, bounds, scaled, [0], [mode], [pad])[0]
            one = torch.ops.deeprec.embedding_bag
            got = [one(weight, ids, bounds, scaled, mode, pad, True)]
            if lengths:
                got.append(one(weight, ids, bounds[:-1], scaled, mode, pad, False))
            if len(set(lengths)) == 1:
                square = (len(lengths), lengths[0])
                got.append(
                    one(
                        weight,
                        ids.view(square),
                        None,
                        scaled if scaled is None else scaled.view(square),
                        mode,
                        pad,
                        False,
                    )
                )
            assert all(torch.equal(out, want) for out in got), (lengths, pad)
            close(want, ref.embedding_bag_reference(weight, ids, bounds, scaled, mode, pad, True))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_hostile_offsets_and_ids_are_refused_before_anything_is_read(index: torch.dtype) -> None:
    least, most = torch.iinfo(index).min, torch.iinfo(index).max
    weight, ids = torch.randn(10, 3), torch.arange(8).to(index)
    for bad in ([0, most, least, 8], [least, 0, 8], [0, -1, 8], [1, 8], [0, 4, 9], [0, 9, 8], [0, 5, 3, 8]):
        for is_whole in (True, False):
            with pytest.raises(ValueError, match="ascend"), torch.no_grad():
                embedding_bag(weight, ids, torch.tensor(bad, dtype=index), include_last_offset=is_whole)
    for value in (-1, least, most, 10):
        wrong = ids.clone()
        wrong[5] = value
        with pytest.raises(IndexError, match=rf"got {value} at position 5"), torch.no_grad():
            embedding_bag(weight, wrong.view(4, 2))


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    weight, ids, scale = torch.randn(9, 4), torch.randint(0, 9, (6,)), torch.randn(6)
    yield "embedding_bag", (weight, ids, torch.tensor([0, 2, 3]), scale, 0, -1, False)
    yield "embedding_bag", (weight, ids.view(3, 2).int(), None, None, 2, 4, False)
    mixed = ([2, 3, 1, 4], [0, 1, 2, 3], [3, 2, 1, 0])
    for b in (
        batch_of(mixed, (4, 3), torch.float32, pad=3),
        batch_of(mixed, (5, None), torch.float32),
        batch_of(([3, 2], [1, 0, 1], [0, 0, 0]), (4, 3), torch.float32, scaled=True),
    ):
        call, scaled = (b.tables, b.modes, b.padding), b.scale is not None
        yield "embedding_bags", (b.weights, b.ids, b.offsets, b.scale, *call)
        out = torch.ops.deeprec.embedding_bags(b.weights, b.ids, b.offsets, b.scale, *call)
        arguments = (b.ids, b.offsets, b.sizes(), b.tables, b.padding)
        yield "embedding_bags_plan", arguments
        plan = torch.ops.deeprec.embedding_bags_plan(*arguments)
        given = (torch.randn(out[0].shape), [torch.randn(x.shape) for x in out[2:]], out[1], b.ids, b.offsets, b.scale)
        yield "embedding_bags_grad", (b.weights, *given, *plan, *call, scaled)
        yield "embedding_bags_dense_grad", (b.weights, *given, *call, scaled)
        rule = (checks.ADAM, torch.tensor(0.1, dtype=torch.float64), torch.tensor(3), [1e-8, 0.01, 0.9, 0.999], 0.5, -1)
        yield (
            "embedding_bags_update_",
            (b.weights, *states_of(b.weights, checks.ADAM), *given, *plan, *call, scaled, *rule),
        )


@pytest.mark.parametrize("bad", [-1, 21])
@pytest.mark.parametrize("shape", [(9, 5), (13, None)])
def test_bad_id_names_table_value_and_position_and_changes_nothing(bad: int, shape: Any) -> None:
    b = batch_of(([16, 4], [0, 1], [0, 0]), shape, torch.float32)
    position = b.ids.numel() - 2
    b.ids.view(-1)[position] = bad
    weights = [w.clone() for w in b.weights]
    update = RowUpdate(0, [], [], torch.tensor(0.1, dtype=torch.float64), torch.tensor(0), [0.0, 0.0, 0.0, 0.0])
    message = rf"table 'genre' must be in \[0, 21\), got {bad} at position {position}"
    with pytest.raises(IndexError, match=message):
        embedding_bags(b.weights, b.ids, b.offsets, update=update, names=("user", "genre"))
    assert all(torch.equal(x, y) for x, y in zip(weights, b.weights, strict=True))


@pytest.mark.parametrize("modes", ["sum", "none", ("none", "sum"), ("sum", "none")], ids=str)
def test_bad_id_is_named_with_its_own_table_where_rows_are_not_pooled(modes: Any) -> None:
    weights, ids, offsets = [torch.randn(5, 2), torch.randn(9, 2)], torch.tensor([1, 0, 2, 6, 9]), [0, 1, 3, 3, 5]
    with pytest.raises(IndexError, match=r"table 'b' must be in \[0, 9\), got 9 at position 4"):
        embedding_bags(weights, ids, torch.tensor(offsets), modes=modes, names=("a", "b"))
    numbers = [3 if mode == "none" else 0 for mode in ([modes] * 2 if isinstance(modes, str) else modes)]
    with pytest.raises(IndexError, match=r"table 1 must be in \[0, 9\), got 9 at position 4"):
        ref.embedding_bags_reference(weights, ids, torch.tensor(offsets), None, [0, 1], numbers, [-1, -1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"offsets": torch.tensor([0, 3, 2, 5])}, ValueError, "ascend"),
        ({"offsets": torch.tensor([1, 3, 4, 5])}, ValueError, "ascend"),
        ({"offsets": torch.tensor([0, 3, 4, 9])}, ValueError, "ascend"),
        ({"offsets": torch.tensor([0.0, 5.0])}, TypeError, "int32 or int64"),
        ({"ids": torch.rand(5)}, TypeError, "int32 or int64"),
        ({"ids": torch.zeros(5, 1, 1, dtype=torch.int64)}, ValueError, r"\[B, L\]"),
        ({"mode": "median"}, ValueError, "sum, mean or max"),
        ({"padding_idx": 30}, ValueError, "padding_idx"),
        ({"per_sample_weights": torch.rand(4), "mode": "sum"}, ValueError, "per_sample_weights"),
        ({"per_sample_weights": torch.rand(5), "mode": "mean"}, ValueError, "mode 'sum'"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"ids": torch.arange(5), "offsets": torch.tensor([0, 3, 4, 5])} | change
    with pytest.raises(error, match=message):
        embedding_bag(torch.randn(30, 4), arguments.pop("ids"), include_last_offset=True, **arguments)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.float8_e4m3fn])
def test_tables_of_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"float32, float64, bfloat16 or float16, got {dtype}"):
        embedding_bags([torch.ones(3, 2).to(dtype)], torch.tensor([[1]]))


def on_gpu(value: Any) -> Any:
    """A tensor, or the tensors of a (named) tuple or list, on the GPU."""
    if isinstance(value, Tensor):
        return value.cuda()
    if isinstance(value, Batch):
        return Batch(*map(on_gpu, value))
    return type(value)(map(on_gpu, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.gpu
def test_gpu_lookup_captures_in_a_cuda_graph() -> None:
    b = on_gpu(batch_of(([16, 64], [0, 1, 1], [0, 1, 2]), (200, 5), torch.float32))

    def run() -> Tensor:
        out: Tensor = embedding_bags(b.weights, b.ids, b.offsets, modes=["sum", "mean", "max"], tables=[0, 1, 1])[0]
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
