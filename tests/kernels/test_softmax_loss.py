"""Claims about softmax_loss: against logits [B, N] in float64, masks, corrections, and what it must refuse."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.softmax_loss import softmax_loss
from deeprec.kernels.softmax_loss.reference import softmax_loss_grad_reference, softmax_loss_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
KINDS = [
    {},
    {"similarity": "cosine", "gamma": 10.0},
    {"label_smoothing": 0.2, "gamma": 0.5},
    {"include_positive": False},
    {"correct_positive": True, "similarity": "cosine", "label_smoothing": 0.1, "include_positive": False},
]


@dataclass
class Problem:
    """Queries and candidates; `extras`: bias, log_q, item_ids and lists of known positives."""

    queries: Tensor
    items: Tensor
    targets: Tensor
    bias: Tensor
    log_q: Tensor
    item_ids: Tensor
    seen_indptr: Tensor
    seen_indices: Tensor

    @classmethod
    def make(cls, batch: int, num_items: int, dim: int, dtype: torch.dtype, seed: int = 0) -> Problem:
        draw = torch.Generator().manual_seed(seed)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        num_ids = max(2 * num_items // 3, 1)  # some candidates have the same id
        lists = [torch.randperm(num_ids + 2, generator=draw)[: b % 5].sort().values for b in range(batch)]
        return cls(
            torch.randn(batch, dim, generator=draw).to(dtype).requires_grad_(),
            torch.randn(num_items, dim, generator=draw).to(dtype).requires_grad_(),
            torch.randint(num_items, (batch,), generator=draw),
            torch.randn(num_items, generator=draw).to(dtype).requires_grad_(),
            torch.randn(num_items, generator=draw).to(wide),
            torch.randint(num_ids, (num_items,), generator=draw),
            torch.tensor([0, *(len(x) for x in lists)]).cumsum(0),
            torch.cat([*lists, torch.zeros(0)]).int(),
        )

    def extras(self) -> dict[str, Tensor]:
        names = ("bias", "log_q", "item_ids", "seen_indptr", "seen_indices")
        return {name: getattr(self, name) for name in names}

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        inputs = [self.queries, self.items, self.bias]
        return torch.autograd.grad(loss, inputs, allow_unused=True)

    def hidden(self) -> Tensor:
        """[B, N] by a loop over every pair."""
        out = torch.zeros(len(self.targets), len(self.items), dtype=torch.bool)
        for b, j in itertools.product(range(out.shape[0]), range(out.shape[1])):
            known = self.seen_indices[self.seen_indptr[b] : self.seen_indptr[b + 1]].tolist()
            is_twin = self.item_ids[j] == self.item_ids[self.targets[b]]
            out[b, j] = j != self.targets[b] and bool(is_twin or int(self.item_ids[j]) in known)
        return out


def exact(p: Problem, has_extras: bool, **kind: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses of the rows and gradients of their weighted sum, by autograd in float64 over all logits."""
    q, v, bias = (t.detach().double().requires_grad_() for t in (p.queries, p.items, p.bias))
    is_cosine = kind.get("similarity") == "cosine"
    sim = F.normalize(q, dim=1) @ F.normalize(v, dim=1).T if is_cosine else q @ v.T
    z = kind.get("gamma", 1.0) * sim
    is_positive = F.one_hot(p.targets, len(v)).bool()
    hidden = torch.zeros_like(is_positive)
    if has_extras:
        log_q = p.log_q.double().expand_as(z)
        z = z + bias - (log_q if kind.get("correct_positive") else log_q.masked_fill(is_positive, 0))
        hidden = p.hidden()
    outside = hidden if kind.get("include_positive", True) else hidden | is_positive
    smoothing = kind.get("label_smoothing", 0.0)
    log_p = z - z.masked_fill(outside, -torch.inf).logsumexp(1, keepdim=True)
    mean = log_p.masked_fill(hidden, 0).sum(1) / (~hidden).sum(1)
    losses = -(1 - smoothing) * log_p[is_positive] - smoothing * mean
    total = (losses * weights_of(p)).sum()
    return losses.detach(), torch.autograd.grad(total, [q, v, bias] if has_extras else [q, v])


