"""The layers under torch.autograd.functional, torch.func and vmap, beside torch's own layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from deeprec.nn import (
    Dropout,
    Embedding,
    EmbeddingBag,
    EmbeddingCollection,
    FactorizationMachine,
    PairAttention,
    Table,
)
from deeprec.train import optim

ROWS, DIM = 7, 3
IDS = torch.tensor([[1, 2, 2], [6, 0, 1]])  # [B, L]


class Pooled(nn.Embedding):
    """torch's EmbeddingBag, without second derivatives and forward mode, as torch's lookup and pooling by hand."""

    def __init__(self, *sizes: int, mode: str, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        padding = -1 if self.padding_idx is None else self.padding_idx
        rows, keep = super().forward(input), (input != padding).unsqueeze(2)
        if self.mode == "max":
            return rows.amax(1)
        total = (rows * keep).sum(1)
        return total if self.mode == "sum" else total / keep.sum(1)


LAYERS = {
    "Embedding": (Embedding, nn.Embedding, {}),
    "Embedding, padding": (Embedding, nn.Embedding, {"padding_idx": 2}),
    "EmbeddingBag sum": (EmbeddingBag, Pooled, {"mode": "sum"}),
    "EmbeddingBag mean, padding": (EmbeddingBag, Pooled, {"mode": "mean", "padding_idx": 2}),
    "EmbeddingBag max": (EmbeddingBag, Pooled, {"mode": "max"}),
}
both_layouts = pytest.mark.parametrize("sparse", [True, False])


def pair(name: str, sparse: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    ours, theirs, options = LAYERS[name]
    weight = torch.randn(ROWS, DIM, dtype=torch.float64)
    how = {**options, "dtype": torch.float64}
    return ours(ROWS, DIM, sparse=sparse, **how), theirs(ROWS, DIM, **how), weight.requires_grad_()


def loss_of(layer: nn.Module, ids: Tensor = IDS) -> Callable[[Tensor], Tensor]:
    return lambda weight: (functional_call(layer, {"weight": weight}, (ids,)) + 0.5).pow(3).sum()


def test_the_derivatives_that_were_silently_zero() -> None:
    layer, x = Embedding(4, 1, sparse=False), torch.ones(())
    nn.init.ones_(layer.weight)

    def loss(weight: Tensor) -> Tensor:
        return (functional_call(layer, {"weight": weight}, (torch.tensor([1]),)) * x).pow(3).sum()

    (first,) = torch.autograd.grad(loss(layer.weight), layer.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), layer.weight)
    assert second[1].item() == 6.0
    assert torch.autograd.functional.hessian(loss, layer.weight)[1, 0, 1, 0].item() == 6.0
    assert torch.autograd.functional.hvp(loss, layer.weight, torch.ones(4, 1))[1][1].item() == 6.0
    assert torch.func.jvp(loss, (layer.weight,), (torch.ones(4, 1),))[1].item() == 3.0


@both_layouts
@pytest.mark.parametrize("name", LAYERS)
def test_torch_func_gives_what_torchs_layers_give(name: str, sparse: bool) -> None:
    ours, theirs, weight = pair(name, sparse)
    tangent = torch.randn_like(weight)
    transforms: list[Callable[[Any], Any]] = [
        lambda loss: torch.func.grad(loss)(weight),
        lambda loss: torch.func.vjp(loss, weight)[1](torch.tensor(2.0, dtype=torch.float64)),
        lambda loss: torch.func.jacrev(torch.func.jacrev(loss))(weight),
        lambda loss: torch.func.jvp(loss, (weight,), (tangent,)),
        lambda loss: torch.func.jacfwd(loss)(weight),
        lambda loss: torch.func.hessian(loss)(weight),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(loss_of(ours)), transform(loss_of(theirs)))


@pytest.mark.parametrize("name", LAYERS)
def test_autograd_functional_gives_what_torchs_layers_give(name: str) -> None:
    ours, theirs, weight = pair(name, sparse=False)
    vector = torch.randn_like(weight)
    functional = torch.autograd.functional
    for transform in (functional.hvp, functional.vhp):
        results = [transform(loss_of(layer), weight, vector) for layer in (ours, theirs)]
        torch.testing.assert_close(*results)
    for vectorize in (False, True):
        results = [functional.hessian(loss_of(layer), weight, vectorize=vectorize) for layer in (ours, theirs)]
        torch.testing.assert_close(*results)


@both_layouts
@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_penalty_trains_as_with_torchs_layers(name: str, sparse: bool) -> None:
    grads = []
    ours, theirs, weight = pair(name, sparse)
    head = nn.Linear(DIM, 1, dtype=torch.float64)
    for layer in (ours, theirs):
        layer.weight = nn.Parameter(weight.detach().clone())
        head.zero_grad()
        out = layer(IDS)
        (by_rows,) = torch.autograd.grad(head(out.tanh()).sum(), out, create_graph=True)
        (by_table,) = torch.autograd.grad(head(layer(IDS).tanh()).sum(), layer.weight, create_graph=True)
        penalty = (by_rows.norm(dim=-1) - 1).square().sum() + by_table.to_dense().square().sum()
        penalty.backward()
        grads.append([layer.weight.grad.to_dense(), head.weight.grad.clone()])
    torch.testing.assert_close(*grads)


@both_layouts
@pytest.mark.parametrize("name", LAYERS)
def test_batches_of_gradients_tables_and_ids(name: str, sparse: bool) -> None:
    ours, theirs, weight = pair(name, sparse)
    out, want = (functional_call(layer, {"weight": weight}, (IDS,)) for layer in (ours, theirs))
    grads = torch.randn(4, *out.shape, dtype=torch.float64)
    many = [torch.autograd.grad(some, weight, grads, is_grads_batched=True)[0] for some in (out, want)]
    torch.testing.assert_close(*many)
    tables = torch.stack([weight, weight * 2, weight - 1]).detach()
    ensembles = [
        torch.vmap(lambda w, layer=layer: functional_call(layer, {"weight": w}, (IDS,)))(tables)
        for layer in (ours, theirs)
    ]
    torch.testing.assert_close(*ensembles)
    batch = torch.randint(0, ROWS, (5, 2, 3))
    per_sample = torch.vmap(torch.func.grad(lambda w, ids: loss_of(ours, ids)(w)), (None, 0))(weight, batch)
    for got, ids in zip(per_sample, batch, strict=True):
        torch.testing.assert_close(got, torch.autograd.grad(loss_of(theirs, ids)(weight), weight)[0])


@both_layouts
def test_gradients_scaled_by_frequency(sparse: bool) -> None:
    ours, theirs = (
        kind(ROWS, DIM, padding_idx=2, scale_grad_by_freq=True, dtype=torch.float64)
        for kind in (Embedding, nn.Embedding)
    )
    ours.sparse = sparse
    weight = torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        torch.testing.assert_close(transform(loss_of(ours))(weight), transform(loss_of(theirs))(weight))
    per_table = torch.vmap(torch.func.grad(loss_of(ours)))(torch.stack([weight, weight]))
    torch.testing.assert_close(per_table[1], torch.func.grad(loss_of(theirs))(weight))
    # What torch answers here is the derivative of nothing.
    (first,) = torch.autograd.grad(loss_of(ours)(weight), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="scale_grad_by_freq"):
        torch.autograd.grad(first.to_dense().sum(), weight)
    with pytest.raises(RuntimeError, match="scale_grad_by_freq"):
        torch.func.jacrev(torch.func.grad(loss_of(ours)))(weight)


class DeepFM(nn.Module):
    """What a user would transform: several layers, one of them with several tables."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        tables = [Table("a", ROWS, 4), Table("b", ROWS, 4, features=("b", "c"))]
        self.many = EmbeddingCollection([Table("user", ROWS, 4), Table("tags", ROWS, 2, "mean")], **options)
        self.machine = FactorizationMachine(tables, return_embeddings=True, **options)
        self.pairs = PairAttention(4, 3)
        self.out = nn.Linear(10, 1)
        for table in [*self.many.weights(), *self.machine.weights(), *self.machine.linear_weights()]:
            nn.init.normal_(table)

    def forward(self, ids: Tensor) -> Tensor:
        logit, rows = self.machine(ids)
        deep = torch.cat([self.many({"user": ids[:, 0], "tags": ids}), self.pairs(rows)], 1)
        return logit + self.out(deep).squeeze(1)


