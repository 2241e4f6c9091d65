"""Triton kernels of embedding_bags under the interpreter; run by test_triton.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprec.kernels._door import launcher
from deeprec.kernels.embedding_bag import checks, triton_kernels
from deeprec.kernels.embedding_bag import reference as ref
from deeprec.kernels.faults import raise_faults

_spec = importlib.util.spec_from_file_location("embedding_bag_cases", Path(__file__).with_name("test_embedding_bag.py"))
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = cases
_spec.loader.exec_module(cases)

COLLECTIONS = [*cases.COLLECTIONS, ([300, 1], [0, 1], [2, 0])]
SHAPES = [(9, 5), (5, None), (0, 4), (0, None), (3, 0)]  # B, most ids a bag (None: one id a bag, no offsets)
# Element, index, per-sample weights and padding. Lookups and gradients take each with each shape, the collections by
# turns; other turns come in tests/gpu.
KINDS = [
    (torch.float32, torch.int32, False, 3),
    (torch.float64, torch.int64, True, -1),
    (torch.bfloat16, torch.int64, False, -1),
    (torch.float16, torch.int32, True, 3),
]


def by_turns(shapes: list[Any]) -> list[tuple[Any, ...]]:
    """Each shape with each of KINDS, and a collection."""
    places = [(i, j) for i in range(len(shapes)) for j in range(len(KINDS))]
    return [(COLLECTIONS[(i + j) % len(COLLECTIONS)], shapes[i], KINDS[j]) for i, j in places]


@pytest.mark.parametrize(("collection", "shape", "kind"), by_turns(SHAPES))
def test_forward_matches_reference(collection: Any, shape: Any, kind: tuple[Any, ...]) -> None:
    dtype, index, scaled, pad = kind
    b = cases.batch_of(collection, shape, dtype, index, scaled=scaled, pad=pad)
    call = (b.ids, b.offsets, b.scale, b.tables, b.modes, b.padding)
    same_as_reference(triton_kernels.embedding_bags(b.weights, *call), b.weights, *call)


def same_as_reference(got: list[Tensor], weights: list[Tensor], *call: Any) -> None:
    """Shapes and dtypes; the float64 reference's values within a rounding of the dtype, argmax and rows exactly."""
    like = ref.embedding_bags_reference(weights, *call)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in like]
    ids, offsets, scale, *features = call
    scale = None if scale is None else scale.double()
    want = ref.embedding_bags_reference([w.double() for w in weights], ids, offsets, scale, *features)
    cases.close(got[0], want[0].to(got[0].dtype))
    assert all(torch.equal(x, y) for x, y in zip(got[1:], like[1:], strict=True))


@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 2, 3])])
def test_the_weight_of_padding_counts_in_no_way(offsets: Tensor | None) -> None:
    ids, scale = torch.tensor([[1, 3, 2]]), torch.tensor([[2.0, torch.inf, 3.0]])
    ids, scale = (ids, scale) if offsets is None else (ids[0], scale[0])
    out = triton_kernels.embedding_bags([torch.ones(9, 4)], ids, offsets, scale, [0], [0], [3])[0]
    assert out[:, 0].tolist() == ([2, 0, 3] if offsets is None else [2, 3])


@pytest.mark.parametrize("bad", [-1, 20, 2**40])
@pytest.mark.parametrize("shape", [(9, 5), (13, None)])
def test_id_out_of_range_is_named_by_lookup_and_plan(bad: int, shape: Any) -> None:
    b = cases.batch_of(([16, 4], [0, 1], [0, 2]), shape, torch.float32)
    b.ids.view(-1)[1] = bad
    triton_kernels.embedding_bags(b.weights, b.ids, b.offsets, None, b.tables, b.modes, b.padding)
    with pytest.raises(IndexError, match=rf"ids of table 0 must be in \[0, 20\), got {bad} at position 1"):
        raise_faults()
    with pytest.raises(IndexError, match=rf"ids of table 0 must be in \[0, 20\), got {bad} at position 1"):
        triton_kernels.embedding_bags_plan(b.ids, b.offsets, b.sizes(), b.tables, b.padding)


