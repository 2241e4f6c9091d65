"""Claims about the multi-layer perceptron."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeprec.nn import MLP
from deeprec.nn.mlp import ACTIVATIONS


def randomised(mlp: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return mlp


def plain(mlp: MLP, x: torch.Tensor, functions: dict[str, nn.Module]) -> torch.Tensor:
    """The layers one by one, from torch's own modules."""
    for number, layer in enumerate(mlp.layers):
        x = x @ layer.weight.T + layer.bias
        if mlp.norms is not None:
            norm = mlp.norms[number]
            x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        x = functions[mlp.activation](x)
    return x if mlp.output is None else x @ mlp.output.weight.T + mlp.output.bias


FUNCTIONS = {
    "relu": nn.ReLU(),
    "leaky-relu": nn.LeakyReLU(),
    "gelu": nn.GELU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "identity": nn.Identity(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("hidden", "out"), [((5, 7), 3), ((4,), None), ((), 2)])
def test_matches_the_layers_one_by_one(activation, batch_norm, hidden, out):
    mlp = MLP(6, hidden, out_features=out, activation=activation, batch_norm=batch_norm)
    mlp = randomised(mlp).double().eval()
    x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    found, expected = mlp(x), plain(mlp, x, FUNCTIONS)
    assert mlp.out_features == found.shape[1]
    torch.testing.assert_close(found, expected)
    inputs = [x, *mlp.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_batch_norm_and_dropout_in_training_are_torchs():
    mlp = randomised(MLP(6, (8,), batch_norm=True)).train()
    layer, norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
    layer.load_state_dict(mlp.layers[0].state_dict())
    norm.load_state_dict(mlp.norms[0].state_dict())
    x = torch.randn(20, 6)
    torch.testing.assert_close(mlp(x), torch.relu(norm(layer(x))))
    torch.testing.assert_close(mlp.norms[0].running_var, norm.running_var)


def test_bfloat16_error_is_that_of_rounded_products():
    """Not larger than of torch.autocast on the same layers, with a tolerance of half its error."""
    generator = torch.Generator().manual_seed(0)
    mlp = MLP(40, (64, 64), out_features=1, precision="bfloat16", generator=generator)
    x = torch.randn(256, 40, generator=generator)
    exact = plain(mlp.double(), x.double(), FUNCTIONS).float()
    mlp = mlp.float()
    narrow = mlp(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = plain(mlp, x, FUNCTIONS).float()
    error, allowed = (narrow - exact).abs().mean(), (cast - exact).abs().mean()
    assert narrow.dtype == torch.float32
    assert 0 < float(error.detach()) <= 1.5 * float(allowed.detach())


def test_bfloat16_keeps_float32_parameters_and_gradients():
    mlp = MLP(6, (8, 8), out_features=1, precision="bfloat16", batch_norm=True)
    mlp(torch.randn(32, 6)).sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in mlp.parameters())
    assert mlp.double()(torch.randn(4, 6, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("size", [0, 1])
def test_batch_norm_takes_small_batches_by_running_statistics(size):
    mlp = randomised(MLP(6, (8,), out_features=2, batch_norm=True)).train()
    before = mlp.norms[0].running_mean.clone()
    x = torch.randn(size, 6)
    found = mlp(x)
    torch.testing.assert_close(found, mlp.eval()(x))
    assert torch.equal(before, mlp.norms[0].running_mean)
    found.sum().backward()


def test_initial_weights_follow_the_generator_and_the_activation():
    relu, again, tanh = (
        MLP(300, (200,), out_features=1, activation=f, generator=torch.Generator().manual_seed(3))
        for f in ("relu", "relu", "tanh")
    )
    assert all(torch.equal(a, b) for a, b in zip(relu.parameters(), again.parameters(), strict=True))
    assert float(relu.layers[0].weight.detach().std()) == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert float(tanh.layers[0].weight.detach().std()) == pytest.approx((2 / 500) ** 0.5, rel=0.02)
    assert float(relu.output.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    assert not relu.layers[0].bias.any()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiles_without_a_graph_break(precision):
    torch._dynamo.reset()
    mlp = MLP(6, (8, 8), out_features=1, batch_norm=True, dropout=0.5, precision=precision).eval()
    x = torch.randn(5, 6)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(mlp, fullgraph=True, backend="aot_eager")(x), mlp(x))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("in_features", 0),
        ("hidden", (4, 0)),
        ("out_features", 0),
        ("activation", "swish"),
        ("dropout", 1.0),
        ("precision", "float16"),
    ],
)
def test_arguments_out_of_range_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"MLP: .*{argument}"):
        MLP(**{"in_features": 3, "hidden": (4,), argument: value})
