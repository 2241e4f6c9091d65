"""Claims about the losses of GRU4Rec: each is its formula, term by term, and so are its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deeprec.kernels.softmax_loss import softmax_loss
from deeprec.models._session_losses import PAIRWISE_LOSSES, PairwiseOptions, pairwise_losses


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def elu(x: Tensor, alpha: float) -> Tensor:
    return x if not alpha or float(x.detach()) > 0 else alpha * (x.exp() - 1)


def plain(row: list[Tensor], target: int, negatives: list[int], options: PairwiseOptions) -> Tensor:
    """The loss of one row, a sum of scalars."""
    if options.loss == "bpr-max":
        row = [elu(r, options.elu) for r in row]
    r_i, others = row[target], [row[j] for j in negatives]
    if options.loss == "top1":
        return sum(sigma(r - r_i) + sigma(r * r) for r in others) / len(others)  # type: ignore[return-value]
    if options.loss == "bpr":
        return -sum(sigma(r_i - r).log() for r in others) / len(others)  # type: ignore[operator]
    total = sum(r.exp() for r in others)
    shares = [r.exp() / total for r in others]
    if options.loss == "top1-max":
        return sum(s * (sigma(r - r_i) + sigma(r * r)) for s, r in zip(shares, others, strict=True))  # type: ignore[return-value]
    hits = sum(s * sigma(r_i - r) for s, r in zip(shares, others, strict=True))
    squares = sum(s * r * r for s, r in zip(shares, others, strict=True))
    return -hits.log() + options.bpreg * squares  # type: ignore[union-attr, return-value]


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
@pytest.mark.parametrize(("bpreg", "elu_at"), [(1.0, 0.5), (0.0, 0.0), (1.95, 1.0)])
@pytest.mark.parametrize("shape", [(1, 2), (5, 5), (7, 30)])
def test_losses_and_gradients_are_the_formulas(loss: str, bpreg: float, elu_at: float, shape: tuple[int, int]) -> None:
    options = PairwiseOptions(loss, bpreg, elu_at)
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    weights = torch.rand(shape[0], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    is_negative = ~torch.eye(*shape, dtype=torch.bool)
    if shape[0] == 7:
        is_negative[2, 9:20] = False  # items that are the target of row 2

    def by_hand(given: Tensor) -> Tensor:
        rows = range(shape[0])
        return torch.stack(
            [plain(list(given[b]), b, is_negative[b].nonzero().flatten().tolist(), options) for b in rows]
        )

    mine, theirs = (scores.clone().requires_grad_() for _ in range(2))
    losses, expected = pairwise_losses(mine, is_negative, options), by_hand(theirs)
    torch.testing.assert_close(losses, expected)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
def test_at_zero_scores_losses_are_those_derived(loss: str) -> None:
    """TOP1 two halves, BPR the logarithm of 2, whatever the number of negatives."""
    expected = 1.0 if loss.startswith("top1") else math.log(2)
    for shape in ((2, 2), (32, 2080)):
        losses = pairwise_losses(
            torch.zeros(shape), ~torch.eye(*shape, dtype=torch.bool), PairwiseOptions(loss, 1.0, 0.5)
        )
        torch.testing.assert_close(losses, torch.full((shape[0],), expected))


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
def test_large_scores_give_finite_losses_and_gradients(loss: str) -> None:
    scores = (torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 300).requires_grad_()
    losses = pairwise_losses(scores, ~torch.eye(4, 9, dtype=torch.bool), PairwiseOptions(loss, 1.0, 0.5))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(scores.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", PAIRWISE_LOSSES)
def test_a_row_without_negatives_counts_for_nothing(loss: str) -> None:
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    is_negative = ~torch.eye(3, dtype=torch.bool)
    is_negative[1] = False
    losses = pairwise_losses(scores, is_negative, PairwiseOptions(loss, 1.0, 0.5))
    losses.sum().backward()
    assert losses[1] == 0
    assert not scores.grad[1].any()  # type: ignore[index]
    assert (losses[[0, 2]] > 0).all()


def test_cross_entropy_takes_the_softmax_once() -> None:
    """-log p of the target by the sum of exponents over the candidates of the step, in float64 by hand."""
    draw = torch.Generator().manual_seed(4)
    states, items, bias = (torch.randn(*shape, generator=draw) for shape in ((5, 8), (12, 8), (12,)))
    loss = softmax_loss(states, items, bias=bias, reduction="sum")
    scores = (states.double() @ items.double().T + bias.double()).exp()
    expected = -sum(math.log(scores[b, b] / scores[b].sum()) for b in range(5))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
