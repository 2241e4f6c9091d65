"""Claims about every operator: any derivative that a user can ask for is right or refused, never silently missing."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import deeprec.kernels
import deeprec.nn
from deeprec.kernels.als_solve import als_solve
from deeprec.kernels.embedding import embedding, embedding_plan
from deeprec.kernels.embedding_bag import RowUpdate, embedding_bag, embedding_bags
from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.kernels.fm_interaction import bi_interaction, fm_interaction
from deeprec.kernels.masked_autoencoder_loss import masked_autoencoder_loss
from deeprec.kernels.ncf_loss import ncf_loss
from deeprec.kernels.sampled_linear_loss import sampled_linear_loss
from deeprec.kernels.score_topk import DotScorer, score_items, score_topk
from deeprec.kernels.softmax_loss import sampled_softmax_loss, softmax_loss
from deeprec.kernels.sparse_linear import sparse_linear

for _package in (deeprec.kernels, deeprec.nn):
    for _module in pkgutil.iter_modules(_package.__path__):
        importlib.import_module(f"{_package.__name__}.{_module.name}")

IDS = torch.tensor([[0, 3, 3], [5, 0, 0]])
FLAT, OFFSETS = torch.tensor([0, 3, 3, 5, 0, 4, 2, 1, 1]), torch.tensor([0, 2, 2, 5, 6, 8, 9])
INDPTR, INDICES = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 3, 1, 2, 4])
TARGETS, ENTRY_WEIGHTS = torch.linspace(0.1, 0.9, 5).double(), torch.linspace(0.5, 2, 5).double()
USERS, ITEMS, LABELS = torch.tensor([0, 1, 1]), torch.tensor([[0, 1], [2, 2], [3, 0]]), torch.eye(3, 2).double()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


class Case(NamedTuple):
    """A call with dense or sparse gradients, and the shapes of what it is differentiated by."""

    call: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    has_sparse: bool = True


def _bag(mode: str, padding_idx: int | None) -> Callable[..., Tensor]:
    def call(sparse: bool, weight: Tensor) -> Tensor:
        offsets = torch.tensor([0, 3, 3, 4])
        return embedding_bag(weight, FLAT, offsets, mode=mode, padding_idx=padding_idx, sparse_grad=sparse)

    return call


def _weighted(sparse: bool, weight: Tensor, scale: Tensor) -> Tensor:
    return embedding_bag(weight, IDS, mode="sum", per_sample_weights=scale, padding_idx=3, sparse_grad=sparse)


def _bags(sparse: bool, *weights: Tensor) -> list[Tensor]:
    how = {"tables": (0, 1, 1), "padding_idx": (1, 2, 3), "sparse_grad": sparse}
    pooled, rows = embedding_bags(weights, FLAT, OFFSETS, modes=("mean", "none", "max"), **how)
    return [pooled, *rows]


def _single(sparse: bool, scale: Tensor, *weights: Tensor) -> Tensor:
    how = {"tables": (0, 1, 1), "padding_idx": (None, 0, 3), "sparse_grad": sparse}
    return embedding_bags(weights, IDS.T.contiguous(), per_sample_weights=scale, **how)[0]


def _rows(sparse: bool, *weights: Tensor) -> Tensor:
    how = {"tables": (0, 1, 1), "modes": ("max", "none", "mean"), "padding_idx": (0, None, 3), "sparse_grad": sparse}
    return embedding_bags(weights, IDS.T.contiguous(), **how)[0]


def _fm(ids: Tensor, offsets: Tensor | None) -> Callable[..., Any]:
    def call(sparse: bool, values: Tensor, *tables: Tensor) -> Any:
        how = {"tables": (0, 1, 1), "padding_idx": (1, None, 2), "need_embeddings": True, "sparse_grad": sparse}
        return embedding_fm(tables[:2], tables[2:], ids, offsets, values=values, **how)

    return call


def _linear(activation: str) -> Callable[..., Tensor]:
    def call(sparse: bool, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return sparse_linear(INDPTR, INDICES, values, weight, bias, activation=activation, sparse_grad=sparse)

    return call


def _sampled(activation: str, loss: str) -> Callable[..., Tensor]:
    def call(sparse: bool, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        how: dict[str, Any] = {"activation": activation, "loss": loss, "entry_weights": ENTRY_WEIGHTS}
        return sampled_linear_loss(hidden, weight, bias, INDPTR, INDICES, TARGETS, sparse_grad=sparse, **how)[0]

    return call


def _autoencoder(path: str) -> Callable[..., Tensor]:
    def call(sparse: bool, *layers: Tensor) -> Tensor:
        how = {"path": path, "code_activation": "tanh", "sparse_grad": sparse}
        return masked_autoencoder_loss(INDPTR, INDICES, TARGETS, *layers, **how)[0]

    return call


def _softmax(**options: Any) -> Callable[..., Tensor]:
    """Three queries; of five candidates two share an id, and the last row knows one."""
    seen = {"seen_indptr": torch.tensor([0, 0, 0, 1]), "seen_indices": torch.tensor([4], dtype=torch.int32)}

    def call(sparse: bool, queries: Tensor, items: Tensor, bias: Tensor) -> Tensor:
        how: dict[str, Any] = {"item_ids": torch.tensor([3, 1, 1, 2, 4]), "gamma": 2.0, "reduction": "none"}
        targets = torch.tensor([0, 2, 3])
        return softmax_loss(queries, items, targets, bias=bias, log_q=ENTRY_WEIGHTS.log(), **how, **seen, **options)

    return call


def _drawn(similarity: str) -> Callable[..., Tensor]:
    def call(sparse: bool, queries: Tensor, items: Tensor, bias: Tensor) -> Tensor:
        how: dict[str, Any] = {"seed": 1, "similarity": similarity, "reduction": "none", "sparse_grad": sparse}
        return sampled_softmax_loss(queries, items, torch.tensor([0, 2, 4]), 2, bias=bias, **how)

    return call


CASES = {
    "embedding": Case(lambda sparse, w: embedding(w, IDS, sparse_grad=sparse), ((6, 3),)),
    "embedding_bag sum": Case(_bag("sum", None), ((6, 3),)),
    "embedding_bag mean": Case(_bag("mean", 0), ((6, 3),)),
    "embedding_bag max": Case(_bag("max", 0), ((6, 3),)),
    "embedding_bag weighted": Case(_weighted, ((6, 3), (2, 3))),
    "embedding_bags": Case(_bags, ((6, 2), (6, 3))),
    "embedding_bags rows": Case(_rows, ((6, 2), (6, 3))),
    "embedding_bags one id a bag": Case(_single, ((3, 2), (6, 2), (6, 3))),
    "embedding_fm": Case(_fm(FLAT, OFFSETS), ((9,), (6, 3), (6, 3), (6,), (6, 1))),
    "embedding_fm one id a bag": Case(_fm(IDS.T, None), ((3, 2), (6, 3), (6, 3))),
    "fm_interaction": Case(lambda sparse, x: fm_interaction(x), ((3, 4, 2),), False),
    "bi_interaction": Case(lambda sparse, x: bi_interaction(x), ((3, 4, 2),), False),
    "sparse_linear": Case(_linear("identity"), ((5,), (5, 3), (3,))),
    "sparse_linear sigmoid": Case(_linear("sigmoid"), ((5,), (5, 3), (3,))),
    "sampled_linear_loss": Case(_sampled("identity", "squared"), ((3, 2), (5, 2), (5,))),
    "sampled_linear_loss cross_entropy": Case(_sampled("sigmoid", "cross_entropy"), ((3, 2), (5, 2), (5,))),
    "sampled_linear_loss hinge": Case(_sampled("tanh", "hinge"), ((3, 2), (5, 2), (5,))),
    "softmax_loss": Case(_softmax(label_smoothing=0.1), ((3, 2), (5, 2), (5,)), False),
    "softmax_loss cosine": Case(
        _softmax(similarity="cosine", include_positive=False, correct_positive=True), ((3, 2), (5, 2), (5,)), False
    ),
    "sampled_softmax_loss": Case(_drawn("dot"), ((3, 2), (5, 2), (5,))),
    "sampled_softmax_loss cosine": Case(_drawn("cosine"), ((3, 2), (5, 2), (5,))),
    "masked_autoencoder_loss dense": Case(_autoencoder("dense"), ((5, 2), (2,), (5, 2), (5,))),
    "masked_autoencoder_loss sparse": Case(_autoencoder("sparse"), ((5, 2), (2,), (5, 2), (5,))),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def tensors(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def total(out: Any) -> Tensor:
    """A number that is not linear in any part of a result."""
    return sum(((part + 0.3).pow(3).sum() for part in tensors(out)), torch.zeros((), dtype=torch.float64))


def functions() -> Iterator[type[torch.autograd.Function]]:
    def below(kind: type) -> Iterator[type]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return (kind for kind in below(torch.autograd.Function) if kind.__module__.startswith("deeprec."))


# Their backward calls the next one of them or raises.
PLAIN = {"_ScaleByFrequency", "_DividedGradient", "_Refused"}


def test_every_function_of_the_package_knows_its_second_derivative() -> None:
    kinds = [kind for kind in functions() if "backward" in vars(kind) and kind.__name__ not in PLAIN]
    assert len(kinds) >= 14
    for kind in kinds:
        assert hasattr(kind.backward, "again"), f"decorate {kind.__module__}.{kind.__name__}.backward: differentiable"


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_backwards_forwards_and_batched(name: str) -> None:
    case = CASES[name]
    inputs = [random(*shape) for shape in case.shapes]

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tensors(case.call(False, *inputs))

    assert gradcheck(
        call, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, fast_mode=True
    )
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.has_sparse])
def test_sparse_gradients_stay_sparse_and_have_the_second_derivative_of_dense_ones(name: str) -> None:
    case = CASES[name]
    inputs = [random(*shape) for shape in case.shapes]
    results = []
    for sparse in (True, False):
        firsts = torch.autograd.grad(total(case.call(sparse, *inputs)), inputs, create_graph=True)
        penalty = sum((first.to_dense().square().sum() for first in firsts), torch.zeros(()))
        seconds = torch.autograd.grad(penalty, inputs)
        plain = torch.autograd.grad(total(case.call(sparse, *inputs)), inputs)
        assert [first.layout for first in firsts] == [first.layout for first in plain]
        for first, want in zip(firsts, plain, strict=True):
            torch.testing.assert_close(first.to_dense(), want.to_dense())
            if first.is_sparse:
                assert torch.equal(first._indices(), want._indices())
        results.append([*(first.to_dense() for first in firsts), *(second.to_dense() for second in seconds)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", CASES)
def test_torch_func_agrees_with_autograd(name: str) -> None:
    case = CASES[name]
    inputs = tuple(random(*shape) for shape in case.shapes)
    places = tuple(range(len(inputs)))

    def loss(*inputs: Tensor) -> Tensor:
        return total(case.call(True, *inputs))

    plain = [grad.to_dense() for grad in torch.autograd.grad(loss(*inputs), inputs)]
    for got, want in zip(torch.func.grad(loss, places)(*inputs), plain, strict=True):
        torch.testing.assert_close(got, want)
    many = [torch.stack([x, x * 0.5]).detach() for x in inputs]
    batched = torch.vmap(torch.func.grad(loss, places))(*many)
    for index in range(2):
        single = torch.func.grad(loss, places)(*(x[index] for x in many))
        for got, want in zip(batched, single, strict=True):
            torch.testing.assert_close(got[index], want)
    values = torch.vmap(lambda *x: tensors(case.call(True, *x)))(*many)
    for got, want in zip(values, tensors(case.call(True, *(x[1] for x in many))), strict=True):
        torch.testing.assert_close(got[1], want)


def _ncf(*parameters: Tensor) -> Tensor:
    *tables, weight, bias, out_weight, out_bias = parameters
    return ncf_loss(*tables, USERS, ITEMS, LABELS, [weight], [bias], out_weight, out_bias, l2=0.1)


def test_ncf_loss_has_every_derivative() -> None:
    parameters = [random(*shape) for shape in ((2, 3), (4, 3), (2, 2), (4, 2), (4, 4), (4,), (7,), (1,))]
    places = tuple(range(8))
    plain = [grad.to_dense() for grad in torch.autograd.grad(_ncf(*parameters), parameters)]
    tangents = [torch.randn_like(p) for p in parameters]
    slope = torch.func.jvp(_ncf, tuple(parameters), tuple(tangents))[1]
    torch.testing.assert_close(slope, sum((a * b).sum() for a, b in zip(plain, tangents, strict=True)))
    firsts = torch.autograd.grad(_ncf(*parameters), parameters, create_graph=True)
    assert [first.is_sparse for first in firsts] == [True] * 4 + [False] * 4
    along = sum((first.to_dense() * t).sum() for first, t in zip(firsts, tangents, strict=True))
    seconds = torch.autograd.grad(along, parameters)
    want = torch.func.jvp(torch.func.grad(_ncf, places), tuple(parameters), tuple(tangents))[1]
    for first, second, want_first, want_second in zip(firsts, seconds, plain, want, strict=True):
        torch.testing.assert_close(first.to_dense(), want_first)
        torch.testing.assert_close(second.to_dense(), want_second)


def test_transforms_differentiate_the_entries_of_an_autoencoder_too() -> None:
    layers = [torch.randn(*shape, dtype=torch.float64) for shape in ((5, 2), (2,), (5, 2), (5,))]

    def loss(values: Tensor) -> Tensor:
        return masked_autoencoder_loss(INDPTR, INDICES, values, *layers)[0]

    step = torch.full((5,), 1e-6, dtype=torch.float64)
    slope = (loss(TARGETS + step) - loss(TARGETS - step)) / 2e-6
    torch.testing.assert_close(torch.func.grad(loss)(TARGETS).sum(), slope, rtol=1e-6, atol=1e-8)


def test_ncf_loss_takes_no_negative_id_inside_transforms() -> None:
    tables = [torch.randn(2, 3), torch.randn(4, 3)]
    for users, items in ((USERS - 1, ITEMS), (USERS, ITEMS - 1)):
        with pytest.raises((IndexError, RuntimeError)):
            torch.func.grad(
                lambda w, users=users, items=items: ncf_loss(
                    *tables, None, None, users, items, LABELS.float(), [], [], w, None
                )
            )(torch.ones(3))


def test_ids_and_offsets_are_batched() -> None:
    weights = [random(6, 2), random(6, 3)]
    ids = torch.randint(0, 6, (4, 9))
    offsets = torch.stack([OFFSETS, OFFSETS.new_tensor([0, 0, 4, 4, 5, 9, 9])]).repeat(2, 1)

    def call(ids: Tensor, offsets: Tensor) -> Tensor:
        return embedding_bags(weights, ids, offsets, tables=(0, 1, 1), modes=("mean", "sum", "max"))[0]

    want = torch.stack([call(*some) for some in zip(ids, offsets, strict=True)])
    torch.testing.assert_close(torch.vmap(call)(ids, offsets), want)
    with pytest.raises(RuntimeError, match="'none' beside other features need offsets that can be read"):
        torch.vmap(lambda i, o: embedding_bags(weights, i, o, tables=(0, 1, 1), modes=("sum", "none", "sum"))[1])(
            ids, offsets
        )
    many = ids[:, :6].reshape(4, 2, 3)
    torch.testing.assert_close(torch.vmap(lambda i: embedding(weights[0], i))(many), embedding(weights[0], many))
    grads = torch.vmap(torch.func.grad(lambda w, i: embedding(w, i).pow(2).sum()), (None, 0))(weights[0], many)
    for got, some in zip(grads, many, strict=True):
        (single,) = torch.autograd.grad(embedding(weights[0], some, sparse_grad=False).pow(2).sum(), weights[0])
        torch.testing.assert_close(got, single)


@pytest.mark.parametrize("planned", [True, False])
def test_an_id_out_of_range_is_an_error_inside_transforms_too(planned: bool) -> None:
    weight = random(4, 2)
    plan = embedding_plan(torch.tensor([1, 2]), 4) if planned else None
    for bad in (-1, 4):
        with pytest.raises((IndexError, ValueError)):
            torch.func.grad(lambda w, bad=bad: embedding(w, torch.tensor([1, bad]), plan).sum())(weight)


def row_update(weight: Tensor) -> RowUpdate:
    lr, step = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0)
    return RowUpdate(0, [], [], lr, step, [0.0, 0.0, 0.0, 0.0])


def _stepped(kind: str) -> tuple[Callable[[Tensor, Any], Tensor], Tensor]:
    """A call with a step in its backward pass, by what still has a gradient, and the table."""
    weight = torch.randn(6, 3, dtype=torch.float64)
    calls: dict[str, Callable[[Tensor, Any], Tensor]] = {
        "embedding_bags": lambda x, u: embedding_bags(
            [weight], FLAT, torch.tensor([0, 4, 9]), per_sample_weights=x, update=u
        )[0],
        "embedding_fm": lambda x, u: embedding_fm(
            [weight], [], FLAT.reshape(3, 3), values=x.reshape(3, 3), tables=(0, 0, 0), update=u
        ),
        "sparse_linear": lambda x, u: sparse_linear(torch.tensor([0, 4, 9]), FLAT, x, weight, update=u),
        "sampled_linear_loss": lambda x, u: sampled_linear_loss(
            x.reshape(3, 3), weight, None, INDPTR, INDICES, TARGETS, update=u
        )[0],
        "masked_autoencoder_loss": lambda x, u: masked_autoencoder_loss(
            INDPTR, INDICES, TARGETS, weight, x[:3], weight.clone(), None, path="dense", update_encoder=u,
            update_decoder=u,
        )[0],
    }  # fmt: skip
    return calls[kind], weight


STEPPED = ("embedding_bags", "embedding_fm", "sparse_linear", "sampled_linear_loss", "masked_autoencoder_loss")


@pytest.mark.parametrize("kind", STEPPED)
@pytest.mark.parametrize("by_rows", [True, False])
def test_a_step_in_the_backward_pass_has_no_second_derivative_and_says_so(kind: str, by_rows: bool) -> None:
    call, weight = _stepped(kind)
    x = random(9)
    update: Any = (lambda rows, grads: weight.index_add_(0, rows[0], grads[0], alpha=-0.1)) if by_rows else None
    before = weight.clone()
    (first,) = torch.autograd.grad(total(call(x, update or row_update(weight))), x, create_graph=True)
    assert not torch.equal(weight, before)  # the first derivative is there, and the step was taken
    message = f"{kind}: a step taken in the backward pass .* has no second derivative"
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(first.square().sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match=message):
        first.norm().backward()
    weight.copy_(before)
    total(call(x, update or row_update(weight))).backward(create_graph=True)
    x.grad = None
    after = weight.clone()
    weight.copy_(before)
    total(call(x, update or row_update(weight))).backward()
    torch.testing.assert_close(weight, after)
    for transformed in (
        lambda: torch.func.grad(lambda x: total(call(x, row_update(weight))))(x),
        lambda: torch.func.jvp(lambda x: total(call(x, row_update(weight))), (x,), (x,)),
        lambda: torch.vmap(lambda x: call(x, row_update(weight)))(torch.stack([x, x])),
    ):
        with pytest.raises(RuntimeError, match=message):
            transformed()
    out = call(x, row_update(weight))
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(out, x, torch.stack([torch.ones_like(out)] * 2), is_grads_batched=True)
    torch.testing.assert_close(weight, after)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_graph_that_is_kept_but_not_differentiated_costs_nothing(sparse: bool) -> None:
    weight, grads = random(6, 3), []
    for options in ({}, {"retain_graph": True}, {"create_graph": True}):
        weight.grad = None
        embedding(weight, IDS, sparse_grad=sparse).pow(2).sum().backward(**options)
        grads.append(weight.grad.detach().to_dense())
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])


def test_a_table_that_is_not_looked_up_has_no_gradient_of_any_order() -> None:
    weights = [torch.randn(6, 3), torch.randn(6, 3, requires_grad=True)]
    for sparse in (True, False):
        out, _ = embedding_bags(weights, IDS, tables=(0, 0), sparse_grad=sparse)
        (first,) = torch.autograd.grad(out.sum(), weights[1], create_graph=True, allow_unused=True)
        assert first is None or not first.to_dense().any()
    weights[0].requires_grad_()
    out, _ = embedding_bags(weights, IDS, tables=(0, 0), sparse_grad=False)
    firsts = torch.autograd.grad(out.pow(3).sum(), weights, create_graph=True, allow_unused=True)
    (second,) = torch.autograd.grad(firsts[0].sum(), weights[0])
    assert second.any()


def test_an_input_changed_before_it_is_differentiated_again_is_an_error() -> None:
    values, weight = random(5), random(5, 3)
    out = sparse_linear(INDPTR, INDICES, values.detach(), weight, activation="tanh", sparse_grad=False)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"sparse_linear: its inputs must stay .* modified by an inplace operation"):
        torch.autograd.grad(out.sum(), weight, create_graph=True)


def test_scores_have_no_derivative_and_say_so() -> None:
    users, items = torch.randn(2, 3), torch.randn(5, 3)
    for call in (lambda u: score_items(DotScorer(u, items)), lambda u: score_topk(DotScorer(u, items), 2).values):
        with pytest.raises(RuntimeError, match="has no derivative"):
            torch.func.grad(lambda u, call=call: call(u).sum())(users)
        with pytest.raises(RuntimeError, match="has no derivative"), forward_ad.dual_level():
            call(forward_ad.make_dual(users, users))
        torch.testing.assert_close(torch.vmap(call)(users[None])[0], call(users))


def test_solutions_have_no_derivative_and_say_so() -> None:
    def call(factors: Tensor) -> Tensor:
        return als_solve(INDPTR, INDICES, ENTRY_WEIGHTS, factors, ridge=0.5).rows

    factors = random(5, 3)
    assert not call(factors).requires_grad
    with pytest.raises(RuntimeError, match="has no derivative"):
        torch.func.grad(lambda given: call(given).sum())(factors)
    with pytest.raises(RuntimeError, match="has no derivative"), forward_ad.dual_level():
        call(forward_ad.make_dual(factors, factors))
