"""Faults on a GPU: the CPU's error, named at the next look; the context lives on, graphs and other devices too."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from deeprec import nn
from deeprec.kernels.als_solve import als_solve
from deeprec.kernels.embedding import embedding, embedding_plan
from deeprec.kernels.embedding_bag import embedding_bags
from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.kernels.faults import check_device, claim_of
from deeprec.kernels.sample_negatives import alias_table, sample_negatives
from deeprec.kernels.sampled_linear_loss import sampled_linear_loss
from deeprec.kernels.score_topk import DotScorer, NCFScorer, score_topk

pytestmark = pytest.mark.gpu

_IDS = torch.tensor([[3, 1, 3], [2, 7, 2]])
_LINES = (torch.tensor([0, 2, 2, 5]), torch.tensor([1, 4, 0, 9, 3]))
_SEEN = (torch.tensor([0, 2, 2, 3]), torch.tensor([1, 4, 0], dtype=torch.int32))
_ALL_SEEN = (torch.tensor([0, 3, 3]), torch.tensor([0, 1, 2], dtype=torch.int32))


def _draw(users: list[int], lists: Any = _SEEN, num_items: int = 6, popularity: Any = None) -> Callable[..., Any]:
    def call(move: Callable[[Any], Any]) -> Any:
        table = None if popularity is None else alias_table(move(torch.tensor(popularity)))
        given = (move(torch.tensor(users)), *map(move, lists))
        return sample_negatives(*given, num_items, 3, seed=1, popularity=table)

    return call


def _moved(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
    """A call whose tensors are moved first."""

    def call(move: Callable[[Any], Any]) -> Any:
        return function(*_map(move, arguments), **_map(move, options))

    return call


def _map(move: Callable[[Any], Any], given: Any) -> Any:
    if isinstance(given, torch.Tensor):
        return move(given)
    if isinstance(given, dict):
        return {key: _map(move, value) for key, value in given.items()}
    if isinstance(given, tuple) and hasattr(given, "_fields"):
        return type(given)(*(_map(move, value) for value in given))
    return type(given)(_map(move, value) for value in given) if isinstance(given, (list, tuple)) else given


_OPTIONS = {"seen_indptr": _SEEN[0], "seen_indices": _SEEN[1]}
_LAYER = [torch.randn(3, 4)], [torch.randn(3)], torch.randn(3)
_NETWORK = NCFScorer(torch.randn(3, 4), torch.randn(6, 4), None, None, *_LAYER)
CALLS: dict[str, Callable[..., Any]] = {
    "embedding": _moved(embedding, torch.randn(7, 4), _IDS),
    "embedding_bags": _moved(embedding_bags, [torch.randn(7, 4)] * 2, _IDS, tables=[0, 1]),
    "embedding_bags of bags": _moved(embedding_bags, [torch.randn(7, 4)], _IDS.view(-1), torch.tensor([0, 2, 6])),
    "embedding_fm": _moved(embedding_fm, [torch.randn(7, 4)] * 2, [torch.randn(7, 1)] * 2, _IDS, tables=[0, 1]),
    "sampled_linear_loss": _moved(
        sampled_linear_loss, torch.randn(3, 4), torch.randn(5, 4), None, *_LINES, torch.randn(5)
    ),
    "als_solve": _moved(als_solve, *_LINES, torch.ones(5), torch.randn(5, 4), ridge=0.5, cg_steps=2),
    "als_solve of a singular matrix": _moved(
        als_solve, torch.tensor([0, 2]), torch.tensor([1, 0]), torch.ones(2), torch.zeros(5, 4), ridge=-1.0
    ),
    "score_topk": _moved(
        score_topk, DotScorer(torch.randn(3, 4), torch.randn(6, 4)), 2, seen_rows=torch.tensor([0, 3, 1]), **_OPTIONS
    ),
    "score_topk of a network": _moved(score_topk, _NETWORK, 2, seen_rows=torch.tensor([0, 1, -1]), **_OPTIONS),
    "sample_negatives": _draw([0, 3]),
    "sample_negatives without an item": _draw([1, 0], _ALL_SEEN, 3),
    "sample_negatives without a weight": _draw([1, 0], _ALL_SEEN, 4, [1.0, 2.0, 3.0, 0.0]),
}


@pytest.fixture(autouse=True)
def _nothing_is_left_over() -> Iterator[None]:
    yield
    check_device()


def _error_of(call: Callable[..., Any], move: Callable[[Any], Any]) -> Exception:
    with pytest.raises((IndexError, ValueError)) as caught:  # noqa: PT012 (the CPU raises in the first line)
        call(move)
        check_device("cuda")
    return caught.value


@pytest.mark.parametrize("name", CALLS)
def test_a_fault_is_the_error_of_the_cpu(name: str) -> None:
    there, here = _error_of(CALLS[name], lambda x: x.cuda()), _error_of(CALLS[name], lambda x: x)
    assert type(there) is type(here)
    assert name.split(maxsplit=1)[0] in str(there)
    assert "met on cuda:0" in str(there)
    numbers = re.search(r"got (-?\d+) at position (\d+)", str(here))
    assert numbers is None or numbers.group() in str(there)
    torch.ones(3, device="cuda").sum().item()  # the context lives


def test_fault_free_calls_stay_fault_free() -> None:
    table, ids = torch.randn(7, 4, device="cuda"), torch.tensor([3, 1], device="cuda")
    assert torch.equal(embedding(table, ids), table[ids])
    check_device()


def test_no_table_changes_after_a_bad_id() -> None:
    layer = nn.Embedding(7, 4).cuda()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = copy.deepcopy(layer.state_dict())
    out = layer(torch.tensor([3, 9], device="cuda")).sum()
    with pytest.raises(IndexError, match="got 9 at position 1"):
        out.backward()  # its plan waits for the GPU
    optimizer.step()
    assert all(torch.equal(before[name], now) for name, now in layer.state_dict().items())


def test_plans_look_before_they_return() -> None:
    embedding(torch.randn(7, 4, device="cuda"), torch.tensor([8], device="cuda"))
    with pytest.raises(IndexError, match="got 8 at position 0"):
        embedding_plan(torch.tensor([1], device="cuda"), 7)


def test_a_graph_reports_what_its_replays_meet() -> None:
    table, ids = torch.randn(7, 4, device="cuda"), torch.tensor([3, 1], device="cuda")
    embedding(table, ids)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = embedding(table, ids)
        check_device()  # waits until the capture is over
    ids.copy_(torch.tensor([3, 9]))
    graph.replay()
    with pytest.raises(IndexError, match="got 9 at position 1"):
        check_device()
    assert not out[1].any()
    ids.copy_(torch.tensor([3, 2]))
    graph.replay()
    check_device()
    assert torch.equal(out, table[ids])


def test_compiled_code_reports_too() -> None:
    table = torch.randn(7, 4, device="cuda")
    compiled = torch.compile(lambda ids: embedding(table, ids).sum(), fullgraph=True)
    compiled(torch.tensor([3, 1], device="cuda"))
    check_device()
    compiled(torch.tensor([3, 9], device="cuda"))
    with pytest.raises(IndexError, match="got 9 at position 1"):
        check_device()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_devices_have_reports_of_their_own() -> None:
    embedding(torch.randn(7, 4, device="cuda:1"), torch.tensor([8], device="cuda:1"))
    check_device("cuda:0")
    with pytest.raises(IndexError, match="met on cuda:1"):
        check_device("cuda:1")
    assert claim_of(torch.device("cuda", 0)).device != claim_of(torch.device("cuda", 1)).device
