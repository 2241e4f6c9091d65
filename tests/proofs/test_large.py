"""Addresses beyond 2^31 elements: tables of 40 million rows of 64, results and gradients of as many rows.

Rows that were never written take no memory: the tables are made by torch.empty and only the rows in use are touched, so
the states of 10 GB and more fit anywhere. The results of the last test are real, 4.3 GB at a time.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deeprec.kernels.embedding import embedding
from deeprec.kernels.embedding_bag import RowUpdate, checks, embedding_bags
from deeprec.nn import Embedding
from deeprec.train.optim import FTRL, SGD, Adagrad, Adam, RowWiseAdagrad

pytestmark = pytest.mark.slow

ROWS, DIM = 40_000_000, 64
# Around 2^31 elements and 2^31 bytes, and both ends.
TOUCHED = torch.tensor([0, 2**24 - 1, 2**24, 2**25 - 1, 2**25, 2**25 + 1, ROWS - 1])


def pair(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """A table of which only the rows TOUCHED hold anything, and these rows as a table of their own."""
    torch.manual_seed(0)
    small = torch.randn(len(TOUCHED), DIM).to(dtype)
    large = torch.empty(ROWS, DIM, dtype=dtype)
    large[TOUCHED] = small
    return large, small


def ids_of(shape: tuple[int, ...], index: torch.dtype) -> tuple[Tensor, Tensor]:
    """Ids into the large table, and into the small one."""
    torch.manual_seed(1)
    small = torch.randint(0, len(TOUCHED), shape)
    return TOUCHED[small].to(index), small.to(index)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_lookup_pooling_and_gradients_of_a_table_of_40_million_rows(index: torch.dtype) -> None:
    large, small = (table.requires_grad_() for table in pair())
    results = []
    bounds = torch.tensor([0, 4, 4, 9, 30, 33, 40, 60, 70, 80, 100, 110, 120], dtype=index)
    for table, ids in zip((large, small), ids_of((120,), index), strict=True):
        scale = torch.linspace(-1, 1, 120).to(table.dtype).requires_grad_()
        modes = ["sum", "mean", "max", "none"]
        pooled, (rows,) = embedding_bags([table], ids, bounds, modes=modes, tables=[0] * 4)
        weighted, _ = embedding_bags([table], ids, bounds, per_sample_weights=scale, tables=[0] * 4)
        plain = embedding(table, ids)
        outs = [pooled, rows, weighted, plain]
        grads = [torch.linspace(-2, 1, out.numel()).reshape(out.shape).to(out.dtype) for out in outs]
        torch.autograd.backward(outs, grads)
        grad = table.grad.coalesce()
        results.append([*(out.detach() for out in outs), scale.grad, grad.values()])
        touched = TOUCHED if table is large else torch.arange(len(TOUCHED))
        assert torch.equal(grad.indices()[0], touched)
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("rule", [checks.SGD, checks.ADAGRAD, checks.ROWWISE_ADAGRAD, checks.ADAM, checks.FTRL])
def test_step_in_backward_on_a_table_of_40_million_rows(rule: int) -> None:
    results = []
    for table, ids in zip(pair(), ids_of((2, 50), torch.int64), strict=True):
        touched = TOUCHED if len(table) == ROWS else torch.arange(len(TOUCHED))
        shape = table.shape[:1] if rule == checks.ROWWISE_ADAGRAD else table.shape
        states = [torch.empty(shape) for _ in range(2 if rule in (checks.ADAM, checks.FTRL) else 1)]
        for state in states:
            state[touched] = 0.5
        update = RowUpdate(
            rule,
            states[:1],
            states[1:],
            torch.tensor(0.1, dtype=torch.float64),
            torch.tensor(0),
            [1.0, 0.0, 0.01, 0.1] if rule == checks.FTRL else [1e-8, 0.0, 0.9, 0.999],
        )
        pooled, _ = embedding_bags([table], ids, tables=[0, 0], update=update)
        pooled.square().sum().backward()
        results.append([table[touched], *(state[touched] for state in states)])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("make", [SGD, Adagrad, RowWiseAdagrad, Adam, FTRL, lambda p, lr: Adam(p, lr, mode="dense")])
def test_optimizers_on_a_table_of_40_million_rows(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.full

    def untouched(shape: torch.Size, fill: float, **options: object) -> Tensor:
        if len(shape) != 2:
            return real(shape, fill, **options)
        state = torch.empty(shape, **options)
        state[TOUCHED if shape[0] == ROWS else torch.arange(len(TOUCHED))] = fill
        return state

    # The first states would be written, 20 GB of them; the rows that count are.
    monkeypatch.setattr(torch, "full", untouched)
    results = []
    for table, ids in zip(pair(), ids_of((3, 5), torch.int64), strict=True):
        layer = Embedding.from_pretrained(table, freeze=False, sparse=True)
        optimizer = make(layer.parameters(), lr=0.1)  # type: ignore[operator]
        for step in range(3):
            optimizer.zero_grad()
            layer(ids[step]).square().sum().backward()
            optimizer.step()
        with torch.enable_grad():
            results.append(layer(ids).detach())  # brings the rows up to date
    assert torch.equal(*results)


@torch.no_grad()
def test_results_and_gradients_beyond_2_31_elements() -> None:
    count, rows = 2**25 + 5, 1000
    table = torch.randn(rows, DIM).to(torch.bfloat16)
    out = embedding(table, torch.arange(count, dtype=torch.int32) % rows)
    for some in (slice(0, 3), slice(2**25 - 2, count)):
        assert torch.equal(out[some], table[torch.arange(some.start, some.stop) % rows])
    del out  # 4.3 GB
    # As many bags, nearly all of them empty: the gradient of an empty bag is not read and takes no memory.
    bags = torch.tensor([0, 2**25 - 1, 2**25, 2**25 + 1, count - 1])
    ids, offsets = torch.tensor([7, 1, 2, 1, 999]), torch.zeros(count + 1, dtype=torch.int64)
    offsets[bags + 1] = 1
    offsets = offsets.cumsum(0)
    out, _ = embedding_bags([table], ids, offsets)
    assert torch.equal(out[bags], table[ids])
    assert not out[2**25 + 2 : count - 1].any()
    del out
    grad = torch.empty(count, DIM, dtype=torch.bfloat16)
    grad[bags] = torch.randn(len(bags), DIM).to(torch.bfloat16)
    want = torch.zeros(rows, DIM).index_add_(0, ids, grad[bags].float()).to(torch.bfloat16)
    given = (grad, [], ids.new_empty(0), ids, offsets, None)
    *dense, _ = torch.ops.deeprec.embedding_bags_dense_grad([table], *given, [0], [0], [-1], False)
    assert torch.equal(dense[0], want)
