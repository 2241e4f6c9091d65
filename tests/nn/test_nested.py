"""Nested tensors as ids: rows and bags as torch's layers give them, or as the parts one by one do."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprec.nn import Embedding, EmbeddingBag, EmbeddingCollection, FactorizationMachine, Table

ROWS, DIM = 9, 4
PARTS = [[1, 2, 8], [], [4], [0, 0]]
FLAT = list(chain(*PARTS))
LAYOUTS = [torch.jagged, torch.strided]


def nested(parts: list[Any], layout: torch.layout, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.nested.nested_tensor([torch.tensor(part, dtype=dtype) for part in parts], layout=layout)


def loss_of(out: Tensor) -> Tensor:
    return sum((part.square().sum() * (number + 1) for number, part in enumerate(out.unbind())), torch.zeros(()))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"max_norm": 0.5}, {"scale_grad_by_freq": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_embedding_gives_nested_rows(layout: torch.layout, options: dict[str, Any], dtype: torch.dtype) -> None:
    ours = Embedding(ROWS, DIM, **options)
    theirs = nn.Embedding(ROWS, DIM, **options)
    theirs.load_state_dict(ours.state_dict())
    ids = nested(PARTS, layout, dtype)
    out = ours(ids)
    assert out.is_nested
    assert out.layout == layout
    flat = theirs(torch.cat(ids.unbind()))
    want = flat.split([len(part) for part in PARTS])
    for got, part in zip(out.unbind(), want, strict=True):
        torch.testing.assert_close(got, part)
    loss_of(out).backward()
    sum((part.square().sum() * (number + 1) for number, part in enumerate(want)), torch.zeros(())).backward()
    torch.testing.assert_close(ours.weight.grad.to_dense(), theirs.weight.grad)
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_rows_share_the_ragged_dimension_of_their_ids() -> None:
    ids = nested(PARTS, torch.jagged)
    out = Embedding(ROWS, DIM)(ids)
    assert out.shape == (*ids.shape, DIM) == nn.Embedding(ROWS, DIM)(ids).shape
    assert (out * nn.Embedding(ROWS, DIM)(ids)).is_nested
    deep = torch.nested.nested_tensor([torch.zeros(3, 2).long(), torch.ones(1, 2).long()], layout=torch.jagged)
    assert Embedding(ROWS, DIM)(deep).shape == (*deep.shape, DIM)
    strided = torch.nested.nested_tensor([torch.zeros(3, 2).long(), torch.ones(1, 5).long()], layout=torch.strided)
    assert [part.shape for part in Embedding(ROWS, DIM)(strided).unbind()] == [(3, 2, DIM), (1, 5, DIM)]


def test_holes_are_not_looked_up_and_transposed_ones_refused() -> None:
    values, offsets, lengths = torch.tensor([1, 2, 99, 3]), torch.tensor([0, 3, 4]), torch.tensor([2, 1])
    ids = torch.nested.nested_tensor_from_jagged(values, offsets=offsets, lengths=lengths)
    layer = Embedding(ROWS, DIM)
    for got, part in zip(layer(ids).unbind(), ([1, 2], [3]), strict=True):
        assert torch.equal(got, layer.weight[part])
    bag = EmbeddingBag(ROWS, DIM, mode="sum")
    torch.testing.assert_close(bag(ids), torch.stack([bag.weight[[1, 2]].sum(0), bag.weight[3]]))
    deep = torch.nested.nested_tensor([torch.zeros(3, 2).long(), torch.ones(1, 2).long()], layout=torch.jagged)
    with pytest.raises(ValueError, match="Embedding: a nested tensor must be ragged in its second dimension"):
        layer(deep.transpose(1, 2))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("include_last_offset", [False, True])
def test_parts_are_bags(layout: torch.layout, mode: str, include_last_offset: bool) -> None:
    options: dict[str, Any] = {"mode": mode, "padding_idx": 2}
    ours = EmbeddingBag(ROWS, DIM, include_last_offset=include_last_offset, **options)
    theirs = nn.EmbeddingBag(ROWS, DIM, include_last_offset=True, **options)
    theirs.load_state_dict(ours.state_dict())
    flat, offsets = torch.tensor(FLAT), torch.tensor([0, 3, 3, 4, 6])
    numbers = torch.rand(6) if mode == "sum" else None
    scales = [None if numbers is None else numbers.clone().requires_grad_() for _ in range(2)]
    given = None if numbers is None else list(scales[0].split([3, 0, 1, 2]))
    scale = None if given is None else torch.nested.as_nested_tensor(given, layout=layout)
    got, want = ours(nested(PARTS, layout), None, scale), theirs(flat, offsets, scales[1])
    torch.testing.assert_close(got, want)
    for out in (got, want):
        out.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    if numbers is not None:
        torch.testing.assert_close(scales[0].grad, scales[1].grad)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_collections_take_nested_features(layout: torch.layout) -> None:
    layer = EmbeddingCollection([Table("a", ROWS, 3), Table("b", ROWS, 2, "none"), Table("c", ROWS, 2)])
    single = torch.arange(4)
    pooled, rows = layer({"a": nested(PARTS, layout), "b": nested(PARTS, layout), "c": single})
    flat, offsets = torch.tensor(FLAT), torch.tensor([0, 3, 3, 4, 6])
    want, want_rows = layer({"a": (flat, offsets), "b": (flat, offsets), "c": single})
    torch.testing.assert_close(pooled, want)
    assert rows["b"].layout == layout
    torch.testing.assert_close(torch.cat(rows["b"].unbind()), want_rows["b"])
    loss_of(rows["b"]).backward()
    assert layer.tables["b"].weight.grad.to_dense()[0].abs().sum() > 0


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_numbers_of_nested_features_are_nested_alike(layout: torch.layout) -> None:
    numbers = [[0.5, 1.0, 2.0], [], [3.0], [0.1, 0.2]]
    ids, scale = nested(PARTS, layout), nested(numbers, layout, torch.float32)
    flat, offsets = torch.tensor(FLAT), torch.tensor([0, 3, 3, 4, 6])
    tables = [Table("a", ROWS, 3), Table("b", ROWS, 3)]
    for layer in (EmbeddingCollection(tables), FactorizationMachine(tables)):
        got = layer({"a": ids, "b": torch.arange(4)}, None, {"a": scale})
        want = layer({"a": (flat, offsets), "b": torch.arange(4)}, None, {"a": torch.tensor(list(chain(*numbers)))})
        torch.testing.assert_close(got, want)
        other = nested([*numbers[::-1]], layout, torch.float32)
        with pytest.raises(ValueError, match=r"of 'a' must have parts as long as those of ids of 'a'"):
            layer({"a": ids, "b": torch.arange(4)}, None, {"a": other})
    bag = EmbeddingBag(ROWS, 3, mode="sum")
    with pytest.raises(ValueError, match="EmbeddingBag: per_sample_weights must be nested like input"):
        bag(ids, None, torch.ones(6))
    with pytest.raises(ValueError, match="EmbeddingBag: per_sample_weights must have parts as long"):
        bag(ids, None, nested([*numbers[::-1]], layout, torch.float32))
    with pytest.raises(ValueError, match="EmbeddingBag: offsets must be None"):
        bag(ids, offsets)
    with pytest.raises(ValueError, match=r"got a nested tensor; give offsets or a mapping"):
        EmbeddingCollection(tables)(ids)


def test_nested_ids_compile_whole() -> None:
    torch._dynamo.reset()
    layer = nn.ModuleDict(
        {
            "rows": Embedding(ROWS, DIM, sparse=False),
            "bags": EmbeddingBag(ROWS, DIM, mode="sum"),
            "many": EmbeddingCollection([Table("a", ROWS, 3)], sparse=False),
        }
    )

    def run(ids: Tensor) -> Tensor:
        pooled = torch.cat([layer["bags"](ids), layer["many"]({"a": ids})], 1)
        return layer["rows"](ids).values().square().sum() + pooled.square().sum()

    ids = nested(PARTS, torch.jagged)
    want = run(ids)
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(ids)
    torch.testing.assert_close(got, want)
    for out in (got, want):
        out.backward()
        grads = [parameter.grad for parameter in layer.parameters()]
        layer.zero_grad()
        if out is got:
            first = grads
    torch.testing.assert_close(first, grads)
