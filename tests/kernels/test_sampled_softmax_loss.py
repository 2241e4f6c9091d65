"""Claims about sampled_softmax_loss: the drawn negatives, the loss on them, gradients by row, what it must refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.embedding_bag import RowUpdate
from deeprec.kernels.sample_negatives import alias_table, sample_negatives
from deeprec.kernels.softmax_loss import sampled_softmax_loss
from deeprec.kernels.softmax_loss.sampled_reference import sampled_softmax_loss_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
KINDS: list[dict[str, Any]] = [
    {},
    {"similarity": "cosine", "gamma": 10.0},
    {"include_positive": False, "gamma": 0.5},
    {"use_log_q": False},
]
SIZE, SEED, OFFSET = 6, 3, 2**33


class Problem:
    """20 queries, a table of 40 rows, and lists of up to four known positives."""

    def __init__(self, dtype: torch.dtype, dim: int = 9) -> None:
        draw = torch.Generator().manual_seed(0)
        self.queries = torch.randn(20, dim, generator=draw).to(dtype).requires_grad_()
        self.items = torch.randn(40, dim, generator=draw).to(dtype).requires_grad_()
        self.bias = torch.randn(40, generator=draw).to(dtype).requires_grad_()
        self.targets = torch.randint(40, (20,), generator=draw)
        lists = [torch.randperm(40, generator=draw)[: b % 5].sort().values for b in range(20)]
        self.seen = {
            "seen_indptr": torch.tensor([0, *(len(x) for x in lists)]).cumsum(0),
            "seen_indices": torch.cat(lists).int(),
        }
        self.popularity = alias_table(torch.rand(40, generator=draw) + 0.05, 0.75)

    def options(self, has_extras: bool) -> dict[str, Any]:
        return {"bias": self.bias, "popularity": self.popularity, **self.seen} if has_extras else {}

    def negatives(self, has_extras: bool) -> Tensor:
        if not has_extras:
            none = torch.zeros(2, dtype=torch.int64)
            return sample_negatives(
                torch.zeros(20, dtype=torch.int64), none, none[:0].int(), 40, SIZE, seed=SEED, offset=OFFSET
            )
        lists = (torch.arange(20), *self.seen.values(), 40, SIZE)
        return sample_negatives(*lists, seed=SEED, offset=OFFSET, popularity=self.popularity)

    def chances(self, has_extras: bool) -> Tensor:
        """[20, 40] float64: of each item to be the next negative of a row."""
        if not has_extras:
            return torch.full((20, 40), 1 / 40, dtype=torch.float64)
        chances = self.popularity.probabilities().expand(20, -1).clone()
        for b in range(20):
            known = self.seen["seen_indices"][self.seen["seen_indptr"][b] : self.seen["seen_indptr"][b + 1]]
            chances[b, known.long()] = 0
        return chances / chances.sum(1, keepdim=True)


def exact(p: Problem, has_extras: bool, **kind: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses and the gradients of their sum, in float64 over the very negatives of `sample_negatives`."""
    q, v, bias = (t.detach().double().requires_grad_() for t in (p.queries, p.items, p.bias))
    is_cosine = kind.get("similarity") == "cosine"
    z = kind.get("gamma", 1.0) * (F.normalize(q, dim=1) @ F.normalize(v, dim=1).T if is_cosine else q @ v.T)
    z = z + (bias if has_extras else 0)
    negatives = p.negatives(has_extras)
    drawn = z.gather(1, negatives)
    if kind.get("use_log_q", True):
        drawn = drawn - (SIZE * p.chances(has_extras).gather(1, negatives)).log()
    drawn = drawn.masked_fill(negatives == p.targets.unsqueeze(1), -torch.inf)
    positive = z.gather(1, p.targets.unsqueeze(1))
    inside = torch.cat([positive, drawn], 1) if kind.get("include_positive", True) else drawn
    losses = inside.logsumexp(1) - positive.squeeze(1)
    return losses.detach(), torch.autograd.grad(losses.sum(), [q, v, bias] if has_extras else [q, v])


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Within tolerance of the largest value that is wanted."""
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance * float(want.abs().max()) + 1e-30)


@pytest.mark.parametrize("has_extras", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_value_and_gradients_are_those_over_the_negatives_of_sample_negatives(
    dtype: torch.dtype, kind: dict[str, Any], has_extras: bool
) -> None:
    p = Problem(dtype)
    given = (p.queries, p.items, p.targets, SIZE)
    options = kind | {"seed": SEED, "offset": OFFSET, "reduction": "none"} | p.options(has_extras)
    want, wants = exact(p, has_extras, **kind)
    for sparse_grad in (True, False):
        losses = sampled_softmax_loss(*given, sparse_grad=sparse_grad, **options)
        close(losses, want, 2e-6 if dtype != torch.float64 else 1e-12)
        inputs = [p.queries, p.items, p.bias][: len(wants)]
        grads = torch.autograd.grad(losses.sum(), inputs)
        assert grads[1].is_sparse == sparse_grad
        assert not sparse_grad or grads[1].is_coalesced()
        for got, of_wide in zip(grads, wants, strict=True):
            assert got.dtype == dtype
            close(got.to_dense(), of_wide, TOLERANCE[dtype])


def test_the_sum_over_draws_is_in_expectation_that_over_the_catalogue() -> None:
    p = Problem(torch.float64)
    one = {"seen_indptr": torch.tensor([0, 0]), "seen_indices": torch.zeros(0, dtype=torch.int32)}
    q, target = p.queries[:1].detach(), p.targets[:1]
    full = (q @ p.items.detach().T).exp().sum()
    for use_log_q, popularity in ((True, p.popularity), (False, p.popularity), (True, None)):
        rows = q.expand(4000, -1).contiguous(), target.expand(4000).contiguous()
        options = {"popularity": popularity, "use_log_q": use_log_q, "reduction": "none", "seed": 1}
        losses = sampled_softmax_loss(rows[0], p.items.detach(), rows[1], SIZE, **options)
        estimate = (losses + (q @ p.items.detach()[target].T).sum()).exp().mean()
        assert (abs(float(estimate / full) - 1) < 0.05) == use_log_q
    with_lists = sampled_softmax_loss(q, p.items.detach(), target, SIZE, seed=1, **one)
    assert torch.equal(with_lists, sampled_softmax_loss(q, p.items.detach(), target, SIZE, seed=1))


def test_rows_may_be_split_into_batches() -> None:
    p = Problem(torch.float32)
    whole = sampled_softmax_loss(p.queries, p.items, p.targets, SIZE, seed=SEED, offset=5, reduction="none")
    parts = [
        sampled_softmax_loss(
            p.queries[at], p.items, p.targets[at], SIZE, seed=SEED, offset=5 + at.start, reduction="none"
        )
        for at in (slice(0, 7), slice(7, 20))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_results_are_bitwise_the_same_for_any_threads() -> None:
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2000, 16, generator=draw).requires_grad_()
    v = torch.randn(500, 16, generator=draw).requires_grad_()
    targets, before, runs = torch.randint(500, (2000,), generator=draw), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            loss = sampled_softmax_loss(q, v, targets, 30, seed=1)
            runs.append((loss, *(g.to_dense() for g in torch.autograd.grad(loss, [q, v]))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("is_fused", [True, False])
def test_a_step_in_backward_is_the_step_on_the_gradients(similarity: str, is_fused: bool) -> None:
    p = Problem(torch.float32)
    by_hand, stepped = (p.items.detach().clone().requires_grad_() for _ in range(2))
    sampled_softmax_loss(p.queries, by_hand, p.targets, SIZE, seed=SEED, similarity=similarity).backward()
    assert by_hand.grad is not None
    lr, step = torch.tensor(0.1, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    want = by_hand.detach() - 0.1 * by_hand.grad.to_dense()

    def take(rows: list[Tensor], grads: list[Tensor]) -> None:
        stepped.data[rows[0].long()] -= 0.1 * grads[0]

    update = RowUpdate(0, [], [], lr, step, [0.0, 0.0, 0.0, 0.0]) if is_fused else take
    p.queries.grad = None
    sampled_softmax_loss(
        p.queries, stepped, p.targets, SIZE, seed=SEED, update=update, similarity=similarity
    ).backward()
    assert stepped.grad is None
    assert p.queries.grad is not None
    torch.testing.assert_close(stepped.detach(), want)
    assert not torch.equal(want, p.items.detach())


def test_no_rows_no_negatives_and_one_item() -> None:
    p = Problem(torch.float32)
    losses = sampled_softmax_loss(p.queries, p.items, p.targets, 0, seed=1, reduction="none")
    assert torch.equal(losses, torch.zeros(20))
    empty = sampled_softmax_loss(p.queries[:0], p.items, p.targets[:0], 3, seed=1, reduction="sum")
    assert torch.equal(torch.autograd.grad(empty, p.items)[0].to_dense(), torch.zeros(40, 9))
    for include_positive in (True, False):  # every draw is the positive, and left out
        options = {"include_positive": include_positive, "reduction": "none", "seed": 1}
        losses = sampled_softmax_loss(p.queries, p.items[:1], p.targets * 0, 3, **options)
        assert torch.equal(losses.detach(), torch.zeros(20))
        assert torch.equal(torch.autograd.grad(losses.sum(), p.queries)[0], torch.zeros(20, 9))


def test_zero_vectors_and_nan() -> None:
    """A row of zeros has cosine 0 and no gradient; NaN is not hidden, unless its item is not drawn."""
    p = Problem(torch.float32)
    with torch.no_grad():
        p.queries[1], p.items[p.targets[2]] = 0, 0
    options = {"seed": SEED, "similarity": "cosine", "use_log_q": False, "reduction": "none"}
    losses = sampled_softmax_loss(p.queries, p.items, p.targets, SIZE, **options)
    grads = torch.autograd.grad(losses.sum(), [p.queries, p.items])
    assert not bool(grads[0][1].any())
    assert not bool(grads[1].to_dense()[p.targets[2]].any())
    assert all(bool(x.isfinite().all()) for x in (losses, grads[0], grads[1].to_dense()))
    nan = p.items.detach().clone()
    nan[5] = torch.nan
    drawn = sample_negatives(
        torch.zeros(20, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(0).int(), 40, SIZE, seed=SEED
    )
    meets = (drawn == 5).any(1) | (p.targets == 5)
    assert 0 < int(meets.sum()) < 20
    losses = sampled_softmax_loss(p.queries, nan, p.targets, SIZE, **options)
    assert torch.equal(losses.isnan(), meets)


@pytest.mark.parametrize("size", [1, 3, 31, 700, 1500])
def test_popular_negatives_of_any_number_with_their_corrections(size: int) -> None:
    """Rows drawn together and alone, and logarithms by vectors and by ones."""
    draw = torch.Generator().manual_seed(2)
    q, v = torch.randn(5, 4, generator=draw), torch.randn(3000, 4, generator=draw)
    table, targets = alias_table(torch.rand(3000, generator=draw) ** 8 + 1e-6), torch.arange(5)
    losses = sampled_softmax_loss(q, v, targets, size, seed=9, popularity=table, reduction="none")
    none = torch.zeros(2, dtype=torch.int64)
    ids = sample_negatives(targets * 0, none, none[:0].int(), 3000, size, seed=9, popularity=table)
    z = (q.double().unsqueeze(1) * v[ids].double()).sum(2) - (size * table.probabilities()[ids]).log()
    z = z.masked_fill(ids == targets.unsqueeze(1), -torch.inf)
    positive = (q * v[:5]).sum(1, keepdim=True).double()
    want = torch.cat([positive, z], 1).logsumexp(1) - positive.squeeze(1)
    torch.testing.assert_close(losses.double(), want, rtol=1e-6, atol=2e-6)


def test_bad_input_is_refused() -> None:
    p = Problem(torch.float32)
    q, v, at = p.queries.detach(), p.items.detach(), p.targets
    every = {"seen_indptr": torch.arange(21) * 40, "seen_indices": torch.arange(40).int().repeat(20)}
    half = alias_table(torch.tensor([1.0] * 20 + [0.0] * 20))
    weighty = {"seen_indptr": torch.arange(21) * 20, "seen_indices": torch.arange(20).int().repeat(20)}
    far = p.seen | {"seen_indices": p.seen["seen_indices"] + 40}
    for error, words, arguments, options in (
        (IndexError, r"targets must be in \[0, 40\), got 40 at position 0", (q, v, at * 0 + 40, 3), {}),
        (IndexError, r"seen_indices must be in \[0, 40\)", (q, v, at, 3), far),
        (ValueError, "gamma must be a finite number > 0", (q, v, at, 3), {"gamma": -1.0}),
        (ValueError, "gamma must be a finite number > 0", (q, v, at, 3), {"gamma": 0.0}),
        (ValueError, "num_negatives in|N must be in", (q, v, at, -1), {}),
        (ValueError, "seed must fit in 64 bits", (q, v, at, 3), {"seed": 2**63}),
        (ValueError, "popularity must describe 40 items", (q, v, at, 3), {"popularity": alias_table(torch.ones(3))}),
        (ValueError, "row 0 knows all 40 items", (q, v, at, 3), every),
        (ValueError, "row 0 knows every item of positive weight", (q, v, at, 3), weighty | {"popularity": half}),
        (ValueError, "N must be in", (q, v[:0], at, 3), {}),
    ):
        with pytest.raises(error, match=f"^sampled_softmax_loss: ({words})"):
            sampled_softmax_loss(*arguments, **({"seed": 1} | options))


def test_compiles_in_one_graph_with_dense_gradients() -> None:
    p = Problem(torch.float32)

    def step(q: Tensor, v: Tensor) -> Tensor:
        return sampled_softmax_loss(q, v, p.targets, SIZE, seed=SEED, sparse_grad=False, gamma=2.0)

    ours, want = torch.compile(step, fullgraph=True)(p.queries, p.items), step(p.queries, p.items)
    torch.testing.assert_close(ours, want)
    runs = [torch.autograd.grad(loss, [p.queries, p.items]) for loss in (ours, want)]
    for got, other in zip(*runs, strict=True):
        torch.testing.assert_close(got, other)


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Valid arguments of the operators of this file."""
    for dtype, has_extras, flags in (
        (torch.float64, False, (1.0, False, False, False)),
        (torch.float32, True, (2.0, True, True, True)),
    ):
        p = Problem(dtype, 5)
        lists = (*p.seen.values(), torch.arange(20).flip(0)) if has_extras else (None, None, None)
        table = tuple(p.popularity) if has_extras else (None, None, None)
        bias = p.bias.detach() if has_extras else None
        given = (p.queries.detach(), p.items.detach(), p.targets, bias, *lists, SIZE, SEED, OFFSET, *table, *flags)
        losses, stats, _ = sampled_softmax_loss_reference(*given, False)
        yield "sampled_softmax_loss", (*given, has_extras)
        yield "sampled_softmax_slopes", (*given, stats, torch.ones_like(losses))
