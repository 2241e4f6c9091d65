"""Top 10 of 3,706 items (MovieLens-1M's size): `python -m bench score_topk`, or `python -m bench.score_topk [--plain]`.

On the CPU also the exact search for 1 and 256 queries among 6,000 to a million vectors, beside torch.matmul + topk and,
where they are installed, faiss-cpu, usearch and implicit, each in its exact form and with as many threads; one read of
all vectors stands beside them as the limit of a single query. `python -m bench.score_topk --scan` prints these alone.

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
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.harness import Case, Contender, Target, Trial, check_parity
from bench.rivals import compiled, exact_searches, faiss_topk
from bench.workloads import scale
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

DENSE, PAIRS, COMPILED = "torch: matmul, mask, topk", "torch: every pair through the network", "torch.compile of it"
AUTOTUNED, DENSE_COMPILED, FAISS = "torch.compile of it, max-autotune", "torch.compile: matmul, mask, topk", "faiss-gpu"
EXACT_BLOCK = 512  # users whose scores are held in float64 at a time
SCAN, READ, MATMUL = "exact search", "one read of the vectors", "torch: matmul, topk"
SEARCHES = ("faiss, flat", "usearch, exact", "implicit, topk")
SCANS = tuple(itertools.product((6_000, 100_000, 1_000_000), (64, 128), (1, 256)))  # items, D, queries
TARGETS = (
    *(Target(f"score_topk, {SCAN}", SCAN, rival, 1.0) for rival in (MATMUL, *SEARCHES)),
    Target(f"score_topk, {SCAN}: one query, 1,000,000 x 64", f"{SCAN} at the limit", READ, 1 / 1.5),
    Target("score_topk, dot product", "dot", DENSE, 1.0),
    Target("score_topk, NeuMF-32", "NeuMF", PAIRS, 1.0),
    Target("score_topk, NeuMF-32", "NeuMF", COMPILED, 1.0),
    *(Target("score_topk, dot product", "dot", rival, 1.0, device="cuda") for rival in (DENSE, DENSE_COMPILED, FAISS)),
    *(Target("score_topk, NeuMF-32", "NeuMF", rival, 1.0, device="cuda") for rival in (PAIRS, COMPILED, AUTOTUNED)),
)


class Size(NamedTuple):
    """Users and items of the dot scorer, users of the network (whose items are always those of MovieLens-1M)."""

    users: int
    items: int
    of_network: int

    @classmethod
    def on(cls, device: str) -> Size:
        """On a GPU more than its caches hold."""
        return cls(NUM_USERS, NUM_ITEMS, 64) if device == "cpu" else cls(16_384, 100_000, 512)


def _seen(num_users: int, num_items: int = NUM_ITEMS) -> tuple[Tensor, dict[str, Tensor]]:
    """Items met, as a mask [users, N] and as the lists that score_topk takes."""
    lists = torch.empty(num_users, PER_USER, dtype=torch.int64)
    for first in range(0, num_users, EXACT_BLOCK):
        some = lists[first : first + EXACT_BLOCK]
        some.copy_(torch.rand(len(some), num_items).argsort(1)[:, :PER_USER].sort(1).values)
    mask = torch.zeros((num_users, num_items), dtype=torch.bool).scatter_(1, lists, True)
    indptr = torch.arange(num_users + 1) * PER_USER
    return mask, {"seen_indptr": indptr, "seen_indices": lists.int().flatten()}


def dense_topk(users: Tensor, items: Tensor, mask: Tensor) -> Tensor:
    """Every score, then the largest."""
    return (users @ items.T).masked_fill_(mask, float("-inf")).topk(K).values


def _dot_trial(size: Size, device: str) -> Trial:
    users, items = torch.randn(size.users, 64), torch.randn(size.items, 64)
    mask, lists = _seen(size.users, size.items)
    scorer, wide = DotScorer(users, items), items.double()
    parts = zip(users.split(EXACT_BLOCK), mask.split(EXACT_BLOCK), strict=True)
    trial = Trial([torch.cat([dense_topk(some.double(), wide, seen) for some, seen in parts])])
    trial.add("deeprec", lambda: [score_topk(scorer, K, **lists).values])
    trial.add_rival(DENSE, lambda: Contender(DENSE, lambda: dense_topk(users, items, mask)))
    if device == "cuda":
        whole = compiled(dense_topk)
        trial.add_rival(DENSE_COMPILED, lambda: Contender(DENSE_COMPILED, lambda: whole(users, items, mask)))
        trial.add_rival(FAISS, lambda: Contender(FAISS, partial(faiss_topk(items, k=K, **lists), users)))
    return trial


def _network_trial(size: Size, device: str) -> Trial:
    model, count = PlainNeuMF(), size.of_network
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    mask, lists = _seen(count)
    with torch.no_grad():
        whole = model.scorer()
    scorer = whole._replace(
        user_hidden=whole.user_hidden[:count].contiguous(), user_factors=whole.user_factors[:count].contiguous()
    )
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(NUM_ITEMS)).unbind(1)

    def best(network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            scores = network(*pairs).view(count, NUM_ITEMS)
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
    if device == "cuda":
        trial.add_rival(AUTOTUNED, lambda: Contender(AUTOTUNED, partial(best, compiled(model, max_autotune=True))))
    return trial


def _best_scores(users: Tensor, items: Tensor) -> Tensor:
    """In float64, a part of the items at a time."""
    wide = users.double()
    best = [(wide @ part.double().T).topk(min(K, len(part))).values for part in items.split(50_000)]
    return torch.cat(best, 1).topk(K).values


def _scan_trial(num_items: int, dim: int, num_users: int) -> Trial:
    users, items = torch.randn(num_users, dim), torch.randn(num_items, dim)
    scorer, threads = DotScorer(users, items), torch.get_num_threads()
    expected = _best_scores(users, items)
    trial = Trial([expected])
    trial.add("deeprec", lambda: [score_topk(scorer, K).values])
    trial.add(MATMUL, lambda: [(users @ items.T).topk(K).values])
    for name, make in exact_searches(items, K, threads).items():
        trial.add_rival(name, lambda name=name, make=make: Contender(name, partial(make(), users)))
    if num_users == 1:
        trial.add(READ, items.sum, lambda: [expected])
    return trial


def _scan_cases() -> list[Case]:
    cases = []
    for num_items, dim, num_users in SCANS:
        is_limit = (num_items, dim, num_users) == (1_000_000, 64, 1)
        name = f"{num_users} of {num_items:,} x {dim}"
        flops, read = 2.0 * num_users * num_items * dim, 4.0 * num_items * dim
        build = partial(_scan_trial, num_items, dim, num_users)
        cases.append(Case(name, SCAN, build, read, flops, size=num_items, effort=0.5, turns=1))
        if is_limit:
            cases.append(
                Case(f"{name}, beside a read", f"{SCAN} at the limit", build, read, flops, effort=0.5, turns=1)
            )
    return cases


def cases(device: str = "cpu") -> list[Case]:
    """Both scorers; compute-bound, so flops are shown. On the CPU the exact search, too."""
    size, on_cpu = Size.on(device), Size.on("cpu")
    scans = _scan_cases() if device == "cpu" else []
    network = 2.0 * size.of_network * NUM_ITEMS * (128 * 64 + 64 * 32 + 32 + FACTORS)
    return [
        *scans,
        Case(
            f"dot, D 64, {size.users:,} users",
            "dot",
            partial(_dot_trial, size, device),
            0.0,
            2.0 * 64 * size.users * size.items,
            scale=scale(device, f"{size.items:,} items", f"{on_cpu.users:,} users, {on_cpu.items:,} items"),
        ),
        Case(
            f"NeuMF-32 256-128-64-32, {size.of_network} users",
            "NeuMF",
            partial(_network_trial, size, device),
            0.0,
            network,
            scale=scale(device, f"{size.of_network} users", f"{on_cpu.of_network}"),
        ),
    ]


def print_scans() -> None:
    """Each exact search in milliseconds, the least of its runs, contender after contender and again."""
    for case in _scan_cases():
        trial = case.build()
        for contender in trial.contenders:
            check_parity(contender, trial)
        rounds = 15 if case.flops < 1e10 else 5
        least = {contender.name: float("inf") for contender in trial.contenders}
        for _, contender in itertools.product(range(rounds), trial.contenders):
            start = time.perf_counter()
            contender.step()
            least[contender.name] = min(least[contender.name], time.perf_counter() - start)
        times = ", ".join(f"{name} {1e3 * seconds:.3f}" for name, seconds in least.items())
        print(f"{case.name}: {times} ms; missing: {trial.missing or 'none'}", flush=True)


@torch.inference_mode()
def main() -> None:
    if "--scan" in sys.argv:
        return print_scans()
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
