"""Claims about deeprec.nn.replace_embeddings."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deeprec.nn import Embedding, EmbeddingBag, replace_embeddings


class Tower(nn.Module):
    """A table used twice, a tied output layer, and bags: where a replacement could go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(20, 4, padding_idx=3)
        self.again = self.items
        self.genres = nn.ModuleList([nn.EmbeddingBag(7, 4, mode=mode) for mode in ("sum", "max")])
        self.out = nn.Linear(4, 20, bias=False)
        self.out.weight = self.items.weight

    def forward(self, ids: Tensor, genres: Tensor) -> Tensor:
        pooled = sum(bag(genres) for bag in self.genres)
        return self.out(self.items(ids) + self.again(ids) + pooled)


def test_results_and_gradients_are_those_of_before() -> None:
    torch.manual_seed(0)
    model = Tower()
    ids, genres = torch.randint(0, 20, (9,)), torch.randint(0, 7, (9, 2))
    outcomes = []
    for _ in range(2):
        model.zero_grad()
        out = model(ids, genres)
        out.square().mean().backward()
        outcomes.append([out.detach(), *(p.grad.to_dense() for p in model.parameters())])
        replace_embeddings(model)
    for got, want in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got, want)


def test_everything_stays_the_object_it_is() -> None:
    model = Tower()
    modules, parameters, state = list(model.modules()), list(model.parameters()), list(model.state_dict())
    assert replace_embeddings(model) is model
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == state
    assert type(model.items) is Embedding
    assert model.again is model.items
    assert model.out.weight is model.items.weight
    assert [type(bag) for bag in model.genres] == [EmbeddingBag, EmbeddingBag]
    assert (model.items.padding_idx, model.genres[1].mode) == (3, "max")


@pytest.mark.parametrize(("sparse", "want"), [(None, [False, True]), (True, [True, True]), (False, [False, False])])
def test_sparse_is_kept_or_set(sparse: bool | None, want: list[bool]) -> None:
    model = Tower()
    model.genres[0].sparse = True
    replace_embeddings(model, sparse=sparse)
    assert [model.items.sparse, model.genres[0].sparse] == want


def test_errors_name_the_path() -> None:
    model = replace_embeddings(Tower())
    with pytest.raises(IndexError, match=r"table 'genres.0'"):
        model.genres[0](torch.tensor([[7]]))
    with pytest.raises(IndexError, match=r"table 'items'"):
        model.items(torch.tensor([[20]]))


def test_an_embedding_itself_is_replaced() -> None:
    assert type(replace_embeddings(nn.EmbeddingBag(3, 2))) is EmbeddingBag


def test_an_optimizer_made_before_goes_on() -> None:
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.genres[0].weight.detach().clone()
    replace_embeddings(model)
    model(torch.tensor([1]), torch.tensor([[2]])).sum().backward()
    optimizer.step()
    assert not torch.equal(model.genres[0].weight, before)


class Doubling(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def test_what_may_compute_something_else_is_left_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    hooked, patched, parametrized = nn.Embedding(5, 2), nn.Embedding(5, 2), nn.Embedding(5, 2)
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    patched.forward = lambda input: input
    parametrize.register_parametrization(parametrized, "weight", Negative())
    complex_table = nn.Embedding(5, 2, dtype=torch.complex64)
    model = nn.ModuleList([Doubling(5, 2), hooked, patched, parametrized, complex_table, nn.Embedding(5, 2)])
    kinds = [type(module) for module in model]
    with caplog.at_level(logging.INFO, logger="deeprec"):
        replace_embeddings(model)
    assert [type(module) for module in model] == [*kinds[:-1], Embedding]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    reasons = ("subclass Doubling", "hooks", "forward was replaced", "subclass Parametrized", "complex64")
    assert len(warnings) == len(reasons)
    for path, (message, reason) in enumerate(zip(warnings, reasons, strict=True)):
        assert f"'{path}'" in message
        assert reason in message
    assert "replaced 1: 5" in caplog.text


def test_replacing_twice_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = replace_embeddings(Tower())
    with caplog.at_level(logging.INFO, logger="deeprec"):
        replace_embeddings(model)
    assert "replaced 0: none" in caplog.text
