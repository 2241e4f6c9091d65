"""Claims about towers: the formula, its gradients sparse and in the backward pass, batches gathered from all rows."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from deeprec.nn import TermBatch, TermRows, Tower
from deeprec.nn.mlp import ACTIVATIONS
from deeprec.train import optim

SIZE, VALUES = 11, 2


def rows(n: int = 9, size: int = SIZE, values: int = VALUES) -> SimpleNamespace:
    random = np.random.default_rng(1)
    lengths = random.integers(0, 5, n)
    lengths[2] = 0
    ids = [np.sort(random.choice(size, length, replace=False)) for length in lengths]
    return SimpleNamespace(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        ids=np.concatenate(ids).astype(np.int32),
        weights=random.normal(size=lengths.sum()),
        values=random.normal(size=(n, values)),
    )


def dense(batch: TermBatch, size: int = SIZE) -> Tensor:
    x = torch.zeros(len(batch.values), size, dtype=batch.weights.dtype)
    owners = torch.repeat_interleave(torch.arange(len(x)), batch.offsets.diff())
    return x.index_put((owners, batch.ids.long()), batch.weights, accumulate=True)


def plain(tower: Tower, batch: TermBatch) -> Tensor:
    """The tower by dense products."""
    x = dense(batch) @ tower.terms
    x = x if tower.numbers is None else x + batch.values @ tower.numbers
    x = x if tower.bias is None else x + tower.bias
    for layer in tower.layers:
        x = ACTIVATIONS[tower.activation](x) @ layer.weight.T
        x = x if layer.bias is None else x + layer.bias
    return ACTIVATIONS[tower.last_activation](x)


@pytest.mark.parametrize(
    ("widths", "activation", "last", "bias"),
    [((5, 4, 3), "tanh", None, True), ((4,), "relu", "identity", False), ((6, 3), "gelu", "identity", True)],
)
@pytest.mark.parametrize("values", [0, VALUES])
def test_matches_dense_products(widths, activation, last, bias, values) -> None:
    tower = Tower(SIZE, values, widths, activation, last, bias).double()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(0, 0.5)
    batch = TermRows(rows(values=values)).whole()
    ours, theirs = tower(batch), plain(tower, batch)
    assert tower.width == ours.shape[1] == widths[-1]
    torch.testing.assert_close(ours, theirs)
    parameters = list(tower.parameters())
    grads = [torch.autograd.grad(out.square().sum(), parameters) for out in (ours, theirs)]
    assert grads[0][0].is_sparse
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one.to_dense(), other)


def test_without_terms_it_is_a_network_of_numbers() -> None:
    tower = Tower(0, VALUES, (3, 2)).double()
    batch = TermRows(rows()).whole()._replace(ids=torch.empty(0, dtype=torch.int64))
    batch = batch._replace(offsets=torch.zeros_like(batch.offsets), weights=batch.weights[:0])
    torch.testing.assert_close(tower(batch), plain_numbers(tower, batch.values))


def plain_numbers(tower: Tower, values: Tensor) -> Tensor:
    return torch.tanh(tower.layers[0](torch.tanh(values @ tower.numbers + tower.bias)))


def test_batches_are_the_rows_asked_for() -> None:
    every = TermRows(rows())
    for chosen in ([4, 2, 4, 0], [], [2, 2], list(range(9))):
        numbers = torch.tensor(chosen, dtype=torch.int64)
        batch = every.batch(numbers)
        assert torch.equal(dense(batch), dense(every.whole())[numbers])
        assert torch.equal(batch.values, every.values[numbers])
    assert len(every) == 9


def test_a_graph_holds_it_whole() -> None:
    tower = Tower(SIZE, VALUES, (4, 3), sparse=False).double()
    batch = TermRows(rows()).whole()
    compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch), tower(batch))
    compiled(batch).sum().backward()
    assert tower.terms.grad.abs().sum() > 0


def test_the_step_in_the_backward_pass_is_the_optimizers() -> None:
    batch = TermRows(rows()).whole()
    torch.manual_seed(3)
    apart, inside = (Tower(SIZE, VALUES, (4, 3)).double() for _ in range(2))
    inside.load_state_dict(apart.state_dict())
    inside.step_in_backward(functools.partial(optim.Adagrad, lr=0.1))
    optimizer = optim.Adagrad([apart.terms], lr=0.1)
    for _ in range(3):
        apart(batch).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        inside(batch).square().sum().backward()
        assert inside.terms.grad is None
    torch.testing.assert_close(inside.terms, apart.terms)
    assert inside.optimizer is not None


def test_the_first_weights_have_the_bounds_of_the_paper() -> None:
    tower = Tower(600, 0, (300, 40), generator=torch.Generator().manual_seed(1))
    assert 0.98 * (6 / 900) ** 0.5 < tower.terms.abs().max() <= (6 / 900) ** 0.5
    assert 0.98 * (6 / 340) ** 0.5 < tower.layers[0].weight.abs().max() <= (6 / 340) ** 0.5
    assert not tower.bias.any()
    again = Tower(600, 0, (300, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(tower.terms, again.terms)
    narrow = Tower(600, 0, (300, 40), fan_in=10)
    assert narrow.terms.abs().max() > 0.12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tower(0, 0), r"size \+ num_values must be >= 1, got 0 and 0; give it a column"),
        (lambda: Tower(3, 0, ()), "widths must be one or more numbers >= 1"),
        (lambda: Tower(3, activation="swish"), "activation must be one of relu"),
        (lambda: Tower(3, last_activation="linear"), "last_activation must be one of relu"),
        (lambda: Tower(3, fan_in=0), "fan_in must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=f"^Tower: {message}"):
        make()


def test_bad_batches_are_refused() -> None:
    tower, batch = Tower(SIZE, VALUES, (4,)).double(), TermRows(rows()).whole()
    with pytest.raises(ValueError, match=r"^Tower: values must be \[9, 2\], a row a row of terms, got \(9, 1\)"):
        tower(batch._replace(values=batch.values[:, :1]))
    with pytest.raises(IndexError, match=r"^Tower: .*11"):
        tower(batch._replace(ids=batch.ids + 11))
    with pytest.raises(ValueError, match=r"^Tower: .*float32"):
        tower(batch._replace(weights=batch.weights.float()))
