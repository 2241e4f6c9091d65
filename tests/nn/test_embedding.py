"""Claims about deeprec.nn.Embedding."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deeprec.kernels.embedding import embedding_plan
from deeprec.nn import Embedding


def test_state_dict_is_that_of_torch_embedding_in_both_directions() -> None:
    ours, theirs = Embedding(10, 3), torch.nn.Embedding(10, 3)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)


def test_forward_and_gradient_equal_torch_embedding() -> None:
    ours, theirs = Embedding(10, 3), torch.nn.Embedding(10, 3)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.tensor([[1, 9, 1], [0, 1, 4]])
    for plan in (None, embedding_plan(ids, 10)):
        ours.zero_grad()
        theirs.zero_grad()
        a, b = ours(ids, plan), theirs(ids)
        assert torch.equal(a, b)
        (a**2).sum().backward()
        (b**2).sum().backward()
        torch.testing.assert_close(ours.weight.grad.to_dense(), theirs.weight.grad)


def test_rows_are_brought_up_to_date_before_they_are_read_for_training() -> None:
    table, seen = Embedding(10, 3), []
    table.weight._deeprec_catch_up = lambda ids: seen.append(ids.tolist())
    ids = torch.tensor([3, 3, 7])
    table(ids)
    table(ids, embedding_plan(ids, 10))
    with torch.no_grad():
        table(ids)
    assert seen == [[3, 3, 7], [3, 7]]


def test_error_names_the_table() -> None:
    with pytest.raises(IndexError, match="table 'item'"):
        Embedding(10, 3, name="item")(torch.tensor([10]))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be >= 1"):
        Embedding(*sizes)


def test_copies_and_pickles() -> None:
    table = Embedding(10, 3, dtype=torch.float64, name="user")
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):  # noqa: S301
        assert torch.equal(other.weight, table.weight)
    assert "10, 3" in repr(table)


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dim=st.sampled_from([1, 3, 8, 17]),
    sparse=st.booleans(),
    padding_idx=st.none() | st.integers(-9, 8),
    max_norm=st.none() | st.just(0.7),
    scale_grad_by_freq=st.booleans(),
    index=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 999),
)
def test_every_option_equals_torch_in_value_and_gradient(
    shape: list[int], dim: int, sparse: bool, index: torch.dtype, seed: int, **options: Any
) -> None:
    torch.manual_seed(seed)
    ours = Embedding(9, dim, sparse=sparse, **options)
    theirs = torch.nn.Embedding(9, dim, **options)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 9, shape).to(index)
    outs = []
    for layer in (ours, theirs):
        out = layer(ids)
        out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape))
        outs.append((out.detach(), layer.weight.detach(), layer.weight.grad.to_dense()))
    for got, want in zip(*outs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_same_constructor_and_attributes_as_torch() -> None:
    arguments = (9, 3, 4, 1.5, 1.0, True, True, torch.ones(9, 3), True)
    ours, theirs = Embedding(*arguments), torch.nn.Embedding(*arguments)
    assert isinstance(ours, torch.nn.Embedding)
    assert repr(ours) == repr(theirs)
    assert not ours.weight.requires_grad
    assert torch.equal(ours(torch.tensor([1, 4])), theirs(torch.tensor([1, 4])))


def test_sparse_grad_and_sparse_are_one_switch() -> None:
    assert Embedding(3, 2).sparse
    assert not Embedding(3, 2, sparse_grad=False).sparse
    table = Embedding(3, 2, sparse=False)
    table.sparse_grad = True
    assert table.sparse


@pytest.mark.parametrize("freeze", [True, False])
def test_from_pretrained_keeps_every_row(freeze: bool) -> None:
    weight = torch.randn(5, 3)
    table = Embedding.from_pretrained(weight, freeze=freeze, padding_idx=1, sparse=True)
    assert type(table) is Embedding
    assert torch.equal(table.weight, weight)
    assert table.weight.requires_grad is not freeze
    assert torch.equal(table(torch.tensor([1, 2])), weight[1:3])


@pytest.mark.parametrize("sparse", [False, True])
def test_padding_row_starts_as_zeros_and_gets_no_gradient(sparse: bool) -> None:
    table = Embedding(5, 3, padding_idx=-1, sparse=sparse)
    assert table.padding_idx == 4
    assert not table.weight[4].any()
    table.weight.data[4] = 7.0
    out = table(torch.tensor([[4, 1], [4, 4]]), embedding_plan(torch.tensor([4, 1, 4, 4]), 5))
    assert (out[1] == 7.0).all()
    out.sum().backward()
    assert table.weight.grad.to_dense().sum(1).tolist() == [0.0, 3.0, 0.0, 0.0, 0.0]


def test_bad_id_is_named_and_changes_nothing_with_max_norm() -> None:
    table = Embedding(6, 4, max_norm=0.1, name="item")
    before = table.weight.detach().clone()
    with pytest.raises(IndexError, match=r"table 'item' must be in \[0, 6\), got -1 at position 1"):
        table(torch.tensor([1, -1]))
    assert torch.equal(table.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding_idx": 3}, "padding_idx must be in"),
        ({"padding_idx": -4}, "padding_idx must be in"),
        ({"_weight": torch.ones(2, 3)}, "use from_pretrained"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embedding(3, 2, **options)
