"""Operators called from many Python threads at once give what they give alone: a server that answers requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from deeprec.kernels.embedding import embedding
from deeprec.kernels.embedding_bag import embedding_bags
from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.kernels.score_topk import DotScorer, score_topk
from deeprec.nn import EmbeddingCollection, Table
from deeprec.train.optim import Adam

THREADS, ROUNDS = 8, 12


def requests() -> list[Callable[[], list[Tensor]]]:
    """One request a thread, large enough for the operators to split it among threads of their own."""
    torch.manual_seed(0)
    tables = [torch.randn(5000, dim) for dim in (16, 16, 64)]
    linear = [torch.randn(5000) for _ in range(2)]
    scorer = DotScorer(torch.randn(300, 16), tables[0])
    layer = EmbeddingCollection([Table(f"t{i}", 5000, d, m) for i, (d, m) in enumerate([(8, "mean"), (16, "max")])])
    calls: list[Callable[[], list[Tensor]]] = []
    for kind in range(THREADS):
        ids = torch.randint(0, 5000, (3, 2000))
        bounds = torch.arange(0, 6001, 4)
        calls.append(
            [
                lambda ids=ids: [embedding(tables[2], ids)],
                lambda ids=ids: [embedding_bags(tables, ids)[0]],
                lambda ids=ids, bounds=bounds: [embedding_bags(tables, ids.flatten(), bounds, modes="mean")[0]],
                lambda ids=ids: [embedding_fm(tables[:2], linear, ids[:2])],
                lambda: list(score_topk(scorer, 20)),
                lambda ids=ids: [layer({"t0": ids.T.contiguous(), "t1": ids.T.contiguous()})],
            ][kind % 6]
        )
    return calls


def step(seed: int) -> list[Tensor]:
    """Forward, backward and an optimizer's step on a table of this thread's own."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3000, 24, generator=generator).requires_grad_()
    ids = torch.randint(0, 3000, (3, 2000), generator=generator)
    optimizer = Adam([weight], mode="dense")
    for sparse_grad in (True, False, True):
        optimizer.zero_grad()
        out, _ = embedding_bags([weight], ids, tables=[0, 0, 0], sparse_grad=sparse_grad)
        (out.square().sum() + embedding(weight, ids[0]).sum()).backward()
        optimizer.step()
    optimizer.flush()
    return [weight.detach()]


def run_together(calls: list[Callable[[], list[Tensor]]]) -> list[list[list[Tensor]]]:
    """Results of each call, ROUNDS of them, all threads at once."""
    gate = threading.Barrier(len(calls))

    def work(call: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
        out = []
        for _ in range(ROUNDS):
            gate.wait()
            out.append(call())
        return out

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(work, calls))


def assert_all_equal(results: list[list[list[Tensor]]], wants: list[list[Tensor]]) -> None:
    for rounds, want in zip(results, wants, strict=True):
        for got in rounds:
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_lookups_and_scores_from_eight_threads() -> None:
    with torch.no_grad():
        calls = requests()
        wants = [call() for call in calls]

    def without_grad(call: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        return torch.no_grad()(call)  # grad mode is each thread's own

    assert_all_equal(run_together([without_grad(call) for call in calls]), wants)


def test_training_in_one_thread_while_others_look_up() -> None:
    calls = requests()[:5] + [lambda seed=seed: step(seed) for seed in range(3)]
    wants = [call() for call in calls]
    assert_all_equal(run_together(calls), wants)
