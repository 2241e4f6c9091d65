"""One epoch of NeuMF in plain PyTorch (nn.Embedding, torch.optim.Adam): the rival in `bench/neumf.py`; prints JSON.

Vectorised as a careful user would write it: negatives for the whole epoch are drawn at once with NumPy (seen items
redrawn), positives and negatives shuffled together, one forward and backward per batch.

    python bench/peers/torch_neumf.py --ncf DIR/ml-1m --batch 4096 [--epochs 1] [--threads 2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from ncf_split import NcfSplit, from_triple, hit_rate


class PlainNeuMF(nn.Module):
    """NeuMF of He et al. 2017 with the authors' layer convention: layers[0] is both MLP embeddings side by side."""

    def __init__(self, num_users: int, num_items: int, factors: int, layers: list[int]) -> None:
        super().__init__()
        self.gmf_user, self.gmf_item = nn.Embedding(num_users, factors), nn.Embedding(num_items, factors)
        self.mlp_user, self.mlp_item = (nn.Embedding(n, layers[0] // 2) for n in (num_users, num_items))
        for table in (self.gmf_user, self.gmf_item, self.mlp_user, self.mlp_item):
            nn.init.normal_(table.weight, std=0.01)
        tower: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(layers):
            linear = nn.Linear(size_in, size_out)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            tower += [linear, nn.ReLU()]
        self.tower, self.head = nn.Sequential(*tower), nn.Linear(factors + layers[-1], 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        deep = self.tower(torch.cat([self.mlp_user(users), self.mlp_item(items)], dim=1))
        return self.head(torch.cat([self.gmf_user(users) * self.gmf_item(items), deep], dim=1)).squeeze(1)


def draw_negatives(users: np.ndarray, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One unseen item per entry of `users`, uniform; entries that hit a seen item are redrawn."""
    items = rng.integers(0, seen.shape[1], len(users))
    redo = np.flatnonzero(seen[users, items])
    while len(redo):
        items[redo] = rng.integers(0, seen.shape[1], len(redo))
        redo = redo[seen[users[redo], items[redo]]]
    return items


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, split: NcfSplit, seen: np.ndarray, args: argparse.Namespace
) -> float:
    """One pass over all positives with fresh negatives; returns the mean loss."""
    rng = np.random.default_rng(torch.randint(2**31, ()).item())
    repeated = np.repeat(split.users, args.negatives)
    users = torch.from_numpy(np.concatenate([split.users, repeated]))
    items = torch.from_numpy(np.concatenate([split.items, draw_negatives(repeated, seen, rng)]))
    labels = torch.zeros(len(users))
    labels[: len(split.users)] = 1.0
    order, loss_function, total = torch.randperm(len(users)), nn.BCEWithLogitsLoss(), 0.0
    for batch in order[: args.max_batches * args.batch if args.max_batches else None].split(args.batch):
        optimizer.zero_grad()
        loss = loss_function(model(users[batch], items[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
    return total / min(len(users), args.max_batches * args.batch or len(users))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ncf", type=Path, help="prefix of the NCF triple, for instance DIR/ml-1m")
    parser.add_argument("--split", type=Path, help=".npz written by NcfSplit.save, instead of --ncf")
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs="+", default=[256, 128, 64])
    parser.add_argument("--negatives", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-batches", type=int, default=0, help="stop an epoch early (to extrapolate a slow one)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if (args.ncf is None) == (args.split is None):
        parser.error("give exactly one of --ncf and --split")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    split = NcfSplit.load(args.split) if args.split else from_triple(args.ncf, seed=args.seed)
    seen = np.zeros((split.num_users, split.num_items), dtype=bool)
    seen[split.users, split.items] = True
    model = PlainNeuMF(split.num_users, split.num_items, args.factors, args.layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    seconds, losses, hits = [], [], []
    for _ in range(args.epochs):
        start = time.perf_counter()
        losses.append(train_epoch(model, optimizer, split, seen, args))
        seconds.append(time.perf_counter() - start)
        with torch.no_grad():
            hits.append(hit_rate(split, lambda u, i: model(torch.from_numpy(u), torch.from_numpy(i)).numpy()))
    examples = len(split.users) * (1 + args.negatives)
    done = min(examples, args.max_batches * args.batch) if args.max_batches else examples
    report = {
        "peer": "torch",
        "version": torch.__version__,
        "config": {"factors": args.factors, "layers": args.layers, "batch": args.batch, "lr": args.lr},
        "threads": args.threads,
        "examples_per_epoch": examples,
        "fraction_run": done / examples,
        "seconds_per_epoch": [round(value * examples / done, 3) for value in seconds],
        "loss": losses,
        "validation_hr@10": hits,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