@pytest.mark.parametrize("offsets", [[0, 3, 2, 5], [1, 3, 4, 5], [0, 3, 4, 9], [0, 2, 3, 4], [-1, 2, 3, 5]], ids=str)
@pytest.mark.parametrize("mode", [checks.SUM, checks.MAX])
def test_offsets_that_do_not_fit_are_named(offsets: list[int], mode: int) -> None:
    triton_kernels.embedding_bags([torch.randn(9, 4)], torch.arange(5), torch.tensor(offsets), None, [0], [mode], [-1])
    with pytest.raises(ValueError, match="offsets must ascend"):
        raise_faults()
    with pytest.raises(ValueError, match="offsets must ascend"):
        triton_kernels.embedding_bags_plan(torch.arange(5), torch.tensor(offsets), [9], [0], [-1])


@pytest.mark.parametrize(("index", "pad"), [(torch.int32, 3), (torch.int64, -1)])
@pytest.mark.parametrize("shape", [(9, 5), (41, None), (0, 4), (0, None), (3, 0), (90, 4)])
@pytest.mark.parametrize("collection", COLLECTIONS)
def test_plan_equals_reference(collection: Any, shape: Any, index: torch.dtype, pad: int) -> None:
    b = cases.batch_of(collection, shape, torch.float32, index, pad=pad)
    for ids in [b.ids] if b.ids.dim() == 1 else [b.ids, b.ids.T.contiguous().T]:
        call = (ids, b.offsets, b.sizes(), b.tables, b.padding)
        for got, want in zip(
            triton_kernels.embedding_bags_plan(*call), ref.embedding_bags_plan_reference(*call), strict=True
        ):
            assert got.dtype == want.dtype
            assert torch.equal(got, want)


def test_plan_of_tables_beyond_int32() -> None:
    sizes, ids = [2**31, 5, 2**33], torch.tensor([[2**31 - 1, 0, 7], [4, 4, 0], [2**33 - 1, 2**32, 2**33 - 1]])
    call = (ids, None, sizes, [0, 1, 2], [-1, -1, -1])
    for got, want in zip(
        triton_kernels.embedding_bags_plan(*call), ref.embedding_bags_plan_reference(*call), strict=True
    ):
        assert torch.equal(got, want)


