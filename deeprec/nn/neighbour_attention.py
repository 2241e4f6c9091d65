"""Attention over the items that a user met, ragged, and over the components of an item."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.kernels.sums import sum_rows, take
from deeprec.nn.layer import check_floating, layer_forward


class _Scores(nn.Module):
    """w . relu(W_u u + W_x x + b): what is softmaxed.

    The constant behind it, c in the paper, is the same for all that are compared: it changes nothing and is left out.
    """

    def __init__(self, user_dim: int, dim: int, attention_factor: int, generator: torch.Generator | None) -> None:
        super().__init__()
        owner = type(self).__name__
        if min(user_dim, dim, attention_factor) < 1:
            raise ValueError(
                f"{owner}: the widths of users and items and attention_factor must be >= 1, got {user_dim}, {dim} and "
                f"{attention_factor}"
            )
        self.user_dim, self.dim, self.attention_factor = user_dim, dim, attention_factor
        self.user_weight = nn.Parameter(torch.empty(attention_factor, user_dim))
        self.weight = nn.Parameter(torch.empty(attention_factor, dim))
        self.bias = nn.Parameter(torch.empty(attention_factor))
        self.w = nn.Parameter(torch.empty(attention_factor))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The initial weights that the class names."""
        for matrix in (self.user_weight, self.weight, self.w.unsqueeze(0)):
            bound = (6 / sum(matrix.shape)) ** 0.5
            matrix.uniform_(-bound, bound, generator=generator)
        self.bias.zero_()

    def extra_repr(self) -> str:
        """What its parameters do not say."""
        return f"user_dim={self.user_dim}, dim={self.dim}, attention_factor={self.attention_factor}"


class NeighbourAttention(_Scores):
    """Weighted sum of the items of each user, the weights learnt, without padding.

        a[p] = w . relu(W_u u[o_p] + W_x x[p] + b),  alpha = softmax of a over the entries p of an owner
        out[o] = sum over its entries of alpha[p] values[p]

    Parameters: `user_weight` W_u [A, D_u], `weight` W_x [A, D_x], `bias` [A], `w` [A]. At first Glorot uniform, b 0.

    Args:
        user_dim: D_u, dim: D_x, attention_factor: A, each >= 1.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: a size is below 1.
    Reference: Chen et al. 2017 (SIGIR), "Attentive Collaborative Filtering: Multimedia Recommendation with Item- and
        Component-Level Attention", eq. 6 and 7; x are v, p and what is known of an item side by side.
    """

    def __init__(
        self, user_dim: int, dim: int, attention_factor: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(user_dim, dim, attention_factor, generator)

    @layer_forward
    def forward(self, users: Tensor, x: Tensor, owners: Tensor, values: Tensor) -> Tensor:
        """The sums.

        Args:
            users: [B, D_u]; x: [n, D_x] and values: [n, D], of the entries; dtype of the parameters.
            owners: [n], int64, in [0, B): whose each entry is, in any order; one may have none.
        Returns:
            [B, D]; zeros for who has no entry.
        Raises:
            ValueError: shapes that do not fit. TypeError: x is not of a floating-point dtype.
        """
        count = owners.shape[0]
        fits = users.dim() == x.dim() == values.dim() == 2 and x.shape == (count, self.dim)
        if not fits or users.shape[1] != self.user_dim or values.shape[0] != count or owners.dim() != 1:
            raise ValueError(
                f"NeighbourAttention: users must be [B, {self.user_dim}], x [n, {self.dim}], owners [n] and values "
                f"[n, D], got {tuple(users.shape)}, {tuple(x.shape)}, {tuple(owners.shape)} and {tuple(values.shape)}"
            )
        check_floating("NeighbourAttention", x)
        of_users = take(users @ self.user_weight.T, 0, owners)
        scores = F.relu(of_users + F.linear(x, self.weight, self.bias)) @ self.w
        # Only so that no exponential overflows: it cancels, and has no gradient.
        with torch.no_grad():
            largest = scores.new_zeros(users.shape[0]).scatter_reduce(0, owners, scores, "amax", include_self=False)
        shares = (scores - largest[owners]).exp().unsqueeze(1)
        totals = take(sum_rows(shares, owners, users.shape[0]), 0, owners)
        return sum_rows(shares / totals * values, owners, users.shape[0])


class ComponentAttention(_Scores):
    """Weighted sum of the components of an item, such as the regions of a picture, as a user looks at it.

        b[m] = w . relu(W_u u + W_x x[m] + c),  out = sum over m of softmax(b)[m] x[m]

    Parameters and initial weights as those of `NeighbourAttention`.

    Args:
        user_dim: D_u, dim: C, width of a component, attention_factor: A, each >= 1.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: a size is below 1.
    Reference: Chen et al. 2017 (SIGIR), eq. 8 and 9.
    """

    def __init__(
        self, user_dim: int, dim: int, attention_factor: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(user_dim, dim, attention_factor, generator)

    @layer_forward
    def forward(self, users: Tensor, x: Tensor) -> Tensor:
        """The sums.

        Args:
            users: [n, D_u], who looks at each item; x: [n, M, C], the components; dtype of the parameters.
        Returns:
            [n, C].
        Raises:
            ValueError: shapes that do not fit. TypeError: x is not of a floating-point dtype.
        """
        if users.dim() != 2 or x.dim() != 3 or users.shape != (x.shape[0], self.user_dim) or x.shape[2] != self.dim:
            raise ValueError(
                f"ComponentAttention: users must be [n, {self.user_dim}] and x [n, M, {self.dim}], got "
                f"{tuple(users.shape)} and {tuple(x.shape)}"
            )
        check_floating("ComponentAttention", x)
        of_users = (users @ self.user_weight.T).unsqueeze(1)
        scores = F.relu(of_users + F.linear(x, self.weight, self.bias)) @ self.w
        return (scores.softmax(1).unsqueeze(2) * x).sum(1)
