"""Convolutions over the vectors of the last items of a sequence: patterns of several items, and of single factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.kernels.sums import take
from deeprec.nn.layer import check_floating, layer_forward
from deeprec.nn.mlp import ACTIVATIONS

# The largest of values is that of the activated values where the activation does not fall.
_ACTIVATIONS = ("relu", "identity", "sigmoid", "tanh")
_MAX_LENGTH = 32  # the matrix of all filters at all places grows with L^3: 54 MB with 16 filters of D 50


class SequenceConvolution(nn.Module):
    """Horizontal filters of every height 1..L with the maximum over time, and vertical filters.

        o[h, k] = f(max over i of  sum_{j < h} x[i + j] . F[h, k, j] + b[h, k]),   i = 0 .. L - h
        u[m, d] = sum_{l < L} V[m, l] x[l, d] + c[m]

    All heights at all places are one matrix product: the filters stand in a matrix [L D, L (L + 1) / 2 n_h], zero where
    a filter is not. That is twice the arithmetic of one convolution a height, and with L 5, D 50 and 16 filters a
    quarter of its time (forward and backward of 512 rows).

    Parameters: `horizontal` [L (L + 1) / 2, D, n_h], of which row h (h - 1) / 2 + j is row j of the filters of height
    h; `horizontal_bias` [L, n_h]; `vertical` [n_v, L]; `vertical_bias` [n_v]. At first uniform in +-1 / sqrt(fan_in),
    as `torch.nn.Conv2d` is: fan_in is h D for height h, and L for the vertical ones.

    Args:
        length: L, in [1, 32].
        dim: D, >= 1.
        horizontal_filters: n_h, filters of each height, >= 0.
        vertical_filters: n_v, >= 0; one of the two at least 1.
        activation: f, "relu", "identity", "sigmoid" or "tanh"; the vertical filters have none.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: Tang and Wang 2018 (WSDM), "Personalized Top-N Sequential Recommendation via Convolutional Sequence
        Embedding", section 3.2.
    """

    def __init__(
        self,
        length: int,
        dim: int,
        *,
        horizontal_filters: int = 16,
        vertical_filters: int = 4,
        activation: str = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= length <= _MAX_LENGTH or dim < 1:
            raise ValueError(
                f"SequenceConvolution: length must lie in [1, {_MAX_LENGTH}] and dim be >= 1, got {length} and {dim}"
            )
        if min(horizontal_filters, vertical_filters) < 0 or horizontal_filters + vertical_filters < 1:
            raise ValueError(
                "SequenceConvolution: horizontal_filters and vertical_filters must be >= 0 and one of them >= 1, got "
                f"{horizontal_filters} and {vertical_filters}"
            )
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"SequenceConvolution: activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}"
            )
        self.length, self.dim, self.activation = length, dim, activation
        self.horizontal_filters, self.vertical_filters = horizontal_filters, vertical_filters
        if horizontal_filters:
            self.horizontal = nn.Parameter(torch.empty(length * (length + 1) // 2, dim, horizontal_filters))
            self.horizontal_bias = nn.Parameter(torch.empty(length, horizontal_filters))
            self.register_buffer("_rows", torch.tensor(_rows_of_places(length)), persistent=False)
            self._rows: Tensor
        if vertical_filters:
            self.vertical = nn.Parameter(torch.empty(vertical_filters, length))
            self.vertical_bias = nn.Parameter(torch.empty(vertical_filters))
        self.reset_parameters(generator)

    @property
    def out_features(self) -> int:
        """L n_h + D n_v."""
        return self.length * self.horizontal_filters + self.dim * self.vertical_filters

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The initial weights that the class names."""
        if self.horizontal_filters:
            for height in range(1, self.length + 1):
                bound, start = (height * self.dim) ** -0.5, height * (height - 1) // 2
                self.horizontal[start : start + height].uniform_(-bound, bound, generator=generator)
                self.horizontal_bias[height - 1].uniform_(-bound, bound, generator=generator)
        if self.vertical_filters:
            bound = self.length**-0.5
            self.vertical.uniform_(-bound, bound, generator=generator)
            self.vertical_bias.uniform_(-bound, bound, generator=generator)

    @layer_forward
    def forward(self, x: Tensor) -> Tensor:
        """What the filters give.

        Args:
            x: [B, L, D], dtype of the parameters: the vectors of the last L items, the latest at the end; where there
                are fewer, zeros come first.
        Returns:
            [B, L n_h + D n_v]: o height by height, then u with the filters of factor 0, of factor 1 and so on.
        Raises:
            ValueError: x is not of that shape. TypeError: it is not of a floating-point dtype.
        """
        if x.dim() != 3 or tuple(x.shape[1:]) != (self.length, self.dim):
            raise ValueError(f"SequenceConvolution: x must be [B, {self.length}, {self.dim}], got {tuple(x.shape)}")
        check_floating("SequenceConvolution", x)
        parts = []
        if self.horizontal_filters:
            parts.append(self._over_time(x))
        if self.vertical_filters:
            parts.append(F.linear(x.transpose(1, 2), self.vertical, self.vertical_bias).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _over_time(self, x: Tensor) -> Tensor:
        """o, [B, L n_h]."""
        length, filters = self.length, self.horizontal_filters
        nothing = self.horizontal.new_zeros(1, self.dim, filters)
        placed = take(torch.cat([self.horizontal, nothing]), 0, self._rows).view(length, -1, self.dim, filters)
        matrix = placed.transpose(1, 2).reshape(length * self.dim, -1)
        values = x.reshape(x.shape[0], length * self.dim) @ matrix
        values = values.view(x.shape[0], length * (length + 1) // 2, filters)  # [B, places, n_h]
        places = values.split([length - height for height in range(length)], 1)
        largest = torch.cat([of_height.amax(1) for of_height in places], 1)
        return ACTIVATIONS[self.activation](largest + self.horizontal_bias.flatten())

    def extra_repr(self) -> str:
        """What its parameters do not say."""
        return (
            f"length={self.length}, dim={self.dim}, horizontal_filters={self.horizontal_filters}, "
            f"vertical_filters={self.vertical_filters}, activation={self.activation}"
        )


def _rows_of_places(length: int) -> list[int]:
    """The row of `horizontal` that meets input row l in each place: l by l, [L * L (L + 1) / 2].

    Places are those of height 1 (L of them), of height 2 (L - 1) and so on; a filter of height h in its place i meets
    row l with its own row l - i, or with nothing: row L (L + 1) / 2, behind all.
    """
    places = [(height, start) for height in range(1, length + 1) for start in range(length - height + 1)]
    nothing = length * (length + 1) // 2
    return [
        height * (height - 1) // 2 + row - start if 0 <= row - start < height else nothing
        for row in range(length)
        for height, start in places
    ]