def backward_of(b: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """(grad, sequence_grads, argmax, ids, offsets, scale) and the plan of a batch."""
    out = ref.embedding_bags_reference(b.weights, b.ids, b.offsets, b.scale, b.tables, b.modes, b.padding)
    dtype = b.weights[0].dtype
    grad = torch.randn(out[0].shape[1], out[0].shape[0]).to(dtype).T if b.ids.dim() == 1 else torch.ones(1, 1).to(dtype)
    given = (grad.expand(out[0].shape), [torch.randn(x.shape[::-1]).to(dtype).T for x in out[2:]], out[1])
    plan = ref.embedding_bags_plan_reference(b.ids, b.offsets, b.sizes(), b.tables, b.padding)
    return (*given, b.ids, b.offsets, b.scale), plan


def wide_of(weights: list[Tensor], given: tuple[Any, ...]) -> tuple[list[Tensor], tuple[Any, ...]]:
    grad, sequences, argmax, ids, offsets, scale = given
    scale = None if scale is None else scale.double()
    wide = (grad.double(), [x.double() for x in sequences], argmax, ids, offsets, scale)
    return [w.double() for w in weights], wide


@pytest.mark.parametrize(("collection", "shape", "kind"), by_turns([(4, 3), (12, None), (0, 4), (3, 0)]))
def test_gradients_match_reference(collection: Any, shape: Any, kind: tuple[Any, ...]) -> None:
    dtype, index, scaled, pad = kind
    b = cases.batch_of(collection, shape, dtype, index, scaled=scaled, pad=pad)
    given, plan = backward_of(b)
    call = (b.tables, b.modes, b.padding, scaled)
    weights, wide = wide_of(b.weights, given)
    got = triton_kernels.embedding_bags_grad(b.weights, *given, *plan, *call)
    want = ref.embedding_bags_grad_reference(weights, *wide, *plan, *call)
    for ours, theirs in zip(got, want, strict=True):
        cases.close(ours, theirs.to(dtype), 8)
    if shape[0] < 9:
        dense = triton_kernels.embedding_bags_dense_grad(b.weights, *given, *call)
        for t, (ours, theirs) in enumerate(zip(dense[:-1], got[:-1], strict=True)):
            some = plan[0][plan[4][t] : plan[4][t + 1]].long()
            assert torch.equal(ours, torch.zeros_like(ours).index_copy_(0, some, theirs))
        assert torch.equal(dense[-1], got[-1])


@pytest.mark.parametrize(("count", "modes"), [(64, [0]), (64, [1, 2]), (1030, [1, 2])])  # 65: tests/gpu
def test_rows_of_many_entries_are_cut_into_pieces(count: int, modes: list[int]) -> None:
    """A row with count entries beside rows with one; twice the same bits."""
    lengths = torch.tensor([count - 3, 40, 0, 2] * len(modes))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.full((int(offsets[-1]),), 2)
    ids[-40:] = torch.arange(40)
    scale = torch.randn(ids.shape) if modes == [0] else None
    b = cases.Batch([torch.randn(50, 5)], ids, offsets, scale, [0] * len(modes), modes, [-1] * len(modes))
    given, plan = backward_of(b)
    call = (b.tables, b.modes, b.padding, scale is not None)
    got, again = (triton_kernels.embedding_bags_grad(b.weights, *given, *plan, *call) for _ in range(2))
    weights, wide = wide_of(b.weights, given)
    want = ref.embedding_bags_grad_reference(weights, *wide, *plan, *call)
    for ours, twice, theirs in zip(got, again, want, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-4)
        assert torch.equal(ours, twice)


RULES = [-1, checks.SGD, checks.ADAGRAD, checks.ROWWISE_ADAGRAD, checks.ADAM, checks.FTRL]
STEPS = [
    (torch.float32, (2, 3), 0.5),
    (torch.float64, (5, None), 0.5),
    (torch.bfloat16, (3, 2), 0.0),
    (torch.float16, (5, None), 0.0),
]


# Each rule in float32, and in another type by turns; other turns are in tests/gpu.
@pytest.mark.parametrize(("rule", "step"), [(r, STEPS[j]) for i, r in enumerate(RULES) for j in (0, 1 + i % 3)])
def test_update_matches_reference(rule: int, step: tuple[Any, ...]) -> None:
    """Rule -1: SGD without momentum. Tables narrow, odd and wider than a tile, in one call."""
    dtype, shape, max_norm = step
    b = cases.batch_of(([16, 260, 3], [0, 1, 2, 0], [0, 1, 2, 3]), shape, dtype, pad=3)
    given, plan = backward_of(b)
    results = []
    for update in (triton_kernels.embedding_bags_update_, ref.embedding_bags_update_reference):
        weights = [w.clone() for w in b.weights]
        first, second = cases.states_of(weights, max(rule, 0))
        first = [] if rule == -1 else first
        lr, taken = torch.tensor(0.1, dtype=torch.float64), torch.tensor(3)
        options = cases.options_of(rule)
        options[2] *= rule != -1
        call = (b.tables, b.modes, b.padding, False, max(rule, 0), lr, taken, options, max_norm, -1)
        update(weights, first, second, *given, *plan, *call)
        assert int(taken) == 4
        results.append([*weights, *first, *second])
    assert not torch.equal(results[0][0], b.weights[0])
    for got, want in zip(*results, strict=True):
        cases.close(got, want, 16)


@pytest.mark.parametrize("seed", [7, 2**63 - 1])
def test_update_rounds_with_the_bits_of_the_reference(seed: int) -> None:
    """SGD on one entry a row: the float32 results are exact, so equal bits mean equal draws in every table."""
    weights = [torch.randn(30, d).to(torch.bfloat16) for d in (16, 3, 16)]
    ids = torch.stack([torch.randperm(30)[:9] for _ in weights])
    b = cases.Batch(weights, ids, None, None, [0, 1, 2], [0, 0, 0], [-1, -1, -1])
    given, plan = backward_of(b)
    results = []
    for update in (triton_kernels.embedding_bags_update_, ref.embedding_bags_update_reference):
        some = [w.clone() for w in weights]
        lr, step = torch.tensor(2.0**-7, dtype=torch.float64), torch.tensor(5)
        call = (b.tables, b.modes, b.padding, False, checks.SGD, lr, step, [0.0, 0.0, 0.0, 0.0], 0.0, seed)
        update(some, [], [], *given, *plan, *call)
        results.append(some)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    nearest = weights[0].float() - 2.0**-7
    assert not torch.equal(results[0][0][ids[0]], nearest[ids[0]].to(torch.bfloat16))


@pytest.mark.parametrize("row", [-1, 30, 2**40])
def test_update_with_a_row_out_of_range_changes_nothing(row: int) -> None:
    b = cases.batch_of(([16, 4], [0, 1], [0, 0]), (40, None), torch.float32)
    given, plan = backward_of(b)
    plan[0][3] = row
    before = [w.clone() for w in b.weights]
    lr, step = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0)
    call = (b.tables, b.modes, b.padding, False, checks.SGD, lr, step, [0.0] * 4, 0.0, -1)
    triton_kernels.embedding_bags_update_(b.weights, [], [], *given, *plan, *call)
    with pytest.raises(ValueError, match="embedding_bags_update_: plan must be the one of these ids"):
        raise_faults()
    assert all(torch.equal(x, y) for x, y in zip(before, b.weights, strict=True))


