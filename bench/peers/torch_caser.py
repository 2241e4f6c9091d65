"""Epochs of Caser in plain PyTorch: the rival in `bench/caser_speed.py`; prints JSON.

The network is made as in the author's PyTorch port (graytowne/caser_pytorch), from which no line is taken: a Conv2d of
[1, n_h, (h, d)] for each height in a ModuleList over a four-dimensional input, max_pool1d, tables as torch.nn.Embedding
with dense gradients, Adam with weight decay on all, a loop over targets for the scores. Negatives are drawn one by one
in Python as there (`--negatives loop`), or for the whole epoch at once with NumPy, as a careful user would (`numpy`).

    python bench/peers/torch_caser.py --sequences FILE.npz [--epochs 1] [--threads 2] [--max-batches 100]

FILE.npz holds users [n] and items [n], numbered from 0, each user's in order.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainCaser(nn.Module):
    """Tang and Wang 2018; item 0 is what is before the first item."""

    def __init__(self, num_users: int, num_items: int, args: argparse.Namespace) -> None:
        super().__init__()
        width = args.factors
        self.users, self.items = nn.Embedding(num_users, width), nn.Embedding(num_items, width)
        self.vertical = nn.Conv2d(1, args.vertical, (args.length, 1))
        self.horizontal = nn.ModuleList(
            nn.Conv2d(1, args.horizontal, (height + 1, width)) for height in range(args.length)
        )
        self.hidden = nn.Linear(args.vertical * width + args.horizontal * args.length, width)
        self.output, self.bias = nn.Embedding(num_items, 2 * width), nn.Embedding(num_items, 1)
        self.dropout = nn.Dropout(args.dropout)
        for table in (self.users, self.items, self.output):
            table.weight.data.normal_(0, 1 / table.embedding_dim)
        self.bias.weight.data.zero_()

    def read(self, windows: Tensor, users: Tensor) -> Tensor:
        x = self.items(windows).unsqueeze(1)  # [B, 1, L, d]
        parts = [self.vertical(x).flatten(1)]
        for layer in self.horizontal:
            values = F.relu(layer(x).squeeze(3))
            parts.append(F.max_pool1d(values, values.shape[2]).squeeze(2))
        z = F.relu(self.hidden(self.dropout(torch.cat(parts, 1))))
        return torch.cat([z, self.users(users)], 1)

    def score(self, read: Tensor, items: Tensor) -> Tensor:
        weights, biases = self.output(items), self.bias(items)
        return torch.stack([(read * weights[:, i]).sum(1) + biases[:, i, 0] for i in range(items.shape[1])], 1)


def windows_of(users: np.ndarray, items: np.ndarray, length: int, targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Users [w] and windows [w, L + T] of items from 1 on, short histories with zeros before."""
    owners, rows = [], []
    for user, history in zip(*_histories(users, items), strict=True):
        padded = np.concatenate([np.zeros(max(0, length + targets - len(history)), dtype=np.int64), history + 1])
        views = np.lib.stride_tricks.sliding_window_view(padded, length + targets)
        owners.append(np.full(len(views), user))
        rows.append(views)
    return np.concatenate(owners), np.concatenate(rows)


def _histories(users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    order = np.argsort(users, kind="stable")
    distinct, starts = np.unique(users[order], return_index=True)
    return distinct, np.split(items[order].astype(np.int64), starts[1:])


def negatives_by_loop(users: np.ndarray, met: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` items a window that its user has not met, one draw at a time from a list of all such items."""
    unmet = [(np.flatnonzero(~row) + 1).tolist() for row in met]
    drawn = np.zeros((len(users), count), dtype=np.int64)
    for row, user in enumerate(users):
        for column in range(count):
            candidates = unmet[user]
            drawn[row, column] = candidates[rng.integers(len(candidates))]
    return drawn


def negatives_by_numpy(users: np.ndarray, met: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The same, all at once: those that were met are drawn again."""
    drawn = rng.integers(0, met.shape[1], (len(users), count))
    rows = np.broadcast_to(users[:, None], drawn.shape)
    while (again := met[rows, drawn]).any():
        drawn[again] = rng.integers(0, met.shape[1], int(again.sum()))
    return drawn + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=Path, required=True)
    for name, value in (
        ("factors", 50), ("length", 5), ("targets", 3), ("horizontal", 16), ("vertical", 4), ("num-negatives", 3),
        ("batch", 512), ("epochs", 1), ("threads", 2), ("seed", 1), ("max-batches", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("dropout", 0.5), ("lr", 1e-3), ("l2", 1e-6)):
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--negatives", choices=["loop", "numpy"], default="numpy")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    given = np.load(args.sequences)
    users, items = given["users"].astype(np.int64), given["items"].astype(np.int64)
    met = np.zeros((users.max() + 1, items.max() + 1), dtype=bool)
    met[users, items] = True
    owners, windows = windows_of(users, items, args.length, args.targets)
    draw = {"loop": negatives_by_loop, "numpy": negatives_by_numpy}[args.negatives]
    model = PlainCaser(len(met), met.shape[1] + 1, args)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.l2)
    total = -(-len(owners) // args.batch)
    steps = min(total, args.max_batches or total)
    seconds, losses = [], []
    for _ in range(args.epochs):
        start = time.perf_counter()
        order = rng.permutation(len(owners))[: steps * args.batch]
        of_users, of_windows = owners[order], windows[order]
        drawn = torch.from_numpy(draw(of_users, met, args.num_negatives * args.targets, rng))
        rows, who, summed = torch.from_numpy(of_windows), torch.from_numpy(of_users), 0.0
        for first in range(0, len(order), args.batch):
            part = slice(first, first + args.batch)
            read = model.read(rows[part, : args.length], who[part])
            positive = model.score(read, rows[part, args.length :])
            negative = model.score(read, drawn[part])
            optimizer.zero_grad()
            loss = -torch.log(torch.sigmoid(positive)).mean() - torch.log(1 - torch.sigmoid(negative)).mean()
            loss.backward()
            optimizer.step()
            summed += loss.item()
        seconds.append(round((time.perf_counter() - start) * total / steps, 3))
        losses.append(summed / steps)
    report = {
        "peer": "torch", "version": torch.__version__, "windows": len(owners), "fraction_run": steps / total,
        "seconds_per_epoch": seconds, "loss": losses,
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
