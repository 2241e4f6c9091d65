"""A Transformer over the item vectors of histories, causal or in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.device import to_device
from deeprec.kernels._autograd import differentiable, is_transformed
from deeprec.kernels.sums import take
from deeprec.nn.dropout import Dropout
from deeprec.nn.layer import check_floating, layer_forward

BLOCKS = ("sasrec", "pre-norm", "post-norm", "ligr")
POSITIONS = ("learned", "rotary", "none")
FEED_FORWARDS = ("relu", "gelu")

_EPS = 1e-8  # of layer norms, as in the code of SASRec's authors
_ROTARY_BASE = 10_000.0


class SequenceEncoder(nn.Module):
    """States of the places of histories: attention, then a network at each place, a few times over.

    Histories come at the left end of their rows. Causal attention then never meets what is behind them, so neither
    direction needs more than PyTorch's own attention: no mask of [l, l] numbers, and a row is the same whatever the
    rows beside it. Positions count from the end of each history, 0 its last item, as with windows padded on the left.

    Blocks, with A the attention over heads and a projection, G the network, N layer norms, dropout left out:

        sasrec      y = N(x) + A(queries N(x), keys and values x);  x = N(y) + G(N(y))
        pre-norm    y = x + A(N(x));                                x = y + G(N(y))
        post-norm   y = N(x + A(x));                                x = N(y + G(y))
        ligr        y = x + s(W x) * A(N(x));                       x = y + s(V y) * G(N(y)),  s the sigmoid

    "sasrec" is the code of SASRec's authors, whose paper prints "pre-norm"; "post-norm" is BERT4Rec's. G is two layers
    with relu or gelu between them, W_2 f(W_1 x + b_1) + b_2; of "ligr" W_3 (silu(W_1 x) * W_2 x) without biases. A last
    layer norm follows the blocks, but for "post-norm", which has one.

    At first matrices are N(0, 2 / (fan_in + fan_out)), positions N(0, 0.02^2), biases 0.

    Args:
        dim: D, >= 1, a multiple of heads.
        length: L, places of the longest history, >= 1.
        blocks: >= 0; heads: >= 1.
        hidden: width of G, >= 1.
        block: one of `BLOCKS`; feed_forward: f of G, "relu" or "gelu"; "ligr" has none.
        positions: "learned", added to the vectors; "rotary", which turn queries and keys (D / heads even); "none".
        dropout: of the vectors and after A and within and after G, in [0, 1).
        attention_dropout: of the weights of attention, in [0, 1).
        scale: whether the vectors are multiplied with sqrt(D) first.
        causal: whether a place sees only what is before it, and itself.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: Kang, McAuley 2018 (SASRec), section III; Sun et al. 2019 (BERT4Rec), section 3; LiGR: Borisyuk et al.
        2025 (arXiv 2502.03417); Su et al. 2021 (arXiv 2104.09864) for rotary positions.
    """

    def __init__(
        self,
        dim: int,
        length: int,
        blocks: int = 2,
        heads: int = 1,
        hidden: int = 64,
        *,
        block: str = "sasrec",
        feed_forward: str = "relu",
        positions: str = "learned",
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        scale: bool = True,
        causal: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_encoder("SequenceEncoder", locals())
        self.dim, self.length, self.positions, self.scale, self.causal = dim, length, positions, scale, causal
        self.dropout = Dropout(dropout)
        self.position_vectors = nn.Parameter(torch.empty(length, dim)) if positions == "learned" else None
        make: dict[str, Any] = {
            "block": block,
            "feed_forward": feed_forward,
            "dropout": dropout,
            "rotary": positions == "rotary",
        }
        self.blocks = nn.ModuleList(
            _Block(dim, heads, hidden, attention_dropout=attention_dropout, causal=causal, **make)
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dim, _EPS) if block != "post-norm" else None
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The initial weights that the class names."""
        if self.position_vectors is not None:
            self.position_vectors.normal_(0.0, 0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    @layer_forward
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The states of histories.

        Args:
            x: [B, l, D] vectors of their items, l <= L, those of history b in x[b, :lengths[b]]; any numbers behind.
            lengths: [B], integers in [0, l], where x is.
        Returns:
            [B, l, D], dtype of x; zeros behind a history.
        Raises:
            ValueError: another shape.
        """
        x, there, keys, angles = self._begin(x, lengths)
        seen = None if self.causal else keys
        for block in self.blocks:
            x = block(x, seen, angles)
        if self.norm is not None:
            x = self.norm(x)
        return torch.where(there, x, 0.0)

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The states [B, D] of the last items alone, as of `forward`; the last block is not asked for the others.

        Args:
            x, lengths: as of `forward`.
        Returns:
            [B, D], dtype of x; zeros for a history without items.
        Raises:
            ValueError: another shape.
        """
        x, _, keys, angles = self._begin(x, lengths)
        at = (lengths.long() - 1).clamp(min=0)
        for number, block in enumerate(self.blocks):
            is_last = number == len(self.blocks) - 1
            x = block(x, keys if is_last or not self.causal else None, angles, at if is_last else None)
        if not self.blocks:
            x = _places_of(x, at)
        if self.norm is not None:
            x = self.norm(x)
        return torch.where(lengths.unsqueeze(1) > 0, x.squeeze(1), 0.0)

    def _begin(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """What the blocks are given: vectors, which places there are [B, l, 1], keys [B, 1, 1, l] and angles."""
        if x.dim() != 3 or x.shape[2] != self.dim or x.shape[1] > self.length or lengths.shape != x.shape[:1]:
            raise ValueError(
                f"SequenceEncoder: x must be [B, l, {self.dim}] with l <= {self.length} and lengths [B], got "
                f"{tuple(x.shape)} and {tuple(lengths.shape)}"
            )
        check_floating("SequenceEncoder", x)
        places = torch.arange(x.shape[1], device=x.device)
        there = (places < lengths.unsqueeze(1)).unsqueeze(2)
        from_end = (lengths.unsqueeze(1) - 1 - places).clamp(min=0)
        if self.scale:
            x = x * math.sqrt(self.dim)
        if self.position_vectors is not None:
            x = x + positions_from_end(self.position_vectors, lengths, x.shape[1])
        # Zeros behind a history, so that whatever stood there has no way into a sum (0 times NaN is NaN).
        x = torch.where(there, self.dropout(x), 0.0)
        angles = self._angles(from_end, x.dtype) if self.positions == "rotary" and self.blocks else None
        keys = there.squeeze(2)[:, None, None, :] | (lengths == 0)[:, None, None, None]
        return x, there, keys, angles

    def _angles(self, from_end: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, l, d / 2] of the turns."""
        block = self.blocks[0]
        assert isinstance(block, _Block)
        half = self.dim // block.heads // 2
        wide = torch.promote_types(dtype, torch.float32)
        rates = _ROTARY_BASE ** (-torch.arange(half, device=from_end.device, dtype=wide) / half)
        angles = (from_end.unsqueeze(2) * -rates).unsqueeze(1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def extra_repr(self) -> str:
        """What its parts do not say."""
        return f"dim={self.dim}, length={self.length}, positions={self.positions!r}, causal={self.causal}"


def check_encoder(owner: str, given: Any) -> None:
    """Raise ValueError where options of `SequenceEncoder`, by name, are out of range."""
    for name, least in (("dim", 1), ("length", 1), ("blocks", 0), ("heads", 1), ("hidden", 1)):
        if given[name] < least:
            raise ValueError(f"{owner}: {name} must be >= {least}, got {given[name]}")
    for name in ("dropout", "attention_dropout"):
        if not 0 <= given[name] < 1:
            raise ValueError(f"{owner}: {name} must lie in [0, 1), got {given[name]}")
    for name, known in (("block", BLOCKS), ("positions", POSITIONS), ("feed_forward", FEED_FORWARDS)):
        if given[name] not in known:
            raise ValueError(f"{owner}: {name} must be one of {', '.join(known)}, got {given[name]!r}")
    if given["dim"] % given["heads"]:
        raise ValueError(
            f"{owner}: the width must be a multiple of heads, got {given['dim']} and {given['heads']}; take heads=1"
        )
    if given["positions"] == "rotary" and given["dim"] // given["heads"] % 2:
        raise ValueError(
            f"{owner}: rotary positions turn pairs of numbers, got {given['dim'] // given['heads']} a head; take an "
            "even number, or learned positions"
        )


class _Block(nn.Module):
    """One of the blocks of `SequenceEncoder`."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        block: str,
        feed_forward: str,
        dropout: float,
        attention_dropout: float,
        causal: bool,
        rotary: bool,
    ) -> None:
        super().__init__()
        self.kind, self.heads, self.causal, self.rotary = block, heads, causal, rotary
        self.activation = F.gelu if feed_forward == "gelu" else F.relu
        is_ligr = block == "ligr"
        self.first_norm, self.second_norm = nn.LayerNorm(dim, _EPS), nn.LayerNorm(dim, _EPS)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.inner = nn.Linear(dim, hidden * (1 + is_ligr), bias=not is_ligr)
        self.outer = nn.Linear(hidden, dim, bias=not is_ligr)
        self.first_gate = nn.Linear(dim, dim) if is_ligr else None
        self.second_gate = nn.Linear(dim, dim) if is_ligr else None
        self.dropout, self.attention_dropout = Dropout(dropout), Dropout(attention_dropout)

    def forward(
        self, x: Tensor, keys: Tensor | None, angles: tuple[Tensor, Tensor] | None, at: Tensor | None = None
    ) -> Tensor:
        """States [B, l, D] of states; keys [B, 1, 1, l] may be seen, all before a place where there are none.

        Args:
            at: [B], int64: the one place of each row whose state is asked for, [B, 1, D]; it is the last, of angle 0.
        """
        rows = x if at is None else _places_of(x, at)
        if self.kind == "sasrec":
            normed = self.first_norm(rows)
            y: Tensor = self.second_norm(normed + self._attend(normed, x, keys, angles))
            return y + self._network(y)
        if self.kind == "post-norm":
            y = self.first_norm(rows + self._attend(rows, x, keys, angles))
            out: Tensor = self.second_norm(y + self._network(y))
            return out
        normed = self.first_norm(x)
        change = self._attend(normed if at is None else _places_of(normed, at), normed, keys, angles)
        y = rows + (change if self.first_gate is None else torch.sigmoid(self.first_gate(rows)) * change)
        change = self._network(self.second_norm(y))
        return y + (change if self.second_gate is None else torch.sigmoid(self.second_gate(y)) * change)

    def _attend(
        self, queries: Tensor, values: Tensor, keys: Tensor | None, angles: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        q = self._by_head(self.query(queries))
        k, v = (self._by_head(part) for part in self.key_value(values).chunk(2, 2))
        if angles is not None:
            q, k = turned(q, *angles) if q.shape == k.shape else q, turned(k, *angles)
        if self.training and (self.attention_dropout.p or not q.is_cpu):
            out = self._attend_by_products(q, k, v, keys)
        else:
            out = F.scaled_dot_product_attention(q, k, v, keys, is_causal=keys is None)
        dropped: Tensor = self.dropout(self.out(out.transpose(1, 2).flatten(2)))
        return dropped

    def _attend_by_products(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
        """The same with all weights [B, heads, l, l] held.

        Our dropout costs less than torch's, whose mask takes longer than the products; and on a GPU the gradient of
        fused attention is summed in no fixed order.
        """
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        if keys is None:
            keys = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril()
        weights: Tensor = self.attention_dropout(scores.masked_fill(~keys, -torch.inf).softmax(3))
        return weights @ v

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, heads, l, d] of [B, l, D]."""
        by_head: Tensor = x.unflatten(2, (self.heads, -1))
        return by_head.transpose(1, 2)

    def _network(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        if self.kind == "ligr":
            gate, linear = hidden.chunk(2, 2)
            hidden = F.silu(gate) * linear
        else:
            hidden = self.activation(hidden)
        change: Tensor = self.dropout(self.outer(self.dropout(hidden)))
        return change


def _places_of(x: Tensor, at: Tensor) -> Tensor:
    """[B, 1, D], a place of each row of x [B, l, D]."""
    return x.gather(1, at[:, None, None].expand(-1, 1, x.shape[2]))


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x [..., l, d] with the pairs (i, i + d / 2) of its numbers turned by the angles of [..., l, d / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines], -1)


def positions_from_end(table: Tensor, lengths: Tensor, width: int) -> Tensor:
    """table[lengths - 1 - t] at place t of the rows [B, width, D]; behind a history, any row of the table.

    The gradient of a position is a sum over the histories, each of which has it once: a look-up and a sum in a fixed
    order, where that of an index adds up rows one after the other.
    """
    if torch.compiler.is_compiling() or is_transformed():
        return take(table, 0, _from_end(lengths, width).flatten()).view(len(lengths), width, -1)
    return _positions(table, lengths, width)


def _from_end(lengths: Tensor, width: int) -> Tensor:
    return (lengths.unsqueeze(1) - 1 - torch.arange(width, device=lengths.device)).clamp(min=0)


def _positions_grad(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    width, size = grad.shape[1], ctx.size
    # The first `width` positions, from the end of each history: place lengths - 1 - p has position p.
    at = ctx.lengths.unsqueeze(1) - 1 - torch.arange(width, device=grad.device)
    rows = grad.gather(1, at.clamp(min=0).unsqueeze(2).expand_as(grad))
    sums = torch.where((at >= 0).unsqueeze(2), rows, 0.0).sum(0)
    return F.pad(sums, (0, 0, 0, size - width)), None, None


class _Positions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, lengths: Tensor, width: int) -> Tensor:
        ctx.lengths, ctx.size = lengths, len(table)
        return table[_from_end(lengths, width)]

    @staticmethod
    @differentiable(_positions_grad)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _positions_grad(ctx, grad)


# The name by which mypy, which knows no types of torch.autograd.Function, sees it.
_positions: Callable[..., Tensor] = _Positions.apply


class Places(NamedTuple):
    """Where the entries of histories are, in rows [B, l] that they fill from the left, and one after the other [T].

    Attributes:
        in_rows: [T], int64, the place in the flattened rows of each entry.
        in_line: [B, l], int64, the number of the entry at each place; any number behind a history.
        there: [B, l], bool, whether there is one.
        owners: [T], int64, the row of each entry.
    """

    in_rows: Tensor
    in_line: Tensor
    there: Tensor
    owners: Tensor

    @classmethod
    def of(cls, lengths: Tensor, width: int, total: int) -> Places:
        """Of histories of `lengths` [B], int64, whose sum is `total`, in rows of `width`; no device is waited for."""
        every = torch.arange(len(lengths), device=lengths.device)
        first = lengths.cumsum(0) - lengths
        owners = torch.repeat_interleave(every, lengths, output_size=total)
        columns = torch.arange(width, device=lengths.device)
        in_rows = torch.arange(total, device=lengths.device) + (every * width - first)[owners]
        in_line = (first.unsqueeze(1) + columns).clamp(max=max(0, total - 1))
        return cls(in_rows, in_line, columns < lengths.unsqueeze(1), owners)

    @classmethod
    def last(cls, lengths: Tensor, width: int) -> Places:
        """The last entry of each history alone, none of which is empty."""
        every = torch.arange(len(lengths), device=lengths.device)
        there = torch.arange(width, device=lengths.device) == (lengths - 1).unsqueeze(1)
        return cls(every * width + lengths - 1, every.unsqueeze(1).expand_as(there), there, every)

    def chosen(self, is_chosen: Tensor) -> Places:
        """Those of the entries [T] that are chosen, bool, on the CPU, so that their number is known."""
        device = self.owners.device
        places = to_device(is_chosen.nonzero().squeeze(1), device)
        numbers = to_device((is_chosen.cumsum(0) - 1).clamp(min=0), device)
        there = to_device(is_chosen, device)[self.in_line] & self.there
        return Places(self.in_rows[places], numbers[self.in_line], there, self.owners[places])


def at_left(items: Tensor, lengths: Tensor) -> Tensor:
    """Windows [B, l] at the right end of their rows moved to the left end, int64.

    Behind a window comes its first item once more, so that no other row of a table is touched; in a row without any, 0.
    """
    width = items.shape[1]
    columns = torch.arange(width, device=items.device)
    at = torch.where(columns < lengths.unsqueeze(1), columns, 0) + (width - lengths).unsqueeze(1)
    return items.gather(1, at.clamp(max=width - 1)).clamp(min=0)


def in_line(x: Tensor, places: Places) -> Tensor:
    """The entries [T, D] of rows x [B, l, D], one after the other."""
    if torch.compiler.is_compiling() or is_transformed():
        return take(x.flatten(0, 1), 0, places.in_rows)
    return _in_line(x, places)


def _again(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    rows = take(grad, 0, ctx.places.in_line.flatten()).view(*ctx.shape)
    return torch.where(ctx.places.there.unsqueeze(2), rows, 0.0), None


class _InLine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Places) -> Tensor:
        ctx.places, ctx.shape = places, x.shape
        return x.flatten(0, 1)[places.in_rows]

    @staticmethod
    @differentiable(_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Each entry is read once: its gradient is looked up where a sum over repeated places would be slow.
        rows = grad.index_select(0, ctx.places.in_line.flatten()).view(ctx.shape)
        return rows.masked_fill_(~ctx.places.there.unsqueeze(2), 0.0), None


# The name by which mypy, which knows no types of torch.autograd.Function, sees it.
_in_line: Callable[..., Tensor] = _InLine.apply