def test_states_that_do_not_fit_are_refused() -> None:
    b = cases.batch_of(([16, 4], [0, 1], [0, 0]), (9, None), torch.float32)
    given, plan = backward_of(b)
    for rule, first, message in (
        (5, [], "rule must be"),
        (checks.FTRL, [torch.zeros(20, 16), torch.zeros(20, 4)], "this rule needs 2 and 2 states"),
        (checks.ADAM, [torch.zeros(20, 16)], "this rule needs 2 and 2 states"),
        (checks.ADAGRAD, [torch.zeros(20, 16), torch.zeros(21, 5)], "must be 84 numbers"),
    ):
        lr, step = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0)
        call = (b.tables, b.modes, b.padding, False, rule, lr, step, [0.0] * 4, 0.0, -1)
        with pytest.raises(ValueError, match=message):
            launcher("embedding_bag", "embedding_bags_update_")(b.weights, first, [], *given, *plan, *call)
        assert int(step) == 0


def test_rows_beyond_2_31_elements_are_read_and_stepped() -> None:
    """4 GiB of addresses, of which a few pages are touched."""
    rows, dim = 2**25 + 3, 64
    weight = torch.empty(rows, dim, dtype=torch.bfloat16)
    ids = torch.tensor([[rows - 1, 0, 2**25, rows - 1]])
    weight[ids[0]] = torch.arange(1, 5, dtype=torch.bfloat16)[:, None].expand(4, dim)
    want = weight[ids[0]]
    call = (ids, None, None, [0], [0], [-1])
    out, argmax = triton_kernels.embedding_bags([weight], *call)
    assert torch.equal(out, want)
    plan = triton_kernels.embedding_bags_plan(ids, None, [rows], [0], [-1])
    assert plan[0].tolist() == [0, 2**25, rows - 1]
    lr, step = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0)
    given = (torch.ones_like(out), [], argmax, ids, None, None, *plan, [0], [0], [-1], False)
    triton_kernels.embedding_bags_update_([weight], [], [], *given, checks.SGD, lr, step, [0.0] * 4, 0.0, -1)
    assert torch.equal(weight[plan[0]][:, 0], torch.tensor([2.0, 3.0, 4.0]) - torch.tensor([1.0, 1.0, 2.0]))
