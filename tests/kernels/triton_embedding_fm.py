"""Triton kernels of embedding_fm under the interpreter; run by test_triton.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprec.kernels.embedding_bag import checks
from deeprec.kernels.embedding_bag import reference as bag_ref
from deeprec.kernels.embedding_fm import reference as ref
from deeprec.kernels.embedding_fm import triton_kernels
from deeprec.kernels.faults import raise_faults

_spec = importlib.util.spec_from_file_location("embedding_fm_cases", Path(__file__).with_name("test_embedding_fm.py"))
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = cases
_spec.loader.exec_module(cases)

# Element, index, values, linear weights, padding; each with each shape, the features by turns, others in tests/gpu.
KINDS = [
    (torch.float32, torch.int32, False, True, 3),
    (torch.float64, torch.int64, True, True, -1),
    (torch.bfloat16, torch.int64, True, False, 3),
    (torch.float16, torch.int32, False, True, -1),
]
SHAPES = [(5, None), (4, 3), (0, 4), (0, None), (3, 0)]  # B, most ids a bag (None: one id a bag, no offsets)
TABLES = [[0], [0, 0, 1, 0], list(range(11))]


def plan_of(b: Any) -> tuple[Tensor, ...]:
    return bag_ref.embedding_bags_plan_reference(b.ids, b.offsets, [w.shape[0] for w in b.weights], b.tables, b.padding)


def same(got: Any, want: Any, like: Any, slack: float) -> None:
    """Shapes and dtypes of like; the float64 values of want within a rounding."""
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in like]
    for ours, theirs in zip(got, want, strict=True):
        cases.close(ours, theirs, slack)


def check(b: Any, need_embeddings: bool, grad: Tensor, with_values_grad: bool) -> None:
    """Forward, gradients and dense gradients of a batch against the float64 reference."""
    wide = b.wide()
    features = (b.tables, b.padding)
    got = triton_kernels.embedding_fm(b.weights, b.linear, *b.input(), *features, need_embeddings)
    like = ref.embedding_fm_reference(b.weights, b.linear, *b.input(), *features, need_embeddings)
    want = ref.embedding_fm_reference(wide.weights, wide.linear, *wide.input(), *features, need_embeddings)
    same(got, want, like, 2)

    plan = plan_of(b)
    of_embeddings = torch.randn(like[2].shape).to(grad.dtype) if need_embeddings else None
    call = (*plan, *features, with_values_grad)
    given = (grad, like[1], of_embeddings, *b.input())
    got = triton_kernels.embedding_fm_grad(b.weights, b.linear, *given, *call)
    like_grads = ref.embedding_fm_grad_reference(b.weights, b.linear, *given, *call)
    wide_given = (grad.double(), want[1], None if of_embeddings is None else of_embeddings.double(), *wide.input())
    want_grads = ref.embedding_fm_grad_reference(wide.weights, wide.linear, *wide_given, *call)
    same(got, want_grads, like_grads, 8)
    dense = triton_kernels.embedding_fm_dense_grad(b.weights, b.linear, *given, *features, with_values_grad)
    for i, (ours, theirs) in enumerate(zip(dense[:-1], got[:-1], strict=True)):
        t = i % len(b.weights)
        some = plan[0][plan[4][t] : plan[4][t + 1]].long()
        assert torch.equal(ours, torch.zeros_like(ours).index_copy_(0, some, theirs))
    assert torch.equal(dense[-1], got[-1])


TURNS = [(TABLES[(i + j) % 3], SHAPES[i], KINDS[j]) for i in range(len(SHAPES)) for j in range(len(KINDS))]


@pytest.mark.parametrize(("tables", "shape", "kind"), TURNS)
def test_forward_and_gradients_match_reference(tables: list[int], shape: Any, kind: tuple[Any, ...]) -> None:
    dtype, index, scaled, linear, pad = kind
    dim = {1: 5, 4: 16, 11: 1}[len(tables)]
    b = cases.batch_of(tables, shape, dim, dtype, index, linear=linear, scaled=scaled, pad=pad)
    check(b, len(tables) == 4, torch.randn(shape[0]).to(dtype), scaled)


@pytest.mark.parametrize("shape", [(3, None), (3, 2)])
def test_rows_wider_than_a_tile(shape: Any) -> None:
    b = cases.batch_of([0, 1, 0], shape, 260, scaled=True, pad=2)
    check(b, True, torch.randn(3), True)


def test_rows_of_many_entries_are_cut_into_pieces() -> None:
    """Of several; of two in tests/gpu."""
    b = cases.batch_of([0, 0], (300, None), 5, torch.float64, scaled=True)
    b.ids[0] = 7
    check(b, True, torch.randn(300, dtype=torch.float64), True)


@pytest.mark.parametrize("rule", [checks.SGD, checks.ADAGRAD, checks.ROWWISE_ADAGRAD, checks.ADAM, checks.FTRL])
@pytest.mark.parametrize(
    ("dtype", "dim", "max_norm", "seed"),
    [(torch.float32, 16, 0.5, -1), (torch.float64, 260, 0.5, -1), (torch.bfloat16, 16, 0.0, 7)],
)
def test_update_matches_reference(rule: int, dtype: torch.dtype, dim: int, max_norm: float, seed: int) -> None:
    b = cases.batch_of([0, 1, 0], (4, None), dim, dtype, scaled=True, pad=3)
    _, sums, _ = ref.embedding_fm_reference(b.weights, b.linear, *b.input(), b.tables, b.padding, False)
    given = (torch.randn(4).to(dtype), sums, None, *b.input(), *plan_of(b), b.tables, b.padding)
    results = []
    for update in (triton_kernels.embedding_fm_update_, ref.embedding_fm_update_reference):
        torch.manual_seed(3)
        weights, linear = [w.clone() for w in b.weights], [w.clone() for w in b.linear]
        both, wide = (
            [*weights, *(w.view(-1, 1) for w in linear)],
            torch.float64 if dtype == torch.float64 else torch.float32,
        )
        is_row = rule == checks.ROWWISE_ADAGRAD
        first = [torch.rand(w.shape[:1] if is_row else w.shape, dtype=wide) for w in both]
        second = [torch.rand(w.shape, dtype=wide) for w in both] if rule in (checks.ADAM, checks.FTRL) else []
        lr, step = torch.tensor(0.1, dtype=torch.float64), torch.tensor(3)
        rest = (True, rule, lr, step, cases.options_of(rule), max_norm, seed)
        of_values = update(weights, linear, first, second, *given, *rest)
        assert int(step) == 4
        results.append([*both, *first, *second, of_values])
    assert not torch.equal(results[0][0], b.weights[0])
    for got, want in zip(*results, strict=True):
        cases.close(got.to(dtype), want.to(dtype), 16)  # the reference rounds its gradients to the dtype of the tables


@pytest.mark.parametrize("bad", [-1, 21, 2**40])
@pytest.mark.parametrize("shape", [(4, 3), (5, None)])
def test_bad_ids_and_plans_are_named_and_change_nothing(bad: int, shape: Any) -> None:
    b = cases.batch_of([0, 1], shape, 4)
    _, sums, _ = ref.embedding_fm_reference(b.weights, b.linear, *b.input(), b.tables, b.padding, False)
    plan = plan_of(b)
    plan[0][-1] = bad
    b.ids.view(-1)[-1] = bad
    triton_kernels.embedding_fm(b.weights, b.linear, *b.input(), b.tables, b.padding, False)
    with pytest.raises(IndexError, match=rf"must be in \[0, \d+\), got {bad} at position {b.ids.numel() - 1};"):
        raise_faults()
    before = [w.clone() for w in (*b.weights, *b.linear)]
    lr, step = torch.tensor(0.1, dtype=torch.float64), torch.tensor(3)
    given = (torch.ones(shape[0]), sums, None, *b.input(), *plan, b.tables, b.padding)
    call = (*given, False, checks.SGD, lr, step, [0.0] * 4, 0.0, -1)
    triton_kernels.embedding_fm_update_(b.weights, b.linear, [], [], *call)
    with pytest.raises(ValueError, match="embedding_fm_update_: plan must be the one of these ids"):
        raise_faults()
    assert all(torch.equal(x, y) for x, y in zip(before, [*b.weights, *b.linear], strict=True))


@pytest.mark.parametrize("offsets", [[0, 3, 2, 5], [1, 3, 4, 5], [0, 3, 4, 9], [0, 2, 3, 4]], ids=str)
def test_offsets_that_do_not_fit_are_named(offsets: list[int]) -> None:
    triton_kernels.embedding_fm([torch.randn(9, 4)], [], torch.arange(5), torch.tensor(offsets), None, [0], [-1], False)
    with pytest.raises(ValueError, match="offsets must ascend"):
        raise_faults()
