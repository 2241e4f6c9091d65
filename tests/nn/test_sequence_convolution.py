"""Claims about convolutions over a sequence: they are those of plain loops, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from deeprec.nn import SequenceConvolution
from deeprec.nn.mlp import ACTIVATIONS


def make(length: int, dim: int, seed: int = 0, **options: object) -> SequenceConvolution:
    generator = torch.Generator().manual_seed(seed)
    return SequenceConvolution(length, dim, generator=generator, **options).double()  # type: ignore[arg-type]


def by_loops(layer: SequenceConvolution, x: torch.Tensor) -> torch.Tensor:
    """A filter, a place and a factor at a time."""
    rows = []
    for window in x:
        out = []
        for height in range(1, layer.length + 1):
            for k in range(layer.horizontal_filters):
                values = []
                for start in range(layer.length - height + 1):
                    value = layer.horizontal_bias[height - 1, k]
                    for j in range(height):
                        row = layer.horizontal[height * (height - 1) // 2 + j, :, k]
                        value = value + (row * window[start + j]).sum()
                    values.append(ACTIVATIONS[layer.activation](value))
                out.append(torch.stack(values).max())
        if layer.vertical_filters:
            filters = list(zip(layer.vertical, layer.vertical_bias, strict=True))
            out += [bias + (weights * window[:, d]).sum() for d in range(layer.dim) for weights, bias in filters]
        rows.append(torch.stack(out))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("length", "dim", "options"),
    [
        (1, 1, {"horizontal_filters": 1, "vertical_filters": 1}),
        (3, 5, {"horizontal_filters": 2, "vertical_filters": 3, "activation": "tanh"}),
        (4, 3, {"horizontal_filters": 3, "vertical_filters": 0}),
        (5, 7, {"horizontal_filters": 0, "vertical_filters": 2, "activation": "sigmoid"}),
        (7, 2, {"horizontal_filters": 1, "vertical_filters": 1, "activation": "identity"}),
    ],
)
def test_forward_and_gradients_are_those_of_plain_loops(length, dim, options) -> None:
    layer = make(length, dim, **options)
    x = torch.randn(4, length, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[0, : length // 2] = 0  # a short history
    x.requires_grad_()
    weights = torch.randn(4, layer.out_features, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    leaves = [x, *layer.parameters()]
    expected = by_loops(layer, x)
    torch.testing.assert_close(layer(x), expected)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    ours = torch.autograd.grad((layer(x) * weights).sum(), leaves)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_filters_are_those_of_conv2d_and_max_pool() -> None:
    layer = make(5, 6, horizontal_filters=4, vertical_filters=0)
    x = torch.randn(8, 5, 6, dtype=torch.float64)
    out = []
    for height in range(1, 6):
        filters = (
            layer.horizontal[height * (height - 1) // 2 :][:height].permute(2, 0, 1).unsqueeze(1)
        )  # [n_h, 1, h, D]
        values = F.relu(F.conv2d(x.unsqueeze(1), filters, layer.horizontal_bias[height - 1]).squeeze(3))
        out.append(F.max_pool1d(values, values.shape[2]).squeeze(2))
    torch.testing.assert_close(layer(x), torch.cat(out, 1))


def test_a_window_without_items_gives_the_biases() -> None:
    layer = make(4, 3, horizontal_filters=2, vertical_filters=2, activation="identity")
    expected = torch.cat([layer.horizontal_bias.flatten(), layer.vertical_bias.repeat(3)])
    torch.testing.assert_close(layer(torch.zeros(1, 4, 3, dtype=torch.float64))[0], expected)


def test_no_rows_give_no_rows() -> None:
    layer = make(4, 3)
    x = torch.zeros(0, 4, 3, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    assert out.shape == (0, layer.out_features)
    out.sum().backward()
    assert layer.horizontal.grad is not None
    assert not layer.horizontal.grad.any()


def test_same_generator_same_weights_within_the_bounds() -> None:
    first, second = make(5, 8, seed=3), make(5, 8, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    for height in range(1, 6):
        rows = first.horizontal[height * (height - 1) // 2 :][:height]
        assert 0.8 * (8 * height) ** -0.5 < rows.abs().max() <= (8 * height) ** -0.5


def test_it_compiles_to_one_graph() -> None:
    layer = make(3, 4, horizontal_filters=2, vertical_filters=1)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 4), {}, r"length must lie in \[1, 32\]"),
        ((33, 4), {}, "got 33 and 4"),
        ((5, 0), {}, "got 5 and 0"),
        ((5, 4), {"horizontal_filters": 0, "vertical_filters": 0}, "one of them >= 1, got 0 and 0"),
        ((5, 4), {"vertical_filters": -1}, "got 16 and -1"),
        ((5, 4), {"activation": "gelu"}, "must be one of relu, identity, sigmoid, tanh, got 'gelu'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceConvolution(*arguments, **options)


def test_inputs_of_another_shape_or_dtype_are_refused() -> None:
    layer = SequenceConvolution(3, 4)
    with pytest.raises(ValueError, match=r"x must be \[B, 3, 4\], got \(2, 4, 3\)"):
        layer(torch.zeros(2, 4, 3))
    with pytest.raises(TypeError, match="floating-point"):
        layer(torch.zeros(2, 3, 4, dtype=torch.int64))
