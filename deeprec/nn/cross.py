"""The cross network of DCN-V2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.nn.layer import check_floating, layer_forward
from deeprec.nn.mlp import check_precision, product_dtype


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l: after L layers, products of up to L + 1 elements of x_0.

    With `rank` r, W_l = U_l V_l^T. With K experts as well

        x_{l+1} = x_0 * (sum_i G_i(x_l) U_li g(C_li g(V_li^T x_l)) + b_l) + x_l,   G = softmax(gate_l x_l), g = tanh

    At first the matrices are Xavier uniform, each expert's own; b and the gates are 0 (all experts count alike).
    Deviations: none but the choices the paper leaves open: the gate is a softmax, g is tanh.

    Args:
        width: d of x_0, >= 1.
        num_layers: L, >= 1.
        rank: r in [1, width], or 0 for a full W.
        num_experts: K, >= 1; more than one need a rank.
        precision: of the matrix products, as in `MLP`; x itself stays float32.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: Wang et al. 2021, DCN V2 (arXiv 2008.13535), eq. 1; sections "Cost-Effective Mixture of Low-Rank DCN" for
        the low rank and the experts.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        *,
        rank: int = 0,
        num_experts: int = 1,
        precision: str = "float32",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or num_layers < 1 or num_experts < 1:
            raise ValueError(
                f"CrossNetwork: width, num_layers and num_experts must be >= 1, got {(width, num_layers, num_experts)}"
            )
        if not 0 <= rank <= width:
            raise ValueError(f"CrossNetwork: rank must lie in [0, {width}], the width, got {rank}; 0 is a full matrix")
        if num_experts > 1 and not rank:
            raise ValueError(f"CrossNetwork: {num_experts} experts need a rank >= 1, got 0")
        check_precision("CrossNetwork", precision)
        self.width, self.num_layers, self.rank, self.num_experts = width, num_layers, rank, num_experts
        self.precision = precision

        def made(*shape: int) -> nn.ParameterList:
            return nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in range(num_layers))

        inner = num_experts * rank
        self.weight = None if rank else made(width, width)
        self.u = made(width, inner) if rank else None
        self.v = made(inner, width) if rank else None
        self.c = made(num_experts, rank, rank) if num_experts > 1 else None
        self.gate = made(num_experts, width) if num_experts > 1 else None
        self.bias = made(width)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The initial weights that the class names."""
        experts, rank, width = self.num_experts, self.rank, self.width
        for layer in range(self.num_layers):
            self.bias[layer].zero_()
            if self.weight is not None:
                nn.init.xavier_uniform_(self.weight[layer], generator=generator)
            for factors in (self.u, self.v):
                if factors is not None:  # Xavier's bound for each expert's [width, rank]
                    bound = (6 / (width + rank)) ** 0.5
                    factors[layer].uniform_(-bound, bound, generator=generator)
            if self.c is not None and self.gate is not None:
                for expert in range(experts):
                    nn.init.xavier_uniform_(self.c[layer][expert], generator=generator)
                self.gate[layer].zero_()

    @layer_forward
    def forward(self, x: Tensor) -> Tensor:
        """x_L.

        Args:
            x: x_0, [B, width], dtype of the parameters.
        Returns:
            [B, width], dtype of x.
        Raises:
            TypeError: x is not of a floating-point dtype.
            ValueError: x is not of that width.
        """
        if not x.dim() or x.shape[-1] != self.width:
            raise ValueError(f"CrossNetwork: x must be [B, {self.width}], got {tuple(x.shape)}")
        check_floating("CrossNetwork", x)
        first = x
        for layer in range(self.num_layers):
            x = first * self._crossed(x, layer) + x
        return x

    def _crossed(self, x: Tensor, layer: int) -> Tensor:
        narrow = product_dtype(self.precision, x.dtype)
        bias = self.bias[layer]
        if self.weight is not None:
            return F.linear(x.to(narrow), self.weight[layer].to(narrow), bias.to(narrow)).to(x.dtype)
        assert self.u is not None
        assert self.v is not None
        hidden = F.linear(x.to(narrow), self.v[layer].to(narrow))
        if self.c is not None and self.gate is not None:
            hidden = torch.tanh(hidden).view(-1, self.num_experts, self.rank)
            hidden = torch.tanh(torch.einsum("bkr,kqr->bkq", hidden, self.c[layer].to(narrow)))
            gates = F.linear(x.to(narrow), self.gate[layer].to(narrow)).softmax(1)
            # The gates add up to 1, so that b, which each expert has in the paper, is added once.
            hidden = (hidden * gates.unsqueeze(2)).flatten(1)
        return F.linear(hidden, self.u[layer].to(narrow), bias.to(narrow)).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"{self.width}, num_layers={self.num_layers}, rank={self.rank}, num_experts={self.num_experts}, "
            f"precision={self.precision}"
        )
