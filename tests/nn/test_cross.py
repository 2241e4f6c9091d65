"""Claims about the cross network of DCN-V2."""

from __future__ import annotations

import pytest
import torch

from deeprec.nn import CrossNetwork

KINDS = [{}, {"rank": 3}, {"rank": 2, "num_experts": 3}]


def randomised(**options) -> CrossNetwork:
    net = CrossNetwork(5, 3, **options).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return net


def plain(net: CrossNetwork, first: torch.Tensor) -> torch.Tensor:
    """Equation by equation, expert by expert."""
    x = first
    for layer in range(net.num_layers):
        bias = net.bias[layer]
        if net.weight is not None:
            crossed = x @ net.weight[layer].T + bias
        elif net.num_experts == 1:
            crossed = x @ (net.u[layer] @ net.v[layer]).T + bias
        else:
            gates = (x @ net.gate[layer].T).exp()
            gates = gates / gates.sum(1, keepdim=True)
            crossed = torch.zeros_like(x)
            for expert in range(net.num_experts):
                mine = slice(expert * net.rank, (expert + 1) * net.rank)
                inner = torch.tanh(x @ net.v[layer][mine].T)
                inner = torch.tanh(inner @ net.c[layer][expert].T)
                crossed = crossed + gates[:, [expert]] * (inner @ net.u[layer][:, mine].T + bias)
        x = first * crossed + x
    return x


@pytest.mark.parametrize("options", KINDS)
def test_matches_the_equations(options):
    net = randomised(**options)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    found, expected = net(x), plain(net, x)
    torch.testing.assert_close(found, expected)
    inputs = [x, *net.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
        assert theirs.any()


def test_two_layers_give_products_of_three_inputs():
    net = CrossNetwork(2, 2).double()
    with torch.no_grad():
        for layer in range(2):
            net.weight[layer].copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
            net.bias[layer].zero_()
    x = torch.tensor([[3.0, 5.0]], dtype=torch.float64)
    # First layer: [3 * 5 + 3, 5]; second: [3 * 5 + 18, 5].
    assert net(x).tolist() == [[33.0, 5.0]]


@pytest.mark.parametrize("options", KINDS)
def test_bfloat16_products_stay_close(options):
    made = [
        CrossNetwork(24, 2, precision=p, generator=torch.Generator().manual_seed(0), **options)
        for p in ("float32", "bfloat16")
    ]
    x = torch.randn(50, 24)
    exact, narrow = made[0](x), made[1](x)
    assert narrow.dtype == torch.float32
    assert not torch.equal(exact, narrow)
    torch.testing.assert_close(narrow, exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("options", KINDS)
def test_empty_batch_generator_and_compile(options):
    torch._dynamo.reset()
    net, again = (CrossNetwork(6, 2, generator=torch.Generator().manual_seed(2), **options) for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert net(torch.ones(0, 6)).shape == (0, 6)
    x = torch.randn(4, 6)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width"),
        ({"num_layers": 0}, "num_layers"),
        ({"rank": 9}, r"rank must lie in \[0, 5\]"),
        ({"num_experts": 2}, "need a rank"),
        ({"precision": "half"}, "precision"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"CrossNetwork: .*{message}"):
        CrossNetwork(**{"width": 5, "num_layers": 1, **options})
