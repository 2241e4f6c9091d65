"""The multi-layer perceptron of the click models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.nn.dice import Dice
from deeprec.nn.dropout import Dropout
from deeprec.nn.layer import check_floating, layer_forward

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky-relu": F.leaky_relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
MLP_ACTIVATIONS = (*ACTIVATIONS, "dice")
_PRECISIONS = ("float32", "bfloat16")
_OUTPUT_STD = 0.01


def check_precision(owner: str, precision: str) -> None:
    """Raise ValueError unless it is "float32" or "bfloat16"."""
    if precision not in _PRECISIONS:
        raise ValueError(f"{owner}: precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")


def product_dtype(precision: str, dtype: torch.dtype) -> torch.dtype:
    """In what the matrix products of numbers in `dtype` are taken: only float32 is narrowed."""
    return torch.bfloat16 if precision == "bfloat16" and dtype == torch.float32 else dtype


class BatchNorm(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` that takes a batch of one row or none, by the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, H], dtype of the parameters or, with float32 ones, bfloat16; so is the result. Statistics are float32."""
        if self.training and input.shape[0] < 2:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class MLP(nn.Module):
    """a_{l+1} = dropout(f(batch_norm(W_l a_l + b_l))), and a linear output on request.

    Parameters: `layers.L.weight` [H_l, H_{l-1}], `layers.L.bias` [H_l], with batch_norm `norms.L.*`, with "dice"
    `dices.L.*`, and `output.*`. At first W is Kaiming uniform for relu, leaky-relu, gelu and dice, Xavier uniform
    otherwise; the output N(0, 0.01^2), so that a logit begins near 0 with batch normalisation too; biases 0.

    With precision "bfloat16" the matrix products take bfloat16 copies of float32 parameters and the hidden layers stay
    in bfloat16; sums in the products, the statistics of a batch, the output layer and the result are float32 (by hand:
    a step of 624-400-400-400 with 4096 rows takes 41.7 ms on two cores, with torch.autocast 44.3, in float32 84.8).
    It holds for float32 parameters; others are computed in their own dtype.

    A row alone and the same row in a batch may differ in the last bits (about 5e-7 in float32): torch adds up products
    of other shapes in another order. Batches of one size give the same bits.

    Args:
        in_features: width of the input, >= 1.
        hidden: widths of the hidden layers, each >= 1; () has none.
        out_features: width of the linear output; None: the last hidden layer is the result.
        activation: f, of MLP_ACTIVATIONS: a key of ACTIVATIONS, or "dice", a `Dice` with parameters of its own.
        dropout: share of a hidden layer's outputs to drop, in [0, 1).
        batch_norm: normalise before the activation. A batch of one row takes the running statistics.
        precision: "float32" or "bfloat16".
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: Guo et al. 2017 (arXiv 1703.04247), eq. 4; Cheng et al. 2016 (arXiv 1606.07792), eq. 2; He et al. 2015
        (arXiv 1502.01852) and Glorot, Bengio 2010 for the initial weights; Ioffe, Szegedy 2015 (arXiv 1502.03167).
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        out_features: int | None = None,
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        precision: str = "float32",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        widths = (in_features, *hidden, *(() if out_features is None else (out_features,)))
        if min(widths) < 1:
            raise ValueError(f"MLP: in_features, hidden and out_features must be >= 1, got {widths}")
        if activation not in MLP_ACTIVATIONS:
            raise ValueError(f"MLP: activation must be one of {', '.join(MLP_ACTIVATIONS)}, got {activation!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"MLP: dropout must lie in [0, 1), got {dropout}; it is the share that is dropped")
        check_precision("MLP", precision)
        self.in_features = in_features
        self.out_features = widths[-1]
        self.activation = activation
        self.precision = precision
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip((in_features, *hidden), hidden, strict=False))
        self.norms = nn.ModuleList(BatchNorm(width) for width in hidden) if batch_norm else None
        self.dices = nn.ModuleList(Dice(width) for width in hidden) if activation == "dice" else None
        self.dropout = Dropout(dropout)
        self.output = None if out_features is None else nn.Linear((in_features, *hidden)[-1], out_features)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The initial weights that the class names; batch normalisation starts as the identity."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            if self.activation in ("relu", "leaky-relu", "gelu", "dice"):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            else:
                nn.init.xavier_uniform_(layer.weight, generator=generator)
            layer.bias.zero_()
        for norm in self.norms or ():
            assert isinstance(norm, BatchNorm)
            norm.reset_parameters()
        for dice in self.dices or ():
            assert isinstance(dice, Dice)
            dice.reset_parameters()
        if self.output is not None:
            self.output.weight.normal_(0.0, _OUTPUT_STD, generator=generator)
            self.output.bias.zero_()

    @layer_forward
    def forward(self, x: Tensor) -> Tensor:
        """The network.

        Args:
            x: [B, in_features], dtype of the parameters.
        Returns:
            [B, out_features], or [B, last of hidden]; dtype of the parameters.
        Raises:
            TypeError: x is not of a floating-point dtype.
            ValueError: x is not of that width.
        """
        if not x.dim() or x.shape[-1] != self.in_features:
            raise ValueError(f"MLP: x must be [B, {self.in_features}], got {tuple(x.shape)}")
        check_floating("MLP", x)
        dtype = x.dtype
        narrow = product_dtype(self.precision, dtype)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            # Casting to the dtype there is costs nothing.
            x = F.linear(x.to(narrow), layer.weight.to(narrow), layer.bias.to(narrow))
            if self.norms is not None:
                x = self.norms[number](x)
            x = self.dropout(ACTIVATIONS[self.activation](x) if self.dices is None else self.dices[number](x))
        x = x.to(dtype)
        if self.output is None:
            return x
        out: Tensor = self.output(x)
        return out

    def extra_repr(self) -> str:
        """What its layers do not say."""
        return f"activation={self.activation}, precision={self.precision}"
