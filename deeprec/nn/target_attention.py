"""Attention of a candidate over a history: DIN's activation unit, and a Transformer over both.

Both take a query a row, [B, E], and ragged keys, [nnz, E] with offsets [B + 1], and give [B, E]. An empty history costs
nothing and is no special case for the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.kernels.sums import sum_rows, take
from deeprec.nn.dice import Dice
from deeprec.nn.dropout import Dropout
from deeprec.nn.layer import layer_forward
from deeprec.nn.mlp import ACTIVATIONS

WEIGHTS = ("softmax", "raw")
UNIT_ACTIVATIONS = (*ACTIVATIONS, "dice")


def rows_of(offsets: Tensor, nnz: int) -> Tensor:
    """The row of each entry, [nnz], int64, of offsets [B + 1]; without a wait for the device."""
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff().long(), output_size=nnz)


def segment_softmax(scores: Tensor, rows: Tensor, count: int) -> Tensor:
    """Softmax of scores [nnz] within each row, rows [nnz] in [0, count), int64; the same bit for bit in every run."""
    # The largest of a row shifts its scores and cancels out, so that no gradient goes through it.
    peak = scores.detach().new_full((count,), -torch.inf)
    peak = peak.scatter_reduce(0, rows, scores.detach(), "amax", include_self=True)
    exponentials = (scores - peak[rows]).exp()
    totals = sum_rows(exponentials.unsqueeze(1), rows, count)
    return exponentials / take(totals, 0, rows).squeeze(1)


def _check(owner: str, query: Tensor, keys: Tensor, offsets: Tensor, width: int) -> None:
    if query.dim() != 2 or query.shape[1] != width or keys.dim() != 2 or keys.shape[1] != width:
        raise ValueError(
            f"{owner}: query must be [B, {width}] and keys [nnz, {width}], got {tuple(query.shape)} and "
            f"{tuple(keys.shape)}"
        )
    if offsets.dim() != 1 or offsets.shape[0] != query.shape[0] + 1:
        raise ValueError(f"{owner}: offsets must be [{query.shape[0] + 1}], got {tuple(offsets.shape)}")


class ActivationUnit(nn.Module):
    """u_b = sum_j w(k_j, q_b) k_j over the history of row b, the weight given by a network.

        a(k, q) = v . f(W_2 f(W_1 [q, k, q - k, q * k] + b_1) + b_2) + c

    with `weights` "raw" w = a, as the paper has it: their sum carries how much the user cares. "softmax":
    w = softmax_j(a / sqrt(E)), as the authors' code has it. An empty history gives zeros with both.

    Only entries that are there are looked at, so that padding neither costs nor counts. Of W_1 the part that multiplies
    q alone is applied once a row, not once an entry.

    Parameters: `layers.L.weight`, `layers.L.bias`, `output.*`, with "dice" `dices.L.*`. At first W is Xavier uniform
    and biases are 0.

    Args:
        dim: E, >= 1.
        hidden: widths of the hidden layers, each >= 1, at least one.
        activation: f, a key of `deeprec.nn.mlp.ACTIVATIONS`, or "dice".
        weights: "softmax" or "raw".
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: Zhou et al. 2018, Deep Interest Network (arXiv 1706.06978), eq. 1 and figure 2; the input [q, k, q - k,
        q * k], the widths 80 and 40 and the sigmoid are those of github.com/zhougr1993/DeepInterestNetwork.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (80, 40),
        *,
        activation: str = "sigmoid",
        weights: str = "softmax",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not hidden or min(dim, *hidden) < 1:
            raise ValueError(f"ActivationUnit: dim and hidden must be >= 1, got {dim} and {tuple(hidden)}")
        if activation not in UNIT_ACTIVATIONS:
            raise ValueError(
                f"ActivationUnit: activation must be one of {', '.join(UNIT_ACTIVATIONS)}, got {activation!r}"
            )
        if weights not in WEIGHTS:
            raise ValueError(f"ActivationUnit: weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        self.dim, self.activation, self.weights = dim, activation, weights
        widths = (4 * dim, *hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False))
        self.dices = nn.ModuleList(Dice(width) for width in hidden) if activation == "dice" else None
        self.output = nn.Linear(hidden[-1], 1)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The initial weights that the class names."""
        for layer in (*self.layers, self.output):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        for dice in self.dices or ():
            dice.reset_parameters()  # type: ignore[operator]

    @layer_forward
    def forward(self, query: Tensor, keys: Tensor, offsets: Tensor) -> Tensor:
        """The history as the candidate sees it.

        Args:
            query: [B, E], dtype of the parameters; keys: [nnz, E], the entries of all rows, row after row.
            offsets: [B + 1], int32 or int64, ascending from 0 to nnz.
        Returns:
            [B, E].
        Raises:
            ValueError: shapes that do not fit.
        """
        _check("ActivationUnit", query, keys, offsets, self.dim)
        rows = rows_of(offsets, keys.shape[0])
        weights = self.scores(query, keys, rows)
        if self.weights == "softmax":
            weights = segment_softmax(weights * self.dim**-0.5, rows, query.shape[0])
        return sum_rows(weights.unsqueeze(1) * keys, rows, query.shape[0])

    def scores(self, query: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """a(k, q) of each entry, [nnz]; rows [nnz] are their rows, int64."""
        first = self.layers[0]
        of_query, of_key, of_difference, of_product = first.weight.split(self.dim, 1)  # type: ignore[operator]
        x = F.linear(query, of_query + of_difference, first.bias)  # type: ignore[arg-type]
        x = take(x, 0, rows) + F.linear(keys, of_key - of_difference)
        x = x + F.linear(take(query, 0, rows) * keys, of_product)
        x = self._activated(x, 0)
        for number in range(1, len(self.layers)):
            x = self._activated(self.layers[number](x), number)
        scores: Tensor = self.output(x)
        return scores.squeeze(1)

    def _activated(self, x: Tensor, number: int) -> Tensor:
        if self.dices is None:
            return ACTIVATIONS[self.activation](x)
        activated: Tensor = self.dices[number](x)
        return activated

    def extra_repr(self) -> str:
        """What its layers do not say."""
        return f"dim={self.dim}, activation={self.activation}, weights={self.weights}"


class _Block(nn.Module):
    """x + attention, then x + FFN, each followed by layer norm; the queries may be some of the places only."""

    def __init__(self, dim: int, heads: int, dropout: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.merged = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.inner, self.outer = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.dropout = Dropout(dropout)
        for layer in (self.qkv, self.merged, self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, mask: Tensor, queries: int) -> Tensor:
        """[B, queries, E], of the first so many places of x [B, P, E]; mask [B, 1, 1, P] is true where one is there."""
        dim = x.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        mine = x[:, :queries]
        q = F.linear(mine, weight[:dim], bias[:dim])
        k, v = F.linear(x, weight[dim:], bias[dim:]).split(dim, 2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        mine = self.norms[0](mine + self.dropout(self.merged(mixed)))
        hidden = F.leaky_relu(self.inner(mine))
        out: Tensor = self.norms[1](mine + self.dropout(self.outer(hidden)))
        return out


class BehaviorTransformer(nn.Module):
    """Transformer blocks over the candidate and its history, each with the vector of its place; gives the candidate's.

    A block is S = LN(x + dropout(attention(x))), LN(S + dropout(FFN(S))), FFN with a leaky ReLU in between, every place
    attending to every place that is there. The last block is computed for the candidate alone.

    Place 0 is the candidate, place 1 the latest entry. On the CPU rows are padded to the longest history of the batch;
    elsewhere, where to read that would wait for the device, to `length`.

    Parameters: `places` P [length + 1, E], which start as N(0, 0.01^2), and `blocks.N.*`: weights Xavier uniform,
    biases 0.

    Args:
        dim: E, >= 1, divisible by heads.
        length: most entries of a history that are looked at, its last ones, >= 1.
        heads, blocks: >= 1.
        dropout: share dropped, in [0, 1).
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: Chen et al. 2019, Behavior Sequence Transformer (arXiv 1905.06874), eq. 2 to 6. Deviations: places are
        counted in entries, not in time; the network above takes the candidate's output, not that of every place.
    """

    def __init__(
        self,
        dim: int,
        length: int,
        *,
        heads: int = 2,
        blocks: int = 1,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(dim, length, heads, blocks) < 1:
            raise ValueError(
                f"BehaviorTransformer: dim, length, heads and blocks must be >= 1, got {dim}, {length}, {heads} and "
                f"{blocks}"
            )
        if dim % heads:
            raise ValueError(f"BehaviorTransformer: dim must be divisible by heads, got {dim} and {heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"BehaviorTransformer: dropout must lie in [0, 1), got {dropout}")
        self.dim, self.length = dim, length
        self.places = nn.Parameter(torch.empty(length + 1, dim).normal_(0.0, 0.01, generator=generator))
        self.blocks = nn.ModuleList(_Block(dim, heads, dropout, generator) for _ in range(blocks))

    @layer_forward
    def forward(self, query: Tensor, keys: Tensor, offsets: Tensor) -> Tensor:
        """The candidate's output.

        Args:
            query, keys, offsets: as of `ActivationUnit.forward`.
        Returns:
            [B, E].
        Raises:
            ValueError: shapes that do not fit.
        """
        _check("BehaviorTransformer", query, keys, offsets, self.dim)
        lengths = offsets.diff().long()
        longest = self.length
        if offsets.device.type == "cpu" and not torch.compiler.is_compiling() and len(lengths):
            longest = min(longest, int(lengths.max()))
        batch, places = query.shape[0], longest + 1
        rows = rows_of(offsets, keys.shape[0])
        ago = take(offsets[1:].long(), 0, rows) - torch.arange(keys.shape[0], device=keys.device)  # 1: the latest
        # Each entry has a place of its own, but for those that are too old, which share one that is cut off.
        slots = torch.where(ago <= longest, rows * places + ago, batch * places)
        heads = torch.arange(batch, device=keys.device) * places
        flat = keys.new_zeros(batch * places + 1, self.dim)
        flat = flat.index_copy(0, torch.cat([heads, slots]), torch.cat([query, keys]))
        x = flat[:-1].view(batch, places, self.dim) + self.places[:places]
        mask = (torch.arange(places, device=keys.device) <= lengths.unsqueeze(1))[:, None, None]
        for number, block in enumerate(self.blocks):
            x = block(x, mask, 1 if number == len(self.blocks) - 1 else places)
        return x[:, 0]

    def extra_repr(self) -> str:
        """What its layers do not say."""
        return f"dim={self.dim}, length={self.length}"