def test_a_model_gives_gradients_by_sample_and_products_with_its_hessian() -> None:
    model = DeepFM().double()
    parameters = {name: param.detach() for name, param in model.named_parameters()}
    ids = torch.randint(0, ROWS, (4, 3))

    def loss(parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
        return functional_call(model, parameters, (ids,)).tanh().sum()

    by_sample = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, ids.unsqueeze(1))
    model(ids).tanh().sum().backward()
    for name, param in model.named_parameters():
        torch.testing.assert_close(by_sample[name].sum(0), param.grad.to_dense())
    tangents = {name: torch.randn_like(param) for name, param in parameters.items()}
    _, forwards = torch.func.jvp(lambda p: torch.func.grad(loss)(p, ids), (parameters,), (tangents,))
    firsts = torch.autograd.grad(model(ids).tanh().sum(), list(model.parameters()), create_graph=True)
    along = sum((a.to_dense() * tangents[n]).sum() for a, n in zip(firsts, parameters, strict=True))
    seconds = torch.autograd.grad(along, list(model.parameters()))
    for name, second in zip(parameters, seconds, strict=True):
        torch.testing.assert_close(second.to_dense(), forwards[name])


def test_a_step_in_the_backward_pass_is_refused_inside_transforms() -> None:
    model = DeepFM(optimizer_in_backward=functools.partial(optim.SGD, lr=0.1))
    parameters = {name: param.detach() for name, param in model.named_parameters()}
    ids = torch.randint(0, ROWS, (4, 3))
    with pytest.raises(RuntimeError, match="optimizer_in_backward"):
        torch.func.grad(lambda p: functional_call(model, p, (ids,)).sum())(parameters)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(model)(ids.unsqueeze(1)).squeeze(1), model(ids))


def test_dropout_is_linear_and_knows_it() -> None:
    x = torch.randn(64, dtype=torch.float64, requires_grad=True)
    out = Dropout(0.5)(x)
    (first,) = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, torch.where(out == 0, 0.0, 48 * x))
    tangent = torch.ones_like(x)
    value, slope = torch.func.jvp(Dropout(0.5), (x,), (tangent,))
    torch.testing.assert_close(slope, torch.where(value == 0, 0.0, 2.0).double())


def test_transforms_inside_a_compiled_graph() -> None:
    weight = torch.randn(ROWS, DIM)

    def per_sample(weight: Tensor, ids: Tensor) -> Tensor:
        layer = EmbeddingBag(ROWS, DIM, mode="sum", device="meta")
        return torch.vmap(torch.func.grad(lambda w, i: loss_of(layer, i)(w)), (None, 0))(weight, ids)

    ids = torch.randint(0, ROWS, (4, 2, 3))
    compiled = torch.compile(per_sample, backend="aot_eager")
    torch.testing.assert_close(compiled(weight, ids), per_sample(weight, ids))
