"""Top 10 of 3,706 items (MovieLens-1M's size): `python -m bench score_topk`, or `python -m bench.score_topk [--plain]`.

The dot scorer stands beside torch.matmul + topk; the NCF network (NeuMF-32: GMF 32, layers 256-128-64-32) beside every
pair sent through the plain network in blocks, all 22.4 million of them (with --plain: about a minute on an idle
machine). CPU seconds stand beside the wall clock: on a busy machine they are the figure to trust.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.harness import Case, Contender, Target, Trial
from bench.rivals import compiled
from deeprec.kernels._library import cpu_isa
from deeprec.kernels.score_topk import DotScorer, NCFScorer, TopK, score_items, score_topk

NUM_USERS, NUM_ITEMS, PER_USER, K, FACTORS = 6_040, 3_706, 165, 10, 32
LAYERS = (256, 128, 64, 32)


class PlainNeuMF(nn.Module):
    """NeuMF as a tutorial writes it: concatenate, four linear layers, one row a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.user_gmf, self.item_gmf = nn.Embedding(NUM_USERS, FACTORS), nn.Embedding(NUM_ITEMS, FACTORS)
        self.user_mlp, self.item_mlp = nn.Embedding(NUM_USERS, 128), nn.Embedding(NUM_ITEMS, 128)
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(LAYERS))
        self.out = nn.Linear(FACTORS + LAYERS[-1], 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        x = torch.cat([self.user_mlp(users), self.item_mlp(items)], dim=1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.out(torch.cat([self.user_gmf(users) * self.item_gmf(items), x], dim=1))[:, 0]

    def scorer(self) -> NCFScorer:
        """The same network with its first layer split into a user part and an item part."""
        first, *rest = self.hidden
        return NCFScorer(
            self.user_mlp.weight @ first.weight[:, :128].T + first.bias,
            self.item_mlp.weight @ first.weight[:, 128:].T,
            self.user_gmf.weight,
            self.item_gmf.weight,
            [layer.weight for layer in rest],
            [layer.bias for layer in rest],
            self.out.weight,
            self.out.bias,
        )


def plain_topk(model: PlainNeuMF, seen: Tensor, block: int = 4) -> Tensor:
    items, best = torch.arange(NUM_ITEMS), []
    for first in range(0, NUM_USERS, block):
        users = torch.arange(first, min(first + block, NUM_USERS))
        scores = model(users.repeat_interleave(NUM_ITEMS), items.repeat(len(users))).view(len(users), NUM_ITEMS)
        best.append(scores.masked_fill(seen[first : first + block], float("-inf")).topk(K).values)
    return torch.cat(best)


def seconds_of(name: str, run: Callable[[], object], repeats: int, flops: float = 0.0) -> None:
    if repeats > 1:
        run()
    seconds, cpu = [], time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    median, cpu = statistics.median(seconds), (time.process_time() - cpu) / repeats
    rate = f"  {flops / median / 1e9:6.0f} GFLOP/s" if flops else ""
    print(
        f"{name:52s} {median:8.4f} s  ({min(seconds):.4f} to {max(seconds):.4f}, {repeats} runs, cpu {cpu:.4f} s){rate}"
    )


def check(name: str, got: TopK, expected: Tensor, tolerance: float) -> None:
    error = float((got.values - expected).abs().max())
    if error > tolerance:
        raise SystemExit(f"{name}: values differ by {error:.2e}: no timing")


# Cases of the harness: the dot scorer on all users, the network on a few, since the plain one takes 10 ms a user.

PLAIN_USERS = 64
DENSE, PAIRS, COMPILED = "torch: matmul, mask, topk", "torch: every pair through the network", "torch.compile of it"
TARGETS = (
    Target("score_topk, dot product", "dot", DENSE, 1.0),
    Target("score_topk, NeuMF-32", "NeuMF", PAIRS, 1.0),
    Target("score_topk, NeuMF-32", "NeuMF", COMPILED, 1.0),
)


def _seen(num_users: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Items met, as a mask [users, N] and as the lists that score_topk takes."""
    lists = torch.rand(num_users, NUM_ITEMS).argsort(1)[:, :PER_USER].sort(1).values
    mask = torch.zeros((num_users, NUM_ITEMS), dtype=torch.bool).scatter_(1, lists, True)
    indptr = torch.arange(num_users + 1) * PER_USER
    return mask, {"seen_indptr": indptr, "seen_indices": lists.int().flatten()}


def _dot_trial() -> Trial:
    users, items = torch.randn(NUM_USERS, 64), torch.randn(NUM_ITEMS, 64)
    mask, lists = _seen(NUM_USERS)
    scorer = DotScorer(users, items)
    exact = (users.double() @ items.double().T).masked_fill_(mask, float("-inf"))
    trial = Trial([exact.topk(K).values])

    def dense() -> Tensor:
        return (users @ items.T).masked_fill_(mask, float("-inf")).topk(K).values

    trial.add("deeprec", lambda: [score_topk(scorer, K, **lists).values])
    trial.add(DENSE, dense)
    return trial


def _network_trial() -> Trial:
    model = PlainNeuMF()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    mask, lists = _seen(PLAIN_USERS)
    with torch.no_grad():
        whole = model.scorer()
    scorer = whole._replace(
        user_hidden=whole.user_hidden[:PLAIN_USERS].contiguous(),
        user_factors=whole.user_factors[:PLAIN_USERS].contiguous(),
    )
    pairs = torch.cartesian_prod(torch.arange(PLAIN_USERS), torch.arange(NUM_ITEMS)).unbind(1)

    def best(network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            scores = network(*pairs).view(PLAIN_USERS, NUM_ITEMS)
        return scores.masked_fill(mask, float("-inf")).topk(K).values

    expected = best(copy.deepcopy(model).double())
    trial = Trial([expected], tolerance=1e-4)
    trial.add("deeprec", lambda: [score_topk(scorer, K, **lists).values])
    rounded = copy.deepcopy(model).bfloat16()
    honest = float((best(rounded).double() - expected).abs().max() / expected.abs().max()) + 0.01
    trial.contenders.append(
        Contender(
            "deeprec, bfloat16",
            lambda: [score_topk(scorer, K, **lists, precision="bfloat16").values],
            tolerance=honest,
        )
    )
    trial.add_rival(PAIRS, lambda: Contender(PAIRS, lambda: best(model)))
    trial.add_rival(COMPILED, lambda: Contender(COMPILED, partial(best, compiled(model))))
    return trial


def cases() -> list[Case]:
    """Both scorers; compute-bound, so flops are shown."""
    network = 2.0 * PLAIN_USERS * NUM_ITEMS * (128 * 64 + 64 * 32 + 32 + FACTORS)
    return [
        Case(f"dot, D 64, {NUM_USERS:,} users", "dot", _dot_trial, 0.0, 2.0 * 64 * NUM_USERS * NUM_ITEMS),
        Case(f"NeuMF-32 256-128-64-32, {PLAIN_USERS} users", "NeuMF", _network_trial, 0.0, network),
    ]


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    seen = torch.zeros((NUM_USERS, NUM_ITEMS), dtype=torch.bool)
    lists = torch.rand(NUM_USERS, NUM_ITEMS).argsort(1)[:, :PER_USER].sort(1).values
    seen.scatter_(1, lists, True)
    lists_of = {"seen_indptr": torch.arange(NUM_USERS + 1) * PER_USER, "seen_indices": lists.int().flatten()}
    pairs = NUM_USERS * NUM_ITEMS
    print(f"{NUM_USERS} users x {NUM_ITEMS} items, {PER_USER} seen each, K = {K}; torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads, {cpu_isa() or 'reference'}; median (min to max)")

    users, items = torch.randn(NUM_USERS, 64), torch.randn(NUM_ITEMS, 64)

    def dense() -> Tensor:
        return (users @ items.T).masked_fill_(seen, float("-inf")).topk(K).values

    dot = DotScorer(users, items)
    check("dot", score_topk(dot, K, **lists_of), dense(), 1e-3)
    seconds_of("dot, D = 64: score_topk", lambda: score_topk(dot, K, **lists_of), 7, 2.0 * 64 * pairs)
    seconds_of("dot, D = 64: matmul + mask + topk", dense, 7, 2.0 * 64 * pairs)

    model = PlainNeuMF()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    scorer = model.scorer()
    flops = 2.0 * pairs * (128 * 64 + 64 * 32 + 32 + FACTORS)
    for precision in ("float32", "bfloat16"):
        name = f"NeuMF-32, {precision}"
        seconds_of(
            f"{name}: score_topk",
            lambda precision=precision: score_topk(scorer, K, **lists_of, precision=precision),
            3,
            flops,
        )
        seconds_of(
            f"{name}: score_items",
            lambda precision=precision: score_items(scorer, precision=precision),
            3,
            flops,
        )
    if "--plain" not in sys.argv:
        return
    expected: list[Tensor] = []
    seconds_of("NeuMF-32, float32: every pair through the network", lambda: expected.append(plain_topk(model, seen)), 1)
    check("NeuMF-32", score_topk(scorer, K, **lists_of), expected[0], 1e-2)


if __name__ == "__main__":
    main()
