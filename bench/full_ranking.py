"""Time full-ranking evaluation of NeuMF-32 (MLP 256-128-64-32) at the size of MovieLens-1M.

Beside it the same model scored pair by pair, through `score_pairs` of the model and in plain PyTorch; those
two run on a sample of the users and are scaled up. The figures must agree first.

python bench/full_ranking.py [sampled users]
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec import data
from deeprec._hardware import hardware
from deeprec.contract import Schema
from deeprec.evaluate import evaluate, protocol
from deeprec.models import NeuMF

NUM_USERS, NUM_ITEMS, INTERACTIONS = 6040, 3706, 1_000_209


class _ByPairs:
    """Scores every item of a user by a function of pairs."""

    def __init__(self, score_pairs: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.score_pairs = score_pairs

    def score_items(self, users: Tensor) -> Tensor:
        items = torch.arange(NUM_ITEMS)
        rows = [self.score_pairs(user.expand(NUM_ITEMS), items) for user in users]
        return torch.stack(rows)


def plain_pairs(model: NeuMF) -> Callable[[Tensor, Tensor], Tensor]:
    """The textbook forward pass over the weights of `model`."""
    w = dict(model.network.named_parameters())
    layers = [name.removesuffix(".weight") for name in w if name.startswith("layers.") and name.endswith(".weight")]

    def score(users: Tensor, items: Tensor) -> Tensor:
        x = torch.cat([w["mlp_user.weight"][users], w["mlp_item.weight"][items]], dim=1)
        for layer in layers:
            x = F.relu(F.linear(x, w[f"{layer}.weight"], w[f"{layer}.bias"]))
        x = torch.cat([w["gmf_user.weight"][users] * w["gmf_item.weight"][items], x], dim=1)
        return F.linear(x, w["output.weight"], w["output.bias"])[:, 0]

    return score


def main() -> None:
    sampled = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    interactions = data.synthetic(NUM_USERS, NUM_ITEMS, INTERACTIONS)
    rule = protocol("full", metrics=("hr", "ndcg"))
    split = rule.split(interactions)
    split.train.csr()  # sorting the training part once is no part of an evaluation
    model = NeuMF(Schema(NUM_USERS, NUM_ITEMS), factors=32, layers=(256, 128, 64, 32)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0)  # initial scores are nearly equal; spread them so that ranks can be compared
    users = np.arange(0, NUM_USERS, NUM_USERS // sampled)[:sampled]
    rivals = {"score_pairs": _ByPairs(model.score_pairs), "plain PyTorch, pair by pair": _ByPairs(plain_pairs(model))}
    print(f"{hardware()['cpu']}, {hardware()['threads']} threads, {hardware()['isa']}, torch {torch.__version__}, "
          f"Python {platform.python_version()}")  # fmt: skip
    expected = evaluate(model, split, rule, users=users)
    for name, rival in rivals.items():
        found = evaluate(rival, split, rule, users=users)
        assert all(abs(found[key] - expected[key]) < 0.02 for key in expected), (name, found, expected)
    took = [_time(lambda: evaluate(model, split, rule)) for _ in range(3)]
    print(f"{'evaluate, full ranking':<30} {np.median(took):7.2f} s   ({min(took):.2f} to {max(took):.2f})")
    for name, rival in rivals.items():
        part = _time(lambda rival=rival: evaluate(rival, split, rule, users=users))
        print(f"{name:<30} {part * NUM_USERS / sampled:7.2f} s   (scaled from {sampled} users)")


def _time(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
