"""NeuMF's loss, forward and backward without the optimizer, beside autograd: `python -m bench ncf_loss`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness import Case, Contender, Target, Trial, rotating
from bench.rivals import compiled
from bench.workloads import NUM_BATCHES, distinct, scale
from deeprec.kernels.ncf_loss import ncf_loss

NUM_USERS, NUM_ITEMS, NEGATIVES = 6040, 3706, 4  # MovieLens-1M
Batch = tuple[Tensor, Tensor, Tensor]
EAGER, COMPILED, AUTOTUNED = "torch, eager", "torch.compile", "torch.compile, max-autotune"
GPU_TIMES = 16  # as many positives a batch as on the CPU

TARGETS = tuple(
    Target("NeuMF's loss and gradients", "ncf_loss", rival, 1.0, device=device)
    for device, rivals in (("cpu", (COMPILED, EAGER)), ("cuda", (COMPILED, AUTOTUNED, EAGER)))
    for rival in rivals
)


@dataclass(frozen=True)
class Shape:
    """NeuMF: GMF width, MLP embedding a side, hidden layers, positives a batch."""

    gmf: int
    embedding: int
    hidden: tuple[int, ...]
    groups: int

    @property
    def label(self) -> str:
        return f"GMF {self.gmf}, E {self.embedding}, {'-'.join(map(str, self.hidden))}, {self.groups} x 5"


SHAPES = (
    Shape(64, 64, (256, 128, 64), 819),
    Shape(64, 128, (128, 64), 819),
    Shape(64, 64, (256, 128, 64), 51),
    Shape(8, 32, (32, 16, 8), 51),
)


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


def _draw(groups: int) -> Batch:
    labels = torch.zeros(groups, 1 + NEGATIVES)
    labels[:, 0] = 1
    return torch.randint(NUM_USERS, (groups,)), torch.randint(NUM_ITEMS, labels.shape), labels


def _gradients(model: NeuMF) -> list[Tensor]:
    return [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters()]


def _bfloat16_error(model: NeuMF, batch: Batch, expected: list[Tensor]) -> float:
    """The largest error of PyTorch's own bfloat16 products: what a bfloat16 kernel may err, too."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(batch[0].device.type, dtype=torch.bfloat16):
        loss = model.loss(*batch)
    loss.backward()
    found = zip(_gradients(model), expected, strict=True)
    return max(float((got - wide).abs().max() / wide.abs().max()) for got, wide in found)


def _trial(shape: Shape, device: str) -> Trial:
    model = NeuMF(shape)
    batches = [_draw(shape.groups) for _ in range(NUM_BATCHES)]
    wide = copy.deepcopy(model).double()
    users, items, labels = batches[0]
    wide.loss(users, items, labels.double()).backward()
    trial = Trial(_gradients(wide), tolerance=1e-4)

    def enter(name: str, loss: Callable[..., Tensor], tolerance: float | None = None) -> Contender:
        def run(batch: Batch) -> None:
            model.zero_grad(set_to_none=True)
            loss(*batch).backward()

        def check() -> list[Tensor]:
            run(batches[0])
            return _gradients(model)

        return Contender(name, rotating(run, batches), check, tolerance)

    trial.contenders.append(enter("deeprec", partial(model.fused_loss, precision="float32")))
    honest = _bfloat16_error(model, batches[0], trial.expected) + 0.01
    trial.contenders.append(enter("deeprec, bfloat16", partial(model.fused_loss, precision="bfloat16"), honest))
    trial.add_rival(COMPILED, lambda: enter(COMPILED, compiled(model.loss)))
    trial.add_rival(EAGER, lambda: enter(EAGER, model.loss))
    if device == "cuda":
        trial.add_rival(AUTOTUNED, lambda: enter(AUTOTUNED, compiled(model.loss, max_autotune=True)))
    return trial


def _flops(shape: Shape) -> float:
    """Of a step: the first layer once a unique row, the others once an example."""
    torch.manual_seed(0)
    users, items, _ = _draw(shape.groups)
    widths = shape.hidden
    pairs = sum(a * b for a, b in pairwise(widths)) * shape.groups * (1 + NEGATIVES)
    return 6.0 * (pairs + (distinct(users) + distinct(items)) * shape.embedding * widths[0])


def cases(device: str = "cpu") -> list[Case]:
    """NeuMF of the paper's largest size and of a small one, large batches and small ones; compute-bound."""
    found = []
    for shape in SHAPES:
        size = shape if device == "cpu" else replace(shape, groups=GPU_TIMES * shape.groups)
        build, name = partial(_trial, size, device), f"ncf_loss, {size.label}"
        how_large = scale(device, f"{size.groups:,} positives", f"{shape.groups:,}")
        found.append(Case(name, "ncf_loss", build, bytes=0.0, flops=_flops(size), scale=how_large))
    return found
