"""Claims about attention over pairs of fields."""

from __future__ import annotations

import pytest
import torch

from deeprec.nn import PairAttention, attention


def plain(layer: PairAttention, x: torch.Tensor) -> torch.Tensor:
    pairs = [x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i + 1, x.shape[1])]
    scores = torch.stack([(pair @ layer.weight.T + layer.bias).clamp(min=0) @ layer.h for pair in pairs], 1)
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    return sum(weights[:, [p]] * pair for p, pair in enumerate(pairs))


@pytest.mark.parametrize("fields", [2, 3, 7])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 18])
def test_matches_the_pairs_one_by_one(fields, chunk, monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK", chunk)
    torch.manual_seed(0)
    layer = PairAttention(4, 6).double()
    x = torch.randn(11, fields, 4, dtype=torch.float64, requires_grad=True)
    found, expected = layer(x), plain(layer, x)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(11, 4, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_equal_attention_gives_the_mean_of_the_pairs():
    layer = PairAttention(3, 2)
    with torch.no_grad():
        layer.h.zero_()
    x = torch.randn(5, 4, 3)
    mean = sum(x[:, i] * x[:, j] for i in range(4) for j in range(i)) / 6
    torch.testing.assert_close(layer(x), mean)


def test_empty_batch_and_frozen_layer():
    layer = PairAttention(3, 2).requires_grad_(False)
    assert layer(torch.ones(0, 4, 3)).shape == (0, 3)
    x = torch.randn(5, 4, 3, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.any()


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    layer, x = PairAttention(3, 2), torch.randn(5, 4, 3)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


@pytest.mark.parametrize("shape", [(5, 3), (5, 1, 3), (5, 4, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"PairAttention: x must be \[B, F, 3\] with F >= 2"):
        PairAttention(3, 2)(torch.ones(shape))


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="attention_factor"):
        PairAttention(3, 0)
