"""Dice, the activation unit and the Transformer over a history: against plain loops in float64, and at their edges."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from deeprec.nn.dice import Dice
from deeprec.nn.mlp import MLP
from deeprec.nn.target_attention import ActivationUnit, BehaviorTransformer, segment_softmax

LENGTHS = (3, 0, 1, 5)


def histories(dim=6, lengths=LENGTHS, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(len(lengths), dim, generator=g, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(sum(lengths), dim, generator=g, dtype=torch.float64, requires_grad=True)
    return query, keys, torch.tensor([0, *lengths]).cumsum(0)


def unit(dim=6, **options):
    made = ActivationUnit(dim, (5, 3), generator=torch.Generator().manual_seed(1), **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(2))
    return made


def dice_loop(x, alpha, mean, var, eps):
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for h in range(x.shape[1]):
            p = 1 / (1 + math.exp(-(float(x[b, h]) - float(mean[h])) / math.sqrt(float(var[h]) + eps)))
            out[b, h] = p * x[b, h] + (1 - p) * alpha[h] * x[b, h]
    return out


def unit_loop(layer, query, keys, offsets):
    """Entry by entry, the four parts side by side."""
    rows = []
    for b in range(len(query)):
        mine = keys[int(offsets[b]) : int(offsets[b + 1])]
        scores = []
        for key in mine:
            x = torch.cat([query[b], key, query[b] - key, query[b] * key])
            for hidden in layer.layers:
                x = torch.sigmoid(hidden.weight @ x + hidden.bias)
            scores.append((layer.output.weight @ x + layer.output.bias).squeeze())
        if not scores:
            rows.append(torch.zeros_like(query[b]))
            continue
        weights = torch.stack(scores)
        if layer.weights == "softmax":
            exponentials = (weights / math.sqrt(query.shape[1])).exp()
            weights = exponentials / exponentials.sum()
        rows.append(sum(w * key for w, key in zip(weights, mine, strict=True)))
    return torch.stack(rows)


def same_with_gradients(layer, got, expected, inputs):
    torch.testing.assert_close(got, expected)
    towards = torch.randn(got.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = [*inputs, *layer.parameters()]
    mine = torch.autograd.grad((got * towards).sum(), parameters, allow_unused=True)
    other = torch.autograd.grad((expected * towards).sum(), parameters, allow_unused=True)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


# -- Dice --------------------------------------------------------------------------------------------------------------


def test_dice_takes_the_statistics_of_the_batch_in_training():
    layer, x = Dice(3, momentum=0.25).double(), torch.randn(7, 3, dtype=torch.float64) * 2 + 1
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([0.5, -1.0, 0.0]))
    expected = dice_loop(x, layer.alpha.detach(), x.mean(0), x.var(0, unbiased=False), layer.eps)
    torch.testing.assert_close(layer(x).detach(), expected)
    torch.testing.assert_close(layer.running_mean, 0.25 * x.mean(0))
    torch.testing.assert_close(layer.running_var, 0.75 + 0.25 * x.var(0))
    layer.eval()
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    torch.testing.assert_close(layer(x).detach(), dice_loop(x, layer.alpha.detach(), mean, var, layer.eps))
    assert torch.equal(layer.running_mean, mean)


def test_dice_is_prelu_where_the_variance_vanishes_beside_the_distance():
    layer = Dice(1).double().eval()
    layer.running_var.fill_(1e-12)
    with torch.no_grad():
        layer.alpha.fill_(0.25)
    x = torch.tensor([[-4.0], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.tensor([[-1.0], [3.0]], dtype=torch.float64))


@pytest.mark.parametrize("training", [True, False])
def test_dice_gradients(training):
    layer = Dice(3).double().train(training)
    with torch.no_grad():
        layer.alpha.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert gradcheck(lambda x, alpha: torch.func.functional_call(layer, {"alpha": alpha}, (x,)), (x, layer.alpha))


@pytest.mark.parametrize("size", [0, 1])
def test_dice_of_one_row_or_none_takes_the_moving_averages(size):
    layer = Dice(2).train()
    x = torch.randn(size, 2)
    assert torch.equal(layer(x), copy.deepcopy(layer).eval()(x))
    assert torch.equal(layer.running_mean, torch.zeros(2))
    assert torch.isfinite(layer(x)).all()


def test_dice_refuses_other_widths_and_numbers():
    with pytest.raises(ValueError, match=r"x must be \[B, 3\], got \(2, 4\)"):
        Dice(3)(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="Dice"):
        Dice(3)(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_features must be >= 1"):
        Dice(0)


def test_an_mlp_of_dice_is_its_layers_in_turn():
    mlp = MLP(4, (5, 3), out_features=1, activation="dice", generator=torch.Generator().manual_seed(0)).double()
    twin, x = copy.deepcopy(mlp), torch.randn(9, 4, dtype=torch.float64)
    expected = x
    for layer, dice in zip(twin.layers, twin.dices, strict=True):
        expected = dice(layer(expected))
    torch.testing.assert_close(mlp(x), twin.output(expected))
    assert "dices.0.running_mean" in mlp.state_dict()


# -- the activation unit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["softmax", "raw"])
def test_activation_unit_equals_a_plain_loop(weights):
    layer, (query, keys, offsets) = unit(weights=weights), histories()
    got = layer(query, keys, offsets)
    assert not got[1].any(), "an empty history is zeros"
    same_with_gradients(layer, got, unit_loop(layer, query, keys, offsets), (query, keys))


@pytest.mark.parametrize("weights", ["softmax", "raw"])
@pytest.mark.parametrize("lengths", [(), (0, 0), (1,), (0, 300), (1, 1, 1)])
def test_activation_unit_at_the_edges(weights, lengths):
    layer, (query, keys, offsets) = unit(weights=weights), histories(lengths=lengths)
    got = layer(query, keys, offsets)
    assert got.shape == query.shape
    assert torch.isfinite(got).all()
    if lengths:
        torch.testing.assert_close(got, unit_loop(layer, query, keys, offsets))
        got.sum().backward()
        assert torch.isfinite(keys.grad).all()


def test_softmax_of_large_scores_is_finite():
    scores = torch.tensor([1e4, -1e4, 5.0, -1e30], dtype=torch.float64)
    rows = torch.tensor([0, 0, 2, 3])
    expected = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(segment_softmax(scores, rows, 4), expected)


def test_dice_in_the_unit_sees_entries_that_are_there_alone():
    """Its mean is that of the nine entries, whatever the longest history is."""
    layer, (query, keys, offsets) = unit(activation="dice", weights="raw"), histories()
    layer.train()
    layer(query, keys, offsets)
    rows = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    q = query[rows]
    x = F.linear(torch.cat([q, keys, q - keys, q * keys], 1), layer.layers[0].weight, layer.layers[0].bias)
    torch.testing.assert_close(layer.dices[0].running_mean, 0.1 * x.mean(0).detach())


def test_activation_unit_compiles_and_repeats():
    layer, (query, keys, offsets) = unit().eval(), histories()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(query, keys, offsets), layer(query, keys, offsets))
    assert torch.equal(layer(query, keys, offsets), layer(query, keys, offsets))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ActivationUnit(4, ()), "dim and hidden must be >= 1"),
        (lambda: ActivationUnit(4, activation="dise"), "activation must be one of"),
        (lambda: ActivationUnit(4, weights="soft"), "weights must be one of softmax, raw"),
        (lambda: ActivationUnit(4)(torch.zeros(2, 4), torch.zeros(3, 5), torch.tensor([0, 1, 3])), "query must be"),
        (lambda: ActivationUnit(4)(torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([0, 3])), r"offsets must be \[3"),
        (lambda: BehaviorTransformer(5, 4, heads=2), "dim must be divisible by heads, got 5 and 2"),
        (lambda: BehaviorTransformer(4, 0), "must be >= 1"),
        (lambda: BehaviorTransformer(4, 4, dropout=1.0), "dropout must lie in"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- the Transformer ---------------------------------------------------------------------------------------------------


def transformer(length, *, blocks=1, heads=2):
    made = BehaviorTransformer(6, length, heads=heads, blocks=blocks).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


def norm_loop(x, norm):
    centred = x - x.mean()
    return centred / ((centred**2).mean() + norm.eps).sqrt() * norm.weight + norm.bias


def block_loop(block, x):
    """Place by place and head by head; x [P, E] holds what is there alone."""
    dim, width = x.shape[1], x.shape[1] // block.heads
    q, k, v = (x @ block.qkv.weight.T + block.qkv.bias).split(dim, 1)
    out = []
    for place in range(len(x)):
        mixed = []
        for head in range(block.heads):
            mine = slice(head * width, (head + 1) * width)
            scores = torch.stack([q[place, mine] @ other[mine] for other in k]) / math.sqrt(width)
            weights = scores.exp() / scores.exp().sum()
            mixed.append(sum(w * other[mine] for w, other in zip(weights, v, strict=True)))
        s = norm_loop(x[place] + block.merged.weight @ torch.cat(mixed) + block.merged.bias, block.norms[0])
        hidden = block.inner.weight @ s + block.inner.bias
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
        out.append(norm_loop(s + block.outer.weight @ hidden + block.outer.bias, block.norms[1]))
    return torch.stack(out)


def transformer_loop(layer, query, keys, offsets):
    rows = []
    for b in range(len(query)):
        mine = keys[int(offsets[b]) : int(offsets[b + 1])]
        last = mine[max(0, len(mine) - layer.length) :].flip(0)  # the latest first
        x = torch.cat([query[b : b + 1], last]) + layer.places[: len(last) + 1]
        for block in layer.blocks:
            x = block_loop(block, x)
        rows.append(x[0])
    return torch.stack(rows)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("length", [2, 5, 9])
def test_transformer_equals_a_plain_loop(blocks, length):
    layer, (query, keys, offsets) = transformer(length, blocks=blocks), histories()
    got = layer(query, keys, offsets)
    expected = transformer_loop(layer, query, keys, offsets)
    torch.testing.assert_close(got, expected)
    towards = torch.randn(got.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = [query, keys, *layer.parameters()]
    mine = torch.autograd.grad((got * towards).sum(), inputs)
    other = torch.autograd.grad((expected * towards).sum(), inputs)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("lengths", [(), (0, 0), (1,), (0, 300)])
def test_transformer_at_the_edges(lengths):
    layer, (query, keys, offsets) = transformer(4), histories(lengths=lengths)
    got = layer(query, keys, offsets)
    assert got.shape == query.shape
    assert torch.isfinite(got).all()
    if lengths:
        torch.testing.assert_close(got, transformer_loop(layer, query, keys, offsets))


def test_transformer_compiles_without_reading_lengths():
    layer, (query, keys, offsets) = transformer(4).eval(), histories()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(query, keys, offsets), layer(query, keys, offsets))
