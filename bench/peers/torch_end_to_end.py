"""Models in plain PyTorch, trained on one device with all data there: the rivals of `bench/end_to_end.py`; prints JSON.

    python bench/peers/torch_end_to_end.py neumf --arrays FILE.npz --options '{"epochs": 4, ...}' [--compile]

As a careful user would write it: the rows lie on the device, a batch is a slice of a permutation made there, negatives
of an epoch are drawn there at once and redrawn where they were met, nothing waits for the host within an epoch, and
Adam is torch's fused one. With --compile the network runs through torch.compile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


def normal(rows: int, dim: int) -> nn.Embedding:
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=0.01)
    return table


def tower(widths: list[int], out: int | None) -> nn.Sequential:
    """Linear and ReLU layers; with `out` a linear one at the end."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.Linear(widths[-1], out)] if out else []))


class Pairs(nn.Module):
    """GMF, MLP or NeuMF of He et al. 2017: logits of pairs of a user and an item."""

    def __init__(self, model: str, num_users: int, num_items: int, options: dict[str, Any]) -> None:
        super().__init__()
        factors = options["factors"] if model != "mlp" else 0
        layers = list(options["layers"]) if model != "gmf" else []
        self.product = nn.ModuleList(normal(n, factors) for n in (num_users, num_items)) if factors else None
        self.sides = nn.ModuleList(normal(n, layers[0] // 2) for n in (num_users, num_items)) if layers else None
        self.tower = tower(layers, None) if layers else None
        self.head = nn.Linear(factors + (layers[-1] if layers else 0), 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        parts = []
        if self.product is not None:
            parts.append(self.product[0](users) * self.product[1](items))
        if self.sides is not None and self.tower is not None:
            parts.append(self.tower(torch.cat([self.sides[0](users), self.sides[1](items)], 1)))
        return self.head(torch.cat(parts, 1)).squeeze(1)


class Clicks(nn.Module):
    """LR, FM, DNN, DeepFM or Wide & Deep: logits of rows of a log. One table holds the rows of all fields."""

    def __init__(self, model: str, sizes: list[int], numerics: int, options: dict[str, Any], start: float) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("first", torch.tensor([0, *itertools.accumulate(sizes[:-1])]))
        total, dim = sum(sizes), options.get("factors", 0)
        if model != "dnn":
            self.linear, self.numbers = nn.Embedding(total, 1), nn.Linear(numerics, 1)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.numbers.weight)
            nn.init.constant_(self.numbers.bias, start)
        if dim:
            self.table = normal(total, dim)
        if model == "fm":
            self.vectors = nn.Parameter(torch.randn(numerics, dim) * 0.01)
        if "hidden" in options:
            self.tower = tower([len(sizes) * dim + numerics, *options["hidden"]], 1)
            if model == "dnn":
                nn.init.constant_(self.tower[-1].bias, start)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        rows = ids + self.first
        logit = 0.0
        if self.model != "dnn":
            logit = self.linear(rows).squeeze(2).sum(1) + self.numbers(values).squeeze(1)
        if self.model == "lr":
            return logit
        x = self.table(rows)  # [B, F, D]
        if self.model in ("fm", "deepfm"):
            terms = torch.cat([x, values[:, :, None] * self.vectors], 1) if self.model == "fm" else x
            logit = logit + 0.5 * (terms.sum(1).square() - terms.square().sum(1)).sum(1)
        if self.model == "fm":
            return logit
        return logit + self.tower(torch.cat([x.flatten(1), values], 1)).squeeze(1)


class Rows(nn.Module):
    """I-AutoRec of Sedhain et al. 2015: rows of ratings from rows of ratings."""

    def __init__(self, columns: int, hidden: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(columns, hidden), nn.Linear(hidden, columns)
        for layer in (self.encoder, self.decoder):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.normal_(layer.bias, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.sigmoid(self.encoder(x)))


class Work:
    """A model, its batches, its loss and its test figures.

    Attributes:
        examples: of an epoch.
    """

    def __init__(self, args: argparse.Namespace, options: dict[str, Any]) -> None:
        self.options, self.device = options, torch.device(args.device)
        with np.load(args.arrays) as stored:
            kind = str(stored["kind"])
            self.data = {name: self.put(stored[name]) for name in stored.files if name != "kind"}
        {"pairs": self.of_pairs, "clicks": self.of_clicks, "ratings": self.of_ratings}[kind](args.model)

    def put(self, array: Any) -> Tensor:
        """On the device; whole numbers as int64."""
        return torch.from_numpy(np.asarray(array, np.float32 if array.dtype.kind == "f" else np.int64)).to(self.device)

    def shuffled(self, columns: Batch) -> Iterator[Batch]:
        order = torch.randperm(len(columns[0]), device=self.device)
        for chosen in order.split(self.options["batch_size"]):
            yield tuple(column[chosen] for column in columns)

    def of_pairs(self, model: str) -> None:
        data, negatives = self.data, self.options["num_negatives"]
        num_users, num_items = int(data["num_users"]), int(data["num_items"])
        users, items = data["train_users"], data["train_items"]
        seen = torch.zeros(num_users, num_items, dtype=torch.bool, device=self.device)
        seen[users, items] = True
        self.examples = len(users) * (1 + negatives)
        self.model = Pairs(model, num_users, num_items, self.options).to(self.device)
        repeated = users.repeat(negatives)
        labels = torch.cat([torch.ones(len(users)), torch.zeros(len(repeated))]).to(self.device)

        def batches() -> Iterator[Batch]:
            drawn = torch.randint(num_items, repeated.shape, device=self.device)
            while len(again := seen[repeated, drawn].nonzero()[:, 0]):
                drawn[again] = torch.randint(num_items, again.shape, device=self.device)
            return self.shuffled((torch.cat([users, repeated]), torch.cat([items, drawn]), labels))

        def figures() -> dict[str, float]:
            rows = torch.cat([data["test_items"][:, None], data["candidates"]], 1)
            asked = data["test_users"][:, None].expand(rows.shape)
            scores = self.model(asked.reshape(-1), rows.reshape(-1)).view(rows.shape)
            rank = (scores[:, 1:] >= scores[:, :1]).sum(1)
            return {"hr@10": float((rank < 10).double().mean())}

        self.batches, self.figures = batches, figures

    def of_clicks(self, model: str) -> None:
        data, labels = self.data, self.data["train_labels"]
        start = float(torch.logit(labels.mean()))
        sizes = data["sizes"].tolist()
        self.model = Clicks(model, sizes, data["train_values"].shape[1], self.options, start).to(self.device)
        self.examples = len(labels)
        columns = (data["train_ids"], data["train_values"], labels)

        def figures() -> dict[str, float]:
            logits = torch.cat([self.model(*rows) for rows in zip(
                data["test_ids"].split(1 << 14), data["test_values"].split(1 << 14), strict=True)])  # fmt: skip
            return {"log_loss": float(F.binary_cross_entropy_with_logits(logits, data["test_labels"]))}

        self.batches, self.figures = lambda: self.shuffled(columns), figures

    def of_ratings(self, model: str) -> None:
        data, ratings = self.data, self.data["train_ratings"]
        x = torch.zeros(int(data["num_items"]), int(data["num_users"]), device=self.device)
        mask = torch.zeros_like(x)
        x[data["train_items"], data["train_users"]] = ratings
        mask[data["train_items"], data["train_users"]] = 1.0
        self.model = Rows(x.shape[1], self.options["hidden"]).to(self.device)
        self.examples = len(ratings)

        def figures() -> dict[str, float]:
            predicted = self.model(x)[data["test_items"], data["test_users"]].clamp(ratings.min(), ratings.max())
            return {"rmse": float((predicted - data["test_ratings"]).square().mean().sqrt())}

        self.batches, self.figures = lambda: self.shuffled((x, mask)), figures

    def loss(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        *inputs, last = batch
        if isinstance(self.model, Rows):
            return (((network(inputs[0]) - inputs[0]) * last) ** 2).sum()
        return F.binary_cross_entropy_with_logits(network(*inputs), last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--arrays", required=True, help=".npz that bench.end_to_end writes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--options", type=json.loads, required=True)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(1)
    work = Work(args, args.options)
    network = torch.compile(work.model) if args.compile else work.model
    optimizer = torch.optim.Adam(work.model.parameters(), lr=args.options["lr"], fused=True)
    is_gpu = work.device.type == "cuda"
    wait = torch.cuda.synchronize if is_gpu else lambda: None
    seconds = []
    for _ in range(args.options["epochs"]):
        wait()
        started = time.perf_counter()
        for batch in work.batches():
            optimizer.zero_grad()
            work.loss(network, batch).backward()
            optimizer.step()
        wait()
        seconds.append(time.perf_counter() - started)
    work.model.eval()
    with torch.no_grad():
        metrics = work.figures()
    report = {
        "version": torch.__version__,
        "epoch_seconds": seconds,
        "samples_per_second": [work.examples / each for each in seconds],
        "metrics": metrics,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if is_gpu else None,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