def weights_of(p: Problem) -> Tensor:
    return torch.linspace(0.5, 2, len(p.targets), dtype=torch.float64)


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Within tolerance of the largest value that is wanted."""
    scale = float(want.abs().max()) if want.numel() else 0.0
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance * scale + 1e-30)


@pytest.mark.parametrize("has_extras", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_value_and_gradients_are_those_of_autograd_in_float64(
    dtype: torch.dtype, kind: dict[str, Any], has_extras: bool
) -> None:
    p = Problem.make(53, 300, 20, dtype)
    extras = p.extras() if has_extras else {}
    losses = softmax_loss(p.queries, p.items, p.targets, reduction="none", **kind, **extras)
    total = softmax_loss(p.queries, p.items, p.targets, weights=weights_of(p), reduction="sum", **kind, **extras)
    want, wants = exact(p, has_extras, **kind)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(losses, want, 2e-6 if dtype != torch.float64 else 1e-12)
    close(total, (want * weights_of(p)).sum(), 2e-6 if dtype != torch.float64 else 1e-12)
    for got, of_wide in zip(p.gradients(total), wants, strict=False):
        assert got.dtype == dtype
        close(got, of_wide, TOLERANCE[dtype])


@given(
    batch=st.integers(1, 110),
    num_items=st.integers(1, 300),
    dim=st.integers(0, 70),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_any_shape(batch: int, num_items: int, dim: int, kind: dict[str, Any], seed: int) -> None:
    p = Problem.make(batch, num_items, dim, torch.float64, seed)
    names = ("gamma", "similarity", "label_smoothing", "include_positive", "correct_positive")
    options = {"gamma": 1.0, "similarity": "dot", "label_smoothing": 0.0} | kind
    options = {"include_positive": True, "correct_positive": False} | options
    flags = [options[name] if name != "similarity" else options[name] == "cosine" for name in names]
    tensors = [x.detach() for x in (p.queries, p.items, p.targets, *p.extras().values())]
    arguments = (*tensors, None, *flags)
    got = torch.ops.deeprec.softmax_loss(*arguments, True)
    want = softmax_loss_reference(*arguments, True)
    grads = torch.rand(batch, dtype=torch.float64)
    got = (*got, *torch.ops.deeprec.softmax_loss_grad(*arguments, want[1], grads))
    want = (*want, *softmax_loss_grad_reference(*arguments, want[1], grads))
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(49, 131, 33), (1, 1, 1), (241, 129, 64), (3, 900, 130)])
def test_pairs_of_bfloat16_at_odd_shapes(shape: tuple[int, int, int], kind: dict[str, Any]) -> None:
    """Rows, candidates and widths that leave half a word, and candidates with NaN between them in memory."""
    p = Problem.make(*shape, torch.bfloat16)
    with torch.no_grad():
        p.items = torch.cat([p.items, torch.full_like(p.items, torch.nan)], 1)[:, : shape[2]].requires_grad_()
    losses = softmax_loss(p.queries, p.items, p.targets, reduction="none", **kind)
    grads = torch.autograd.grad((losses * weights_of(p)).sum(), [p.queries, p.items])
    if shape[1] > 1:  # alone without the positive, a candidate has no loss; `exact` knows no such row
        want, wants = exact(p, False, **kind)
        close(losses, want, 2e-6)
        for got, of_wide in zip(grads, wants, strict=True):
            close(got, of_wide, 1e-2)
    assert all(bool(x.isfinite().all()) for x in (losses, *grads))


def test_bfloat16_is_as_exact_as_torch_in_bfloat16() -> None:
    """Gradients of a large softmax, summed from shares that are rounded: no worse than those of F.cross_entropy."""
    p = Problem.make(96, 4000, 64, torch.bfloat16)
    p.items = (p.items.detach() * 0.125).requires_grad_()
    want, wants = exact(p, False)
    ours = softmax_loss(p.queries, p.items, p.targets, reduction="none")
    theirs = F.cross_entropy(p.queries @ p.items.T, p.targets, reduction="none")
    close(ours, want, 2e-6)
    weights = weights_of(p)
    for mine, other, of_wide in zip(
        torch.autograd.grad((ours * weights).sum(), [p.queries, p.items]),
        torch.autograd.grad((theirs * weights).sum(), [p.queries, p.items]),
        wants,
        strict=True,
    ):
        errors = [float((grad.double() - of_wide).norm() / of_wide.norm()) for grad in (mine, other)]
        assert errors[0] <= errors[1], errors


def test_the_whole_catalogue_is_torch_cross_entropy() -> None:
    p = Problem.make(40, 700, 33, torch.float32)
    for smoothing, weights in ((0.0, None), (0.3, torch.rand(40))):
        ours = softmax_loss(p.queries, p.items, p.targets, label_smoothing=smoothing, weights=weights)
        each = F.cross_entropy(p.queries @ p.items.T, p.targets, label_smoothing=smoothing, reduction="none")
        theirs = each.mean() if weights is None else (each * weights).sum() / weights.sum()
        torch.testing.assert_close(ours, theirs)
        for mine, other in zip(p.gradients(ours)[:2], p.gradients(theirs)[:2], strict=True):
            close(mine, other, 1e-5)


def test_in_batch_and_mixed_negatives_need_no_targets() -> None:
    p = Problem.make(9, 14, 5, torch.float64)
    ours = softmax_loss(p.queries, p.items)
    torch.testing.assert_close(ours, F.cross_entropy(p.queries @ p.items.T, torch.arange(9)))


def test_label_weights_have_a_gradient() -> None:
    p, weights = Problem.make(6, 8, 5, torch.float64), torch.rand(6, dtype=torch.float64, requires_grad=True)
    loss = softmax_loss(p.queries, p.items, p.targets, weights=weights, reduction="sum")
    (grad,) = torch.autograd.grad(loss, [weights])
    torch.testing.assert_close(grad, softmax_loss(p.queries, p.items, p.targets, reduction="none").detach())


def test_log_q_makes_samples_stand_for_the_catalogue() -> None:
    """Sign and size: the sum over the denominator, averaged over draws, is that of the full softmax."""
    draw, num_items, size = torch.Generator().manual_seed(0), 30, 8
    q = torch.randn(1, 6, dtype=torch.float64, generator=draw)
    v = torch.randn(num_items, 6, dtype=torch.float64, generator=draw)
    chances = torch.linspace(0.2, 3, num_items, dtype=torch.float64)
    chances /= chances.sum()
    positive = 11

    def denominator(candidates: Tensor, **options: Any) -> float:
        at = torch.zeros(1, dtype=torch.int64)
        loss = softmax_loss(q, v[candidates], at, **options)
        return float((loss + (q @ v[positive]).sum()).exp())

    full = denominator(torch.cat([torch.tensor([positive]), torch.arange(num_items)[torch.arange(num_items) != 11]]))
    estimates: dict[float, list[float]] = {1.0: [], 0.0: [], -1.0: []}
    for _ in range(3000):
        ids = torch.cat([torch.tensor([positive]), torch.multinomial(chances, size, True, generator=draw)])
        for sign, values in estimates.items():
            log_q = sign * (size * chances[ids]).log()
            values.append(denominator(ids, log_q=log_q, item_ids=ids))
    errors = {sign: abs(sum(x) / len(x) / full - 1) for sign, x in estimates.items()}
    assert errors[1.0] < 0.03, errors
    assert errors[0.0] > 0.2, errors
    assert errors[-1.0] > 0.2, errors


def test_masked_candidates_have_no_part_at_all() -> None:
    """The loss and every gradient are those without the candidates, bit for bit where nothing else is added up."""
    p = Problem.make(1, 5, 4, torch.float64)
    ids, at = torch.tensor([7, 3, 7, 9, 4]), torch.tensor([2])
    seen = {"seen_indptr": torch.tensor([0, 3]), "seen_indices": torch.tensor([4, 7, 8], dtype=torch.int32)}
    loss = softmax_loss(p.queries, p.items, at, item_ids=ids, **seen)
    rest = [2, 1, 3]  # the positive, which its own list does not mask, and what is neither a twin nor known
    alone = softmax_loss(p.queries, p.items[rest], torch.tensor([0]))
    torch.testing.assert_close(loss, alone, rtol=1e-14, atol=0)
    grad = torch.autograd.grad(loss, p.items)[0]
    assert torch.equal(grad[[0, 4]], torch.zeros(2, 4, dtype=torch.float64))
    far = torch.tensor([1e6, 0, 0, 0, 1e6], dtype=torch.float64)
    assert torch.equal(softmax_loss(p.queries, p.items, at, item_ids=ids, bias=far, **seen), loss)


def test_seen_rows_pick_the_lists() -> None:
    p = Problem.make(3, 6, 4, torch.float64)
    indptr, indices = torch.tensor([0, 2, 2, 4]), torch.tensor([0, 3, 1, 5], dtype=torch.int32)
    rows = torch.tensor([2, 0, 2], dtype=torch.int32)
    ours = softmax_loss(
        p.queries, p.items, p.targets, seen_indptr=indptr, seen_indices=indices, seen_rows=rows, reduction="none"
    )
    flat = {"seen_indptr": torch.tensor([0, 2, 4, 6]), "seen_indices": indices[[2, 3, 0, 1, 2, 3]]}
    assert torch.equal(ours, softmax_loss(p.queries, p.items, p.targets, reduction="none", **flat))


@pytest.mark.parametrize("include_positive", [True, False])
def test_a_row_whose_candidates_are_all_masked_has_no_loss(include_positive: bool) -> None:
    p = Problem.make(3, 4, 5, torch.float32)
    ids = torch.full((4,), 8)
    for smoothing in (0.0, 0.1):
        loss = softmax_loss(
            p.queries,
            p.items,
            p.targets,
            item_ids=ids,
            include_positive=include_positive,
            label_smoothing=smoothing,
            similarity="cosine",
            reduction="none",
        )
        close(loss, torch.zeros(3), 0)
        for grad in torch.autograd.grad(loss.sum(), [p.queries, p.items], retain_graph=True):
            assert float(grad.abs().max()) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_vectors_have_cosine_zero_and_no_gradient(dtype: torch.dtype) -> None:
    q, v = torch.randn(3, 4).to(dtype), torch.randn(5, 4).to(dtype)
    q[1], v[2] = 0, 0
    q.requires_grad_(), v.requires_grad_()
    losses = softmax_loss(q, v, torch.tensor([0, 1, 2]), similarity="cosine", gamma=5.0, reduction="none")
    assert float(losses[1].detach()) == pytest.approx(torch.log(torch.tensor(5.0)).item())
    of_queries, of_items = torch.autograd.grad(losses.sum(), [q, v])
    assert not bool(of_queries[1].any())
    assert not bool(of_items[2].any())
    assert bool(of_queries.isfinite().all() & of_items.isfinite().all())


def test_one_row_and_a_batch_of_one_item() -> None:
    """In-batch negatives: a row alone has none, and rows that share their positive have none beside it."""
    p = Problem.make(1, 1, 6, torch.float32)
    for include_positive in (True, False):
        loss = softmax_loss(p.queries, p.items, include_positive=include_positive)
        assert float(loss.detach()) == 0
        assert all(not bool(grad.any()) for grad in torch.autograd.grad(loss, [p.queries, p.items]))
    p = Problem.make(5, 5, 6, torch.float32)
    same = p.items[:1].expand(5, 6)
    assert torch.equal(softmax_loss(p.queries, same, item_ids=torch.full((5,), 3)).detach(), torch.tensor(0.0))
    torch.testing.assert_close(softmax_loss(p.queries, same), torch.tensor(5.0).log())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_reaches_the_gradients_of_what_met_it(dtype: torch.dtype) -> None:
    p = Problem.make(4, 40, 8, dtype)
    with torch.no_grad():
        p.items[7, 3] = torch.nan
    loss = softmax_loss(p.queries, p.items, p.targets, reduction="none")
    assert bool(loss.isnan().all())
    assert bool(torch.autograd.grad(loss.sum(), p.items)[0].isnan().any(1).all())
    hidden = {"seen_indptr": torch.arange(5), "seen_indices": torch.full((4,), 7, dtype=torch.int32)}
    p.targets = torch.arange(4)
    assert not bool(softmax_loss(p.queries, p.items, p.targets, reduction="none", **hidden).isnan().any())


@pytest.mark.parametrize("reduction", ["sum", "none", "mean"])
def test_no_rows(reduction: str) -> None:
    q, v = torch.randn(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = softmax_loss(q, v, torch.zeros(0, dtype=torch.int64), reduction=reduction)
    assert torch.equal(torch.autograd.grad(loss.sum(), v)[0].nan_to_num(), torch.zeros(5, 4))
    assert loss.isnan().all() if reduction == "mean" else float(loss.detach().sum()) == 0


def test_extreme_logits_stay_finite_and_nan_is_not_hidden() -> None:
    q = torch.tensor([[1e4], [-1e4], [1.0]], requires_grad=True)
    v = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    losses = softmax_loss(q, v, torch.tensor([1, 1, 2]), reduction="none")
    torch.testing.assert_close(losses, F.cross_entropy(q @ v.T, torch.tensor([1, 1, 2]), reduction="none"))
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(losses.sum(), [q, v]))
    for place in (0, 1):
        spoiled = [q.detach().clone(), v.detach().clone()]
        spoiled[place][1] = torch.nan
        assert bool(softmax_loss(*spoiled, torch.tensor([1, 1, 2]), reduction="none")[1].isnan())


def test_any_layout_and_stride_zero_gradients() -> None:
    p = Problem.make(20, 40, 16, torch.float32)
    loose = [torch.randn(20, 48)[:, ::3], torch.randn(16, 40).t(), p.items[:1].expand(40, 16)]
    for q, v in ((loose[0], p.items), (p.queries, loose[1]), (p.queries, loose[2])):
        q, v = q.detach().requires_grad_(), v.detach().requires_grad_()
        runs = [
            torch.autograd.grad(softmax_loss(a, b, p.targets, reduction="sum"), [a, b])
            for a, b in ((q, v), (q.contiguous(), v.contiguous()))
        ]
        assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
    same = softmax_loss(p.queries, p.items, p.targets.int())
    assert torch.equal(same, softmax_loss(p.queries, p.items, p.targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_bitwise_the_same_for_any_threads(dtype: torch.dtype) -> None:
    p = Problem.make(501, 3000, 24, dtype)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            loss = softmax_loss(p.queries, p.items, p.targets, label_smoothing=0.1, **p.extras())
            runs.append((loss, *p.gradients(loss)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("bad", [-1, 6, 2**40])
def test_a_target_out_of_range_is_named(bad: int) -> None:
    with pytest.raises(IndexError, match=rf"^softmax_loss: targets must be in \[0, 6\), got {bad} at position 1"):
        softmax_loss(torch.randn(2, 3), torch.randn(6, 3), torch.tensor([0, bad]))


def test_bad_input_is_refused() -> None:
    q, v, at = torch.randn(3, 4), torch.randn(6, 4), torch.tensor([0, 5, 5])
    lists = {"seen_indptr": torch.tensor([0, 1, 2, 4])}
    for error, words, arguments, options in (
        (ValueError, "gamma must be a finite number > 0", (q, v, at), {"gamma": 0.0}),
        (ValueError, "gamma must be a finite number > 0", (q, v, at), {"gamma": -1.0}),
        (ValueError, "gamma must be a finite number > 0", (q, v, at), {"gamma": float("nan")}),
        (ValueError, "similarity must be one of", (q, v, at), {"similarity": "l2"}),
        (ValueError, "label_smoothing must be in", (q, v, at), {"label_smoothing": 1.0}),
        (ValueError, "queries must be", (q, v[:, :3], at), {}),
        (ValueError, "queries must be", (q.half(), v, at), {}),
        (ValueError, "without targets .* items must have at least 3 rows", (q, v[:2]), {}),
        (ValueError, "weights must be", (q, v, at), {"weights": torch.ones(2)}),
        (ValueError, "bias must be", (q, v, at), {"bias": torch.ones(3)}),
        (ValueError, "log_q must be", (q, v, at), {"log_q": torch.ones(3)}),
        (ValueError, "give seen_indptr and seen_indices together", (q, v, at), lists),
        (TypeError, "queries|values must be float", (q.int(), v.int(), at), {}),
        (TypeError, "targets must be int32 or int64", (q, v, at.float()), {}),
        (
            ValueError,
            "seen_indices must ascend without repeats",
            (q, v, at),
            lists | {"seen_indices": torch.tensor([3, 2, 4, 4], dtype=torch.int32)},
        ),
    ):
        with pytest.raises(error, match=f"^softmax_loss: ({words})"):
            softmax_loss(*arguments, **options)


def test_compiles_in_one_graph() -> None:
    p = Problem.make(7, 20, 8, torch.float32)

    def step(q: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        extras = p.extras() | {"bias": bias}
        return softmax_loss(q, v, p.targets, similarity="cosine", gamma=3.0, label_smoothing=0.1, **extras)

    inputs = (p.queries, p.items, p.bias)
    ours = torch.compile(step, fullgraph=True)(*inputs)
    torch.testing.assert_close(ours, step(*inputs))
    for got, want in zip(p.gradients(ours), p.gradients(step(*inputs)), strict=True):
        torch.testing.assert_close(got, want)


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Valid arguments of the operators of this file."""
    for dtype, has_extras, flags in (
        (torch.float32, True, (2.0, True, 0.1, True, False)),
        (torch.float64, False, (1.0, False, 0.0, False, True)),
        (torch.bfloat16, True, (1.0, False, 0.0, True, True)),
    ):
        p = Problem.make(4, 9, 6, dtype)
        extras = [x.detach() for x in p.extras().values()] if has_extras else [None] * 5
        rows = torch.tensor([1, 0, 3, 3]) if has_extras and flags[4] else None
        arguments = (p.queries.detach(), p.items.detach(), p.targets, *extras, rows, *flags)
        wide = p.log_q.dtype
        yield "softmax_loss", (*arguments, dtype != torch.float64)
        stats = softmax_loss_reference(*arguments, False)[1]
        yield "softmax_loss_grad", (*arguments, stats, torch.tensor([0.5, 1.0, 0.0, 2.0], dtype=wide))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(300, 5000, 64), (7, 3, 5), (65, 1000, 200)])
def test_gpu_matches_float64_twice(dtype: torch.dtype, kind: dict[str, Any], shape: tuple[int, int, int]) -> None:
    p = Problem.make(*shape, dtype)
    want, wants = exact(p, False, **kind)
    there = [x.detach().cuda().requires_grad_() for x in (p.queries, p.items)]
    runs = []
    for _ in range(2):
        losses = softmax_loss(*there, p.targets.cuda(), reduction="none", **kind)
        runs.append((losses, *torch.autograd.grad((losses * weights_of(p).cuda().to(losses.dtype)).sum(), there)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    close(runs[0][0].cpu(), want, 1e-4 if dtype != torch.float64 else 1e-12)
    for got, of_wide in zip(runs[0][1:], wants, strict=True):
        close(got.cpu(), of_wide, max(TOLERANCE[dtype], 1e-4 if dtype != torch.float64 else 0))
