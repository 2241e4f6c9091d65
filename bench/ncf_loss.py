"""Time ncf_loss (forward and backward, no optimizer) beside the same NeuMF in plain PyTorch autograd.

python bench/ncf_loss.py [seconds per row]
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.kernels import _library
from deeprec.kernels.ncf_loss import ncf_loss

NUM_USERS, NUM_ITEMS, NEGATIVES = 6040, 3706, 4  # MovieLens-1M


@dataclass(frozen=True)
class Shape:
    """NeuMF: GMF width, MLP embedding a side, hidden layers, positives a batch."""

    gmf: int
    embedding: int
    hidden: tuple[int, ...]
    groups: int


class NeuMF(nn.Module):
    """The textbook module: four embeddings, Linear layers, one output."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gmf = nn.ModuleList([nn.Embedding(rows, shape.gmf) for rows in (NUM_USERS, NUM_ITEMS)])
        self.mlp = nn.ModuleList([nn.Embedding(rows, shape.embedding) for rows in (NUM_USERS, NUM_ITEMS)])
        widths = (2 * shape.embedding, *shape.hidden)
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])
        self.out = nn.Linear(shape.gmf + shape.hidden[-1], 1)

    def loss(self, users: Tensor, items: Tensor, labels: Tensor) -> Tensor:
        users, items = users.repeat_interleave(items.shape[1]), items.flatten()
        x = torch.cat([self.mlp[0](users), self.mlp[1](items)], dim=1)
        for layer in self.layers:
            x = F.relu(layer(x))
        logits = self.out(torch.cat([self.gmf[0](users) * self.gmf[1](items), x], dim=1)).squeeze(1)
        return F.binary_cross_entropy_with_logits(logits, labels.flatten())

    def fused_loss(self, users: Tensor, items: Tensor, labels: Tensor, precision: str) -> Tensor:
        tables = [table.weight for table in (*self.gmf, *self.mlp)]
        weights, biases = [x.weight for x in self.layers], [x.bias for x in self.layers]
        out_weight = self.out.weight.reshape(-1)
        return ncf_loss(*tables, users, items, labels, weights, biases, out_weight, self.out.bias, precision=precision)


def flops(shape: Shape, unique_users: int, unique_items: int) -> float:
    """Useful floating-point operations of a step: the first layer once a unique row, the others once an example."""
    widths = shape.hidden
    pairs = sum(a * b for a, b in pairwise(widths)) * shape.groups * (1 + NEGATIVES)
    return 6.0 * (pairs + (unique_users + unique_items) * shape.embedding * widths[0])


def measure(step: Callable[[], None], seconds: float) -> tuple[float, float, float]:
    """Median, first and last decile in milliseconds."""
    for _ in range(3):
        step()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        begin = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begin))
    deciles = quantiles(times, n=10)
    return median(times), deciles[0], deciles[-1]


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"kernels {_library.cpu_isa() or 'missing'}"
    )
    print(f"{'shape':44} {'implementation':16} {'median ms':>9} {'10% - 90%':>15} {'GFLOP/s':>8} {'ratio':>6}")
    for shape in (
        Shape(64, 64, (256, 128, 64), 819),
        Shape(64, 128, (128, 64), 819),
        Shape(64, 64, (256, 128, 64), 51),
        Shape(8, 32, (32, 16, 8), 51),
    ):
        torch.manual_seed(1)
        model = NeuMF(shape)
        users = torch.randint(NUM_USERS, (shape.groups,))
        items = torch.randint(NUM_ITEMS, (shape.groups, 1 + NEGATIVES))
        labels = torch.zeros(items.shape)
        labels[:, 0] = 1
        work = flops(shape, len(users.unique()), len(items.unique()))

        def run(loss: Callable[[], Tensor], model: NeuMF = model) -> None:
            model.zero_grad(set_to_none=True)
            loss().backward()

        def eager(model: NeuMF = model, batch: tuple[Tensor, ...] = (users, items, labels)) -> Tensor:
            return model.loss(*batch)

        base = 0.0
        for name in ("eager", "float32", "bfloat16"):

            def fused(
                model: NeuMF = model, batch: tuple[Tensor, ...] = (users, items, labels), p: str = name
            ) -> Tensor:
                return model.fused_loss(*batch, precision=p)

            middle, low, high = measure(lambda f=eager if name == "eager" else fused: run(f), seconds)
            base = base or middle
            label = f"GMF {shape.gmf}, E {shape.embedding}, {shape.hidden}, {shape.groups} x 5"
            rate = work / middle / 1e6
            print(f"{label:44} {name:16} {middle:9.3f} {low:7.3f} {high:7.3f} {rate:8.0f} {base / middle:6.1f}")


if __name__ == "__main__":
    main()
