"""Claims about deeprec.nn.Embedding."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

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
