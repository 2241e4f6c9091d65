"""GRU4Rec in plain PyTorch, as its authors' PyTorch code works and as fast as plain PyTorch goes: the rival of
`bench/gru4rec.py`.

nn.Embedding with sparse gradients for item vectors and biases, one look-up for inputs and candidates; nn.GRUCell; the
scores of a step as a matrix product; F.cross_entropy (the authors' exp, sum and log is slower); AdaGrad on coalesced
sparse gradients by indexing; extra items drawn by the million with searchsorted and kept; lanes in NumPy, one array
operation a step. float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_KEPT_DRAWS = 10_000_000


class IndexedAdagrad:
    """sum += g^2; w -= lr g / sqrt(sum + eps), of sparse gradients in the touched rows only."""

    def __init__(self, parameters: list[Tensor], lr: float, eps: float = 1e-6) -> None:
        self.parameters, self.lr, self.eps = parameters, lr, eps
        self.sums = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self) -> None:
        for parameter, sums in zip(self.parameters, self.sums, strict=True):
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:
                grad = grad.coalesce()
                rows, values = grad._indices()[0], grad._values()
                own = sums[rows].addcmul_(values, values)
                sums.index_copy_(0, rows, own)
                parameter.index_add_(0, rows, values / own.add_(self.eps).sqrt_(), alpha=-self.lr)
            else:
                sums.addcmul_(grad, grad)
                parameter.addcdiv_(grad, (sums + self.eps).sqrt_(), value=-self.lr)
            parameter.grad = None


class PlainGRU4Rec(nn.Module):
    """One layer, the item vectors of the output as input."""

    def __init__(self, num_items: int, units: int) -> None:
        super().__init__()
        self.items, self.bias = nn.Embedding(num_items, units, sparse=True), nn.Embedding(num_items, 1, sparse=True)
        self.cell = nn.GRUCell(units, units)
        nn.init.uniform_(self.items.weight, -((6 / (num_items + units)) ** 0.5), (6 / (num_items + units)) ** 0.5)
        nn.init.zeros_(self.bias.weight)
        for name, parameter in self.cell.named_parameters():
            limit = (6 / (2 * units)) ** 0.5 if name.startswith("weight") else 0.0
            nn.init.uniform_(parameter, -limit, limit)

    def forward(self, items: Tensor, state: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [m, c] and the states [m, units]."""
        rows = self.items(torch.cat([items, candidates]))
        state = self.cell(rows[: len(items)], state)
        return state @ rows[len(items) :].T + self.bias(candidates).T, state


class Draws:
    """Extra items by popularity^alpha, drawn by the million."""

    def __init__(self, counts: np.ndarray, alpha: float, num_negatives: int) -> None:
        shares = torch.from_numpy(counts.astype(np.float64) ** alpha).cumsum(0)
        self.shares, self.count = (shares / shares[-1]).float(), num_negatives
        self._draw()

    def _draw(self) -> None:
        steps = _KEPT_DRAWS // self.count
        drawn = torch.searchsorted(self.shares, torch.rand(steps * self.count)).clamp_(max=len(self.shares) - 1)
        self._kept: Iterator[Tensor] = iter(drawn.view(steps, self.count))

    def __call__(self) -> Tensor:
        """Of a step."""
        kept = next(self._kept, None)
        if kept is None:
            self._draw()
            kept = next(self._kept)
        return kept


def steps(
    offsets: np.ndarray, items: np.ndarray, num_lanes: int, draw: Draws
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """(items, targets, drawn, lanes that begin) of each step, until a lane finds no session of two events."""
    sessions = np.flatnonzero(np.diff(offsets) > 1)
    start, end = offsets[sessions[:num_lanes]], offsets[sessions[:num_lanes] + 1]
    taken, begins = num_lanes, np.arange(num_lanes)
    while True:
        targets = torch.from_numpy(items[start])
        for place in range(1, int((end - start).min())):
            inputs, targets = targets, torch.from_numpy(items[start + place])
            yield inputs, targets, draw(), torch.from_numpy(begins) if place == 1 else None
        start = start + (end - start).min() - 1
        begins = np.flatnonzero(end - start <= 1)
        if taken + len(begins) > len(sessions):
            return
        fresh = sessions[taken : taken + len(begins)]
        start[begins], end[begins], taken = offsets[fresh], offsets[fresh + 1], taken + len(begins)


class PlainTraining:
    """The model while it is trained: `step()` is one mini-batch."""

    def __init__(
        self,
        offsets: np.ndarray,
        items: np.ndarray,
        counts: np.ndarray,
        *,
        units: int,
        num_lanes: int,
        num_negatives: int,
        alpha: float,
        lr: float,
    ) -> None:
        self.model = PlainGRU4Rec(len(counts), units).train()
        self.optimizer = IndexedAdagrad(list(self.model.parameters()), lr)
        self.batches = steps(offsets, items.astype(np.int64), num_lanes, Draws(counts, alpha, num_negatives))
        self.state, self.num_lanes = torch.zeros(num_lanes, units), num_lanes
        self.labels = torch.arange(num_lanes)

    def step(self) -> float:
        """Its loss."""
        items, targets, drawn, begins = next(self.batches)
        if begins is not None:
            self.state[begins] = 0
        scores, state = self.model(items, self.state, torch.cat([targets, drawn]))
        loss = F.cross_entropy(scores, self.labels, reduction="sum") / self.num_lanes
        loss.backward()
        self.optimizer.step()
        self.state = state.detach()
        return float(loss.detach())
